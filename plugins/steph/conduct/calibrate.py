"""`--steph-calibrate`: a second, short training at another length, so that two measured peaks give slope and intercept.

It runs after H-2's verdict is written, which it can't change: whatever it ends in is recorded beside H-2's attempts.
Its output goes to a folder of its own, which ends up in the attempt's, so that H-3 finds what H-2 trained.
"""

from __future__ import annotations

from dataclasses import replace

from steph.base.messages import Message, say
from steph.base.terms import Purpose, StageId
from steph.conduct.attempts import Finished, run_attempt
from steph.conduct.prediction import expected
from steph.conduct.training_job import TrainingJob
from steph.contract.answers import RowLengths
from steph.contract.commands import folder_beside
from steph.contract.training_files import read_state
from steph.judge.checks_training import judge_training
from steph.judge.evidence import TrainEvidence
from steph.record.settings import TrainSettings
from steph.record.values import Attempt, ModelChoice, PredictedPeak
from steph.run.aside import set_aside
from steph.run.inputs import InputError
from steph.run.journal import JournalError
from steph.run.runner import RunnerError

STEPS = 5
SHORTEST_LENGTH = 16  # what a profile may ask for
LENGTH_STEP = 8  # tokens; multiples of it are what matrix units like
CANNOT_RUN = (InputError, OSError, RunnerError)  # what keeps such a training from being run


def calibrate(job: TrainingJob, model: ModelChoice, settings: TrainSettings) -> None:
    """Train five steps at another length than H-2's last attempt; never raises for what the run does."""
    try:
        _calibrate(job, model, settings)
    except JournalError as error:  # the disk takes no more events: the next stage will say what is wrong
        job.run.console.line(f"{StageId.H2} calibrate: {error}")


def _calibrate(job: TrainingJob, model: ModelChoice, settings: TrainSettings) -> None:
    short = settings.changed(max_steps=STEPS, logging_steps=1)
    rows = job.row_lengths(model, short)
    length = other_length(settings.max_seq_length, rows)
    asked = short.changed(max_seq_length=length or settings.max_seq_length)
    label = say("attempt.calibrate", settings=asked.short(), steps=STEPS)
    if length is None:
        return job.note_skipped(label, say("calibrate.no_shorter"))
    if job.run.is_out_of_time:
        return job.note_skipped(label, say("calibrate.no_time"))
    expectation = expected(job.setup, model, asked, rows)
    predicted = expectation.peak if expectation else None
    try:
        train_beside(job, model, asked, label=label, predicted=predicted, rows=rows)
    except CANNOT_RUN as error:
        job.note_skipped(label, say("calibrate.cannot_run", error=error))
    return None


def train_beside(
    job: TrainingJob,
    model: ModelChoice,
    settings: TrainSettings,
    *,
    label: Message,
    predicted: PredictedPeak | None = None,
    rows: RowLengths | None = None,
) -> Attempt:
    """Run one training on which no verdict stands; raises one of `CANNOT_RUN` where it can't."""
    job = replace(job, output_dir=folder_beside(job.output_dir, "calibrate"))
    plan, call = job.planned(model, settings, rows, label=label)
    plan = plan.changed(purpose=Purpose.CALIBRATE, predicted=predicted)

    def judge(finished: Finished) -> Attempt:
        return _with_figures(finished.attempt, job.evidence(finished, model, settings))

    attempt = run_attempt(job.run, plan, call, judge)
    set_aside(job.setup.root / job.output_dir, job.run.journal.folder / attempt.folder)
    return attempt


def _with_figures(attempt: Attempt, evidence: TrainEvidence) -> Attempt:
    """The attempt with its figures, losses as exact as the Trainer kept them; no checks of its own."""
    outcome, _, _ = judge_training(evidence)
    exact = read_state(evidence.output_dir, evidence.attempt_started_unix).losses or outcome.losses
    return attempt.changed(training=outcome.changed(losses=exact))


def other_length(max_seq_length: int, rows: RowLengths | None) -> int | None:
    """Half of what the longest row really has, and no more than most rows fill; None where that is too short.

    Shorter rather than longer: where H-2 passed it hardly runs out of memory, and rows cut to it are equally long.
    """
    longest = min(max_seq_length, rows.longest) if rows else max_seq_length
    wanted = min(longest // 2, rows.middle) if rows else longest // 2
    length = wanted // LENGTH_STEP * LENGTH_STEP
    return length if length >= SHORTEST_LENGTH else None
