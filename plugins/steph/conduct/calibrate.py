"""`--steph-calibrate`: a second, short training at another length, so that two measured peaks give slope and intercept.

It runs after H-2's verdict is written, which it can't change: whatever it ends in is recorded beside H-2's attempts.
"""

from __future__ import annotations

import time

from steph.conduct.beside import CANNOT_RUN, behind_the_verdict, train_beside
from steph.conduct.prediction import expected
from steph.conduct.training import MIN_ATTEMPT_SECONDS, Training
from steph.plan.answers import RowLengths
from steph.record import ModelChoice, SkippedRung, StageId, TrainSettings
from steph.run.events import RungSkipped
from steph.run.journal import now

STEPS = 5
SHORTEST_LENGTH = 16  # what a profile may ask for
LENGTH_STEP = 8  # tokens; multiples of it are what matrix units like


def calibrate(training: Training, model: ModelChoice, settings: TrainSettings) -> None:
    """Train five steps at another length than H-2's last attempt; never raises for what the run does."""
    with behind_the_verdict(training, "calibrate"):
        _calibrate(training, model, settings)


def _calibrate(training: Training, model: ModelChoice, settings: TrainSettings) -> None:
    short = settings.model_copy(update={"max_steps": STEPS, "logging_steps": 1})
    rows = training.row_lengths(model, short)
    length = other_length(settings.max_seq_length, rows)
    asked = short.model_copy(update={"max_seq_length": length or settings.max_seq_length})
    label = f"calibrate {asked.short()} {STEPS}ステップ"
    left = training.deadline - time.monotonic()
    if length is None:
        return _skip(training, label, "これより短くできる長さがない")
    if left < MIN_ATTEMPT_SECONDS:
        return _skip(training, label, "H-2の制限時間の残りがない")
    expectation = expected(training.setup, model, asked)
    try:
        train_beside(
            training,
            model,
            asked,
            purpose="calibrate",
            label=label,
            left_seconds=left,
            predicted=expectation.likely if expectation else None,
            longest_row_tokens=rows.longest if rows else None,
        )
    except CANNOT_RUN as error:
        _skip(training, label, f"動かせない: {error}")
    return None


def other_length(max_seq_length: int, rows: RowLengths | None) -> int | None:
    """Half of what the longest row really has, and no more than most rows fill; None where that is too short.

    Shorter rather than longer: where H-2 passed it hardly runs out of memory, and rows cut to it are equally long.
    """
    longest = min(max_seq_length, rows.longest) if rows else max_seq_length
    wanted = min(longest // 2, rows.middle) if rows else longest // 2
    length = wanted // LENGTH_STEP * LENGTH_STEP
    return length if length >= SHORTEST_LENGTH else None


def _skip(training: Training, label: str, reason: str) -> None:
    training.console.line(f"H-2 {label}: {reason}")
    skipped = SkippedRung(label=label, reason=reason)
    training.journal.append(RungSkipped(at=now(), stage=StageId.H2, skipped=skipped))
