"""What H-4 is told of memory: the production model's predicted peaks, on the rented card and on this one.

Values only; the conductor computes them from a record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from steph.memory.calibration import PeakLine
from steph.memory.readings import Reading
from steph.memory.terms import Trainer


@dataclass(frozen=True)
class Prediction:
    """Predicted peak of the production model at one batch and length, with its interval; sizes of the whole process."""

    peak_bytes: int
    low_bytes: int
    high_bytes: int
    verdict: Literal["fits", "does_not_fit", "too_close"]


@dataclass(frozen=True)
class CardOutlook:
    """The production model on one card, by (batch size, max_seq_length), in the least memory that its trainer can do.

    `usable_bytes`: what a training process may take of it; `is_assumed`: the card's usual size, not read from it.
    `largest` is the setting with the most tokens that surely fits, None where none does. `likely` is what a trainer
    that trades free memory for speed will take at the advised settings, None for one that does not.
    """

    usable_bytes: int
    is_assumed: bool
    grid: Mapping[tuple[int, int], Prediction]
    largest: tuple[int, int] | None
    likely: Prediction | None = None

    def headroom_bytes(self, prediction: Prediction) -> int:
        """What is left at the predicted peak; below zero where it is more than the card."""
        return self.usable_bytes - prediction.peak_bytes


@dataclass(frozen=True)
class Outlook:
    """Whether the production model will fit, and what that is computed from.

    `there` is the rented card, None with the reason in `unpredicted` (Japanese) where the record's own peaks say that
    no formula holds; `here` is this record's card, None without one or where it is the rented one; `lean` is
    this card with a trainer that wastes no memory, where the pipeline's own does.
    `readings`, `point_count`, `line`, `shortfall`: see `Calibration`.
    `unexplained_error`: how far off the formulas were, as a share, where they explain none of the record's peaks.
    """

    trainer: Trainer
    is_described: bool
    readings: tuple[Reading, ...]
    there: CardOutlook | None
    here: CardOutlook | None = None
    lean: CardOutlook | None = None
    point_count: int = 0
    line: PeakLine | None = None
    shortfall: str = ""
    unexplained_error: float | None = None
    unpredicted: str = ""
