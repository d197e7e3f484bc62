"""Checks that a model folder is complete, and reads its parameter count and licence.

Reads headers, never weights; asks no network.
"""

from __future__ import annotations

import re
import shutil
from math import prod
from pathlib import Path

from steph.base.files import Tensor, UnreadableError, read_header, read_json_object
from steph.base.messages import say

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # of which a tokenizer needs one
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "tokenizer_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)


class IncompleteModelError(Exception):
    """A folder lacks something that a model needs; the message names folder and file in one line."""


def default_cache_dir() -> Path:
    """Where huggingface_hub keeps models, by the environment."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repo_folder(cache_dir: Path, name: str) -> Path:
    """The cache's folder of one model; layout of the Hub's cache (`models--organisation--name`)."""
    return cache_dir / ("models--" + name.replace("/", "--"))


def cached_model(cache_dir: Path, name: str) -> Path:
    """The folder that `from_pretrained(name)` would load offline; raises IncompleteModelError where it is not whole."""
    try:
        revision = (repo_folder(cache_dir, name) / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError as error:
        raise IncompleteModelError(say("model_files.no_copy", model=name, folder=cache_dir)) from error
    folder = repo_folder(cache_dir, name) / "snapshots" / revision
    require_complete(folder)
    return folder


def folder_parameters(folder: Path) -> int:
    """The parameter count of a model folder, from its tensors' shapes; raises what `require_complete` raises."""
    return sum(prod(tensor.shape) for tensor in require_complete(folder))


def require_complete(folder: Path) -> list[Tensor]:
    """The tensors of a model folder; raises IncompleteModelError unless config, tokenizer and all weights are whole."""
    if not folder.is_dir():
        raise IncompleteModelError(say("model_files.no_folder", folder=folder))
    path, index = folder / "config.json", folder / WEIGHTS_INDEX
    try:
        read_json_object(path, finite=False)
        if not any((folder / name).is_file() for name in VOCABULARY_FILES):
            raise IncompleteModelError(say("model_files.no_tokenizer", folder=folder))
        files = [WEIGHTS]
        if not (folder / WEIGHTS).is_file():
            if not index.is_file():
                lacks = say("model_files.no_weights", folder=folder, weights=WEIGHTS, index=WEIGHTS_INDEX)
                raise IncompleteModelError(lacks)
            path = index
            weight_map = read_json_object(path, finite=False).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise IncompleteModelError(say("model_files.no_weight_map", path=path))
            files = sorted({str(shard) for shard in weight_map.values()})
        tensors = list[Tensor]()
        for path in (folder / file for file in files):
            tensors += read_header(path)
    except UnreadableError as error:
        raise IncompleteModelError(say("model_files.unreadable", path=path, reason=error)) from error
    return tensors


def folder_licence(folder: Path) -> str | None:
    """The licence that a model folder's README.md names in its front matter, if it has one."""
    try:
        head = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:4000]
    except OSError:
        return None
    match = re.search(r"^license:[ \t]*([^\s#]+)", head, re.MULTILINE) if head.startswith("---") else None
    return match.group(1) if match else None


def free_disk_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder that need not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
