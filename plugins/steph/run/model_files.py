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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from steph.base.files import UnreadableError, parse_json_object, read_header, read_json_object, write_whole
from steph.base.messages import Message, say, words_of
from steph.memory.shapes import COUNTED_SIZES, ModelShape, shape_of_counts
from steph.memory.terms import AdapterCount
from steph.run.processes import output_of

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
_COUNT_SCRIPT = Path(__file__).parents[1] / "child" / "count.py"
_COUNT_FORMAT = 2  # counted up when the same question would have another answer
_COUNT_SECONDS = 120


class IncompleteModelError(Exception):
    """A folder lacks something that a model needs; the message names folder and file in one line."""


class CountingError(Exception):
    """The model can't be counted; the message is one line."""


@dataclass(frozen=True, slots=True)
class Counted:
    """A model's shape, and LoRA's parameters and the modules that it is on where an adapter was asked about."""

    shape: ModelShape
    adapter: AdapterCount | None = None
    modules: tuple[str, ...] = ()


def default_cache_dir() -> Path:
    """Where huggingface_hub keeps models, by the environment."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repo_folder(cache_dir: Path, name: str) -> Path:
    """The cache's folder of one model; layout of the Hub's cache (`models--organisation--name`)."""
    return cache_dir / ("models--" + name.replace("/", "--"))


def cached_model(cache_dir: Path, name: str) -> Path:
    """The copy that `from_pretrained(name)` would load without a network, in a folder called like its commit.

    Raises IncompleteModelError where there is none or a file is missing or cut.
    """
    try:
        revision = (repo_folder(cache_dir, name) / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError as error:
        raise IncompleteModelError(say("model_files.no_copy", model=name, folder=cache_dir)) from error
    folder = repo_folder(cache_dir, name) / "snapshots" / revision
    folder_parameters(folder)
    return folder


def folder_parameters(folder: Path) -> int:
    """Parameters of a whole model folder, counted from the tensors' shapes.

    Raises IncompleteModelError unless it holds config, tokenizer and, in full length, every weight file that
    transformers would load: the single one, else the index's shards.
    """
    if not folder.is_dir():
        raise IncompleteModelError(say("model_files.no_folder", folder=folder))
    path, index = folder / "config.json", folder / WEIGHTS_INDEX
    try:
        read_json_object(path, finite=False)
        if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
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
        parameters = 0
        for path in (folder / file for file in files):
            parameters += sum(prod(tensor.shape) for tensor in read_header(path))
    except UnreadableError as error:
        raise IncompleteModelError(say("model_files.unreadable", path=path, reason=error)) from error
    return parameters


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


def find_qwen_tokenizer(extra: Sequence[Path] = (), cache_dir: Path | None = None) -> Path | None:
    """A folder with a `tokenizer.json` that knows ChatML, or None.

    Looked for in $STEPH_TOKENIZER (a folder or a tokenizer.json), then in the folders `extra`, then in the Hub's cache,
    Qwen's own models first. Raises ValueError where $STEPH_TOKENIZER is set to something else.
    """

    def with_chatml(path: Path) -> Path | None:
        file = path if path.name == "tokenizer.json" else path / "tokenizer.json"
        try:
            return file.parent if b"<|im_start|>" in file.read_bytes() else None
        except OSError:
            return None

    named = os.environ.get("STEPH_TOKENIZER")
    if named:
        folder = with_chatml(Path(named).expanduser())
        if folder is None:
            raise ValueError(say("model_files.no_chatml", named=named))
        return folder
    cache_dir = cache_dir or default_cache_dir()
    patterns = ("models--Qwen--*/snapshots/*", "models--*/snapshots/*")
    cached = (path for pattern in patterns for path in sorted(cache_dir.glob(pattern)))
    return next(filter(None, map(with_chatml, (*extra, *cached))), None)


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
    # what makes two questions the same: the configuration, the adapter, and the packages that answer
    home = Path(python).parent.parent
    packages = [folder.stat().st_mtime_ns for folder in sorted(home.glob("lib/python*/site-packages"))]
    contents = [_COUNT_FORMAT, config.read_text(encoding="utf-8"), adapter, str(home), packages]
    digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
    kept = cache / "counts" / f"{digest}.json"
    try:
        found = read_json_object(kept)
    except (UnreadableError, OSError):
        tell(say("fit.counting", model=model, python=python))
        found = _count(model, config, adapter, python)
        with contextlib.suppress(OSError):  # it costs the next question its seconds alone
            write_whole(kept, json.dumps(found))
    lora = found.get("adapter")
    if lora is None:
        return Counted(shape_of_counts(found))
    count_of = AdapterCount(lora["lora"], lora["magnitude"], lora["whole"])
    return Counted(shape_of_counts(found), count_of, tuple(lora["modules"]))


def _count(model: str, config: Path, adapter: dict[str, Any] | None, python: str) -> dict[str, Any]:
    command = [python, str(_COUNT_SCRIPT), "--config", str(config), "--sizes", *COUNTED_SIZES]
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
