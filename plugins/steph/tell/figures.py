"""The report's pictures as SVG: loss per step, and the card's memory over time.

Takes a record and memory samples, writes files. matplotlib is loaded only here and only when there is something to
draw; its words are English, because a plot's font may lack Japanese. A picture that fails never costs the report.
"""

from __future__ import annotations

import io
import logging
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from steph.record import Record, StageId
from steph.tell import summary, wording

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GIB = 1024**3
MOST_POINTS = 2000
_INK = "#808080"  # reads on white and on dark alike
_BLUE, _RED, _GREEN, _AMBER = "#3b82f6", "#ef4444", "#22a06b", "#d97706"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VramSample:
    """Used memory of the whole card at one moment, `at_seconds` since the epoch."""

    at_seconds: float
    used_bytes: int


def write_figures(record: Record, samples: Sequence[VramSample], folder: Path) -> dict[str, Path]:
    """Write the pictures that the record has data for; give their paths by name (`loss`, `vram`)."""
    drawers: Mapping[str, Callable[[], str | None]] = {
        "loss": lambda: loss_svg(record),
        "vram": lambda: vram_svg(record, samples),
    }
    written = {}
    stem = re.sub(r"[^0-9A-Za-z_-]", "_", record.id)
    for name, draw in drawers.items():
        try:
            svg = draw()
            if svg is not None:
                written[name] = _write(folder / f"{stem}-{name}.svg", svg)
        except Exception as error:
            _log.warning("the %s picture could not be made: %s: %s", name, type(error).__name__, error)
    return written


def loss_svg(record: Record) -> str | None:
    """Draw the loss of the training that counts; None with fewer than two finite values."""
    result = record.stages.get(StageId.H2)
    attempt = result.last_attempt if result else None
    if attempt is None or attempt.training is None or len(attempt.training.losses) < 2:
        return None
    losses = attempt.training.losses
    every = getattr(attempt.settings, "logging_steps", 1)
    steps = [every * (at + 1) for at in range(len(losses))]
    figure, axes = _new_figure()
    axes.plot(steps, losses, color=_BLUE, linewidth=1.6, marker="o", markersize=2.5)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training loss")
    axes.set_title(f"Loss per step, attempt {attempt.number}", color=_INK, fontsize=10)
    return _svg(figure)


def vram_svg(record: Record, samples: Sequence[VramSample]) -> str | None:
    """Draw the card's used memory over time, its attempts and its capacity; None without samples.

    Of many samples the highest of each short span is kept, so that no peak is lost.
    """
    if len(samples) < 2:
        return None
    thinned = _thinned(sorted(samples, key=lambda sample: sample.at_seconds))
    zero = thinned[0].at_seconds
    figure, axes = _new_figure()
    used = [sample.used_bytes / GIB for sample in thinned]
    axes.plot([sample.at_seconds - zero for sample in thinned], used, color=_BLUE, linewidth=1.4)
    capacity = summary.ceiling_bytes(record)
    top = max([*used, capacity / GIB if capacity else 0.0]) * 1.25
    if capacity:
        axes.axhline(capacity / GIB, color=_RED, linewidth=1.2, linestyle="--")
        axes.annotate(f"limit {capacity / GIB:.2f} GiB", (1, capacity / GIB), xytext=(-3, 3), ha="right",
                      xycoords=("axes fraction", "data"),
                      textcoords="offset points", color=_RED, fontsize=8)  # fmt: skip
    _draw_attempts(axes, record, zero, top)
    axes.set_ylim(0, top)
    axes.set_title("VRAM over time (green: completed attempt, amber: failed attempt)", color=_INK, fontsize=10)
    axes.set_xlabel("seconds")
    axes.set_ylabel("used VRAM of the card (GiB)")
    return _svg(figure)


def _draw_attempts(axes: Axes, record: Record, zero: float, top: float) -> None:
    rows = cycle((0, 1))
    for result in record.stages.values():
        for attempt in result.attempts:
            start = datetime.fromisoformat(attempt.started_at).timestamp() - zero
            color = _AMBER if wording.failed(attempt) else _GREEN
            if attempt.seconds is not None:
                axes.axvspan(start, start + attempt.seconds, color=color, alpha=0.13, linewidth=0)
            row = next(rows)
            axes.annotate(f"{result.stage} #{attempt.number}", (max(start, 0), top), xytext=(2, -3 - 9 * row),
                          textcoords="offset points", va="top", color=color, fontsize=7)  # fmt: skip


def _thinned(samples: Sequence[VramSample]) -> list[VramSample]:
    width = -(-len(samples) // MOST_POINTS)
    spans = (samples[at : at + width] for at in range(0, len(samples), width))
    return [max(span, key=lambda sample: sample.used_bytes) for span in spans]


def _new_figure() -> tuple[Figure, Axes]:
    """Give an empty plot without background, its lines in a grey that reads on white and on dark."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.2), layout="constrained", facecolor="none")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot(facecolor="none")
    axes.grid(color=_INK, alpha=0.25, linewidth=0.6)
    axes.tick_params(colors=_INK, labelsize=8)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    for spine in axes.spines.values():
        spine.set_color(_INK)
    return figure, axes


def _svg(figure: Figure) -> str:
    """Give a figure as SVG text, the same bytes for the same data."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "steph"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(content)
    Path(name).chmod(0o644)
    Path(name).replace(path)
    return path
