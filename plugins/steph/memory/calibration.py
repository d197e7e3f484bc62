"""Reads what a record measured: its peaks correct the memory model, its times tell why a training run was slow.

Two lengths give slope and intercept of the memory. `steph slow` looks at memory, rows, loading, recompute and batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from steph.base.messages import NOTHING, Message, say, words_of
from steph.base.terms import FitVerdict, StageId, TrainerName
from steph.base.units import duration, gib
from steph.contract.description import load_description
from steph.contract.settings import ProfileError
from steph.memory.forecast import BUILT_IN_CONSTANTS, Constants, Forecast, predict, predict_unknown, ways
from steph.memory.shapes import ModelShape, ShapeError, model_shape
from steph.memory.terms import ASSUMED_TRAINER, DEFAULT_TARGETS, TRAINERS, Workload
from steph.record.settings import TrainSettings
from steph.record.values import Attempt, ModelChoice, Record

USABLE_ERROR = 0.10  # a point further off is another trainer, or has rows shorter than it says
LARGEST_SCALE = 64.0
# half-precision activations in place of fp32 ones are half, and fewer of them kept half of that again; a peak that
# grows less with the length is not set by the training step
SMALLEST_SCALE = 0.25
LARGE_SHARE = 0.3  # of the time, or of the tokens: below it nothing else would be noticed
SLOW_STEP = 3.0  # times the median
LEAST_STEPS = 5
FP32_BITS = 32  # of weights, and of all that is computed with them: no formula has them
LARGER_BATCHES = (8, 4, 2)


class CalibrationError(ValueError):
    """Two points give no slope and intercept that carry over; its message says why."""


@dataclass(frozen=True, slots=True)
class MeasuredPoint:
    """Peak of one training run; `context_bytes` is the process's memory beside the allocator, where measured."""

    shape: ModelShape
    work: Workload
    peak_allocated_bytes: int
    context_bytes: int | None = None

    def excess_bytes(self, constants: Constants = BUILT_IN_CONSTANTS) -> int:
        """Measured less predicted."""
        return self.peak_allocated_bytes - predict(self.shape, self.work, constants).peak_allocated_bytes

    def error(self, constants: Constants = BUILT_IN_CONSTANTS) -> float:
        """How far the prediction is off, as a share of the measured peak."""
        return abs(self.excess_bytes(constants)) / self.peak_allocated_bytes


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a record says of the memory model, from `point_count` measured attempts of a model of `shape`."""

    trainer: TrainerName  # that the pipeline's description names (`is_described`), else the one assumed
    is_described: bool
    constants: Constants = BUILT_IN_CONSTANTS
    point_count: int = 0
    is_explained: bool = True  # whether the formulas hold for what was measured
    shape: ModelShape | None = None
    line: tuple[float, float] | None = None  # of two lengths: allocated peak in bytes a token, and bytes without any
    shortfall: Message = NOTHING  # why two lengths gave none

    def forecast(self, shape: ModelShape, work: Workload) -> Forecast:
        """Predict a run on the record's card.

        The constants are those of the record's own trainer: of another one, only the context is the card's. Where
        nobody described the trainer, they hold for the record's own model alone, and only where two lengths, or an
        error that holds what was measured, made them; everything else spans all trainers.
        """
        by_card = replace(BUILT_IN_CONSTANTS, context_bytes=self.constants.context_bytes)
        if work.trainer != self.trainer:
            return predict(shape, work, by_card)
        if self.is_described or (shape == self.shape and (self.line is not None or not self.is_explained)):
            return predict(shape, work, self.constants)
        return predict_unknown(shape, work, by_card)

    @property
    def carries_over(self) -> bool:
        """Whether anything can be said of another model than the record's."""
        return self.is_described or self.is_explained

    @property
    def pads_to_maximum(self) -> bool:
        """Whether every row is as long as the setting allows; where nobody said so, rows may be shorter."""
        return self.is_described and TRAINERS[self.trainer].pads_to_maximum


def calibrated(points: Sequence[MeasuredPoint]) -> Constants:
    """The constants that predict the points best; where the formulas explain none, an error that holds all.

    The allocator's slack stays the trainer's: one setting's says little of another's.
    """
    found = BUILT_IN_CONSTANTS
    usable = [point for point in points if point.error() <= USABLE_ERROR]
    if usable:
        off = median(point.excess_bytes() for point in usable)
        found = replace(found, workspace_bytes=max(0.0, found.workspace_bytes + off))
    elif points:
        peaks = [(point.peak_allocated_bytes, point.excess_bytes()) for point in points]
        error = max(abs(excess / (measured - excess)) for measured, excess in peaks)
        found = replace(found, relative_error=max(found.relative_error, error))
    return _with_context(found, usable)


def through_two_lengths(short: MeasuredPoint, long: MeasuredPoint) -> Constants:
    """The constants that meet both points: slope by a scale, intercept by an offset.

    Where every position has logits, what the slope differs by is theirs: their cost a token depends on the vocabulary
    alone and carries over to another model, while the rest grows with its shape. Without any, where even the formulas'
    rest is too steep, the rest is scaled, as it is for a trainer of answer positions. Where the formulas were off by
    more than USABLE_ERROR, the error becomes that large, or as large as the offset.

    Raises CalibrationError where the points are no two lengths of one setting, or no scale explains them.
    """
    start, has_logits = BUILT_IN_CONSTANTS, long.work.kind.all_logits
    as_long = replace(short.work, width=long.work.width, label_positions=long.work.label_positions)
    if short.shape != long.shape or as_long != long.work:
        raise CalibrationError(say("calibration.other_settings"))
    if short.work.width >= long.work.width:
        raise CalibrationError(say("calibration.same_length"))

    def missing(constants: Constants) -> int:
        return long.excess_bytes(constants) - short.excess_bytes(constants)

    by_logits = has_logits and missing(replace(start, logits_scale=0.0)) >= 0

    def scaled(scale: float) -> Constants:
        if by_logits:
            return replace(start, logits_scale=scale)
        return replace(start, activation_scale=scale, logits_scale=0.0 if has_logits else start.logits_scale)

    low, high = 0.0 if by_logits else SMALLEST_SCALE, LARGEST_SCALE
    if long.peak_allocated_bytes <= short.peak_allocated_bytes or missing(scaled(low)) < 0:
        raise CalibrationError(say("calibration.flat"))
    if missing(scaled(high)) > 0:
        raise CalibrationError(say("calibration.steep"))
    for _ in range(40):  # by halving, until the prediction grows from the short to the long point as measured
        middle = (low + high) / 2
        low, high = (middle, high) if missing(scaled(middle)) > 0 else (low, middle)
    found = scaled(high)
    found = replace(found, offset_bytes=(short.excess_bytes(found) + long.excess_bytes(found)) / 2)
    if max(short.error(), long.error()) > USABLE_ERROR:
        error = max(start.relative_error, USABLE_ERROR, abs(found.offset_bytes) / long.peak_allocated_bytes)
        found = replace(found, relative_error=error)
    return _with_context(found, (short, long))


def _with_context(constants: Constants, points: Sequence[MeasuredPoint]) -> Constants:
    contexts = [point.context_bytes for point in points if point.context_bytes is not None]
    return replace(constants, context_bytes=float(median(contexts))) if contexts else constants


def workload_of(settings: TrainSettings, trainer: TrainerName, bits: int | None = None) -> Workload:
    """The memory side of a training attempt's settings, with rows of full length; `bits`: of its weights as seen."""
    return Workload(
        trainer=trainer,
        batch_size=settings.batch_size,
        width=settings.max_seq_length,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        lora_r=settings.lora_r,
        target_modules=settings.target_modules or DEFAULT_TARGETS,
        lora_dropout=settings.lora_dropout > 0,
        use_4bit=settings.use_4bit if bits is None else bits == 4,
        use_8bit=bits == 8,
    )


def shape_of(choice: ModelChoice) -> ModelShape:
    """The shape of a model under test, from its own files, else by its name; raises ShapeError."""
    try:
        return model_shape(choice.snapshot_path or choice.name)
    except ShapeError:
        return model_shape(choice.name)


def calibration_or_default(record: Record) -> Calibration:
    """The calibration by a record's measurements; the defaults where its model's shape can't be read any more."""
    try:
        return calibration_of(record)
    except ShapeError:
        return replace(_uncorrected(record), shortfall=say("calibration.no_shape"))


def calibration_of(record: Record) -> Calibration:
    """The calibration by a record's own measurements; the defaults where it has none that can be used.

    Raises ShapeError where the record's model has no shape that can be read.
    """
    found = _uncorrected(record)
    h2, choice = record.stages.get(StageId.H2), record.model
    if h2 is None or choice is None:
        return found
    try:
        shape = shape_of(choice)
    except ShapeError:  # a twin whose folder is gone has the shape of the candidate it was made after
        h1 = record.stages.get(StageId.H1)
        is_of_h1 = h1 is not None and h1.model is not None and h1.model.name == choice.name
        names = [candidate.name for candidate in h1.candidates if candidate.outcome == "chosen"] if h1 else []
        if not (is_of_h1 and names):
            raise
        shape = model_shape(names[0])
    found = replace(found, shape=shape)
    points = [point for attempt in h2.attempts if (point := _point(attempt, choice, found))]

    def is_explained(point: MeasuredPoint) -> bool:
        """Whether the formulas hold for it: the described trainer's, or any where nobody described it."""
        if found.is_described:
            return point.error() <= USABLE_ERROR
        span = predict_unknown(shape, point.work, replace(BUILT_IN_CONSTANTS, context_bytes=0)).peak
        return span.low_bytes <= point.peak_allocated_bytes <= span.high_bytes

    explained = not points or any(map(is_explained, points))
    found = replace(found, constants=calibrated(points), point_count=len(points), is_explained=explained)
    if not h2.calibration_attempts:
        return found
    own, other = h2.attempts[-1] if h2.attempts else None, h2.calibration_attempts[-1]
    short, long = _point(other, choice, found), _point(own, choice, found) if own else None
    if own is None or long is None or short is None:
        return replace(found, shortfall=say("calibration.no_peaks" if other.ended_well else "calibration.unended"))
    epochs = own.training.epochs_done if own.training else None
    saw_all = own.longest_row_tokens is not None and epochs is not None and epochs >= 1
    if not (saw_all or found.pads_to_maximum):
        return replace(found, shortfall=say("calibration.no_longest_row"))
    try:
        constants = through_two_lengths(short, long)
    except CalibrationError as error:
        return replace(found, shortfall=words_of(error))
    slope = (long.peak_allocated_bytes - short.peak_allocated_bytes) / (long.work.tokens - short.work.tokens)
    line = (slope, long.peak_allocated_bytes - slope * long.work.tokens)
    return replace(found, constants=constants, point_count=2, is_explained=found.is_described or explained, line=line)


def _uncorrected(record: Record) -> Calibration:
    """What the pipeline said of its trainer when the record was made; older records: what it says today."""
    known = record.context.trainer
    if known is None:
        with contextlib.suppress(ProfileError):
            known = load_description(Path(record.context.pipeline_root)).trainer
    return Calibration(known, True) if known and known in TRAINERS else Calibration(ASSUMED_TRAINER, False)


def _point(attempt: Attempt, choice: ModelChoice, calibration: Calibration) -> MeasuredPoint | None:
    """An attempt that ended well and wrote its peaks; the way it ran is the one that predicts its peak best.

    Rows are as long as the longest where the trainer pads to that, or may do so: a slope by fewer tokens is steeper.
    """
    peaks = [probe for probe in attempt.probes if probe.peak_allocated_bytes and probe.peak_reserved_bytes]
    shape, settings, is_own = calibration.shape, attempt.settings, attempt.model_name in (None, choice.name)
    if not (is_own and attempt.ended_well and peaks) or shape is None or not isinstance(settings, TrainSettings):
        return None
    probe = max(peaks, key=lambda found: found.peak_allocated_bytes or 0)
    allocated, reserved = probe.peak_allocated_bytes or 0, probe.peak_reserved_bytes or 0
    own = attempt.peak_own_bytes
    context = own - reserved if own is not None and own > reserved and len(peaks) == 1 else None
    bits = attempt.training.weight_bits if attempt.training else None
    if bits == FP32_BITS:
        return None
    work = workload_of(settings, calibration.trainer, bits)
    if attempt.longest_row_tokens is not None and not calibration.pads_to_maximum:
        answer_tokens = attempt.longest_answer_tokens or work.label_positions - 1
        work = work.of_rows(attempt.longest_row_tokens, answer_tokens)
    points = [MeasuredPoint(shape, way, allocated, context) for way in ways(work)]
    return min(points, key=lambda point: abs(point.excess_bytes()))


class NothingTrainedError(ValueError):
    """The record has no training run that ended, so that its pace is not known."""


def why_slow(record: Record) -> tuple[Message, ...]:
    """What the record's last training run lost time by, the gravest first, and its pace; raises NothingTrainedError."""
    stage = record.stages.get(StageId.H2)
    attempt = stage.last_attempt if stage else None
    settings, training = (attempt.settings, attempt.training) if attempt else (None, None)
    if attempt is None or training is None or not isinstance(settings, TrainSettings):
        raise NothingTrainedError(say("slow.nothing"))
    found: list[Message] = []
    # a card that spilled into the host's memory, an allocator that gave its blocks back to go on
    if any(check.id == "no_memory_spill" and check.holds is False for check in attempt.checks):
        found.append(say("slow.spill"))
    if retries := max((probe.allocator_retries or 0 for probe in attempt.probes), default=0):
        found.append(say("slow.retries", count=retries))
    # what was not spent on steps, and steps that took far longer than the others
    steps, pace = training.step_seconds, []
    if len(steps) >= LEAST_STEPS:
        if attempt.seconds and sum(steps) < (1 - LARGE_SHARE) * attempt.seconds:
            beside, total = duration(attempt.seconds - sum(steps)), duration(attempt.seconds)
            found.append(say("slow.loading", beside=beside, total=total))
        middle = median(steps)
        late = [seconds for seconds in steps[1:] if seconds > SLOW_STEP * middle]  # the first one warms up
        if sum(late) - len(late) * middle > LARGE_SHARE * sum(steps):
            found.append(say("slow.uneven", count=len(late), longest=max(late), middle=middle))
        pace.append(say("slow.step", middle=middle, count=len(steps)))
    if training.tokens_per_second:
        pace.append(say("slow.tokens", rate=training.tokens_per_second))
    calibration, mean = calibration_or_default(record), attempt.mean_row_tokens
    if calibration.pads_to_maximum and mean is not None:  # every row is as long as the setting
        share = 1 - min(mean, settings.max_seq_length) / settings.max_seq_length
        if share > LARGE_SHARE:
            found.append(say("slow.padding", share=share, mean=round(mean), length=settings.max_seq_length))
    found += _room(record, settings, calibration)
    return (*(found or [say("slow.card")]), *pace)


def _room(record: Record, settings: TrainSettings, found: Calibration) -> list[Message]:
    """What the card has room for by the record's own constants: activations instead of recompute, a larger batch."""
    usable = record.context.usable_bytes
    if found.shape is None or usable is None or not found.is_described or TRAINERS[found.trainer].picks_its_way:
        return []
    work, room = workload_of(settings, found.trainer), []
    kept = found.forecast(found.shape, replace(work, recompute=False))
    if kept.verdict(usable) is FitVerdict.FITS:
        room.append(say("slow.recompute", peak=gib(kept.peak.peak_bytes), card=gib(usable)))
    for batch in (times * settings.batch_size for times in LARGER_BATCHES):
        if found.forecast(found.shape, replace(work, batch_size=batch)).verdict(usable) is FitVerdict.FITS:
            return [*room, say("slow.batch", batch=batch, now=settings.batch_size)]
    return room
