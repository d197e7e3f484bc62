"""A training beside H-2's own, after that one's verdict was written: for `--steph-deep` and `--steph-calibrate`.

It writes to a folder of its own, which ends up in the attempt's, so that H-3 finds what H-2 trained. No verdict stands
on it, and none is lost by it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

from steph.conduct.attempts import Finished, Request, run_attempt
from steph.conduct.training import Training
from steph.judge.checks_train import judge_training
from steph.judge.evidence import TrainEvidence
from steph.judge.training_files import read_state
from steph.plan.vram import Forecast
from steph.record import Attempt, ModelChoice, StageId, TrainSettings
from steph.run import inputs
from steph.run.inputs import InputError
from steph.run.journal import JournalError
from steph.run.runner import RunnerError

CANNOT_RUN = (InputError, OSError, RunnerError)  # what keeps such a training from being run


def train_beside(
    training: Training,
    model: ModelChoice,
    settings: TrainSettings,
    *,
    purpose: Literal["deep", "calibrate"],
    label: str,
    left_seconds: float,
    flags: tuple[str, ...] = (),
    predicted: Forecast | None = None,
    longest_row_tokens: int | None = None,
) -> Attempt:
    """Run one such training, `flags` at its command's end; raises one of `CANNOT_RUN` where it can't."""
    setup = training.setup
    output_dir = f"{setup.description.paths.output_dir.rstrip('/')}-{purpose}"
    argv, rows = training.command(model.name, settings, output_dir)
    request = Request(
        stage=StageId.H2,
        label=label,
        argv=(*argv, *flags),
        deadline_seconds=min(left_seconds, setup.profile.limits.train_attempt_seconds),
        settings=settings,
        model_name=model.name,
        writes=(setup.root / output_dir,),
        purpose=purpose,
        predicted=predicted,
        longest_row_tokens=longest_row_tokens,
    )

    def judge(finished: Finished) -> Attempt:
        evidence = TrainEvidence(
            output_dir=setup.root / output_dir,
            output_dir_name=output_dir,
            settings=settings,
            model_name=model.name,
            stdout=finished.stdout,
            output=finished.output,
            returncode=finished.attempt.returncode,
            attempt_started_unix=finished.started_unix,
            train_rows=rows,
            line_arrivals=finished.outcome.timed_lines,
        )
        return _with_figures(finished.attempt, evidence)

    attempt = run_attempt(setup, training.journal, training.console, request, judge)
    inputs.set_aside(setup.root / output_dir, training.journal.folder / attempt.folder)
    return attempt


@contextlib.contextmanager
def behind_the_verdict(training: Training, purpose: Literal["deep", "calibrate"]) -> Iterator[None]:
    """End the block with a line where the disk takes no more events: the next stage will say what is wrong."""
    try:
        yield
    except JournalError as error:
        training.console.line(f"{StageId.H2} {purpose}: {error}")


def _with_figures(attempt: Attempt, evidence: TrainEvidence) -> Attempt:
    """The attempt with its figures, losses as exact as the Trainer kept them; no checks of its own."""
    outcome, _, _ = judge_training(evidence)
    exact = read_state(evidence.output_dir, evidence.attempt_started_unix).losses or outcome.losses
    return attempt.model_copy(update={"training": outcome.model_copy(update={"losses": exact})})
