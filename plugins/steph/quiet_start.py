"""Ends pytest without a traceback where Ctrl-C comes before its session.

pytest handles Ctrl-C once its session has begun. Before that, while it loads plugins and conftests, Python prints a
traceback of its imports. What comes before this module is loaded, pytest's own imports among it, is out of reach.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

INTERRUPTED = 2  # pytest's exit status for Ctrl-C


def begin() -> None:
    """Until `end`, let Ctrl-C end this process at once, unless somebody else handles it or ignores it."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def end() -> None:
    """Put Python's own handler back, where it was replaced."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted before the session began\n")
    os._exit(INTERRUPTED)
