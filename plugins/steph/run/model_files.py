"""What a model is by its files: whether a folder is whole, what the Hub's cache holds, its parameters counted.

Reads headers, never weights; asks no network. What its configuration alone amounts to is counted by transformers and
peft in the pipeline's interpreter (`child/count.py`), and the answer is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from steph.base.files import UnreadableError, parse_json_object, read_json_object
from steph.base.messages import Message, say, words_of
from steph.base.tensors import read_header
from steph.memory.shapes import ModelShape, shape_of_counts
from steph.memory.trainers import AdapterCount
from steph.run.tree import output_of

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


_COUNT_SCRIPT = Path(__file__).parents[1] / "child" / "count.py"
_COUNT_FORMAT = 2  # counted up when the same question would have another answer
_COUNT_SECONDS = 120


class CountingError(Exception):
    """The model can't be counted; the message is one line."""


@dataclass(frozen=True, slots=True)
class Counted:
    """A model's shape, and LoRA's parameters and the modules that it is on where an adapter was asked about."""

    shape: ModelShape
    adapter: AdapterCount | None = None
    modules: tuple[str, ...] = ()


def counted(
    model: str,
    config: Path,
    adapter: dict[str, Any] | None,
    *,
    python: str,
    cache: Path,
    tell: Callable[[Message], object],
) -> Counted:
    """Count by `child/count.py`, or take the answer that is kept; `tell` hears before it takes seconds.

    `model`: what it is called. `adapter`: arguments of peft.LoraConfig. Raises CountingError, and OSError where the
    configuration can't be read.
    """
    kept = cache / "counts" / f"{_question(config, adapter, python)}.json"
    try:
        found = read_json_object(kept)
    except (UnreadableError, OSError):
        tell(say("fit.counting", model=model, python=python))
        found = _count(model, config, adapter, python)
        with contextlib.suppress(OSError):  # it costs the next question its seconds alone
            keep_answer(kept, found)
    lora = found.get("adapter")
    if lora is None:
        return Counted(shape_of_counts(found))
    count_of = AdapterCount(lora["lora"], lora["magnitude"], lora["whole"])
    return Counted(shape_of_counts(found), count_of, tuple(lora["modules"]))


def _question(config: Path, adapter: dict[str, Any] | None, python: str) -> str:
    """What makes two questions the same: the configuration, the adapter, and the packages that answer."""
    home = Path(python).parent.parent
    packages = [folder.stat().st_mtime_ns for folder in sorted(home.glob("lib/python*/site-packages"))]
    contents = [_COUNT_FORMAT, config.read_text(encoding="utf-8"), adapter, str(home), packages]
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def _count(model: str, config: Path, adapter: dict[str, Any] | None, python: str) -> dict[str, Any]:
    command = [python, str(_COUNT_SCRIPT), "--config", str(config)]
    command += ["--adapter", json.dumps(adapter)] if adapter is not None else []
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "CUDA_VISIBLE_DEVICES": ""}
    try:
        ended = output_of(command, _COUNT_SECONDS, environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CountingError(say("fit.not_counted", model=model, error=error)) from error
    if ended.returncode != 0:
        lines = ended.stderr.strip().splitlines() or [str(ended.returncode)]
        raise CountingError(say("fit.not_counted", model=model, error=lines[-1]))
    try:
        return parse_json_object((ended.stdout.strip().splitlines() or [""])[-1].encode())
    except UnreadableError as error:
        raise CountingError(say("fit.not_counted", model=model, error=words_of(error))) from error


def keep_answer(path: Path, found: dict[str, Any]) -> None:
    """Write an answer down, whole or not at all; raises OSError where the cache can't be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(found), encoding="utf-8")
    new.replace(path)
