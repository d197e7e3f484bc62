"""The report's two pictures as SVG: the loss by step, and the card's memory over time.

A picture that fails, for want of matplotlib or through odd data, costs itself alone and never the report. Pictures have
no background and grey lines, so that they read on white and on dark; the colours are Okabe and Ito's, which
colour-blind people can tell apart. Words stay text in a font of the reader's machine: matplotlib brings none with
Japanese letters.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from steph.base import units
from steph.base.messages import phrase, say, text
from steph.base.terms import StageId
from steph.base.units import GIB
from steph.record.settings import EvalSettings
from steph.record.values import Attempt, Record
from steph.tell import keep, wording
from steph.tell.markdown import width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES, HEIGHT_INCHES = 7.2, 3.2
LEFT_INCHES, RIGHT_INCHES, BOTTOM_INCHES, TOP_INCHES = 0.7, 0.15, 0.5, 0.35
INK = "#808080"
BLUE, ORANGE, GREEN = "#3b8fd4", "#e07b39", "#1a9e77"
MOST_POINTS = 2000
LABEL_POINTS = 7.0
MOST_ATTEMPTS = 8  # that are named in words
HEADROOM = 1.4  # the axis above the highest line, where the attempts' labels stand
PAUSE_SECONDS = 5.0  # at most, on the time axis: a stage that was run again next day stands beside the others

_PLOT_POINTS = 72 * (WIDTH_INCHES - LEFT_INCHES - RIGHT_INCHES)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VramSample:
    """Used memory of the whole card at one moment, `at_seconds` since the epoch."""

    at_seconds: float
    used_bytes: int


def write_figures(record: Record, samples: Sequence[VramSample], folder: Path) -> dict[str, Path]:
    """Write the pictures that there is data for; give their paths by name (`loss`, `vram`)."""
    stem = re.sub(r"[^0-9A-Za-z_-]", "_", record.id)
    written = {}
    for name, drawn in draw(record, samples).items():
        try:
            written[name] = keep.renew(folder / f"{stem}-{name}.svg", partial(_replaced, drawn.encode()))
        except Exception as error:
            _warn(name, error)
    return written


def draw(record: Record, samples: Sequence[VramSample]) -> dict[str, str]:
    """The pictures that there is data for, as SVG texts by name (`loss`, `vram`)."""
    drawers: Mapping[str, Callable[[], str | None]] = {
        "loss": lambda: loss_svg(record),
        "vram": lambda: vram_svg(record, samples),
    }
    drawn = {}
    for name, drawer in drawers.items():
        try:
            found = drawer()
        except Exception as error:
            _warn(name, error)
        else:
            if found is not None:
                drawn[name] = found
    return drawn


def _replaced(content: bytes, _: bytes | None) -> bytes:
    return content


def _warn(name: str, error: Exception) -> None:
    _log.warning("the %s picture could not be made: %s: %s", name, type(error).__name__, error)


def loss_svg(record: Record) -> str | None:
    """Draw the loss of the training that counts; None with fewer than two values."""
    result = record.stages.get(StageId.H2)
    attempt = result.last_attempt if result else None
    if attempt is None or attempt.training is None or len(attempt.training.losses) < 2:
        return None
    losses = attempt.training.losses
    every = getattr(attempt.settings, "logging_steps", 1)
    figure, axes = _empty_plot()
    steps = [every * (at + 1) for at in range(len(losses))]
    axes.plot(steps, losses, color=BLUE, linewidth=1.6, marker="o" if len(losses) <= 100 else None, markersize=2.5)
    axes.set_xlabel(text("report.drawing.step"))
    axes.set_ylabel(text("report.drawing.loss"))
    named = {"number": attempt.number, "label": plain(str(attempt.label))}
    return _svg(figure, text("report.drawing.loss_title", values=named))


def vram_svg(record: Record, samples: Sequence[VramSample]) -> str | None:
    """Draw the card's used memory over the attempts of the record, with its capacity; None without samples.

    Time between attempts is cut short. Of many samples the highest of each short span is kept, so no peak is lost.
    """
    attempts = [
        attempt
        for result in record.stages.values()
        for attempt in (*result.attempts, *result.deep_attempts, *result.calibration_attempts)
    ]
    starts = [(datetime.fromisoformat(attempt.started_at).timestamp(), attempt) for attempt in attempts]
    starts.sort(key=lambda pair: pair[0])
    spans = [(start, start + attempt.seconds, attempt) for start, attempt in starts if attempt.seconds]
    inside = [s for s in samples if any(start - 1 <= s.at_seconds <= end + 1 for start, end, _ in spans)]
    if len(inside) < 2:
        return None
    clock = _Clock([(start, end) for start, end, _ in spans])
    thinned = _thinned(sorted(inside, key=lambda sample: sample.at_seconds))
    figure, axes = _empty_plot()
    used = [sample.used_bytes / GIB for sample in thinned]
    axes.plot([clock.shown(sample.at_seconds) for sample in thinned], used, color=BLUE, linewidth=1.4)
    top = _draw_capacity(axes, record, max(used))
    places = [clock.shown(start) for start, _, _ in spans]
    for (_, end, attempt), start, following in zip(spans, places, (*places[1:], clock.total_seconds), strict=True):
        _draw_attempt(axes, attempt, start, clock.shown(end), _PLOT_POINTS * (following - start) / clock.total_seconds)
    axes.set_ylim(0, top)
    axes.set_xlim(0, clock.total_seconds)
    axes.set_xlabel(text("report.drawing.seconds"))
    axes.set_ylabel(text("report.drawing.used"))
    return _svg(figure, text("report.drawing.vram_title"))


def loss_words(record: Record) -> str:
    """Say in words what the loss picture shows."""
    result = record.stages.get(StageId.H2)
    outcome = result.last_attempt.training if result and result.last_attempt else None
    count = len(outcome.losses) if outcome else 0
    return phrase("report.picture.loss", values=count, loss=wording.loss_words(outcome))


def vram_words(record: Record) -> str:
    """Say in words what the memory picture shows."""
    attempts = [attempt for result in record.stages.values() for attempt in result.attempts]
    drawn = [one for one in attempts if one.peak_device_bytes is not None and one.settings][:MOST_ATTEMPTS]
    peaks = [
        say(
            "report.picture.attempt_peak",
            stage=attempt.stage,
            number=attempt.number,
            label=attempt.label,
            peak=units.gib(attempt.peak_device_bytes),
        )
        for attempt in drawn
    ]
    limit = units.gib(wording.ceiling_bytes(record))
    return phrase("report.picture.vram", limit=limit, peaks=peaks or text("report.unmeasured"))


class _Clock:
    """Moments as places on a time axis: attempts at their length, pauses between them cut short."""

    def __init__(self, spans: Sequence[tuple[float, float]]) -> None:
        self._spans: list[tuple[float, float, float]] = []  # start, end, and the start's place
        self.total_seconds, before = 0.0, spans[0][0]
        for start, end in spans:
            begin, end = max(start, before), max(end, before)
            shown = self.total_seconds + min(begin - before, PAUSE_SECONDS)
            self._spans.append((begin, end, shown))
            self.total_seconds, before = shown + end - begin, end

    def shown(self, moment: float) -> float:
        """The place of a moment; one in a pause is where the attempt before it ended, or soon after."""
        at = bisect_right(self._spans, moment, key=lambda span: span[0]) - 1
        start, end, shown = self._spans[max(0, at)]
        after = min(max(moment - end, 0.0), PAUSE_SECONDS)
        return min(shown + min(max(moment - start, 0.0), end - start) + after, self.total_seconds)


def _thinned(samples: Sequence[VramSample]) -> list[VramSample]:
    count = -(-len(samples) // MOST_POINTS)
    spans = (samples[at : at + count] for at in range(0, len(samples), count))
    return [max(span, key=lambda sample: sample.used_bytes) for span in spans]


def _draw_capacity(axes: Axes, record: Record, peak_gib: float) -> float:
    """Draw where the card ends, unless that is far above the peak; give the axis's upper end in GiB."""
    ceiling = wording.ceiling_bytes(record)
    if not ceiling:
        return peak_gib * HEADROOM
    limit = ceiling / GIB
    is_near = limit < 3 * peak_gib
    if is_near:
        axes.axhline(limit, color=ORANGE, linewidth=1.2, linestyle="--")
    words = "report.drawing.card" if is_near else "report.drawing.card_above"
    if record.context.vram_cap_bytes:
        words = "report.drawing.cap" if is_near else "report.drawing.cap_above"
    # beside the title where the limit lies above the picture: the attempts' labels stand below it
    axes.annotate(text(words, values={"limit": limit}),
                  (1, limit if is_near else 1), xytext=(-3, 3 if is_near else 7), ha="right",
                  xycoords=("axes fraction", "data" if is_near else "axes fraction"),
                  textcoords="offset points", color=ORANGE, fontsize=8)  # fmt: skip
    return max(limit if is_near else 0.0, peak_gib) * HEADROOM


def _draw_attempt(axes: Axes, attempt: Attempt, start: float, end: float, room_points: float) -> None:
    """Shade an attempt's time and say at its top what it was, as far as there is room up to the next one's words."""
    color = GREEN if attempt.ended_well else ORANGE
    axes.axvspan(start, end, facecolor=color, alpha=0.12, linewidth=0)
    name, setting = f"{attempt.stage} #{attempt.number}", plain(str(attempt.label), 16)
    if isinstance(attempt.settings, EvalSettings):
        setting = text("report.drawing.questions", values={"questions": attempt.settings.samples})
    outcome = text("report.drawing.ok" if attempt.ended_well else "report.drawing.failed")
    if attempt.ran_out_of_memory and not attempt.ended_well:
        outcome = "OOM"
    for words in (f"{name}\n{setting}\n{outcome}", f"{name}\n{outcome}", f"#{attempt.number}"):
        # in the usual fonts, a letter is at most so wide
        if max(map(width, words.split("\n"))) * 0.62 * LABEL_POINTS + 6 <= room_points:
            axes.annotate(words, (start, 1), xycoords=("data", "axes fraction"), xytext=(3, -4),
                          textcoords="offset points", va="top", color=color, fontsize=LABEL_POINTS)  # fmt: skip
            return


def plain(words: str, limit: int = 40) -> str:
    """Text that a plot can show: no control characters, no markup, at most `limit` long."""
    shown = "".join(character for character in words if character.isprintable())
    return shown[:limit].replace("$", r"\$")


def _empty_plot() -> tuple[Figure, Axes]:
    """An empty plot. Room that matplotlib's constrained layout finds would take longer than all the drawing."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), facecolor="none")
    FigureCanvasSVG(figure)
    figure.subplots_adjust(
        left=LEFT_INCHES / WIDTH_INCHES,
        right=1 - RIGHT_INCHES / WIDTH_INCHES,
        bottom=BOTTOM_INCHES / HEIGHT_INCHES,
        top=1 - TOP_INCHES / HEIGHT_INCHES,
    )
    axes = figure.add_subplot(facecolor="none")
    axes.grid(color=INK, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    for spine in axes.spines.values():
        spine.set_color(INK)
    return figure, axes


def _svg(figure: Figure, title: str) -> str:
    """A plot under its title as SVG text, the same bytes for the same data."""
    import matplotlib as mpl

    figure.axes[0].set_title(title, color=INK, fontsize=10, loc="left")
    buffer = io.StringIO()
    with (
        mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "steph", "font.sans-serif": ["DejaVu Sans"]}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph ")  # of letters that the reader's font has
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
