"""What `several_gpus.py` measures, its bars and its table. Values and arithmetic; starts nothing."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LEAST_RATIO = 1.7
NOISE_ALLOWED = 2.0  # times what two ways of running the same steps on one GPU differ by
LEAST_NOISE = 0.0005
LONGEST_END_SECONDS = 60.0


@dataclass(frozen=True)
class Training:
    """One training's own account: rows a step over all processes, seconds of the timed steps, all losses."""

    name: str
    rows: int
    step_seconds: tuple[float, ...]
    losses: tuple[float, ...]
    peaks_bytes: tuple[int | None, ...]
    plan: str

    @classmethod
    def read(cls, name: str, rows: int, folder: Path) -> Training:
        """From the `train_metrics.json` in an output folder."""
        found: dict[str, Any] = json.loads((folder / "train_metrics.json").read_text(encoding="utf-8"))
        peaks = tuple(rank["peak_reserved_bytes"] for rank in found["ranks"])
        plan = found["step_plan"]["reason"]
        return cls(name, rows, tuple(found["step_seconds"][1:]), tuple(found["losses"]), peaks, plan)

    @property
    def rows_per_second(self) -> float:
        """At the median step."""
        return self.rows / statistics.median(self.step_seconds)


@dataclass(frozen=True)
class Killed:
    """How the stage ended whose rank 1 was killed; `memory_back` is None on the CPU."""

    verdict: str
    cause: str
    rank: int | None
    evidence: tuple[str, ...]
    seconds_to_end: float
    processes_left: int
    memory_back: bool | None

    @property
    def holds(self) -> bool:
        """Whether the right rank was named in time and nothing is left."""
        is_clean = self.processes_left == 0 and self.memory_back is not False
        return self.verdict == "FAIL" and self.rank == 1 and self.seconds_to_end <= LONGEST_END_SECONDS and is_clean


@dataclass(frozen=True)
class Found:
    """Everything that was measured."""

    cards: tuple[str, ...]
    one: Training
    one_large: Training
    one_split: Training
    two: Training
    killed: Killed
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Rows a second of two GPUs over one's."""
        return self.two.rows_per_second / self.one.rows_per_second

    @property
    def loss_difference(self) -> float:
        """The largest relative difference between two ranks' losses and one's at the same effective batch."""
        return _largest_difference(self.two, self.one_large)

    @property
    def rounding_noise(self) -> float:
        """The same between two runs on one GPU whose steps are the same sums in another order."""
        return _largest_difference(self.one_split, self.one_large)

    @property
    def is_same_curve(self) -> bool:
        """Whether two ranks' losses differ from one's by rounding alone."""
        return self.loss_difference <= NOISE_ALLOWED * max(self.rounding_noise, LEAST_NOISE)

    def failures(self, *, timed: bool) -> list[str]:
        """The bars that do not hold; `timed`: the speed counts."""
        bars = {
            f"{self.ratio:.2f} times one GPU's speed, at least {LEAST_RATIO}": not timed or self.ratio >= LEAST_RATIO,
            f"losses apart by {self.loss_difference:.1e}, rounding does {self.rounding_noise:.1e}": self.is_same_curve,
            f"the killed rank: {self.killed}": self.killed.holds,
        }
        return [name for name, holds in bars.items() if not holds]

    def table(self) -> str:
        """What a person reads."""
        rows = [f"cards: {', '.join(self.cards) or 'none'}", ""]
        rows.append(f"{'':<34}{'rows/s':>10}{'s/step':>10}{'first loss':>12}{'last loss':>12}  peak reserved, GiB")
        for run in (self.one, self.one_large, self.one_split, self.two):
            peaks = ", ".join("-" if peak is None else f"{peak / 2**30:.2f}" for peak in run.peaks_bytes)
            step = statistics.median(run.step_seconds)
            losses = f"{run.losses[0]:>12.4f}{run.losses[-1]:>12.4f}"
            rows.append(f"{run.name:<34}{run.rows_per_second:>10.2f}{step:>10.3f}{losses}  {peaks}")
        killed = self.killed
        rows += [
            "",
            f"two GPUs against one at the same batch in each: {self.ratio:.2f} times",
            f"largest loss difference at the same effective batch: {self.loss_difference:.1e}; "
            f"one GPU against itself, its micro-batches split otherwise: {self.rounding_noise:.1e}",
            f"rank 1 killed: {killed.verdict}, {killed.cause}, rank {killed.rank}, ended after "
            f"{killed.seconds_to_end:.1f} s; processes left {killed.processes_left}, memory back {killed.memory_back}",
            "seconds: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in self.seconds.items()),
        ]
        return "\n".join(rows)


def _largest_difference(run: Training, other: Training) -> float:
    pairs = zip(run.losses, other.losses, strict=True)
    return max(abs(loss - reference) / abs(reference) for loss, reference in pairs)
