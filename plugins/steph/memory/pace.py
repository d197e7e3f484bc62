"""Why a training run was slow, as far as its record shows: memory, rows, loading, recompute, a batch too small."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from statistics import median

from steph.base.messages import Message, say
from steph.base.terms import FitVerdict, StageId
from steph.base.units import duration, gib
from steph.memory.calibration import Calibration, calibration_or_default, workload_of
from steph.memory.trainers import TRAINERS
from steph.record.settings import TrainSettings
from steph.record.values import Attempt, Record

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
    settings = attempt.settings if attempt else None
    if attempt is None or attempt.training is None or not isinstance(settings, TrainSettings):
        raise NothingTrainedError(say("slow.nothing"))
    calibration = calibration_or_default(record)
    found = [
        *_memory(attempt),
        *_time(attempt),
        *_rows(attempt, settings, calibration),
        *_room(record, settings, calibration),
    ]
    return (*(found or [say("slow.card")]), *_pace(attempt))


def _memory(attempt: Attempt) -> Iterator[Message]:
    """A card that spilled into the host's memory, an allocator that gave its blocks back to go on."""
    if any(check.id == "no_memory_spill" and check.holds is False for check in attempt.checks):
        yield say("slow.spill")
    retries = max((probe.allocator_retries or 0 for probe in attempt.probes), default=0)
    if retries:
        yield say("slow.retries", count=retries)


def _time(attempt: Attempt) -> Iterator[Message]:
    """What was not spent on steps, and steps that took far longer than the others."""
    steps = attempt.training.step_seconds if attempt.training else ()
    if len(steps) < LEAST_STEPS:
        return
    if attempt.seconds and sum(steps) < (1 - LARGE_SHARE) * attempt.seconds:
        yield say("slow.loading", beside=duration(attempt.seconds - sum(steps)), total=duration(attempt.seconds))
    middle = median(steps)
    late = [seconds for seconds in steps[1:] if seconds > SLOW_STEP * middle]  # the first one warms up
    if sum(late) - len(late) * middle > LARGE_SHARE * sum(steps):
        yield say("slow.uneven", count=len(late), longest=max(late), middle=middle)


def _rows(attempt: Attempt, settings: TrainSettings, found: Calibration) -> Iterator[Message]:
    """Padding, where every row is as long as the setting."""
    mean = attempt.mean_row_tokens
    if not found.pads_to_maximum or mean is None:
        return
    share = 1 - min(mean, settings.max_seq_length) / settings.max_seq_length
    if share > LARGE_SHARE:
        yield say("slow.padding", share=share, mean=round(mean), length=settings.max_seq_length)


def _room(record: Record, settings: TrainSettings, found: Calibration) -> Iterator[Message]:
    """What the card has room for by the record's own constants: activations instead of recompute, a larger batch."""
    usable = record.context.usable_bytes
    if found.shape is None or usable is None or not found.is_described or TRAINERS[found.trainer].picks_its_way:
        return
    work = workload_of(settings, found.trainer)
    kept = found.forecast(found.shape, replace(work, recompute=False))
    if kept.verdict(usable) is FitVerdict.FITS:
        yield say("slow.recompute", peak=gib(kept.peak.peak_bytes), card=gib(usable))
    for times in LARGER_BATCHES:
        larger = found.forecast(found.shape, replace(work, batch_size=times * settings.batch_size))
        if larger.verdict(usable) is FitVerdict.FITS:
            yield say("slow.batch", batch=times * settings.batch_size, now=settings.batch_size)
            return


def _pace(attempt: Attempt) -> Iterator[Message]:
    """Seconds of a step, and tokens a second where the pipeline counts them."""
    training = attempt.training
    if training is None:
        return
    if len(training.step_seconds) >= LEAST_STEPS:
        yield say("slow.step", middle=median(training.step_seconds), count=len(training.step_seconds))
    if training.tokens_per_second:
        yield say("slow.tokens", rate=training.tokens_per_second)
