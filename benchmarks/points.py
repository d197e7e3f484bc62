"""Which settings are measured in which row: the command lines of the training script and TRL's counterparts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

Q_V = ("q_proj", "v_proj")
ALL_SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RowName = Literal["A-qv", "A-all7", "B", "C"]
REPEATS = 4
# of the real rows, evenly spaced ones: enough steps for a rate, few enough for several runs of each side
ROWS_USED = {"B": 96, "C": 40}
# a process's first run of its first label is what a user's one run is: nothing has been seen or planned before
PROCESSES = {"B": 3, "C": 1}
FORCED, RECOMPUTE, AUTO = "recompute on, fuse off", "recompute on, fuse auto", "auto"
SEARCH_LABEL, CONFIRM_LABEL = "largest batch: tried", "largest batch: shown"


@dataclass(frozen=True)
class Setting:
    """What both sides share in a row; `full` rows have exactly `max_seq_length` tokens, the others are real ones."""

    batch_size: int
    gradient_accumulation_steps: int
    max_seq_length: int
    targets: tuple[str, ...]
    full: bool

    @property
    def effective_batch(self) -> int:
        """Rows in an optimizer step."""
        return self.batch_size * self.gradient_accumulation_steps

    def flags(self, model: str, train_file: Path, output_dir: Path) -> list[str]:
        """The training script's arguments, without those that say how a step is run."""
        return [
            *("--model-name", model, "--train-file", str(train_file), "--output-dir", str(output_dir)),
            *("--num-epochs", "1", "--batch-size", str(self.batch_size), "--learning-rate", "2e-4"),
            *("--max-seq-length", str(self.max_seq_length)),
            *("--gradient-accumulation-steps", str(self.gradient_accumulation_steps), "--warmup-ratio", "0.03"),
            *("--lora-r", "16", "--lora-alpha", "32", "--lora-dropout", "0.05"),
            *("--target-modules", ",".join(self.targets), "--use-4bit", "--bnb-4bit-compute-dtype", "bfloat16"),
            *("--bnb-4bit-quant-type", "nf4", "--logging-steps", "10", "--do-train"),
        ]


@dataclass(frozen=True)
class Point:
    """One way of our side to run a row's steps; `steps` has one entry a repeat, None for a whole epoch."""

    label: str
    recompute: Literal["auto", "on"]
    fuse: Literal["auto", "off"]
    steps: tuple[int | None, ...]

    @property
    def flags(self) -> list[str]:
        """The training script's arguments that say how a step is run."""
        return ["--gradient-checkpointing", self.recompute, "--fuse-accumulation", self.fuse]


@dataclass(frozen=True)
class Candidate:
    """One way of TRL's side to run a row's steps."""

    recompute: bool
    batch_size: int
    gradient_accumulation_steps: int
    by_length: bool = False

    @property
    def label(self) -> str:
        """The differences in words."""
        words = [
            f"recompute {'on' if self.recompute else 'off'}",
            f"{self.batch_size} × {self.gradient_accumulation_steps}",
            "by length" if self.by_length else "",
        ]
        return ", ".join(filter(None, words))


def setting(row: RowName, *, tiny: bool) -> Setting:
    """A row's shared settings; a tiny row only shortens its length."""
    if row == "B":
        return Setting(2, 2, 128 if tiny else 512, Q_V, full=False)
    length = 128 if tiny else 1024
    if row == "C":
        return Setting(2, 4, length, Q_V, full=False)
    return Setting(2, 4, length, ALL_SEVEN if row == "A-all7" else Q_V, full=True)


def our_points(row: RowName, process: int, *, tiny: bool) -> tuple[Point, ...]:
    """The measured points of our side, the most valuable first; a row's later processes repeat the first one."""
    short = 2 if tiny else 6
    if row in ("A-qv", "A-all7"):
        return (
            Point(FORCED, "on", "off", (3 if tiny else 20, short, short)),
            Point(AUTO, "auto", "auto", (short,)),
        )
    epoch = short if tiny else None
    best = Point(AUTO, "auto", "auto", (epoch,) * _runs(row))
    if process:
        return (best,)
    recomputed = Point(RECOMPUTE, "on", "auto", (epoch,) * REPEATS)
    return (best, recomputed, Point(FORCED, "on", "off", (short,) * 3)) if row == "B" else (best, recomputed)


def _runs(row: RowName) -> int:
    """A first run and one later one in each of several processes, or all in one."""
    return REPEATS if PROCESSES.get(row, 1) == 1 else 2


def trl_points(shared: Setting, row: RowName, process: int) -> tuple[tuple[Candidate, int], ...]:
    """TRL's candidates and their runs: the best one, the counterpart of ours with recompute, then the others once.

    The best is the fastest of all by median step wherever all were run (Qwen1.5-1.8B on an H200: 25.7 samples/s steady,
    by length 16.2, padding-free 17.1, with recompute 15.9, cuDNN attention off 24.6).
    """
    best = Candidate(False, shared.effective_batch, 1)
    if process:
        return ((best, _runs(row)),)
    others = (replace(best, by_length=True), Candidate(True, shared.effective_batch, 1, by_length=True))
    return ((best, _runs(row)), (trl_counterpart(shared), REPEATS), *((other, 1) for other in others))


def trl_counterpart(shared: Setting) -> Candidate:
    """TRL with recompute and the row's own batch and accumulation."""
    return Candidate(True, shared.batch_size, shared.gradient_accumulation_steps)


def largest_fitting(fits: Callable[[int], bool], guess: int, largest: int) -> int | None:
    """The largest count that fits, found by walking from a guess; None where not even 1 does, `largest` at most."""
    count = min(max(guess, 1), largest)
    if fits(count):
        while count < largest and fits(count + 1):
            count += 1
        return count
    while count > 1:
        count -= 1
        if fits(count):
            return count
    return None
