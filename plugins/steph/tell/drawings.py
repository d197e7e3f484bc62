"""The report's two drawings: loss per step, and the card's memory over time.

Takes a record and samples, gives SVG text, or None where there is nothing to draw. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from steph.base.terms import StageId
from steph.base.units import GIB
from steph.record.settings import EvalSettings
from steph.record.values import Attempt, Record
from steph.tell import summary
from steph.tell.canvas import BLUE, GREEN, ORANGE, new_figure, plain, svg, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 2000
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
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training loss")
    title(axes, f"Loss per step, attempt {attempt.number} ({plain(attempt.label)})")
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
    for start, end, attempt in spans:
        _draw_attempt(axes, attempt, clock.shown(start), clock.shown(end), clock.total_seconds)
    axes.set_ylim(0, top)
    axes.set_xlim(0, clock.total_seconds)
    axes.set_xlabel("seconds, pauses between attempts cut short")
    axes.set_ylabel("used VRAM of the card (GiB)")
    title(axes, "VRAM over time, by attempt")
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
    attempts = (a for result in record.stages.values() for a in (*result.attempts, *result.deep_attempts))
    starts = [(datetime.fromisoformat(attempt.started_at).timestamp(), attempt) for attempt in attempts]
    return sorted(starts, key=lambda pair: pair[0])


def _draw_capacity(axes: Axes, record: Record, peak_gib: float) -> float:
    """Draw where the card ends, unless that is far above the peak; give the axis's upper end in GiB."""
    ceiling = summary.ceiling_bytes(record)
    if not ceiling:
        return peak_gib * 1.3
    limit = ceiling / GIB
    what = "cap + in use before" if record.context.vram_cap_bytes else "card"
    is_near = limit < 3 * peak_gib
    if is_near:
        axes.axhline(limit, color=ORANGE, linewidth=1.2, linestyle="--")
    axes.annotate(f"{what}: {limit:.2f} GiB{'' if is_near else ' (above)'}",
                  (1, limit if is_near else 1), xytext=(-3, 3 if is_near else -10), ha="right",
                  xycoords=("axes fraction", "data" if is_near else "axes fraction"),
                  textcoords="offset points", color=ORANGE, fontsize=8)  # fmt: skip
    return max(limit if is_near else 0.0, peak_gib) * 1.3


def _draw_attempt(axes: Axes, attempt: Attempt, start: float, end: float, total: float) -> None:
    color = GREEN if attempt.ended_well else ORANGE
    axes.axvspan(start, end, facecolor=color, alpha=0.12, linewidth=0)
    if end - start < 0.06 * total:
        return
    words = f"{attempt.stage} #{attempt.number}\n{_setting(attempt)}\n{_outcome(attempt)}"
    axes.annotate(words, (start, 1), xycoords=("data", "axes fraction"), xytext=(3, -4), textcoords="offset points",
                  va="top", color=color, fontsize=7)  # fmt: skip


def _setting(attempt: Attempt) -> str:
    if isinstance(attempt.settings, EvalSettings):
        return f"{attempt.settings.samples} questions"
    return plain(attempt.label, 16)


def _outcome(attempt: Attempt) -> str:
    if attempt.ended_well:
        return "ok"
    return "OOM" if attempt.ran_out_of_memory else "failed"


def _thinned(samples: Sequence[VramSample]) -> list[VramSample]:
    width = -(-len(samples) // MOST_POINTS)
    spans = (samples[at : at + width] for at in range(0, len(samples), width))
    return [max(span, key=lambda sample: sample.used_bytes) for span in spans]
