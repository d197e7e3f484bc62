"""Measured peaks correct the constants; two lengths give slope and intercept, also for a trainer that nobody described.

Comes in: points measured on one card. Goes out: `Constants` for that card, or a `PeakLine`. Pure arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from steph.memory.constants import MEASURED, Constants
from steph.memory.forecast import allocated_peak_bytes
from steph.memory.shapes import ModelShape
from steph.memory.tape import play
from steph.memory.terms import Workload

USABLE_ERROR = 0.10  # a point further off is another trainer, or has rows shorter than it says
LARGEST_SCALE = 64.0
# half-precision activations in place of fp32 ones are half, and fewer of them kept half of that again; a peak that
# grows less with the length is not set by the training step
SMALLEST_SCALE = 0.25
_HALVINGS = 40


class CalibrationError(ValueError):
    """Two points give no slope and intercept that carry over; the message says why (Japanese)."""


@dataclass(frozen=True, slots=True)
class MeasuredPoint:
    """Peaks of one training run; `context_bytes` is the process's memory beside the allocator, where measured."""

    shape: ModelShape
    work: Workload
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    context_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class PeakLine:
    """A peak that is linear in the tokens of a forward: bytes a token, and bytes without any."""

    bytes_per_token: float
    fixed_bytes: float

    def at(self, tokens: int) -> float:
        """The peak at so many tokens, in bytes."""
        return self.fixed_bytes + self.bytes_per_token * tokens


def line_through(points: Sequence[tuple[int, int]]) -> PeakLine:
    """The least-squares line through (tokens, peak bytes); a slope is never below zero.

    Raises ValueError where the points have fewer than two different token counts.
    """
    if len({tokens for tokens, _ in points}) < 2:
        raise ValueError("a line needs peaks at two different numbers of tokens")
    mean_tokens = sum(tokens for tokens, _ in points) / len(points)
    mean_peak = sum(peak for _, peak in points) / len(points)
    spread = sum((tokens - mean_tokens) ** 2 for tokens, _ in points)
    slope = sum((tokens - mean_tokens) * (peak - mean_peak) for tokens, peak in points) / spread
    slope = max(0.0, slope)
    return PeakLine(slope, mean_peak - slope * mean_tokens)


def calibrated(points: Sequence[MeasuredPoint], start: Constants = MEASURED) -> Constants:
    """The constants under which the points are predicted best; what no point speaks of stays as it was."""
    usable = [point for point in points if is_usable(point, start)]
    if not usable:
        return start
    off = median(_excess(point, start) for point in usable)
    return _with_slack(replace(start, workspace_bytes=max(0.0, start.workspace_bytes + off)), usable)


def through_two_lengths(short: MeasuredPoint, long: MeasuredPoint, start: Constants = MEASURED) -> Constants:
    """The constants that meet both points: slope by a scale, intercept by an offset.

    Where every position has logits, what the slope differs by is theirs: their cost a token depends on the vocabulary
    alone and carries over to another model, while the rest grows with its shape. Without any, where even the formulas'
    rest is too steep, the rest is scaled, as it is for a trainer of answer positions. Where the formulas were off by
    more than USABLE_ERROR, the error becomes that large, or as large as the offset.

    Raises CalibrationError where the points are no two lengths of one setting, or no scale explains them.
    """
    as_long = replace(short.work, width=long.work.width, label_positions=long.work.label_positions)
    if short.shape != long.shape or as_long != long.work:
        raise CalibrationError("二つの試行で長さ以外の条件が違う(再計算や、まとめて流す行数)")
    if short.work.width >= long.work.width:
        raise CalibrationError("二つの試行の長さが同じ")
    found = _with_slope(short, long, start)
    found = replace(found, offset_bytes=(_excess(short, found) + _excess(long, found)) / 2)
    if not (is_usable(short, start) and is_usable(long, start)):
        error = max(start.relative_error, USABLE_ERROR, abs(found.offset_bytes) / long.peak_allocated_bytes)
        found = replace(found, relative_error=error)
    return _with_slack(found, (short, long))


def _with_slope(short: MeasuredPoint, long: MeasuredPoint, start: Constants) -> Constants:
    base = start
    if long.work.trainer == "full":
        base = replace(start, logits_scale=0.0)
        if _growth(short, long, base) <= _due(short, long):
            return _solved(short, long, lambda scale: replace(start, logits_scale=scale), 0.0)
    return _solved(short, long, lambda scale: replace(base, activation_scale=scale), SMALLEST_SCALE)


def _solved(
    short: MeasuredPoint, long: MeasuredPoint, scaled: Callable[[float], Constants], lowest: float
) -> Constants:
    """The scale, by halving, at which the prediction grows from the short to the long point as the measured peak."""
    low, high, due = lowest, LARGEST_SCALE, _due(short, long)
    if due <= 0 or _growth(short, long, scaled(low)) > due:
        raise CalibrationError("長さを変えてもピークがほとんど変わらない(学習の 1 歩がピークを決めていない)")
    if _growth(short, long, scaled(high)) < due:
        raise CalibrationError("長さによるピークの増え方が、どの式よりも大きい")
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _growth(short, long, scaled(middle)) < due else (low, middle)
    return scaled(high)


def _due(short: MeasuredPoint, long: MeasuredPoint) -> int:
    return long.peak_allocated_bytes - short.peak_allocated_bytes


def _growth(short: MeasuredPoint, long: MeasuredPoint, constants: Constants) -> int:
    return _predicted(long, constants) - _predicted(short, constants)


def _with_slack(constants: Constants, points: Sequence[MeasuredPoint]) -> Constants:
    """The constants with the points' own context and allocator slack."""
    contexts = [point.context_bytes for point in points if point.context_bytes is not None]
    found = replace(constants, context_bytes=float(median(contexts))) if contexts else constants
    extra = median(_slack(point) - play(point.shape, point.work).slack_bytes for point in points)
    return replace(found, slack_extra_bytes=float(extra))


def without_explanation(points: Sequence[MeasuredPoint], start: Constants = MEASURED) -> Constants:
    """The constants with an error as large as the formulas were off, where no point is one that they explain."""
    if not points or any(is_usable(point, start) for point in points):
        return start
    off = max(abs(point.peak_allocated_bytes / _predicted(point, start) - 1) for point in points)
    return replace(start, relative_error=max(start.relative_error, off))


def _predicted(point: MeasuredPoint, constants: Constants) -> int:
    return allocated_peak_bytes(point.shape, point.work, constants)


def _excess(point: MeasuredPoint, constants: Constants) -> int:
    """Measured less predicted."""
    return point.peak_allocated_bytes - _predicted(point, constants)


def is_usable(point: MeasuredPoint, constants: Constants = MEASURED) -> bool:
    """Whether the formulas predict the point nearly enough to be the right ones."""
    predicted = _predicted(point, constants)
    return abs(predicted / point.peak_allocated_bytes - 1) <= USABLE_ERROR


def _slack(point: MeasuredPoint) -> int:
    return max(0, point.peak_reserved_bytes - point.peak_allocated_bytes)
