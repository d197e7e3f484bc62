"""Trainings: a stage's walk down the ladder of settings, and the short one of `--steph-calibrate` after it.

The calibration trains at another length, so that two measured peaks give slope and intercept. It runs after H-2's
verdict is written, which it can't change. Its output goes to a folder of its own, which ends up in the attempt's, so
that H-3 finds what H-2 trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from steph.base.messages import Message, say, verbatim
from steph.base.terms import Purpose, Severity, StageId, Verdict
from steph.conduct.attempts import Finished, run_attempt
from steph.conduct.models import smaller_model
from steph.conduct.prediction import Expectation, expected, worth_trying
from steph.conduct.training_job import TrainingJob, half_precision_of
from steph.contract.answers import AnswerLoss, RowLengths
from steph.contract.commands import folder_beside
from steph.contract.training_files import read_state
from steph.judge.checks_training import ANSWERS_KEPT, judge_training
from steph.judge.evidence import TrainEvidence
from steph.judge.verdict import Outcome
from steph.plan.ladder import MoveKind, given_up, ladder_without_4bit, next_move, settings_at
from steph.plan.settings import Rung
from steph.record.events import ModelChosen
from steph.record.settings import TrainSettings
from steph.record.values import Attempt, Diagnosis, ModelChoice, PredictedPeak
from steph.run.inputs import InputError
from steph.run.journal import JournalError, now
from steph.run.root import set_aside
from steph.run.runner import RunnerError


@dataclass(frozen=True)
class Walk:
    """Where on the ladder a stage stands; `half` is what the card trains in without 4-bit."""

    model: ModelChoice
    base: TrainSettings
    ladder: tuple[Rung, ...]
    rung: int = 0
    skipped: frozenset[int] = frozenset()
    smaller_model: str | None = None  # taken in the place of the record's
    half: Literal["bf16", "fp16"] = "bf16"

    @property
    def settings(self) -> TrainSettings:
        """The settings of this rung, without the changes of skipped ones."""
        return settings_at(self.base, self.ladder, self.rung, skipped=self.skipped, half=self.half)


class Training:
    """A training stage on its way down the ladder."""

    def __init__(self, job: TrainingJob) -> None:
        self.job = job
        self.stage = job.stage
        self.setup = job.setup
        self.run = job.run

    def walk(self, model: ModelChoice, start: TrainSettings | None = None) -> Outcome:
        """Walk the ladder; the outcome is that of the last attempt, with what was given up on the way.

        `start`: settings that are known to work, from which the walk goes on.
        """
        walk: Walk | None = self._first_walk(model, start)
        last: Attempt | None = None
        meaningless: list[tuple[AnswerLoss, TrainSettings]] = []
        too_large: Expectation | None = None
        while walk is not None:
            rows = self.job.row_lengths(walk.model, walk.settings)
            loss = rows.lost_at(walk.settings.max_seq_length) if rows else None
            if loss is not None and loss.lost_rows * 2 > loss.rows:
                meaningless.append((loss, walk.settings))
                walk = self._skip(walk, loss)
                continue
            expectation = expected(self.setup, walk.model, walk.settings, rows)
            if expectation and self._is_hopeless(expectation, walk.settings, last):
                walk = self._skip_predicted(walk, expectation, last)
                too_large = expectation
                continue
            if self.run.is_out_of_time:
                out_of_time = say("stage.out_of_time", stage=self.stage)
                return Outcome(Verdict.TIMEOUT, out_of_time, last.checks if last else ())
            last = self._attempt(walk, rows, expectation)
            if last.returncode == 0 or last.diagnosis is None:
                return Outcome.of_attempt(last, self._conditions(walk))
            walk = self._step_down(walk, last.diagnosis)
        if last is not None:
            return Outcome.of_attempt(last)
        if too_large is not None:
            return Outcome(Verdict.FAIL, say("walk.nothing_fits", forecast=too_large.words()))
        return no_rung_keeps_the_answers(meaningless)

    def _first_walk(self, model: ModelChoice, start: TrainSettings | None) -> Walk:
        """The rung of these settings, or they alone where they are on no rung, also not on one without 4-bit."""
        profile = self.setup.profile
        top = Walk(model, profile.train, profile.ladder, half=half_precision_of(self.setup.device))
        if start is None:
            return top
        ladders = ((top.base, top.ladder), ladder_without_4bit(top.base, top.ladder, top.half))
        rungs = (
            replace(top, base=base, ladder=ladder, rung=rung)
            for base, ladder in ladders
            for rung in range(len(ladder) + 1)
        )
        return next((walk for walk in rungs if walk.settings == start), replace(top, base=start, ladder=()))

    def _is_hopeless(self, expectation: Expectation, settings: TrainSettings, last: Attempt | None) -> bool:
        gave_up_4bit = self.setup.profile.train.use_4bit and not settings.use_4bit
        return not worth_trying(expectation, last, gave_up_4bit=gave_up_4bit)

    def _attempt(self, walk: Walk, rows: RowLengths | None, expectation: Expectation | None) -> Attempt:
        plan, call = self.job.planned(walk.model, walk.settings, rows)
        loss = rows.lost_at(walk.settings.max_seq_length) if rows else None

        def judge(finished: Finished) -> Attempt:
            return self.job.judged(finished, walk.model, walk.settings, loss)

        return run_attempt(self.run, plan.changed(predicted=expectation.peak if expectation else None), call, judge)

    def _skip(self, walk: Walk, loss: AnswerLoss) -> Walk | None:
        reason = say("walk.too_short", rows=loss.rows, lost=loss.lost_rows)
        self.job.note_skipped(verbatim(walk.settings.short()), reason)
        if walk.rung >= len(walk.ladder):
            return None
        return replace(walk, skipped=walk.skipped | {walk.rung}, rung=walk.rung + 1)

    def _skip_predicted(self, walk: Walk, expectation: Expectation, last: Attempt | None) -> Walk | None:
        """The rung below with this one's change kept; below the last a smaller model where nothing was tried."""
        self.job.note_skipped(verbatim(walk.settings.short()), say("walk.too_large", forecast=expectation.words()))
        if walk.rung < len(walk.ladder):
            return replace(walk, rung=walk.rung + 1)
        return self._with_smaller_model(walk) if last is None else None

    def _step_down(self, walk: Walk, diagnosis: Diagnosis) -> Walk | None:
        move = next_move(diagnosis, walk.rung, walk.ladder)
        self.run.console.line(f"{self.stage} {walk.settings.short()}: {move.reason}")
        match move.kind:
            case MoveKind.NEXT_RUNG:
                return replace(walk, rung=walk.rung + 1)
            case MoveKind.WITHOUT_4BIT:
                base, ladder = ladder_without_4bit(walk.base, walk.ladder, walk.half)
                return replace(walk, base=base, ladder=ladder, rung=0, skipped=frozenset())
            case MoveKind.SMALLER_MODEL:
                return self._with_smaller_model(walk)
            case MoveKind.STOP:
                return None

    def _with_smaller_model(self, walk: Walk) -> Walk | None:
        if self.stage is not StageId.H2:  # the record's other stages stand on H-2's model
            return None
        model = smaller_model(self.run, walk.model)
        if model is None:
            return None
        self.run.journal.append(ModelChosen(at=now(), stage=StageId.H2, model=model))
        return replace(walk, model=model, rung=0, skipped=frozenset(), smaller_model=model.name)

    def _conditions(self, walk: Walk) -> tuple[Message, ...]:
        smaller = (say("condition.smaller_model", model=walk.smaller_model),) if walk.smaller_model else ()
        return (*given_up(self.setup.profile.train, walk.settings), *smaller)


def no_rung_keeps_the_answers(skipped: Sequence[tuple[AnswerLoss, TrainSettings]]) -> Outcome:
    """The outcome where every rung was skipped: the longest one's count, and the length that would keep all answers."""
    loss, settings = max(skipped, key=lambda pair: pair[1].max_seq_length)
    reason = say(
        "walk.answers_lost",
        length=settings.max_seq_length,
        rows=loss.rows,
        lost=loss.lost_rows,
        fitting=loss.fitting_seq_length,
    )
    check = ANSWERS_KEPT.check(False, reason, severity=Severity.FAIL)
    return Outcome(Verdict.FAIL, say("walk.not_trained", reason=reason), (check,))


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
