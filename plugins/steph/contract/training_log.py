"""A training's printed lines in their order: which loss lines belong to the run that counts, and its final line. Pure.

A callback may print each line twice or all of them again at the end; a script may try again by itself after an error.
The first is one run, the second are two, and only the last of them left the artifacts.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from steph.contract.lines import Metrics, parse_metrics, split_lines

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
        if before is not None and _is_same(before.metrics, one.metrics):
            continue
        before, epoch = one, one.metrics.get("epoch")
        if not runs or (epoch is not None and epoch < reached - 1e-9 and reached != math.inf):
            runs.append([])
        runs[-1].append(one)
        reached = epoch if epoch is not None else reached
    kept: list[list[_Placed]] = []
    for run in runs:
        between = lines[kept[-1][-1].place + 1 : run[0].place] if kept else ()
        if not kept or not _is_known(run, kept[-1]) or any(map(_TROUBLE.search, between)):
            kept.append(run)
    return kept


def _is_known(run: list[_Placed], before: list[_Placed]) -> bool:
    """Whether every line of a run was printed before, of long ones each at its own place."""
    if len(run) * len(before) > MOST_COMPARED:
        return len(run) == len(before) and all(map(_is_same, (r.metrics for r in run), (b.metrics for b in before)))
    return all(any(_is_same(one.metrics, old.metrics) for old in before) for one in run)


def _is_same(one: Metrics, other: Metrics) -> bool:
    """Whether two lines tell of the same step: all that both have agrees, the epoch among it."""
    mine, theirs = dict(one.values), dict(other.values)
    common = mine.keys() & theirs.keys()
    return "epoch" in common and "loss" in common and all(_is_alike(key, mine[key], theirs[key]) for key in common)


def _is_alike(key: str, one: float, other: float) -> bool:
    if not (math.isfinite(one) and math.isfinite(other)):
        return str(one) == str(other)
    return math.isclose(one, other, rel_tol=_ALIKE, abs_tol=_EPOCH_ALIKE if key == "epoch" else 1e-9)
