"""A projection's requests for GPU memory: bitsandbytes' 4-bit linear, with PEFT's LoRA beside it where it is a target.

Comes in: an allocator, a shape and a workload. Goes out: blocks, in the order in which torch would ask for them and
give them back. What is much smaller than an activation is left out.
"""

from __future__ import annotations

from steph.memory.allocator import Block, CachingAllocator
from steph.memory.shapes import ModelShape, linear_shapes
from steph.memory.terms import HALF, SINGLE, Workload

WORKSPACE_BYTES = 32 << 20  # cuBLAS on Hopper, for each thread that multiplies
FORWARD, AUTOGRAD = 0, 1  # those threads, in the order of their first product
Kept = dict[str, list[Block]]  # what a layer's backward needs, by the part that needs it


class Projections:
    """The linears of all layers; LoRA's gradients stay for as long as `end` isn't called."""

    def __init__(self, memory: CachingAllocator, shape: ModelShape, work: Workload, workspaces: list[Block]) -> None:
        self._memory = memory
        self._shape = shape
        self._work = work
        self._linear = linear_shapes(shape)
        self._tokens = work.tokens
        self._token_bytes = work.activation_bytes * work.tokens
        self._is_single = work.activation_bytes == SINGLE
        self._autocasts = not self._is_single
        self._workspaces = workspaces
        self._gradients: list[Block] = []
        self._keeps_gradients = True  # of the first micro-batch; those of later ones are added to them
        self._cast_weights: list[Block] = []  # LoRA's, in half precision until forward ends

    def end(self) -> None:
        """The optimizer has stepped, and the gradients are gone."""
        self._free(*self._gradients)
        self._gradients.clear()

    def _new(self, size_bytes: float) -> Block:
        return self._memory.allocate(size_bytes)

    def _numbers(self, count: float) -> Block:
        """`count` activation numbers for each token."""
        return self._memory.allocate(self._token_bytes * count)

    def _free(self, *blocks: Block) -> None:
        for block in blocks:
            self._memory.release(block)

    def _keep(self, kept: Kept | None, name: str, *blocks: Block) -> None:
        """For the backward, or given back where there is none."""
        if kept is None:
            self._free(*blocks)
        else:
            kept.setdefault(name, []).extend(blocks)

    def _sum(self, first: Block, second: Block, width: int) -> Block:
        found = self._numbers(width)
        self._free(first, second)
        return found

    def _multiplies(self, thread: int) -> None:
        if len(self._workspaces) == thread:
            self._workspaces.append(self._new(WORKSPACE_BYTES))

    def _projection(self, name: str, kept: Kept | None) -> Block:
        """Forward: the output; the input stays with the caller."""
        wide, narrow = self._linear[name]
        out = self._product(wide, narrow)
        if name not in self._work.target_modules:
            return out
        base = self._numbers(narrow)  # PEFT works on a copy of the base layer's output
        self._free(out)
        low = self._lora_input(name, kept)
        raised = self._numbers(narrow)
        self._keep(kept, name, low)
        scaled = self._numbers(narrow)
        self._free(raised)
        return self._sum(base, scaled, narrow)

    def _product(self, wide: int, narrow: int) -> Block:
        """Cast, dequantise, multiply, cast back."""
        work = self._work
        halves = [self._new(HALF * self._tokens * wide)] if self._is_single else []
        if work.use_4bit:
            halves.append(self._new(HALF * wide * narrow))
        out = self._new(HALF * self._tokens * narrow)
        self._multiplies(FORWARD)
        self._free(*reversed(halves))
        if not self._is_single:
            return out
        single = self._numbers(narrow)
        self._free(out)
        return single

    def _lora_input(self, name: str, kept: Kept | None) -> Block:
        """Dropout and A: what B multiplies."""
        work, (wide, narrow) = self._work, self._linear[name]
        dropped = [self._new(self._tokens * wide), self._numbers(wide)] if work.lora_dropout else []
        if self._autocasts:
            weights = [self._new(HALF * work.lora_r * side) for side in (wide, narrow)]
            if kept is None:
                self._cast_weights += weights
            else:
                self._keep(kept, name, *weights)
        low = self._numbers(work.lora_r)
        self._keep(kept, name, *dropped)
        return low

    def _projection_backward(self, name: str, gradient: Block, kept: Kept, *, frees: bool = True) -> Block:
        """The gradient of the input."""
        wide, narrow = self._linear[name]
        through = self._lora_backward(name, kept) if name in self._work.target_modules else None
        product = self._product(narrow, wide)
        if frees:
            self._free(gradient)
        return product if through is None else self._sum(through, product, wide)

    def _lora_backward(self, name: str, kept: Kept) -> Block:
        work, (wide, narrow) = self._work, self._linear[name]
        scaled = self._numbers(narrow)
        of_b = self._new(SINGLE * work.lora_r * narrow)
        of_low = self._numbers(work.lora_r)
        self._free(scaled)
        of_a = self._new(SINGLE * work.lora_r * wide)
        found = self._numbers(wide)
        self._free(*kept.pop(name), of_low)
        if self._keeps_gradients:
            self._gradients += [of_b, of_a]
        else:
            self._free(of_b, of_a)
        if not work.lora_dropout:
            return found
        through = self._numbers(wide)
        self._free(found)
        return through
