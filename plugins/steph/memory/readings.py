"""How measured peaks may be read: what a trainer does of which only the peaks are known, with the constants it needs.

Comes in: one measured length, or two. Goes out: every way of training that explains them. Pure arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from steph.memory.calibration import (
    USABLE_ERROR,
    CalibrationError,
    MeasuredPoint,
    calibrated,
    is_usable,
    through_two_lengths,
)
from steph.memory.constants import MEASURED, Constants
from steph.memory.forecast import Forecast, allocated_peak_bytes, predict
from steph.memory.shapes import ModelShape
from steph.memory.terms import Trainer, Workload

MARGIN = USABLE_ERROR / 2  # how much the formulas themselves may be off, which must not decide between two kinds


@dataclass(frozen=True, slots=True)
class Reading:
    """Constants, and what the trainer does whatever it is asked for; None where it does as the workload says."""

    constants: Constants = MEASURED
    trainer: Trainer | None = None
    recompute: bool | None = None
    use_4bit: bool | None = None

    def applied(self, work: Workload) -> Workload:
        """The workload as this trainer does it."""
        return replace(
            work,
            trainer=self.trainer or work.trainer,
            recompute=work.recompute if self.recompute is None else self.recompute,
            use_4bit=work.use_4bit if self.use_4bit is None else self.use_4bit,
        )


def predict_by(readings: Sequence[Reading], shape: ModelShape, work: Workload) -> Forecast:
    """The first reading's forecast, with an interval that holds those of all."""
    found = [predict(shape, reading.applied(work), reading.constants) for reading in readings]
    low, high = min(forecast.low_bytes for forecast in found), max(forecast.high_bytes for forecast in found)
    return replace(found[0], low_bytes=low, high_bytes=high)


def possible_kinds(point: MeasuredPoint) -> tuple[Reading, ...]:
    """Every kind of trainer, with and without recompute and 4-bit, whose formulas hold for one point; best first."""
    found = []
    for kind in _kinds(point):
        seen = replace(point, work=kind.applied(point.work))
        if is_usable(seen):
            found.append((_error(seen), replace(kind, constants=calibrated([seen]))))
    return tuple(reading for _, reading in sorted(found, key=lambda pair: pair[0]))


def explanations(short: MeasuredPoint, long: MeasuredPoint) -> tuple[Reading, ...]:
    """Every kind of trainer, with and without recompute and 4-bit, whose formulas hold for both points; best first.

    Two lengths tell most kinds apart, which one length can't: what a trainer lacks in slope, another has in weights.
    A kind that is worse than the best by more than MARGIN is none.
    """
    found = sorted(_explanations(short, long), key=lambda pair: pair[0])
    return tuple(reading for error, reading in found if error <= found[0][0] + MARGIN)


def _explanations(short: MeasuredPoint, long: MeasuredPoint) -> Iterator[tuple[float, Reading]]:
    for kind in _kinds(long):
        low, high = (replace(point, work=kind.applied(point.work)) for point in (short, long))
        if not (is_usable(low) and is_usable(high)):
            continue
        try:
            constants = through_two_lengths(low, high)
        except CalibrationError:
            continue
        yield max(_error(low), _error(high)), replace(kind, constants=constants)


def _kinds(point: MeasuredPoint) -> Iterator[Reading]:
    """All of them; where 4-bit is as it was asked for, it goes on being as asked."""
    trainers: tuple[Trainer, ...] = ("full", "answer")
    for trainer, recompute, use_4bit in product(trainers, (True, False), (True, False)):
        as_asked = use_4bit == point.work.use_4bit
        yield Reading(trainer=trainer, recompute=recompute, use_4bit=None if as_asked else use_4bit)


def _error(point: MeasuredPoint) -> float:
    return abs(allocated_peak_bytes(point.shape, point.work) / point.peak_allocated_bytes - 1)
