"""Measured peaks correct the constants; two lengths give a line for a trainer whose terms nobody knows.

Comes in: points measured on one card. Goes out: `Constants` for that card, or a `Line`. Pure arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from steph.plan.shapes import ModelShape
from steph.plan.vram import Forecast, moving_bytes, predict
from steph.plan.vram_activations import head_bytes
from steph.plan.vram_constants import MEASURED, Constants
from steph.plan.vram_terms import Workload

USABLE_ERROR = 0.10  # a point further off is another trainer, or has rows shorter than it says


@dataclass(frozen=True, slots=True)
class MeasuredPoint:
    """Peaks of one training run; `context_bytes` is the process's memory beside the allocator, where measured."""

    shape: ModelShape
    work: Workload
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    context_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A peak that is linear in the tokens of a forward: bytes a token, and bytes without any."""

    bytes_per_token: float
    fixed_bytes: float

    def at(self, tokens: int) -> float:
        """The peak at so many tokens, in bytes."""
        return self.fixed_bytes + self.bytes_per_token * tokens


def line_through(points: Sequence[tuple[int, int]]) -> Line:
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
    return Line(slope, mean_peak - slope * mean_tokens)


def calibrated(points: Sequence[MeasuredPoint], start: Constants = MEASURED) -> Constants:
    """The constants under which the points are predicted best; what no point speaks of stays as it was."""
    usable = [point for point in points if _is_usable(point, start)]
    if not usable:
        return start
    off = median(point.peak_allocated_bytes - _forecast(point, start).peak_allocated_bytes for point in usable)
    found = replace(start, workspace_bytes=max(0.0, start.workspace_bytes + off))
    contexts = [point.context_bytes for point in usable if point.context_bytes is not None]
    if contexts:
        found = replace(found, context_bytes=float(median(contexts)))
    plain = [(moving_bytes(point.shape, point.work), _slack(point)) for point in usable if not point.work.upcasts]
    upcast = [(round(head_bytes(point.shape, point.work)), _slack(point)) for point in usable if point.work.upcasts]
    fixed, share = _line_or_shift(plain, start.slack_fixed_bytes, start.slack_share)
    upcast_fixed, upcast_share = _line_or_shift(upcast, start.slack_upcast_bytes, start.slack_logits_share)
    return replace(
        found,
        slack_fixed_bytes=fixed,
        slack_share=share,
        slack_upcast_bytes=upcast_fixed,
        slack_logits_share=upcast_share,
    )


def _forecast(point: MeasuredPoint, constants: Constants) -> Forecast:
    return predict(point.shape, point.work, constants)


def _is_usable(point: MeasuredPoint, constants: Constants) -> bool:
    predicted = _forecast(point, constants).peak_allocated_bytes
    return abs(predicted / point.peak_allocated_bytes - 1) <= USABLE_ERROR


def _slack(point: MeasuredPoint) -> int:
    return max(0, point.peak_reserved_bytes - point.peak_allocated_bytes)


def _line_or_shift(pairs: Sequence[tuple[int, int]], fixed: float, share: float) -> tuple[float, float]:
    """Fixed part and share of the slack: a line where the points allow one, else the old share and a new fixed part."""
    if not pairs:
        return fixed, share
    if len({size for size, _ in pairs}) >= 3:
        line = line_through(pairs)
        if line.fixed_bytes >= 0:
            return line.fixed_bytes, line.bytes_per_token
    return max(0.0, median(slack - share * size for size, slack in pairs)), share
