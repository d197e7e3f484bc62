"""A training's printed lines in their order: which loss lines belong to the run that counts, and its final line. Pure.

A callback may print each line twice or all of them again at the end; a script may try again by itself after an error.
The first is one run, the second are two, and only the last of them left the artifacts.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from steph.contract.lines import Metrics, parse_metrics, split_lines

MOST_COMPARED = 1_000_000  # pairs of lines
_ALIKE = 2e-3  # four digits printed beside all of them
_EPOCH_ALIKE = 6e-3  # transformers 4 prints two decimals
_TROUBLE = re.compile(
    r"(?i)\berrors?\b|\bfailed\b|exception|traceback|\bretry|\bretrying|restart|out of memory|例外|エラー|再試行|失敗"
)


@dataclass(frozen=True)
class TrainingLog:
    """The Trainer's lines of one output.

    `metrics` are those of the last run without repetitions, `final` its line with `train_runtime`, None where none
    stands behind its last loss. `places` are the numbers of the lines with its losses. `earlier` counts the loss lines
    of runs that were begun before it in the same output.
    """

    metrics: tuple[Metrics, ...] = ()
    final: Metrics | None = None
    places: tuple[int, ...] = ()
    earlier: int = 0

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
    losses = _without_repetitions(_of_the_trainer([one for one in placed if one.metrics.get("loss") is not None]))
    runs = _without_reprints(_runs(losses), lines)
    last = runs[-1] if runs else []
    begin = last[0].place if len(runs) > 1 else 0
    end = last[-1].place if last else -1
    kept = {one.place for one in last}
    return TrainingLog(
        metrics=tuple(
            one.metrics
            for one in placed
            if one.place >= begin and (one.place in kept or one.metrics.get("loss") is None)
        ),
        final=next(
            (m.metrics for m in reversed(placed) if m.metrics.get("train_runtime") is not None and m.place > end), None
        ),
        places=tuple(one.place for one in last),
        earlier=sum(map(len, runs[:-1])),
    )


def _of_the_trainer(losses: list[_Placed]) -> list[_Placed]:
    """The Trainer's own lines, which have a learning rate; without any, all: a loop of one's own prints as it likes."""
    own = [one for one in losses if one.metrics.get("learning_rate") is not None]
    return own or losses


def _without_repetitions(losses: list[_Placed]) -> list[_Placed]:
    kept: list[_Placed] = []
    for one in losses:
        if not (kept and _is_same(kept[-1].metrics, one.metrics)):
            kept.append(one)
    return kept


def _is_same(one: Metrics, other: Metrics) -> bool:
    """Whether two lines tell of the same step: all that both have agrees, the epoch among it."""
    mine, theirs = dict(one.values), dict(other.values)
    common = mine.keys() & theirs.keys()
    return "epoch" in common and "loss" in common and all(_is_alike(key, mine[key], theirs[key]) for key in common)


def _is_alike(key: str, one: float, other: float) -> bool:
    if not (math.isfinite(one) and math.isfinite(other)):
        return str(one) == str(other)
    return math.isclose(one, other, rel_tol=_ALIKE, abs_tol=_EPOCH_ALIKE if key == "epoch" else 1e-9)


def _runs(losses: list[_Placed]) -> list[list[_Placed]]:
    """The losses, begun anew wherever the epoch goes back."""
    runs: list[list[_Placed]] = []
    reached = math.inf
    for one in losses:
        epoch = one.metrics.get("epoch")
        if not runs or (epoch is not None and epoch < reached - 1e-9 and reached != math.inf):
            runs.append([])
        runs[-1].append(one)
        reached = epoch if epoch is not None else reached
    return runs


def _without_reprints(runs: list[list[_Placed]], lines: tuple[str, ...]) -> list[list[_Placed]]:
    """The runs but those that only show lines of the one before once more, with no trouble told in between."""
    kept: list[list[_Placed]] = []
    for run in runs:
        if kept:
            before = kept[-1]
            between = lines[before[-1].place + 1 : run[0].place]
            if _is_known(run, before) and not any(_TROUBLE.search(line) for line in between):
                continue
        kept.append(run)
    return kept


def _is_known(run: list[_Placed], before: list[_Placed]) -> bool:
    """Whether every line of a run was printed before, of long ones each at its own place."""
    if len(run) * len(before) > MOST_COMPARED:
        return len(run) == len(before) and all(map(_is_same, (r.metrics for r in run), (b.metrics for b in before)))
    return all(any(_is_same(one.metrics, old.metrics) for old in before) for one in run)
