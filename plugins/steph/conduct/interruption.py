"""SIGTERM and SIGHUP end a run as Ctrl-C does: its child is stopped, the record says so, the report is written.

Knows nothing of stages: a signal becomes a KeyboardInterrupt in the main thread, which everybody already handles.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

ENDING_SECONDS = 60.0  # longer than stopping a child, closing the record and writing the report take


class Interruption:
    """Turns the first signal into a KeyboardInterrupt; what follows while the run is ending is passed over.

    A CI's cancel sends SIGINT, then SIGTERM while the child is being stopped: the second must not cut the ending short.
    Ctrl-C still may, as often as it is pressed.
    """

    def __init__(self) -> None:
        self._previous: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}
        self._ending_since = float("-inf")
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets nobody else set handlers
        defaults = {
            signal.SIGINT: signal.default_int_handler,
            signal.SIGTERM: signal.SIG_DFL,
            signal.SIGHUP: signal.SIG_DFL,
        }
        for number, default in defaults.items():
            if signal.getsignal(number) == default:  # not where nohup ignores it or somebody else handles it
                self._previous[number] = signal.signal(number, self._received)

    def begin_ending(self) -> None:
        """From here on the run ends by itself, and a signal that asks for it has nothing to add."""
        self._ending_since = time.monotonic()

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()

    def _received(self, number: int, frame: FrameType | None) -> None:
        is_ending = time.monotonic() - self._ending_since < ENDING_SECONDS
        if is_ending and number != signal.SIGINT:
            return
        self.begin_ending()
        raise KeyboardInterrupt(signal.Signals(number).name)
