"""Reads what a training says of itself: its checkpoint's Trainer state, its own figures, its printed lines in order.

Of the printed lines, those of the run that counts: a callback may print each line twice or all of them again at the
end; a script may try again by itself after an error. The first is one run, the second are two, and only the last of
them left the artifacts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steph.base.files import UnreadableError, is_fresh, newest, paths_at, read_json
from steph.base.messages import Message, say
from steph.contract.lines import Metrics, parse_metrics, split_lines

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
    other_entries: tuple[Metrics, ...] = ()  # without a training loss: of validations, and the last of a training
    best_folder: str | None = None  # the name of the checkpoint that the Trainer calls its best
    best_metric: float | None = None  # its figure
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
    figure = raw.get("best_metric")
    history = [entry for entry in listed if isinstance(entry, Mapping)] if isinstance(listed, list) else []
    entries = [
        Metrics(tuple((str(key), _as_float(value)) for key, value in entry.items() if type(value) in (int, float)))
        for entry in history
    ]
    losses = [(metrics.get("loss"), metrics) for metrics in entries]
    return TrainerState(
        folder=folder,
        problem=None if step in (done, None) else say("checkpoint.other_step", file=file, step=done),
        global_step=done,
        losses=tuple(loss for loss, _ in losses if loss is not None),
        history=tuple(metrics for loss, metrics in losses if loss is not None),
        max_steps=steps if type(steps) is int and steps > 0 else None,
        tokens_seen=seen if type(seen) is int and 0 < seen < MOST_TOKENS else None,
        epoch=float(epoch) if isinstance(epoch, int | float) and 0 <= epoch < MOST_EPOCHS else None,
        train_batch_size=batch if type(batch) is int else None,
        other_entries=tuple(metrics for loss, metrics in losses if loss is None),
        best_folder=Path(best).name if isinstance(best, str) else None,
        best_metric=_as_float(figure) if isinstance(figure, int | float) else None,
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
    """What a pipeline may measure and write itself (`train_metrics.json`); empty where it doesn't."""

    tokens_per_second: float | None = None  # without padding
    steps: int | None = None
    epochs: float | None = None
    losses: tuple[float, ...] = ()  # one of each step, as what follows
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


MOST_IN_WORDS = 10_000
_LOSS_IN_WORDS = re.compile(  # a whole number without a sign of equality may count anything
    r"(?i)(?<![A-Za-z0-9])(?:(?:train(?:ing)?|avg|average|mean|running|step|batch)[ _-]{0,2})?loss['\"]?"
    r"(?:\s{0,3}(?:is\b|[:=])\s{0,3}|\s{1,3}(?=[-+]?\d{1,12}\.|nan\b|inf))"
    r"([-+]?(?:\d{1,12}(?:\.\d{0,20})?(?:e[-+]?\d{1,3})?|nan|inf(?:inity)?))(?![\w.])"
)
_OF_VALIDATION = re.compile(r"(?i)(?<![A-Za-z])(?:val(?:id(?:ation)?)?|eval(?:uation)?|test|dev|best)[ _/-]{0,2}loss")
MOST_COMPARED = 1_000_000  # pairs of lines
_ALIKE = 2e-3  # four digits printed beside all of them
_EPOCH_ALIKE = 6e-3  # transformers 4 prints two decimals
_TROUBLE = re.compile(
    r"(?i)\berrors?\b|\bfailed\b|exception|traceback|\bretry|\bretrying|restart|out of memory|例外|エラー|再試行|失敗"
)


@dataclass(frozen=True)
class TrainingLog:
    """The Trainer's lines of one output."""

    metrics: tuple[Metrics, ...] = ()  # of the last run, without repetitions
    final: Metrics | None = None  # its line with `train_runtime`, behind its last loss
    places: tuple[int, ...] = ()  # the numbers of the lines with its losses
    earlier: int = 0  # loss lines of runs that were begun before it in the same output

    @property
    def losses(self) -> tuple[Metrics, ...]:
        """The lines that have a training loss."""
        return tuple(m for m in self.metrics if m.get("loss") is not None)


@dataclass(frozen=True)
class _Placed:
    place: int
    metrics: Metrics


def read_log(text: str) -> TrainingLog:
    """Read a training's stdout."""
    lines = split_lines(text)
    placed = [_Placed(n, found) for n, line in enumerate(lines) if (found := parse_metrics(line))]
    losses = [one for one in placed if one.metrics.get("loss") is not None]
    # the Trainer's own have a learning rate; without any, all count: a loop of one's own prints as it likes
    losses = [one for one in losses if one.metrics.get("learning_rate") is not None] or losses
    runs = _runs(losses, lines)
    last = runs[-1] if runs else []
    begin = last[0].place if len(runs) > 1 else 0
    end = last[-1].place if last else -1
    kept = {one.place for one in last}
    finals = (one for one in reversed(placed) if one.metrics.get("train_runtime") is not None and one.place > end)
    return TrainingLog(
        metrics=tuple(
            one.metrics
            for one in placed
            if one.place >= begin and (one.place in kept or one.metrics.get("loss") is None)
        ),
        final=next((one.metrics for one in finals), None),
        places=tuple(one.place for one in last),
        earlier=sum(map(len, runs[:-1])),
    )


def losses_in_words(text: str) -> tuple[Metrics, ...]:
    """The losses that a loop of one's own prints: `step 3 | loss: 2.31`, `train_loss=nan`, a bar's `loss=2.31`.

    Those of a validation are left out; a bar that is drawn again shows its loss again, which counts once.
    """
    found: list[str] = []
    for line in split_lines(text) if "oss" in text or "OSS" in text else ():
        hit = _LOSS_IN_WORDS.search(line)
        if hit and not _OF_VALIDATION.search(line) and hit[1] != (found[-1] if found else None):
            found.append(hit[1])
    return tuple(Metrics((("loss", float(value)),)) for value in found[:MOST_IN_WORDS])


def _runs(losses: list[_Placed], lines: tuple[str, ...]) -> list[list[_Placed]]:
    """The losses without repetitions, begun anew wherever the epoch goes back.

    A run that only shows lines of the one before once more, with no trouble told in between, is none.
    """
    runs: list[list[_Placed]] = []
    reached, before = math.inf, None
    for one in losses:
        if before is not None and _same_step(before.metrics, one.metrics):
            continue
        before, epoch = one, one.metrics.get("epoch")
        if not runs or (epoch is not None and epoch < reached - 1e-9 and reached != math.inf):
            runs.append([])
        runs[-1].append(one)
        reached = epoch if epoch is not None else reached
    kept: list[list[_Placed]] = []
    for run in runs:
        between = lines[kept[-1][-1].place + 1 : run[0].place] if kept else ()
        if not kept or not _repeats_run(run, kept[-1]) or any(map(_TROUBLE.search, between)):
            kept.append(run)
    return kept


def _repeats_run(run: list[_Placed], before: list[_Placed]) -> bool:
    """Whether every line of a run was printed before, of long ones each at its own place."""
    if len(run) * len(before) > MOST_COMPARED:
        return len(run) == len(before) and all(map(_same_step, (r.metrics for r in run), (b.metrics for b in before)))
    return all(any(_same_step(one.metrics, old.metrics) for old in before) for one in run)


def _same_step(one: Metrics, other: Metrics) -> bool:
    """Whether two lines tell of the same step: all that both have agrees, the epoch among it."""
    mine, theirs = dict(one.values), dict(other.values)
    common = mine.keys() & theirs.keys()
    return "epoch" in common and "loss" in common and all(_close(key, mine[key], theirs[key]) for key in common)


def _close(key: str, one: float, other: float) -> bool:
    if not (math.isfinite(one) and math.isfinite(other)):
        return str(one) == str(other)
    return math.isclose(one, other, rel_tol=_ALIKE, abs_tol=_EPOCH_ALIKE if key == "epoch" else 1e-9)
