"""The report's pictures need matplotlib, whose import and first layout take longer than any picture: done ahead.

In a thread of its own while a child runs, because a person waits for the session's end. A failure is left to the
picture that is really drawn.
"""

from __future__ import annotations

import contextlib
import threading

from steph.tell import canvas

AFTER_SECONDS = 3.0  # by then a stage's child runs, and nothing here has anything else to do


class Warming:
    """Loads matplotlib once, some seconds after `begin`; `settle` ends it, also before it began."""

    def __init__(self) -> None:
        self._timer = threading.Timer(AFTER_SECONDS, draw_nothing)

    def begin(self) -> None:
        """Start the clock, where it doesn't run yet."""
        if self._timer.ident is None:
            self._timer.start()

    def settle(self) -> None:
        """Leave nothing of it running: matplotlib's settings belong to one thread at a time."""
        self._timer.cancel()
        if self._timer.ident is not None:
            self._timer.join()


def draw_nothing() -> None:
    """Draw an empty plot as SVG and forget it."""
    with contextlib.suppress(Exception):
        figure, axes = canvas.new_figure()
        canvas.title(axes, "nothing")
        canvas.svg(figure)
