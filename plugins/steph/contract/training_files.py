"""Reads what a training leaves beside its adapter: the checkpoint's Trainer state and the pipeline's own figures."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steph.base.files import UnreadableError, is_fresh, newest, paths_at, read_json
from steph.base.messages import Message, say
from steph.contract.lines import Metrics

STATE_NAME = "trainer_state.json"
ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
OWN_FIGURES_NAME = "train_metrics.json"
MOST_TOKENS = 10**15  # more is no count but a broken file
MOST_EPOCHS = 10**6
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,9})")


@dataclass(frozen=True)
class TrainerState:
    """The newest checkpoint's `trainer_state.json`; `problem` says why it can't be used."""

    folder: Path | None = None
    problem: Message | None = None
    global_step: int | None = None
    losses: tuple[float, ...] = ()
    history: tuple[Metrics, ...] = ()  # the entries of `log_history` that have a training loss
    max_steps: int | None = None
    tokens_seen: int | None = None
    epoch: float | None = None
    train_batch_size: int | None = None
    best_folder: str | None = None  # the name of the checkpoint that the Trainer calls its best
    fresh: bool = False
    stale_folders: tuple[str, ...] = ()
    final: Metrics | None = None  # the entry of `log_history` with the whole run's figures


def adapter_folder(root: Path, pattern: str, started_unix: float) -> Path:
    """The folder of the adapter's two files: of several that fit the one whose files were written last."""
    folders = [path for path in paths_at(root, pattern) if path.is_dir()]
    configs = [path / ADAPTER_CONFIG_NAME for path in folders if (path / ADAPTER_CONFIG_NAME).is_file()]
    last = newest(configs, started_unix)
    return last.parent if last else next(iter(folders), root / pattern)


def read_state(output_dir: Path, started_unix: float, others: Sequence[Path] = ()) -> TrainerState:
    """Read the Trainer's state: the newest checkpoint's, or one of `others` where that says more.

    A state beside the checkpoints is written at the training's end, and then alone has the final figures.
    """
    state = _read_newest_checkpoint(output_dir, started_unix)
    mine = state if state.fresh and state.problem is None else None
    for path in others:
        if path.parent != state.folder and is_fresh(path, started_unix):
            other = _read_state(path.parent, None, True, state.stale_folders)
            if other.problem is None and (mine is None or (other.global_step or 0) >= (mine.global_step or 0)):
                mine = other
    if mine is None or mine is state:
        return state
    return replace(mine, folder=state.folder if state.fresh and state.problem is None else mine.folder)


def _read_newest_checkpoint(output_dir: Path, started_unix: float) -> TrainerState:
    """Of the attempt's own checkpoints the last, else of the older ones."""
    children = [path for path in output_dir.iterdir() if path.is_dir()] if output_dir.is_dir() else []
    folders = {int(m[1]): path for path in children if (m := _CHECKPOINT.fullmatch(path.name))}
    states = {n: path / STATE_NAME for n, path in folders.items()}
    fresh = {n for n, state in states.items() if is_fresh(state if state.exists() else folders[n], started_unix)}
    stale = tuple(path.name for n, path in sorted(folders.items()) if n not in fresh)
    if not folders:
        return TrainerState(problem=say("checkpoint.none"))
    step = max(fresh or folders)
    return _read_state(folders[step], step, bool(fresh), stale)


def _read_state(folder: Path, step: int | None, fresh: bool, stale: tuple[str, ...]) -> TrainerState:
    file = f"{folder.name}/{STATE_NAME}"
    try:
        raw = read_json(folder / STATE_NAME, finite=False)  # the Trainer itself writes NaN there
    except UnreadableError as error:
        trouble = say("checkpoint.unreadable", file=file, error=error)
        return TrainerState(folder, trouble, stale_folders=stale)
    if not isinstance(raw, Mapping) or type(raw.get("global_step")) is not int:
        return TrainerState(folder, say("checkpoint.no_step", file=file), stale_folders=stale)
    done = int(raw["global_step"])
    seen, steps, listed = raw.get("num_input_tokens_seen"), raw.get("max_steps"), raw.get("log_history")
    epoch, batch, best = (raw.get(key) for key in ("epoch", "train_batch_size", "best_model_checkpoint"))
    history = [entry for entry in listed if isinstance(entry, Mapping)] if isinstance(listed, list) else []
    entries = [
        Metrics(tuple((str(key), _as_float(value)) for key, value in entry.items() if type(value) in (int, float)))
        for entry in history
    ]
    losses = (entry.get("loss") for entry in history)
    return TrainerState(
        folder=folder,
        problem=None if step in (done, None) else say("checkpoint.other_step", file=file, step=done),
        global_step=done,
        losses=tuple(float(value) for value in losses if type(value) is float or value == 0),
        history=tuple(metrics for metrics in entries if metrics.get("loss") is not None),
        max_steps=steps if type(steps) is int and steps > 0 else None,
        tokens_seen=seen if type(seen) is int and 0 < seen < MOST_TOKENS else None,
        epoch=float(epoch) if isinstance(epoch, int | float) and 0 <= epoch < MOST_EPOCHS else None,
        train_batch_size=batch if type(batch) is int else None,
        best_folder=Path(best).name if isinstance(best, str) else None,
        fresh=fresh,
        stale_folders=stale,
        final=next((m for m in reversed(entries) if m.get("train_runtime") is not None), None),
    )


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class OwnFigures:
    """What a pipeline may measure and write itself (`train_metrics.json`); empty where it doesn't.

    `tokens_per_second` is without padding; `step_seconds`, `step_tokens` and `losses` have one figure for each step.
    """

    tokens_per_second: float | None = None
    steps: int | None = None
    epochs: float | None = None
    losses: tuple[float, ...] = ()
    step_seconds: tuple[float, ...] = ()
    step_tokens: tuple[int, ...] = ()


def read_own_figures(output_dir: Path, started_unix: float) -> OwnFigures:
    """Read `train_metrics.json`; a figure that is none, or a list with one, is left out."""
    path = output_dir / OWN_FIGURES_NAME
    try:
        raw = read_json(path) if is_fresh(path, started_unix) else None
    except UnreadableError:
        raw = None
    if not isinstance(raw, Mapping):
        return OwnFigures()

    def is_positive(value: object) -> bool:
        return type(value) is float and math.isfinite(value) and value > 0

    def is_count(value: object) -> bool:
        return type(value) is int and 0 < value < MOST_TOKENS

    def one(key: str, is_one: Callable[[object], bool]) -> Any:  # noqa: ANN401 - as the test says
        return raw[key] if is_one(raw.get(key)) else None

    def each(key: str, is_one: Callable[[object], bool]) -> tuple[Any, ...]:
        found = raw.get(key)
        return tuple(found) if isinstance(found, list) and all(map(is_one, found)) else ()

    return OwnFigures(
        tokens_per_second=one("tokens_per_second", is_positive),
        steps=one("steps", is_count),
        epochs=one("epochs", is_positive),
        losses=each("losses", lambda value: type(value) is float),
        step_seconds=each("step_seconds", is_positive),
        step_tokens=each("step_tokens", is_count),
    )
