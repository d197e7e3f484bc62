"""What the report needs and what takes a while is done ahead: matplotlib's import and first layout, and H-4's grid.

In a thread of its own while a child runs, because a person waits for the session's end. A failure is left to the
picture or the figure that is really made.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from steph.tell import canvas

AFTER_SECONDS = 3.0  # by then a stage's child runs, and nothing here has anything else to do


class Warming:
    """Does each task once, some seconds after `begin`; `settle` ends it, also before it began."""

    def __init__(self, *tasks: Callable[[], object]) -> None:
        self._tasks = tasks
        self._timer = threading.Timer(AFTER_SECONDS, self._do)

    def begin(self) -> None:
        """Start the clock, where it doesn't run yet."""
        if self._timer.ident is None:
            self._timer.start()

    def settle(self) -> None:
        """Leave nothing of it running: matplotlib's settings belong to one thread at a time."""
        self._timer.cancel()
        if self._timer.ident is not None:
            self._timer.join()

    def _do(self) -> None:
        for task in self._tasks:
            with contextlib.suppress(Exception):
                task()


def draw_nothing() -> None:
    """Draw an empty plot as SVG and forget it."""
    figure, axes = canvas.new_figure()
    canvas.title(axes, "nothing")
    canvas.svg(figure)
