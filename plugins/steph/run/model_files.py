"""What lies on this disk: whether a model folder is whole, what the Hub's cache holds, where a Qwen tokenizer is.

Reads headers, never weights; asks no network.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from steph.base.files import UnreadableError, read_json_object
from steph.base.messages import say
from steph.base.tensors import read_header

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
_CHATML_MARK = b"<|im_start|>"


class IncompleteModelError(Exception):
    """A folder lacks something that a model needs; the message names folder and file in one line."""


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A whole model in the Hub's cache and the commit that it is."""

    folder: Path
    revision: str


def default_cache_dir() -> Path:
    """Where huggingface_hub keeps models, by the environment."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repo_folder(cache_dir: Path, name: str) -> Path:
    """The cache's folder of one model; layout of the Hub's cache (`models--organisation--name`)."""
    return cache_dir / ("models--" + name.replace("/", "--"))


def cached_model(cache_dir: Path, name: str) -> CachedModel:
    """The copy that `from_pretrained(name)` would load without a network: the one that refs/main names.

    Raises IncompleteModelError where there is none or a file is missing or cut.
    """
    ref = repo_folder(cache_dir, name) / "refs" / "main"
    try:
        revision = ref.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise IncompleteModelError(say("model_files.no_copy", model=name, folder=cache_dir)) from error
    folder = repo_folder(cache_dir, name) / "snapshots" / revision
    check_whole(folder)
    return CachedModel(folder, revision)


def check_whole(folder: Path) -> None:
    """Raise IncompleteModelError unless `folder` holds config, tokenizer and every weight file in full length."""
    if not folder.is_dir():
        raise IncompleteModelError(say("model_files.no_folder", folder=folder))
    _read_object(folder / "config.json")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise IncompleteModelError(say("model_files.no_tokenizer", folder=folder))
    for path in weight_files(folder):
        _parameters(path)


def folder_parameters(folder: Path) -> int:
    """Parameters of a whole model folder, counted from the tensors' shapes."""
    return sum(_parameters(path) for path in weight_files(folder))


def folder_licence(folder: Path) -> str | None:
    """The licence that a model folder's README.md names in its front matter, if it has one."""
    try:
        head = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:4000]
    except OSError:
        return None
    match = re.search(r"^license:[ \t]*([^\s#]+)", head, re.MULTILINE) if head.startswith("---") else None
    return match.group(1) if match else None


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that transformers would load from a folder: the single one, else the index's shards."""
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    if not (folder / WEIGHTS_INDEX).is_file():
        raise IncompleteModelError(say("model_files.no_weights", folder=folder, weights=WEIGHTS, index=WEIGHTS_INDEX))
    weight_map = _read_object(folder / WEIGHTS_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise IncompleteModelError(say("model_files.no_weight_map", path=folder / WEIGHTS_INDEX))
    return tuple(folder / str(shard) for shard in sorted(set(weight_map.values())))


def _parameters(path: Path) -> int:
    """Elements of all tensors in one file."""
    try:
        return sum(prod(tensor.shape) for tensor in read_header(path))
    except UnreadableError as error:
        raise IncompleteModelError(say("model_files.unreadable", path=path, reason=error)) from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path, finite=False)
    except UnreadableError as error:
        raise IncompleteModelError(say("model_files.unreadable", path=path, reason=error)) from error


def free_disk_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder that need not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def find_qwen_tokenizer(extra: Sequence[Path] = (), cache_dir: Path | None = None) -> Path | None:
    """A folder with a `tokenizer.json` that knows ChatML, or None.

    Looked for in $STEPH_TOKENIZER (a folder or a tokenizer.json), then in the folders `extra`, then in the Hub's cache,
    Qwen's own models first. Raises ValueError where $STEPH_TOKENIZER is set to something else.
    """
    named = os.environ.get("STEPH_TOKENIZER")
    if named:
        folder = _tokenizer_folder(Path(named).expanduser())
        if folder is None:
            raise ValueError(say("model_files.no_chatml", named=named))
        return folder
    for path in (*extra, *_cached_snapshots(cache_dir or default_cache_dir())):
        folder = _tokenizer_folder(path)
        if folder is not None:
            return folder
    return None


def _tokenizer_folder(path: Path) -> Path | None:
    file = path if path.name == "tokenizer.json" else path / "tokenizer.json"
    try:
        return file.parent if _CHATML_MARK in file.read_bytes() else None
    except OSError:
        return None


def _cached_snapshots(cache_dir: Path) -> Iterator[Path]:
    for pattern in ("models--Qwen--*/snapshots/*", "models--*/snapshots/*"):
        yield from sorted(cache_dir.glob(pattern))
