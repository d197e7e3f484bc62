"""A training beside H-2's own, after that one's verdict was written: for `--steph-deep` and `--steph-calibrate`.

It writes to a folder of its own, which ends up in the attempt's, so that H-3 finds what H-2 trained. No verdict stands
on it, and none is lost by it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from steph.conduct.attempts import Finished, run_attempt
from steph.conduct.course import Course
from steph.judge.checks_training import judge_training
from steph.judge.evidence import TrainEvidence
from steph.judge.training_files import read_state
from steph.plan.answers import RowLengths
from steph.plan.commands import folder_beside
from steph.plan.vram import Forecast
from steph.record import Attempt, ModelChoice, StageId, TrainSettings
from steph.run.aside import set_aside
from steph.run.inputs import InputError
from steph.run.journal import JournalError
from steph.run.runner import RunnerError

CANNOT_RUN = (InputError, OSError, RunnerError)  # what keeps such a training from being run


def train_beside(
    course: Course,
    model: ModelChoice,
    settings: TrainSettings,
    *,
    purpose: Literal["deep", "calibrate"],
    label: str,
    flags: tuple[str, ...] = (),
    predicted: Forecast | None = None,
    rows: RowLengths | None = None,
) -> Attempt:
    """Run one such training, `flags` at its command's end; raises one of `CANNOT_RUN` where it can't."""
    course = replace(course, output_dir=folder_beside(course.output_dir, purpose))
    plain = course.request(model, settings)
    request = replace(
        plain,
        label=label,
        argv=(*plain.argv, *flags),
        purpose=purpose,
        predicted=predicted,
        rows=rows,
    )

    def judge(finished: Finished) -> Attempt:
        return _with_figures(finished.attempt, course.evidence(finished, model, settings))

    attempt = run_attempt(course.run, request, judge)
    set_aside(course.setup.root / course.output_dir, course.run.journal.folder / attempt.folder)
    return attempt


@contextlib.contextmanager
def behind_the_verdict(course: Course, purpose: Literal["deep", "calibrate"]) -> Iterator[None]:
    """End the block with a line where the disk takes no more events: the next stage will say what is wrong."""
    try:
        yield
    except JournalError as error:
        course.run.console.line(f"{StageId.H2} {purpose}: {error}")


def _with_figures(attempt: Attempt, evidence: TrainEvidence) -> Attempt:
    """The attempt with its figures, losses as exact as the Trainer kept them; no checks of its own."""
    outcome, _, _ = judge_training(evidence)
    exact = read_state(evidence.output_dir, evidence.attempt_started_unix).losses or outcome.losses
    return attempt.changed(training=outcome.changed(losses=exact))
