"""How each optimizer step is run: with or without recompute, and how many micro-batches at once. Pure computation.

Fastest first: keeping activations saves a forward pass in four, and one wide forward costs fewer kernel launches and
fewer dequantisations of the 4-bit weights than several narrow ones. Which of these a card has room for follows
from three measured figures: how much the allocator's peak grows with tokens, with label positions, and regardless of
both.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Choice = Literal["auto", "on", "off"]
HostMemory = Literal["off", "embeddings", "all"]
HostChoice = Literal["auto", "off", "embeddings", "all"]
GIB = 2**30
PREDICTED_HEADROOM_SHARE = 0.10
MEASURED_HEADROOM_SHARE = 0.03


@dataclass(frozen=True)
class Growth:
    """How far a forward and backward pass raises the allocator's peak, in bytes, as measured on the model."""

    fixed_bytes: float
    bytes_per_token: float
    bytes_per_label: float

    def peak_bytes(self, tokens: int, labels: float) -> float:
        """The predicted growth for a batch of so many tokens (padding counted) and logit positions."""
        return self.fixed_bytes + self.bytes_per_token * tokens + self.bytes_per_label * labels


@dataclass(frozen=True)
class Room:
    """What the device allows: bytes in use before a step, optimizer state included, and the most that may be in use."""

    used_bytes: float
    allowed_bytes: float

    def fits(self, growth_bytes: float, headroom_share: float) -> bool:
        """Whether a step stays below the limit with this share of it left for the allocator's fragmentation."""
        return self.used_bytes + growth_bytes <= self.allowed_bytes * (1 - headroom_share)


class Way(NamedTuple):
    """One way to run an optimizer step. `host_memory` is what waits there: nothing, the embeddings, checkpoints too."""

    recompute: bool
    fused_micro_batches: int
    host_memory: HostMemory = "off"

    def __str__(self) -> str:
        fused = f"{self.fused_micro_batches} micro-batch{'es' if self.fused_micro_batches > 1 else ''} at once"
        host = {
            "off": "",
            "embeddings": ", embeddings in host memory",
            "all": ", embeddings and checkpoints in host memory",
        }
        return f"recompute {'on' if self.recompute else 'off'} with {fused}{host[self.host_memory]}"


@dataclass(frozen=True)
class StepPlan:
    """The way that was chosen, and why."""

    gradient_checkpointing: bool
    fused_micro_batches: int
    host_memory: HostMemory
    reason: str

    @property
    def way(self) -> Way:
        """The plan without its reason."""
        return Way(self.gradient_checkpointing, self.fused_micro_batches, self.host_memory)


@dataclass(frozen=True)
class LargestRow:
    """The largest row that a run could have: its tokens, its labels."""

    tokens: int
    labels: int


def candidates(
    checkpointing: Choice, fuse: Choice, accumulation_steps: int, host_memory: HostChoice = "off"
) -> list[Way]:
    """Every way that the flags allow, fastest first; host memory, where `auto`, comes after everything else."""
    recompute = {"auto": [False, True], "on": [True], "off": [False]}[checkpointing]
    divisors = [count for count in range(accumulation_steps, 0, -1) if accumulation_steps % count == 0]
    fused = {"auto": divisors, "on": [accumulation_steps], "off": [1]}[fuse]
    if host_memory != "auto":
        return [Way(wanted, count, host_memory) for wanted in recompute for count in fused]
    ways = [Way(wanted, count) for wanted in recompute for count in fused]
    last = ways[-1]
    return [
        *ways,
        last._replace(host_memory="embeddings"),
        *([last._replace(host_memory="all")] if last.recompute else []),
    ]


def plan_without_measuring(
    checkpointing: Choice, fuse: Choice, accumulation_steps: int, host_memory: HostChoice, reason: str
) -> StepPlan:
    """The plan where nothing is to be decided or nothing can be measured: auto is off."""
    fused = accumulation_steps if fuse == "on" else 1
    return StepPlan(checkpointing == "on", fused, "off" if host_memory == "auto" else host_memory, reason)


def choose_plan(
    options: Sequence[Way],
    growth: Callable[[Way], Growth],
    room: Room,
    largest_row: LargestRow,
    batch_size: int,
    measured: Callable[[Way], float],
    *,
    labels_at_once: float = math.inf,
) -> StepPlan:
    """The first option whose worst batch fits; where none does the last one, which may run or fail truthfully.

    The logits of more than `labels_at_once` positions are never there together.

    The prediction only saves trying what can't fit: an option is taken once `measured` has run its worst batch whole
    and given its growth in bytes (infinite where memory ran out), because other layers may set the peak of a big batch
    than set the probes'. What an option moves to host memory is taken off its growth.
    """
    refused: list[str] = []
    for way in options:
        rows = batch_size * way.fused_micro_batches
        labels = min(rows * largest_row.labels, labels_at_once)
        predicted = growth(way).peak_bytes(rows * largest_row.tokens, labels)
        if not room.fits(predicted, PREDICTED_HEADROOM_SHARE):
            refused.append(f"{way} needs {(room.used_bytes + predicted) / GIB:.2f} GiB: too much")
            continue
        needed = measured(way)
        tried = f"{way} took {(room.used_bytes + needed) / GIB:.2f} GiB when tried"
        if room.fits(needed, MEASURED_HEADROOM_SHARE):
            limit = f"of {room.allowed_bytes / GIB:.2f} GiB allowed"
            return StepPlan(*way, "; ".join([*refused, f"{tried}, {limit}"]))
        refused.append("ran out of memory when tried" if needed == math.inf else f"{tried}: too much")
    limit = f"the smallest that the flags leave is tried ({room.allowed_bytes / GIB:.2f} GiB allowed)"
    return StepPlan(*options[-1], "; ".join([*refused, limit]))
