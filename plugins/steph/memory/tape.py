"""A training run's requests for GPU memory, one after the other, played through the caching allocator.

Comes in: a shape and a workload. Goes out: the allocator's peaks. `vram_terms` and `vram_activations` say how much a
step needs; this says how much more the allocator takes for it, which depends on the order of requests and which no sum
of terms can tell. docs/memory-model.md names what it was held against.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from steph.memory.allocator import Block, CachingAllocator
from steph.memory.layers import MicroBatches
from steph.memory.shapes import ModelShape, linear_shapes, parameter_parts
from steph.memory.terms import ABSMAX_BLOCK, HALF, NESTED_BLOCK, OPTIMIZER_BYTES, SINGLE, Workload


@dataclass(frozen=True, slots=True)
class Played:
    """The allocator's peaks over a run, in bytes."""

    peak_allocated_bytes: int
    peak_reserved_bytes: int

    @property
    def slack_bytes(self) -> int:
        """Reserved at its highest less allocated at its highest."""
        return self.peak_reserved_bytes - self.peak_allocated_bytes


@lru_cache(maxsize=4096)
def play(shape: ModelShape, work: Workload) -> Played:
    """Load, prepare, and train two micro-batches with the optimizer's state there, as from the second step on."""
    run = _Run(shape, work)
    run.load()
    run.prepare()
    run.make_optimizer_state()
    run.two_micro_batches()
    return Played(run.memory.peak_allocated_bytes, run.memory.peak_reserved_bytes)


class _Run:
    """A run from loading to its second step; what nothing releases stays."""

    def __init__(self, shape: ModelShape, work: Workload) -> None:
        self.memory = CachingAllocator()
        self._shape = shape
        self._work = work
        self._parts = parameter_parts(shape)
        self._half_weights: list[Block] = []  # embedding and head as loaded
        self._workspaces: list[Block] = []

    def load(self) -> None:
        """transformers reserves the model's size in one piece first, then quantises weight after weight into it."""
        parts, shape = self._parts, self._shape
        share = 0.5 if self._work.use_4bit else HALF
        warm_up = (parts.total - parts.quantised_linear) * HALF + parts.quantised_linear * share
        self.memory.release(self.memory.allocate(warm_up))
        count = 1 if shape.tie_word_embeddings else 2
        self._half_weights = [self.memory.allocate(parts.embedding * HALF) for _ in range(count)]
        for _ in range(shape.num_hidden_layers):
            for rows, columns in linear_shapes(shape).values():
                self._load_linear(rows * columns)

    def _load_linear(self, numbers: int) -> None:
        allocate = self.memory.allocate
        half = allocate(numbers * HALF)
        if not self._work.use_4bit:
            return
        allocate(numbers / 2)
        scales = allocate(numbers / ABSMAX_BLOCK * SINGLE)
        if self._work.double_quant:
            allocate(numbers / ABSMAX_BLOCK)
            allocate(numbers / ABSMAX_BLOCK / NESTED_BLOCK * SINGLE)
            self.memory.release(scales)
        self.memory.release(half)

    def prepare(self) -> None:
        """The cast to fp32, tensor after tensor, and the adapter."""
        if self._work.upcasts:
            for weight in self._half_weights:
                self.memory.allocate(self._parts.embedding * SINGLE)
                self.memory.release(weight)
        for side in self._trained_sides():
            self.memory.allocate(self._work.lora_r * side * SINGLE)

    def two_micro_batches(self) -> None:
        """Forward and backward, twice, in one optimizer step or in two."""
        for _ in range(1 if self._work.keeps_gradients else 2):
            played = MicroBatches(self.memory, self._shape, self._work, self._workspaces)
            played.play()
            if self._work.keeps_gradients:
                played.play()
            played.end()

    def make_optimizer_state(self) -> None:
        """Two moments of each trained parameter."""
        moment = OPTIMIZER_BYTES[self._work.optimizer] / 2
        for side in self._trained_sides():
            for _ in range(2):
                self.memory.allocate(self._work.lora_r * side * moment)

    def _trained_sides(self) -> list[int]:
        linear = linear_shapes(self._shape)
        sides = [side for name in linear if name in self._work.target_modules for side in linear[name]]
        return sides * self._shape.num_hidden_layers
