"""The ladder of settings: what a rung asks, where a failed attempt leads, and training down it until an attempt stands.

Rungs are changes, applied one upon the other; a skipped rung gives its change back. `next_move`, pure, is asked after
every failed attempt, and what it says is done.

Once more is trained for `--steph-calibrate`, at another length, so that two measured peaks give slope and intercept.
That runs after H-2's verdict is written, which it can't change. Its output goes to a folder of its own, which ends up
in the attempt's, so that H-3 finds what H-2 trained.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any, Literal

from steph.base.messages import Message, say, verbatim
from steph.base.terms import Cause, Phase, Purpose, Severity, StageId, Verdict
from steph.conduct.attempts import Finished, run_attempt
from steph.conduct.jobs import TrainingJob, half_precision_of
from steph.conduct.models import Expectation, expected, smaller_model, worth_trying
from steph.contract.commands import folder_beside
from steph.contract.rows import RowLengths, TruncatedAnswers
from steph.contract.settings import Rung
from steph.contract.training_files import read_state
from steph.judge.checks_training import ANSWERS_KEPT, judge_training
from steph.judge.verdict import Outcome
from steph.record.events import ModelChosen
from steph.record.settings import TrainSettings
from steph.record.values import Attempt, Diagnosis, ModelChoice, PredictedPeak
from steph.run.inputs import InputError, set_aside
from steph.run.journal import JournalError, now
from steph.run.runner import RunnerError

PHASES_BEFORE_STEPS = (Phase.LOAD, Phase.PREPARE)


class MoveKind(StrEnum):
    """The next move after a failed attempt."""

    NEXT_RUNG = "next_rung"
    WITHOUT_4BIT = "without_4bit"
    SMALLER_MODEL = "smaller_model"
    STOP = "stop"


@dataclass(frozen=True)
class Move:
    """Where a failed attempt leads, and why (Japanese)."""

    kind: MoveKind
    reason: Message


def settings_at(
    base: TrainSettings,
    ladder: Sequence[Rung],
    rung: int,
    *,
    skipped: Collection[int] = (),
    half: Literal["bf16", "fp16"] = "bf16",
) -> TrainSettings:
    """The settings of rung `rung` (0 is `base`) without the changes of `skipped` ones; `half` without 4-bit."""
    changes: dict[str, Any] = {}
    for number, step in enumerate(ladder[:rung], start=1):
        if number not in skipped:
            changes |= step.model_dump(exclude_none=True)
    if changes.get("use_4bit") is False and base.mixed_precision is None:
        changes["mixed_precision"] = half
    return base.changed(**changes)


def next_move(diagnosis: Diagnosis, rung: int, ladder: Sequence[Rung]) -> Move:
    """Where a failed attempt at `rung` leads, by cause and phase.

    CUDA OOM steps down; while loading or preparing it goes to a smaller model, since batch and length can't cure it;
    bitsandbytes trouble goes to training without 4-bit where the ladder allows that; anything else stops at once.
    """
    if diagnosis.cause is Cause.CUDA_OOM:
        if diagnosis.phase in PHASES_BEFORE_STEPS:
            return Move(MoveKind.SMALLER_MODEL, say("ladder.oom_before_steps"))
        if rung < len(ladder):
            return Move(MoveKind.NEXT_RUNG, say("ladder.next_rung"))
        return Move(MoveKind.STOP, say("ladder.oom_at_the_end"))
    if diagnosis.cause is Cause.BNB_SETUP and any(step.use_4bit is False for step in ladder):
        return Move(MoveKind.WITHOUT_4BIT, say("ladder.without_4bit"))
    return Move(MoveKind.STOP, say("ladder.no_help", cause=diagnosis.cause.value))


def ladder_without_4bit(
    base: TrainSettings, ladder: Sequence[Rung], half: Literal["bf16", "fp16"] = "bf16"
) -> tuple[TrainSettings, tuple[Rung, ...]]:
    """The ladder where bitsandbytes can't be used: the first rung's batch and length in `half`, then as before."""
    top = base.changed(use_4bit=False, mixed_precision=base.mixed_precision or half)
    return top, tuple(step for step in ladder if step.use_4bit is not False)


_TITLES: Mapping[str, str] = {
    "max_seq_length": "max-seq-length",
    "batch_size": "batch-size",
    "gradient_accumulation_steps": "gradient-accumulation-steps",
    "use_4bit": "4bit",
    "mixed_precision": "mixed precision",
}


def given_up(asked: TrainSettings, used: TrainSettings) -> tuple[Message, ...]:
    """The settings that a degraded pass gave up, as `max-seq-length 512 → 384`."""
    before, after = asked.model_dump(), used.model_dump()
    return tuple(
        say("ladder.given_up", setting=title, before=_shown(before[key]), after=_shown(after[key]))
        for key, title in _TITLES.items()
        if before[key] != after[key]
    )


def _shown(value: object) -> object:
    return say("ladder.with" if value else "ladder.without") if value is None or isinstance(value, bool) else value


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

    def down(self, **changes: Any) -> Walk | None:  # noqa: ANN401 - fields
        """The rung below; None where there is none."""
        return replace(self, rung=self.rung + 1, **changes) if self.rung < len(self.ladder) else None


def walk_ladder(job: TrainingJob, model: ModelChoice, start: TrainSettings | None = None) -> Outcome:
    """Train down the ladder; the outcome is that of the last attempt, with what was given up on the way.

    `start`: settings that are known to work, from which the walk goes on.
    """
    run, stage, asked = job.run, job.stage, job.setup.profile.train
    walk: Walk | None = _first(job, model, start)
    last: Attempt | None = None
    meaningless: list[tuple[TruncatedAnswers, TrainSettings]] = []
    too_large: Expectation | None = None
    while walk is not None:
        settings, label = walk.settings, verbatim(walk.settings.short())
        rows = job.row_lengths(walk.model, settings)
        truncated = rows.truncated_at(settings.max_seq_length) if rows else None
        if truncated is not None and truncated.lost_rows * 2 > truncated.rows:
            meaningless.append((truncated, settings))
            job.note_skipped(label, say("walk.too_short", rows=truncated.rows, lost=truncated.lost_rows))
            walk = walk.down(skipped=walk.skipped | {walk.rung})
            continue
        expectation = expected(job.setup, walk.model, settings, rows)
        gave_up_4bit = asked.use_4bit and not settings.use_4bit
        if expectation and not worth_trying(expectation, last, gave_up_4bit=gave_up_4bit):
            job.note_skipped(label, say("walk.too_large", forecast=expectation.words()))
            # with this rung's change kept
            walk = walk.down() or (_with_smaller_model(job, walk) if last is None else None)
            too_large = expectation
            continue
        if run.is_out_of_time:
            return Outcome(Verdict.TIMEOUT, say("stage.out_of_time", stage=stage), last.checks if last else ())
        plan, call = job.planned(walk.model, settings, rows)
        judge = partial(job.judged, model=walk.model, settings=settings, truncated=truncated)
        last = run_attempt(run, plan.changed(predicted=expectation.peak if expectation else None), call, judge)
        if last.returncode == 0 or last.diagnosis is None:
            smaller = (say("condition.smaller_model", model=walk.smaller_model),) if walk.smaller_model else ()
            return Outcome.of_attempt(last, (*given_up(asked, settings), *smaller))
        walk = _step_down(job, walk, last.diagnosis)
    if last is not None:
        return Outcome.of_attempt(last)
    if too_large is not None:
        return Outcome(Verdict.FAIL, say("walk.nothing_fits", forecast=too_large.words()))
    return no_rung_keeps_the_answers(meaningless)


def _first(job: TrainingJob, model: ModelChoice, start: TrainSettings | None) -> Walk:
    """The rung of these settings, or they alone where they are on no rung, also not on one without 4-bit."""
    profile = job.setup.profile
    top = Walk(model, profile.train, profile.ladder, half=half_precision_of(job.setup.device))
    if start is None:
        return top
    ladders = ((top.base, top.ladder), ladder_without_4bit(top.base, top.ladder, top.half))
    rungs = (
        replace(top, base=base, ladder=ladder, rung=rung) for base, ladder in ladders for rung in range(len(ladder) + 1)
    )
    return next((walk for walk in rungs if walk.settings == start), replace(top, base=start, ladder=()))


def _step_down(job: TrainingJob, walk: Walk, diagnosis: Diagnosis) -> Walk | None:
    move = next_move(diagnosis, walk.rung, walk.ladder)
    job.run.console.line(f"{job.stage} {walk.settings.short()}: {move.reason}")
    match move.kind:
        case MoveKind.NEXT_RUNG:
            return walk.down()
        case MoveKind.WITHOUT_4BIT:
            base, ladder = ladder_without_4bit(walk.base, walk.ladder, walk.half)
            return replace(walk, base=base, ladder=ladder, rung=0, skipped=frozenset())
        case MoveKind.SMALLER_MODEL:
            return _with_smaller_model(job, walk)
        case MoveKind.STOP:
            return None


def _with_smaller_model(job: TrainingJob, walk: Walk) -> Walk | None:
    """The top rung with a smaller model, where one is to be had; only in H-2, on whose model the others stand."""
    model = smaller_model(job.run, walk.model) if job.stage is StageId.H2 else None
    if model is None:
        return None
    job.run.journal.append(ModelChosen(at=now(), stage=StageId.H2, model=model))
    return replace(walk, model=model, rung=0, skipped=frozenset(), smaller_model=model.name)


def no_rung_keeps_the_answers(skipped: Sequence[tuple[TruncatedAnswers, TrainSettings]]) -> Outcome:
    """The outcome where every rung was skipped: the longest one's count, and the length that would keep all answers."""
    truncated, settings = max(skipped, key=lambda pair: pair[1].max_seq_length)
    reason = say(
        "walk.answers_lost",
        length=settings.max_seq_length,
        rows=truncated.rows,
        lost=truncated.lost_rows,
        fitting=truncated.fitting_seq_length,
    )
    check = ANSWERS_KEPT.check(False, reason, severity=Severity.FAIL)
    return Outcome(Verdict.FAIL, say("walk.not_trained", reason=reason), (check,))


STEPS = 5
SHORTEST_LENGTH = 16  # what a profile may ask for
LENGTH_STEP = 8  # tokens; multiples of it are what matrix units like
CANNOT_RUN = (InputError, OSError, RunnerError)  # what keeps such a training from being run


def calibrate(job: TrainingJob, model: ModelChoice, settings: TrainSettings) -> None:
    """Train five steps at another length than H-2's last attempt; never raises for what the run does."""
    short = settings.changed(max_steps=STEPS, logging_steps=1)
    rows = job.row_lengths(model, short)
    length = other_length(settings.max_seq_length, rows)
    asked = short.changed(max_seq_length=length or settings.max_seq_length)
    label = say("attempt.calibrate", settings=asked.short(), steps=STEPS)
    try:
        if length is None:
            job.note_skipped(label, say("calibrate.no_shorter"))
        elif job.run.is_out_of_time:
            job.note_skipped(label, say("calibrate.no_time"))
        else:
            expectation = expected(job.setup, model, asked, rows)
            predicted = expectation.peak if expectation else None
            try:
                train_beside(job, model, asked, label=label, predicted=predicted, rows=rows)
            except CANNOT_RUN as error:
                job.note_skipped(label, say("calibrate.cannot_run", error=error))
    except JournalError as error:  # the disk takes no more events: the next stage will say what is wrong
        job.run.console.line(f"{StageId.H2} {error}")


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

    def judge(finished: Finished) -> Attempt:  # figures alone, losses as exact as the Trainer kept them; no checks
        evidence = job.evidence(finished, model, settings)
        outcome, _, _ = judge_training(evidence)
        exact = read_state(evidence.output_dir, evidence.attempt_started_unix).losses or outcome.losses
        return finished.attempt.changed(training=outcome.changed(losses=exact))

    attempt = run_attempt(job.run, plan, call, judge)
    set_aside(job.setup.root / job.output_dir, job.run.journal.folder / attempt.folder)
    return attempt


def other_length(max_seq_length: int, rows: RowLengths | None) -> int | None:
    """Half of what the longest row really has, and no more than most rows fill; None where that is too short.

    Shorter rather than longer: where H-2 passed it hardly runs out of memory, and rows cut to it are equally long.
    """
    longest = min(max_seq_length, rows.longest_tokens) if rows else max_seq_length
    wanted = min(longest // 2, rows.median_tokens) if rows else longest // 2
    length = wanted // LENGTH_STEP * LENGTH_STEP
    return length if length >= SHORTEST_LENGTH else None
