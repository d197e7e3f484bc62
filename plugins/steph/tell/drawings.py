"""The report's two drawings: loss per step, and the card's memory over time.

Takes a record and samples, gives SVG text, or None where there is nothing to draw. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from steph.base.messages import text
from steph.base.terms import StageId
from steph.base.units import GIB
from steph.record.settings import EvalSettings
from steph.record.values import Attempt, Record
from steph.tell import summary
from steph.tell.canvas import (
    BLUE,
    GREEN,
    LEFT_INCHES,
    ORANGE,
    RIGHT_INCHES,
    WIDTH_INCHES,
    new_figure,
    plain,
    points_of,
    svg,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 2000
LABEL_POINTS = 7.0
HEADROOM = 1.4  # the axis above the highest line, where the attempts' labels stand
_PLOT_POINTS = 72 * (WIDTH_INCHES - LEFT_INCHES - RIGHT_INCHES)
PAUSE_SECONDS = 5.0  # at most, on the time axis: a stage that was run again next day stands beside the others


@dataclass(frozen=True)
class VramSample:
    """Used memory of the whole card at one moment, `at_seconds` since the epoch."""

    at_seconds: float
    used_bytes: int


def loss_svg(record: Record) -> str | None:
    """Draw the loss of the training that counts; None with fewer than two values."""
    result = record.stages.get(StageId.H2)
    attempt = result.last_attempt if result else None
    if attempt is None or attempt.training is None or len(attempt.training.losses) < 2:
        return None
    losses = attempt.training.losses
    every = getattr(attempt.settings, "logging_steps", 1)
    figure, axes = new_figure()
    steps = [every * (at + 1) for at in range(len(losses))]
    axes.plot(steps, losses, color=BLUE, linewidth=1.6, marker="o" if len(losses) <= 100 else None, markersize=2.5)
    axes.set_xlabel(text("report.drawing.step"))
    axes.set_ylabel(text("report.drawing.loss"))
    named = {"number": attempt.number, "label": plain(str(attempt.label))}
    title(axes, text("report.drawing.loss_title", values=named))
    return svg(figure)


def vram_svg(record: Record, samples: Sequence[VramSample]) -> str | None:
    """Draw the card's used memory over the attempts of the record, with its capacity; None without samples.

    Time between attempts is cut short. Of many samples the highest of each short span is kept, so no peak is lost.
    """
    spans = [(start, start + attempt.seconds, attempt) for start, attempt in _starts(record) if attempt.seconds]
    inside = [s for s in samples if any(start - 1 <= s.at_seconds <= end + 1 for start, end, _ in spans)]
    if len(inside) < 2:
        return None
    clock = _Clock([(start, end) for start, end, _ in spans])
    thinned = _thinned(sorted(inside, key=lambda sample: sample.at_seconds))
    figure, axes = new_figure()
    used = [sample.used_bytes / GIB for sample in thinned]
    axes.plot([clock.shown(sample.at_seconds) for sample in thinned], used, color=BLUE, linewidth=1.4)
    top = _draw_capacity(axes, record, max(used))
    starts = [clock.shown(start) for start, _, _ in spans]
    for (_, end, attempt), start, following in zip(spans, starts, (*starts[1:], clock.total_seconds), strict=True):
        _draw_attempt(axes, attempt, start, clock.shown(end), _PLOT_POINTS * (following - start) / clock.total_seconds)
    axes.set_ylim(0, top)
    axes.set_xlim(0, clock.total_seconds)
    axes.set_xlabel(text("report.drawing.seconds"))
    axes.set_ylabel(text("report.drawing.used"))
    title(axes, text("report.drawing.vram_title"))
    return svg(figure)


class _Clock:
    """Moments as places on a time axis: attempts at their length, pauses between them cut short."""

    def __init__(self, spans: Sequence[tuple[float, float]]) -> None:
        self._spans: list[tuple[float, float, float]] = []  # start, end, and the start's place
        self.total_seconds, before = 0.0, spans[0][0]
        for start, end in spans:
            begin, end = max(start, before), max(end, before)
            place = self.total_seconds + min(begin - before, PAUSE_SECONDS)
            self._spans.append((begin, end, place))
            self.total_seconds, before = place + end - begin, end

    def shown(self, moment: float) -> float:
        """The place of a moment; one in a pause is where the attempt before it ended, or soon after."""
        at = bisect_right(self._spans, moment, key=lambda span: span[0]) - 1
        start, end, place = self._spans[max(0, at)]
        after = min(max(moment - end, 0.0), PAUSE_SECONDS)
        return min(place + min(max(moment - start, 0.0), end - start) + after, self.total_seconds)


def _starts(record: Record) -> list[tuple[float, Attempt]]:
    results = record.stages.values()
    attempts = (a for r in results for a in (*r.attempts, *r.deep_attempts, *r.calibration_attempts))
    starts = [(datetime.fromisoformat(attempt.started_at).timestamp(), attempt) for attempt in attempts]
    return sorted(starts, key=lambda pair: pair[0])


def _draw_capacity(axes: Axes, record: Record, peak_gib: float) -> float:
    """Draw where the card ends, unless that is far above the peak; give the axis's upper end in GiB."""
    ceiling = summary.ceiling_bytes(record)
    if not ceiling:
        return peak_gib * HEADROOM
    limit = ceiling / GIB
    is_near = limit < 3 * peak_gib
    if is_near:
        axes.axhline(limit, color=ORANGE, linewidth=1.2, linestyle="--")
    # beside the title where the limit lies above the picture: the attempts' labels stand below it
    axes.annotate(text(_limit_words(record, is_near), values={"limit": limit}),
                  (1, limit if is_near else 1), xytext=(-3, 3 if is_near else 7), ha="right",
                  xycoords=("axes fraction", "data" if is_near else "axes fraction"),
                  textcoords="offset points", color=ORANGE, fontsize=8)  # fmt: skip
    return max(limit if is_near else 0.0, peak_gib) * HEADROOM


def _limit_words(record: Record, is_near: bool) -> str:
    if record.context.vram_cap_bytes:
        return "report.drawing.cap" if is_near else "report.drawing.cap_above"
    return "report.drawing.card" if is_near else "report.drawing.card_above"


def _draw_attempt(axes: Axes, attempt: Attempt, start: float, end: float, room_points: float) -> None:
    """Shade an attempt's time and say at its top what it was, as far as there is room up to the next one's words."""
    color = GREEN if attempt.ended_well else ORANGE
    axes.axvspan(start, end, facecolor=color, alpha=0.12, linewidth=0)
    name, outcome = f"{attempt.stage} #{attempt.number}", _outcome(attempt)
    offers = (f"{name}\n{_setting(attempt)}\n{outcome}", f"{name}\n{outcome}", f"#{attempt.number}")
    words = next((offer for offer in offers if points_of(offer, LABEL_POINTS) + 6 <= room_points), None)
    if words is not None:
        axes.annotate(words, (start, 1), xycoords=("data", "axes fraction"), xytext=(3, -4),
                      textcoords="offset points", va="top", color=color, fontsize=LABEL_POINTS)  # fmt: skip


def _setting(attempt: Attempt) -> str:
    if isinstance(attempt.settings, EvalSettings):
        return text("report.drawing.questions", values={"questions": attempt.settings.samples})
    return plain(str(attempt.label), 16)


def _outcome(attempt: Attempt) -> str:
    if attempt.ended_well:
        return text("report.drawing.ok")
    return "OOM" if attempt.ran_out_of_memory else text("report.drawing.failed")


def _thinned(samples: Sequence[VramSample]) -> list[VramSample]:
    width = -(-len(samples) // MOST_POINTS)
    spans = (samples[at : at + width] for at in range(0, len(samples), width))
    return [max(span, key=lambda sample: sample.used_bytes) for span in spans]
