"""What every step of a stage is given: the facts it starts from, where it writes and speaks, and until when."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from steph.conduct.console import Console
from steph.conduct.preparation import Setup
from steph.run.journal import Journal

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
