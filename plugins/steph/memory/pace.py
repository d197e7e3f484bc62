"""Why a training run was slow, as far as its record shows: memory, rows, loading, recompute, a batch too small."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from steph.base.messages import Message, say
from steph.base.terms import FitVerdict, StageId
from steph.base.units import duration, gib
from steph.memory.calibration import Calibration, calibration_or_default, workload_of
from steph.memory.trainers import TRAINERS
from steph.record.settings import TrainSettings
from steph.record.values import Record

LARGE_SHARE = 0.3  # of the time, or of the tokens: below it nothing else would be noticed
SLOW_STEP = 3.0  # times the median
LEAST_STEPS = 5
LARGER_BATCHES = (8, 4, 2)


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
