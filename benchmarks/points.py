"""Which settings are measured in which row: the command lines of the training script and TRL's counterparts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Q_V = ("q_proj", "v_proj")
ALL_SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RowName = Literal["A-qv", "A-all7", "B", "C"]
# of the real rows, evenly spaced ones: enough steps for a rate, few enough for four runs of each side
ROWS_USED = {"B": 64, "C": 40}
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
    padding_free: bool = False
    cudnn_attention: bool = True

    @property
    def label(self) -> str:
        """The differences in words."""
        words = [
            f"recompute {'on' if self.recompute else 'off'}",
            f"{self.batch_size} × {self.gradient_accumulation_steps}",
            "by length" if self.by_length else "",
            "padding-free" if self.padding_free else "",
            "" if self.cudnn_attention else "cuDNN attention off",
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


def our_points(row: RowName, *, tiny: bool) -> tuple[Point, ...]:
    """The measured points of our side, the most valuable first; the first one finds a process that has done nothing."""
    short = 2 if tiny else 6
    if row in ("A-qv", "A-all7"):
        return (
            Point(FORCED, "on", "off", (3 if tiny else 20, short, short)),
            Point(AUTO, "auto", "auto", (short,)),
        )
    epochs = (None, None, None, None) if not tiny else (short, short)
    rated = (Point(RECOMPUTE, "on", "auto", epochs), Point(AUTO, "auto", "auto", epochs))
    return rated if row == "C" else (*rated, Point(FORCED, "on", "off", (short,) * 3))


def trl_counterpart(shared: Setting) -> Candidate:
    """TRL with recompute and the row's own batch and accumulation."""
    return Candidate(True, shared.batch_size, shared.gradient_accumulation_steps)


def trl_candidates(shared: Setting) -> tuple[Candidate, ...]:
    """What a user of TRL would try for speed at the same effective batch, the widest micro-batches first."""
    whole, batch, steps = shared.effective_batch, shared.batch_size, shared.gradient_accumulation_steps
    return (
        Candidate(False, whole, 1, by_length=True),
        Candidate(False, whole, 1),
        Candidate(False, whole, 1, padding_free=True),
        Candidate(False, batch, steps, by_length=True),
        Candidate(True, whole, 1, by_length=True),
    )


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
