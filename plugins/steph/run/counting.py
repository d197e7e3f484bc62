"""Counts a model by transformers and peft in the pipeline's interpreter, and keeps the answer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steph.base.files import UnreadableError, parse_json_object, read_json_object
from steph.base.messages import Message, say, words_of
from steph.memory.shapes import ModelShape, shape_of_counts
from steph.memory.trainers import AdapterCount
from steph.run.hub_query import is_offline
from steph.run.tree import output_of

SCRIPT = Path(__file__).parents[1] / "child" / "count.py"
FORMAT = 2  # counted up when the same question would have another answer
TIMEOUT_SECONDS = 120
HUB_SECONDS = 10.0


class CountingError(Exception):
    """The model can't be counted; the message is one line."""


@dataclass(frozen=True, slots=True)
class Counted:
    """A model's shape, and LoRA's parameters and the modules that it is on where an adapter was asked about."""

    shape: ModelShape
    adapter: AdapterCount | None = None
    modules: tuple[str, ...] = ()


def hub_config(name: str, cache: Path, endpoint: str | None = None) -> Path:
    """The config.json of a model on the Hub, asked for once and kept; raises CountingError, also while offline."""
    kept = cache / "configs" / f"{name.replace('/', '--')}.json"
    if kept.is_file():
        return kept
    if is_offline():
        raise CountingError(say("fit.no_config", model=name, error="HF_HUB_OFFLINE"))
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils._headers import build_hf_headers

    try:
        url = hf_hub_url(name, "config.json", endpoint=endpoint)
        answer = get_session().get(url, headers=build_hf_headers(), timeout=HUB_SECONDS, follow_redirects=True)
        answer.raise_for_status()
        found = parse_json_object(answer.content, finite=False)
    except Exception as error:  # whatever the network, the Hub or the file does
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CountingError(say("fit.no_config", model=name, error=lines[0])) from error
    _keep(kept, found)
    return kept


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
    kept = cache / "counts" / f"{_key(config, adapter, python)}.json"
    try:
        found = read_json_object(kept)
    except (UnreadableError, OSError):
        tell(say("fit.counting", model=model, python=python))
        found = _run(model, config, adapter, python)
        with contextlib.suppress(OSError):  # it costs the next question its seconds alone
            _keep(kept, found)
    lora = found.get("adapter")
    if lora is None:
        return Counted(shape_of_counts(found))
    count_of = AdapterCount(lora["lora"], lora["magnitude"], lora["whole"])
    return Counted(shape_of_counts(found), count_of, tuple(lora["modules"]))


def _key(config: Path, adapter: dict[str, Any] | None, python: str) -> str:
    """What makes two questions the same: the configuration, the adapter, and the packages that answer."""
    home = Path(python).parent.parent
    packages = [folder.stat().st_mtime_ns for folder in sorted(home.glob("lib/python*/site-packages"))]
    contents = [FORMAT, config.read_text(encoding="utf-8"), adapter, str(home), packages]
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def _run(model: str, config: Path, adapter: dict[str, Any] | None, python: str) -> dict[str, Any]:
    command = [python, str(SCRIPT), "--config", str(config)]
    command += ["--adapter", json.dumps(adapter)] if adapter is not None else []
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "CUDA_VISIBLE_DEVICES": ""}
    try:
        ended = output_of(command, TIMEOUT_SECONDS, environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CountingError(say("fit.not_counted", model=model, error=error)) from error
    if ended.returncode != 0:
        lines = ended.stderr.strip().splitlines() or [str(ended.returncode)]
        raise CountingError(say("fit.not_counted", model=model, error=lines[-1]))
    try:
        return parse_json_object((ended.stdout.strip().splitlines() or [""])[-1].encode())
    except UnreadableError as error:
        raise CountingError(say("fit.not_counted", model=model, error=words_of(error))) from error


def _keep(path: Path, found: dict[str, Any]) -> None:
    """Write an answer down, whole or not at all; raises OSError where the cache can't be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(found), encoding="utf-8")
    new.replace(path)
