"""Checks that a training did what its flags asked, by its own figures: batch, rate, all steps, its state. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from steph.contract.lines import Metrics
from steph.contract.training_files import TrainerState
from steph.judge.kinds import FAIL, WARN, CheckKind
from steph.plan.steps import epochs_in
from steph.record.settings import TrainSettings
from steph.record.values import Check

LEAST_RATES = 3  # printed; fewer may all be of the warm-up
LEAST_RATE_SHARE, MOST_RATE_SHARE = 0.5, 1.01  # of the asked one: the peak stands between two printed lines
LEAST_PROGRESS, MOST_PROGRESS = 0.8, 1.45  # of the epochs that so many steps make; some rows may be held out
EPOCH_TOLERANCE = 0.02  # transformers 4 prints two decimals

BATCH_AS_ASKED = CheckKind("batch_as_asked", "H-2", FAIL, optional=True)
LEARNING_RATE_AS_ASKED = CheckKind("learning_rate_as_asked", "H-2", WARN, optional=True)
TRAINED_FROM_START = CheckKind("trained_from_start", "H-2", FAIL, trap=15, optional=True)
STATE_OF_THIS_RUN = CheckKind("state_of_this_run", "H-2", FAIL, trap=15, optional=True)
ASKED = (BATCH_AS_ASKED, LEARNING_RATE_AS_ASKED, TRAINED_FROM_START, STATE_OF_THIS_RUN)


@dataclass(frozen=True)
class Asked:
    """What was asked, and what the training printed and left: `epochs` of its last line, `rows` that it was given.

    `packed`: several of them may have become one.
    """

    settings: TrainSettings
    metrics: tuple[Metrics, ...]
    state: TrainerState
    epochs: float | None
    rows: int | None
    packed: bool = False


def asked_checks(asked: Asked) -> tuple[Check, ...]:
    """All checks of the flags that leave a trace in every Trainer's own figures."""
    return (_batch_check(asked), _rate_check(asked), _start_check(asked.metrics), _state_check(asked))


def _batch_check(asked: Asked) -> Check:
    """A batch that was halved in silence after an OOM, or a flag that is not read, shows in state and epoch.

    Accumulated micro-batches may go through the model as one: a larger batch, and the same rows a step.
    """
    size, state = asked.settings.batch_size, asked.state
    ran = state.train_batch_size if state.fresh and state.train_batch_size is not None else size
    fused, rest = divmod(ran, size)
    if rest or asked.settings.gradient_accumulation_steps % max(fused, 1) or not fused:
        return BATCH_AS_ASKED.check(False, "other_size", asked=size, ran=ran)
    steps = state.global_step if state.fresh and not state.problem else None
    if not steps or asked.epochs is None or not asked.rows or asked.packed:
        return BATCH_AS_ASKED.check(None, "incomparable")
    due = epochs_in(steps, asked.rows, asked.settings)
    apart = abs(asked.epochs - due) > EPOCH_TOLERANCE and not (LEAST_PROGRESS <= asked.epochs / due <= MOST_PROGRESS)
    figures: dict[str, Any] = {"steps": steps, "epochs": asked.epochs, "due": due}
    if fused > 1:
        return BATCH_AS_ASKED.check(not apart, "fused", asked=size, ran=ran, **figures)
    if apart:
        return BATCH_AS_ASKED.check(False, "other_progress", severity=WARN, **figures)
    return BATCH_AS_ASKED.check(True, "as_asked", **figures)


def _rate_check(asked: Asked) -> Check:
    steps = [m for m in asked.metrics if m.get("loss") is not None]
    rates = [rate for m in steps if (rate := m.get("learning_rate")) is not None and math.isfinite(rate)]
    if len(rates) < LEAST_RATES:
        return LEARNING_RATE_AS_ASKED.check(None, "too_few", rates=len(rates))
    rate, largest = asked.settings.learning_rate, max(rates)
    holds = LEAST_RATE_SHARE <= largest / rate <= MOST_RATE_SHARE
    return LEARNING_RATE_AS_ASKED.check(holds, "compared", asked=rate, largest=largest)


def _start_check(metrics: tuple[Metrics, ...]) -> Check:
    """The first loss is as far from the start as losses are from each other, unless earlier ones are missing."""
    epochs = [epoch for m in metrics if m.get("loss") is not None and (epoch := m.get("epoch")) is not None]
    gaps = [later - earlier for earlier, later in pairwise(epochs) if later > earlier]
    if not gaps:
        return TRAINED_FROM_START.check(None, "too_few")
    first, interval = epochs[0], median(gaps)
    late = first > 2.5 * interval + EPOCH_TOLERANCE
    return TRAINED_FROM_START.check(not late, "compared", first=first, interval=interval)


def _state_check(asked: Asked) -> Check:
    written, printed = asked.state.epoch if asked.state.fresh else None, asked.epochs
    if written is None or printed is None:
        return STATE_OF_THIS_RUN.check(None, "none")
    holds = abs(written - printed) <= EPOCH_TOLERANCE
    return STATE_OF_THIS_RUN.check(holds, "compared", written=written, printed=printed)
