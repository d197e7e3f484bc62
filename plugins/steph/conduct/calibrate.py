"""`--steph-calibrate`: a second, short training at another length, so that two measured peaks give slope and intercept.

It runs after H-2's verdict is written, which it can't change: whatever it ends in is recorded beside H-2's attempts.
"""

from __future__ import annotations

from steph.conduct.beside import CANNOT_RUN, behind_the_verdict, train_beside
from steph.conduct.course import Course
from steph.conduct.prediction import expected
from steph.plan.answers import RowLengths
from steph.record import ModelChoice, TrainSettings

STEPS = 5
SHORTEST_LENGTH = 16  # what a profile may ask for
LENGTH_STEP = 8  # tokens; multiples of it are what matrix units like


def calibrate(course: Course, model: ModelChoice, settings: TrainSettings) -> None:
    """Train five steps at another length than H-2's last attempt; never raises for what the run does."""
    with behind_the_verdict(course, "calibrate"):
        _calibrate(course, model, settings)


def _calibrate(course: Course, model: ModelChoice, settings: TrainSettings) -> None:
    short = settings.changed(max_steps=STEPS, logging_steps=1)
    rows = course.row_lengths(model, short)
    length = other_length(settings.max_seq_length, rows)
    asked = short.changed(max_seq_length=length or settings.max_seq_length)
    label = f"calibrate {asked.short()} {STEPS}ステップ"
    if length is None:
        return course.note_skipped(label, "これより短くできる長さがない")
    if course.run.is_out_of_time:
        return course.note_skipped(label, "H-2の制限時間の残りがない")
    expectation = expected(course.setup, model, asked, rows)
    try:
        train_beside(
            course,
            model,
            asked,
            purpose="calibrate",
            label=label,
            predicted=expectation.likely if expectation else None,
            rows=rows,
        )
    except CANNOT_RUN as error:
        course.note_skipped(label, f"動かせない: {error}")
    return None


def other_length(max_seq_length: int, rows: RowLengths | None) -> int | None:
    """Half of what the longest row really has, and no more than most rows fill; None where that is too short.

    Shorter rather than longer: where H-2 passed it hardly runs out of memory, and rows cut to it are equally long.
    """
    longest = min(max_seq_length, rows.longest) if rows else max_seq_length
    wanted = min(longest // 2, rows.middle) if rows else longest // 2
    length = wanted // LENGTH_STEP * LENGTH_STEP
    return length if length >= SHORTEST_LENGTH else None
