"""An empty plot that reads on white and on dark, and the plot as SVG text; matplotlib is loaded only here.

The background is left out and lines are a grey between the two. Colours are Okabe and Ito's, which colour-blind people
can tell apart. Words stay text, shown in a font of the reader's machine: matplotlib brings none with Japanese letters.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from steph.tell.columns import width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES, LEFT_INCHES, RIGHT_INCHES, BOTTOM_INCHES = 7.2, 0.7, 0.15, 0.5
INK = "#808080"
BLUE, ORANGE, GREEN = "#3b8fd4", "#e07b39", "#1a9e77"


def plain(text: str, limit: int = 40) -> str:
    """Give text that a plot can show: no control characters, no markup, at most `limit` long."""
    shown = "".join(character for character in text if character.isprintable())
    return shown[:limit].replace("$", r"\$")


def points_of(words: str, font_points: float) -> float:
    """Give how wide the longest line of a text is at most, in points, in the usual fonts."""
    return max(map(width, words.split("\n"))) * 0.62 * font_points


def new_figure(
    height_inches: float = 3.2, *, left_inches: float = LEFT_INCHES, top_inches: float = 0.35
) -> tuple[Figure, Axes]:
    """Give an empty plot without background, with this room for the words at its left and above.

    Room that matplotlib's constrained layout finds by itself would take longer than all the drawing.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, height_inches), facecolor="none")
    FigureCanvasSVG(figure)
    figure.subplots_adjust(
        left=left_inches / WIDTH_INCHES,
        right=1 - RIGHT_INCHES / WIDTH_INCHES,
        bottom=BOTTOM_INCHES / height_inches,
        top=1 - top_inches / height_inches,
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


def title(axes: Axes, words: str) -> None:
    """Put a title over the plot, at its left."""
    axes.set_title(words, color=INK, fontsize=10, loc="left")


def svg(figure: Figure) -> str:
    """Give a figure as SVG text, the same bytes for the same data."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with (
        mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "steph", "font.sans-serif": ["DejaVu Sans"]}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph ")  # of letters that the reader's font has
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
