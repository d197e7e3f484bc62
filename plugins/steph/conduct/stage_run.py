"""Holds what every step of a stage is given: the run's facts, its journal, its console, and the time left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from steph.base.units import clock, gib
from steph.conduct.preparation import Setup
from steph.run.journal import Journal
from steph.run.runner import Progress

HEARTBEAT_SECONDS = 30.0
LIVE_SECONDS = 0.5


@dataclass
class Console:
    """Writes lines through `write`; `is_terminal` chooses between a line that rewrites itself and heartbeats."""

    write: Callable[[str], None]
    is_terminal: bool
    clock: Callable[[], float] = time.monotonic
    _last_shown: float = field(default=-HEARTBEAT_SECONDS, init=False)
    _live_width: int = field(default=0, init=False)
    _said_once: set[str] = field(default_factory=set, init=False)

    def line(self, text: str) -> None:
        """Write one whole line, over the live line where there is one."""
        self.write(f"\r{text.ljust(self._live_width)}\n" if self._live_width else f"{text}\n")
        self._live_width = 0

    def line_once(self, text: str) -> None:
        """Write a line that has not been written so before."""
        if text not in self._said_once:
            self._said_once.add(text)
            self.line(text)

    def progress(self, title: str, shown: Progress) -> None:
        """Show how far a child has come, no oftener than a person can read."""
        if shown.elapsed_seconds >= self._wait_seconds():
            self._show(f"{title}  {progress_text(shown)}")

    def transfer(self, title: str, done_bytes: int, due_bytes: int) -> None:
        """Show how far a download has come."""
        self._show(f"{title}  {gib(done_bytes)} of {gib(due_bytes)}")

    def _wait_seconds(self) -> float:
        return LIVE_SECONDS if self.is_terminal else HEARTBEAT_SECONDS

    def _show(self, text: str) -> None:
        if self.clock() - self._last_shown < self._wait_seconds():
            return
        self._last_shown = self.clock()
        if not self.is_terminal:
            self.line(text)
            return
        self.write(f"\r{text.ljust(self._live_width)}")
        self._live_width = len(text)


def progress_text(shown: Progress) -> str:
    """Elapsed time, step and VRAM, each only where it is known."""
    parts = [clock(int(shown.elapsed_seconds))]
    if shown.step is not None and shown.total_steps is not None:
        parts.append(f"{shown.label or 'step'} {shown.step}/{shown.total_steps}")
    if shown.used_bytes is not None and shown.peak_bytes is not None:
        parts.append(f"VRAM {gib(shown.used_bytes)} (peak {gib(shown.peak_bytes)})")
    return "  ".join(parts)


MIN_ATTEMPT_SECONDS = 5.0  # with less, none is begun


@dataclass(frozen=True)
class StageRun:
    """One stage being run; `ends_at` is the moment when its time is up, in seconds of the monotonic clock."""

    setup: Setup
    journal: Journal
    console: Console
    ends_at: float

    def left_seconds(self, limit_seconds: float = math.inf) -> float:
        """How long a child of it may take: what is left, though a second at least, and no more than `limit_seconds`."""
        return min(max(1.0, self.ends_at - time.monotonic()), limit_seconds)

    @property
    def is_out_of_time(self) -> bool:
        """Whether less is left than an attempt takes."""
        return self.left_seconds() < MIN_ATTEMPT_SECONDS
