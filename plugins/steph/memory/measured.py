"""What a record's attempts measured, as points that correct the memory model on their card.

Comes in: a record. Goes out: a `Calibration`: constants, and where two lengths were measured the line through them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from steph.base.terms import StageId
from steph.contract.description import load_description
from steph.memory.calibration import (
    CalibrationError,
    MeasuredPoint,
    PeakLine,
    calibrated,
    line_through,
    through_two_lengths,
    without_explanation,
)
from steph.memory.constants import MEASURED, Constants
from steph.memory.forecast import allocated_peak_bytes, ways
from steph.memory.readings import Reading, explanations, possible_kinds
from steph.memory.shape_lookup import ShapeError, model_shape
from steph.memory.shapes import ModelShape
from steph.memory.terms import ASSUMED_TRAINER, DEFAULT_TARGETS, Trainer, Workload
from steph.plan.settings import ProfileError
from steph.record.settings import TrainSettings
from steph.record.values import Attempt, ModelChoice, Record, StageResult


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a record says of the memory model's constants, from `point_count` measured attempts.

    `readings`: how they can be read, likeliest first; a prediction spans them. `trainer`: the kind that is described or
    assumed.
    `is_described`: whether the pipeline says how its trainer uses memory; `is_explained`: whether the formulas hold for
    what was measured of it. `line`: allocated peak by tokens of a forward, where two lengths gave one that carries
    over; `shortfall` says why two that were measured did not (Japanese). `carries_over`: whether anything can be said
    of another model than `shape`.
    """

    trainer: Trainer
    is_described: bool
    readings: tuple[Reading, ...] = (Reading(),)
    point_count: int = 0
    is_explained: bool = True
    carries_over: bool = True
    shape: ModelShape | None = None
    line: PeakLine | None = None
    shortfall: str = ""

    @property
    def constants(self) -> Constants:
        """The likeliest reading's constants."""
        return self.readings[0].constants

    def readings_for(self, trainer: str) -> tuple[Reading, ...]:
        """The readings for a trainer of that kind: of another kind than the record's, the card's figures alone."""
        if trainer == self.trainer:
            return self.readings
        return (Reading(replace(MEASURED, context_bytes=self.constants.context_bytes)),)

    def is_for(self, shape: ModelShape) -> bool:
        """Whether the readings say anything of a model of this shape."""
        return self.carries_over or shape == self.shape

    def basis(self, trainer: str) -> str:
        """What the record gave to a prediction for a trainer of that kind, in English."""
        if not self.point_count:
            return "the record has no measured peaks that can be used: built-in constants"
        if trainer != self.trainer:
            return f"the record's trainer is {self.trainer}: only what the card holds beside the allocator is its own"
        if self.line is not None:
            return "slope and intercept by two measured lengths of the record"
        if not self.is_explained:
            error = self.constants.relative_error
            return f"the record's measured peaks are off by {error:.0%}, which the interval therefore allows for"
        attempts = f"{self.point_count} measured attempt{'s' if self.point_count > 1 else ''}"
        return f"constants corrected by {attempts} of the record"

    @property
    def pads_to_maximum(self) -> bool:
        """Whether every row is as long as the setting allows; where nobody said so, rows may be shorter."""
        return self.is_described and self.trainer == "full"


def workload_of(settings: TrainSettings, trainer: Trainer) -> Workload:
    """The memory side of a training attempt's settings, with rows of full length."""
    return Workload(
        trainer=trainer,
        batch_size=settings.batch_size,
        width=settings.max_seq_length,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        lora_r=settings.lora_r,
        target_modules=settings.target_modules or DEFAULT_TARGETS,
        lora_dropout=settings.lora_dropout > 0,
        use_4bit=settings.use_4bit,
    )


def shape_of(choice: ModelChoice) -> ModelShape:
    """The shape of a model under test, from its own files, else by its name; raises ShapeError."""
    try:
        return model_shape(choice.snapshot_path or choice.name)
    except ShapeError:
        return model_shape(choice.name)


def calibration_of(record: Record) -> Calibration:
    """What the record's own measurements correct; the defaults where it has none that can be used.

    Raises ShapeError where the record's model has no shape that can be read.
    """
    found = _uncorrected(record)
    h2, choice = record.stages.get(StageId.H2), record.model
    if h2 is None or choice is None:
        return found
    shape = _shape(record, choice)
    points = _points(h2.attempts, choice, shape, found)
    cautious = without_explanation(points)
    own = Reading(calibrated(points, cautious))
    kinds = possible_kinds(points[-1]) if points and not found.is_described else ()
    is_explained = cautious == MEASURED
    one_length = replace(
        found,
        readings=kinds or (own,),
        point_count=len(points),
        is_explained=is_explained,
        carries_over=found.is_described or is_explained,
        shape=shape,
    )
    return _with_second_length(one_length, h2, choice, shape) if h2.calibration_attempts else one_length


def _uncorrected(record: Record) -> Calibration:
    described = _described_trainer(record)
    return Calibration(described or ASSUMED_TRAINER, described is not None)


def _described_trainer(record: Record) -> Trainer | None:
    """What the pipeline said of its trainer when the record was made; older records: what it says today."""
    known = record.context.trainer
    if known is not None:
        return None if known == "undescribed" else known
    try:
        return load_description(Path(record.context.pipeline_root)).trainer
    except ProfileError:
        return None


def _shape(record: Record, choice: ModelChoice) -> ModelShape:
    """The shape of the record's model; a twin whose folder is gone has that of the candidate it was made after."""
    try:
        return shape_of(choice)
    except ShapeError:
        h1 = record.stages.get(StageId.H1)
        is_of_h1 = h1 is not None and h1.model is not None and h1.model.name == choice.name
        names = [candidate.name for candidate in h1.candidates if candidate.outcome == "chosen"] if h1 else []
        if not (is_of_h1 and names):
            raise
        return model_shape(names[0])


def _with_second_length(
    one_length: Calibration, h2: StageResult, choice: ModelChoice, shape: ModelShape
) -> Calibration:
    newest = (h2.attempts[-1:], h2.calibration_attempts[-1:])
    pair = [point for attempts in newest for point in _points(attempts, choice, shape, one_length)]
    if len(pair) < 2:
        return replace(one_length, shortfall=_missing_peak(h2.calibration_attempts[-1]))
    if not _knows_its_width(h2.attempts[-1], one_length):
        return replace(one_length, shortfall="学習した最も長い行の長さが分からない")
    long, short = pair
    try:
        readings = explanations(short, long) if not one_length.is_described else ()
        own = readings or (Reading(through_two_lengths(short, long)),)
    except CalibrationError as error:
        return replace(one_length, shortfall=str(error))
    return replace(
        one_length,
        readings=own,
        point_count=2,
        is_explained=True,
        carries_over=one_length.is_described or bool(readings),
        line=line_through([(point.work.tokens, point.peak_allocated_bytes) for point in pair]),
    )


def _missing_peak(attempt: Attempt) -> str:
    if not attempt.ended_well:
        return "別の長さでの試行が最後まで終わらなかった"
    return "torch のピークが二つの試行に揃っていない(GPU を使わない実行では測れない)"


def _knows_its_width(attempt: Attempt, calibration: Calibration) -> bool:
    """Whether the widest batch's tokens are known: padded to the maximum, or its rows counted and all of them seen."""
    epochs = attempt.training.epochs_done if attempt.training else None
    saw_all = epochs is not None and epochs >= 1
    return calibration.pads_to_maximum or (attempt.longest_row_tokens is not None and saw_all)


def _points(
    attempts: Sequence[Attempt], choice: ModelChoice, shape: ModelShape, calibration: Calibration
) -> list[MeasuredPoint]:
    own = [attempt for attempt in attempts if attempt.model_name in (None, choice.name)]
    found = (_point(attempt, shape, calibration) for attempt in own)
    return [point for point in found if point is not None]


def _point(attempt: Attempt, shape: ModelShape, calibration: Calibration) -> MeasuredPoint | None:
    """An attempt that ended well and wrote its peaks; the way it ran is the one that predicts its peak best.

    Rows are as long as the longest where the trainer pads to that, or may do so: a slope by fewer tokens is steeper.
    """
    peaks = [probe for probe in attempt.probes if probe.peak_allocated_bytes and probe.peak_reserved_bytes]
    if not attempt.ended_well or not isinstance(attempt.settings, TrainSettings) or not peaks:
        return None
    probe = max(peaks, key=lambda found: found.peak_allocated_bytes or 0)
    allocated, reserved = probe.peak_allocated_bytes or 0, probe.peak_reserved_bytes or 0
    own = attempt.peak_own_bytes
    context = own - reserved if own is not None and own > reserved and len(peaks) == 1 else None
    asked = workload_of(attempt.settings, calibration.trainer)
    if attempt.longest_row_tokens is not None and not calibration.pads_to_maximum:
        answer_tokens = attempt.longest_answer_tokens or asked.label_positions - 1
        asked = asked.of_rows(attempt.longest_row_tokens, answer_tokens)
    way = min(ways(asked), key=lambda work: abs(allocated_peak_bytes(shape, work) - allocated))
    return MeasuredPoint(shape, way, allocated, reserved, context)


def calibration_or_default(record: Record) -> Calibration:
    """What the record's measurements correct, the defaults where its model's shape can't be read any more."""
    try:
        return calibration_of(record)
    except ShapeError:
        return replace(_uncorrected(record), shortfall="モデルの形が分からない")
