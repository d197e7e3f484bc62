"""`--steph-deep`: what only runs of their own can show about H-2's pipeline, after its training passed.

Pairs of short trainings differ in one flag: `--loss-on-output-only` (trap 9), `--use-4bit` (trap 5), the length (trap
11). They run after H-2's verdict is written, which they can't change: what goes wrong is a finding of severity `warn`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import chain

from steph.conduct.beside import CANNOT_RUN, behind_the_verdict, train_beside
from steph.conduct.calibrate import LENGTH_STEP
from steph.conduct.course import Course, half_precision_of
from steph.judge.checks_deep import deep_runs_check, four_bit_check, loss_flag_check, padding_check
from steph.plan.answers import RowLengths
from steph.record import Attempt, Check, ModelChoice, StageId, TrainSettings
from steph.run.events import ChecksAdded
from steph.run.journal import now

LOSS_FLAG, NO_LOSS_FLAG = "--loss-on-output-only", "--no-loss-on-output-only"
# a trainer that spends what 4-bit saves on faster ways of running is asked for one of them
ONE_WAY = {"--gradient-checkpointing": "on", "--fuse-accumulation": "off"}
PADDING_STEPS = 5  # the first is warm-up
TEMPLATE_ROOM_TOKENS = 64


def deep(course: Course, model: ModelChoice, settings: TrainSettings) -> None:
    """Put what the pairs show on record, each check as soon as it is known; never raises for what a run does."""
    with behind_the_verdict(course, "deep"):
        for check in deep_checks(course, model, settings):
            course.run.journal.append(ChecksAdded(at=now(), stage=StageId.H2, checks=(check,)))


def deep_checks(course: Course, model: ModelChoice, settings: TrainSettings) -> Iterator[Check]:
    """Run the pairs at the settings that H-2 passed at, one after the other; raises JournalError alone."""
    runs = _DeepRuns(course, model, settings.changed(logging_steps=1))
    yield runs.loss_flag()
    yield runs.four_bit()
    yield runs.padding()
    yield deep_runs_check(runs.ran, runs.trouble)


class _DeepRuns:
    """The deep attempts of one H-2; what they share runs once."""

    def __init__(self, course: Course, model: ModelChoice, settings: TrainSettings) -> None:
        self.course = course
        self.model = model
        self.settings = settings
        self.ran = 0
        self.trouble: list[str] = []

    def loss_flag(self) -> Check:
        """Trap 9; a script whose flag is on by default is asked without it by its negation."""
        if LOSS_FLAG not in self.course.flags:
            return loss_flag_check(None, None)
        has_negation = NO_LOSS_FLAG in self.course.flags
        without = self._attempt(self._steps(1), NO_LOSS_FLAG) if has_negation else self._base
        return loss_flag_check(_loss(self._attempt(self._steps(1), LOSS_FLAG)), _loss(without))

    def four_bit(self) -> Check:
        """Trap 5; without a GPU there is no peak to compare."""
        device = self.course.setup.device
        if device is None or not self.settings.use_4bit:
            return four_bit_check(None, None)
        half = self.settings.mixed_precision or half_precision_of(device)
        alike = tuple(chain.from_iterable(ONE_WAY.items())) if self.course.flags >= ONE_WAY.keys() else ()
        with_4bit = self._attempt(self._steps(1), *alike) if alike else self._base
        plain = self._steps(1).changed(use_4bit=False, mixed_precision=half)
        without = self._attempt(plain, *alike, may_run_out=True)
        ran_out = without is not None and without.ran_out_of_memory and with_4bit is not None
        return four_bit_check(with_4bit, without, ran_out=ran_out)

    def padding(self) -> Check:
        """Trap 11, at a length that cuts no row."""
        steps = self._steps(PADDING_STEPS)
        rows = self.course.row_lengths(self.model, steps)
        length = max(steps.max_seq_length, uncut_length(rows)) if rows else steps.max_seq_length
        short = self._attempt(steps.changed(max_seq_length=length))
        long = self._attempt(steps.changed(max_seq_length=2 * length), may_run_out=short is not None)
        ran_out = long is not None and long.ran_out_of_memory
        return padding_check(short, long, length, rows_fit=rows is not None, ran_out=ran_out)

    @cached_property
    def _base(self) -> Attempt | None:
        """One step as H-2 trained."""
        return self._attempt(self._steps(1))

    def _steps(self, steps: int) -> TrainSettings:
        return self.settings.changed(max_steps=steps)

    def _attempt(self, settings: TrainSettings, *flags: str, may_run_out: bool = False) -> Attempt | None:
        """Run one deep attempt; None where it could not be run to its end, with the reason among `trouble`."""
        label = " ".join((f"deep {settings.short()} {settings.max_steps}ステップ", *flags))
        if self.course.run.is_out_of_time:
            self.trouble.append(f"{label}(制限時間)")
            return None
        try:
            attempt = train_beside(self.course, self.model, settings, purpose="deep", label=label, flags=flags)
        except CANNOT_RUN as error:
            self.trouble.append(f"{label}({error})")
            return None
        if attempt.ended_well:
            self.ran += 1
            return attempt
        if may_run_out and attempt.ran_out_of_memory:
            return attempt
        cause = attempt.diagnosis.cause if attempt.diagnosis else "不明"
        self.trouble.append(f"{label}(原因: {cause})")
        return None


def uncut_length(rows: RowLengths) -> int:
    """A length that no row reaches, with room for a template that can't be seen from outside."""
    return (rows.longest + TEMPLATE_ROOM_TOKENS) // LENGTH_STEP * LENGTH_STEP


def _loss(attempt: Attempt | None) -> float | None:
    losses = attempt.training.losses if attempt and attempt.training else ()
    return losses[0] if losses else None
