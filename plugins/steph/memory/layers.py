"""One micro-batch's requests for GPU memory: forward, loss and backward, block by block.

Comes in: an allocator, a shape and a workload. Goes out: nothing; the allocator has seen it. The order is that of
transformers' decoder layers under torch's autograd, with or without recompute (torch.utils.checkpoint).
"""

from __future__ import annotations

from steph.memory.activations import logits_bytes
from steph.memory.allocator import Block, CachingAllocator
from steph.memory.projections import AUTOGRAD, Kept, Projections
from steph.memory.shapes import ModelShape
from steph.memory.terms import SINGLE, Workload


class MicroBatches(Projections):
    """Plays the micro-batches of one optimizer step."""

    def __init__(self, memory: CachingAllocator, shape: ModelShape, work: Workload, workspaces: list[Block]) -> None:
        super().__init__(memory, shape, work, workspaces)
        self._hidden, self._wide = shape.hidden_size, shape.intermediate_size
        self._query = shape.num_attention_heads * shape.head_dim
        self._key = shape.num_key_value_heads * shape.head_dim
        self._is_answer = work.trainer == "answer"
        self._is_grouped = self._key != self._query
        # torch has no fused attention for fp32 with grouped heads: it makes every score a number in memory
        self._has_plain_scores = self._is_grouped and self._is_single
        self._scores_bytes = SINGLE * work.tokens * work.width * shape.num_attention_heads
        self._down_first = "down_proj" not in work.target_modules

    def play(self) -> None:
        """Forward, loss and backward of one micro-batch."""
        work = self._work
        mask = [self._numbers(work.width)] if self._is_answer else []
        hidden = self._numbers(self._hidden)
        inputs: list[Block] = []
        layers: list[Kept] = []
        for _ in range(self._shape.num_hidden_layers):
            inputs.append(hidden)
            if not work.recompute:
                layers.append({})
            hidden = self._layer(None if work.recompute else layers[-1])
        gradient = self._head()
        self._free(hidden, *self._cast_weights)
        self._cast_weights.clear()
        while inputs:
            gradient = self._layer_backward(gradient, None if work.recompute else layers.pop())
            self._free(inputs.pop())
        self._free(gradient, *mask)
        self._keeps_gradients = False

    # forward

    def _layer(self, kept: Kept | None) -> Block:
        middle = self._attention_half(kept)
        normed = self._norm(self._hidden, kept, "norm2")
        product = self._wide_product(kept)
        down = self._projection("down_proj", kept)
        self._free(product, normed)
        out = self._numbers(self._hidden)
        self._free(down)
        self._keep(kept, "middle", middle)
        return out

    def _attention_half(self, kept: Kept | None) -> Block:
        """The layer's first half, up to the sum that its second half starts from."""
        normed = self._norm(self._hidden, kept, "norm1")
        attended = self._attention(kept)
        self._free(normed)
        middle = self._numbers(self._hidden)
        self._free(attended)
        return middle

    def _norm(self, width: int, kept: Kept | None, name: str) -> Block:
        """torch's kernel makes its output alone; transformers' own code computes in fp32 beside it."""
        if self._is_answer:
            return self._numbers(width)
        single_bytes = self._tokens * width * SINGLE
        copies = [] if self._is_single else [self._new(single_bytes)]
        scaled = self._new(single_bytes)
        out = self._numbers(width)
        self._free(scaled)
        self._keep(kept, name, *copies)
        return out

    def _attention(self, kept: Kept | None) -> Block:
        query = self._normed_head("q_proj", self._query, kept)
        key = self._normed_head("k_proj", self._key, kept)
        value = self._projection("v_proj", kept)
        turned = [self._rope(self._query), self._rope(self._key)]
        self._free(query, key)
        seen = self._plain_scores(kept) if self._has_plain_scores else self._fused_scores(kept, turned, value)
        out = self._projection("o_proj", kept)
        if kept is None or self._has_plain_scores:
            self._free(seen, *turned, value)
        elif self._is_grouped and self._is_answer:
            self._free(turned[1], value)
        return out

    def _normed_head(self, name: str, width: int, kept: Kept | None) -> Block:
        found = self._projection(name, kept)
        if self._shape.model_type != "qwen3":
            return found
        out = self._norm(width, kept, f"{name} norm")
        self._keep(kept, f"{name} norm", found)
        return out

    def _rope(self, width: int) -> Block:
        direct = self._numbers(width)
        negated = self._numbers(width / 2)
        turned = self._numbers(width)
        self._free(negated)
        crossed = self._numbers(width)
        self._free(turned)
        return self._sum(direct, crossed, width)

    def _fused_scores(self, kept: Kept | None, turned: list[Block], value: Block) -> Block:
        """Attention as one kernel, which under a mask wants the keys and values of all heads."""
        repeated = [self._numbers(self._query) for _ in range(2)] if self._is_grouped and self._is_answer else []
        seen = self._numbers(self._query)
        if kept is None:
            self._free(*repeated)
        else:
            self._keep(kept, "attention", turned[0], *(repeated or (turned[1], value)), seen)
        return seen

    def _plain_scores(self, kept: Kept | None) -> Block:
        """Attention as torch computes it without a kernel for it (_scaled_dot_product_attention_math)."""
        scaled, causal = self._numbers(self._query), self._new(SINGLE * self._work.width**2)
        keys, values, scaled_keys, copied = (self._numbers(self._query) for _ in range(4))
        scores = self._new(self._scores_bytes)
        self._keep(kept, "attention", scaled_keys, copied)
        masked = self._new(self._scores_bytes)
        self._free(scores)
        shares = self._new(self._scores_bytes)
        self._free(masked)
        seen = self._numbers(self._query)
        self._free(keys, scaled, causal)
        self._keep(kept, "attention", values, shares)
        out = self._numbers(self._query)
        self._free(seen)
        return out

    def _wide_product(self, kept: Kept | None) -> Block:
        gate = self._projection("gate_proj", kept)
        active = self._numbers(self._wide)
        up = self._projection("up_proj", kept)
        product = self._numbers(self._wide)
        self._keep(kept, "mlp", gate, active, up)
        return product

    def _head(self) -> Block:
        """Last norm, logits and loss, and back to the last layer's output."""
        size = logits_bytes(self._shape, self._work)
        normed = self._norm(self._hidden, None, "")
        halves = [] if self._is_single else [self._new(size / 2)]
        logits, losses = self._new(size), self._new(size)
        self._free(logits, normed, *halves)
        of_losses, of_logits = self._new(size), self._new(size)
        self._free(of_losses, losses)
        gradient = self._numbers(self._hidden)
        self._multiplies(AUTOGRAD)
        self._free(of_logits)
        return self._norm_backward(gradient, self._hidden)

    # backward

    def _layer_backward(self, gradient: Block, kept: Kept | None) -> Block:
        """The gradient of a layer's input; None stands for a layer that is recomputed first."""
        recomputes = kept is None
        kept = {} if kept is None else kept
        # without LoRA on it, its backward needs nothing that is recomputed, and comes first
        wide = [self._product(self._hidden, self._wide)] if recomputes and self._down_first else []
        if recomputes:
            self._recompute(kept)
        wide = wide or [self._projection_backward("down_proj", gradient, kept, frees=False)]
        of_normed = self._mlp_backward(wide[0], kept)
        middle = self._sum(self._norm_backward(of_normed, self._hidden), gradient, self._hidden)
        self._free(*kept.pop("middle"), *kept.pop("norm2", []))
        of_input = self._norm_backward(self._attention_backward(middle, kept), self._hidden)
        self._free(*kept.pop("norm1", []))
        return self._sum(of_input, middle, self._hidden)

    def _recompute(self, kept: Kept) -> None:
        """Forward again, until everything is there that backward needs (torch.utils.checkpoint stops early)."""
        self._keep(kept, "middle", self._attention_half(kept))
        normed = self._norm(self._hidden, kept, "norm2")
        if self._down_first:
            gate = self._projection("gate_proj", kept)
            active = self._numbers(self._wide)
            self._keep(kept, "mlp", gate, active, self._projection("up_proj", kept))
        else:
            product = self._wide_product(kept)
            out = self._product(self._wide, self._hidden)
            base = self._numbers(self._hidden)
            self._free(out)
            self._keep(kept, "down_proj", self._lora_input("down_proj", kept))
            self._free(base, product)
        self._free(normed)

    def _mlp_backward(self, wide: Block, kept: Kept) -> Block:
        gate, active, up = kept.pop("mlp")
        of_active, of_up = self._numbers(self._wide), self._numbers(self._wide)
        self._free(active, up, wide)
        found = self._projection_backward("up_proj", of_up, kept)
        of_gate = self._numbers(self._wide)
        self._free(gate, of_active)
        return self._sum(found, self._projection_backward("gate_proj", of_gate, kept), self._hidden)

    def _attention_backward(self, gradient: Block, kept: Kept) -> Block:
        seen = self._projection_backward("o_proj", gradient, kept, frees=False)
        of_query, of_key, of_value = self._scores_backward(seen, kept)
        of_key = self._rope_backward(of_key, self._key)
        of_query = self._rope_backward(of_query, self._query)
        found = self._projection_backward("v_proj", of_value, kept)
        for name, of_head, width in (("k_proj", of_key, self._key), ("q_proj", of_query, self._query)):
            of_output = self._normed_head_backward(name, of_head, width, kept)
            found = self._sum(found, self._projection_backward(name, of_output, kept), self._hidden)
        return found

    def _scores_backward(self, seen: Block, kept: Kept) -> tuple[Block, Block, Block]:
        """The gradients of query, key and value."""
        inputs = kept.pop("attention")
        if self._has_plain_scores:
            copy = self._numbers(self._query)
            self._free(seen)
            of_value, of_shares = self._numbers(self._query), self._new(self._scores_bytes)
            self._free(copy)
            of_scores = self._new(self._scores_bytes)
            self._free(of_shares, inputs.pop())
            of_query, of_key = self._numbers(self._query), self._numbers(self._query)
            self._free(of_scores, *inputs)
        else:
            of_query, of_key, of_value = (self._numbers(self._query) for _ in range(3))
            self._free(*inputs, seen)
        if not self._is_grouped:
            return of_query, of_key, of_value
        return of_query, self._reduced(of_key), self._reduced(of_value)

    def _reduced(self, repeated: Block) -> Block:
        """The sum over the heads that share a key or value."""
        found = self._numbers(self._key)
        self._free(repeated)
        return found

    def _rope_backward(self, gradient: Block, width: int) -> Block:
        crossed = self._numbers(width)
        negated = self._numbers(width / 2)
        parts = self._numbers(width), self._numbers(width)
        self._free(negated, crossed)
        turned = self._sum(*parts, width)
        direct = self._numbers(width)
        self._free(gradient)
        return self._sum(turned, direct, width)

    def _normed_head_backward(self, name: str, gradient: Block, width: int, kept: Kept) -> Block:
        if self._shape.model_type != "qwen3":
            return gradient
        found = self._norm_backward(gradient, width)
        self._free(*kept.pop(f"{name} norm"))
        return found

    def _norm_backward(self, gradient: Block, width: int) -> Block:
        if self._is_answer:
            found = self._numbers(width)
            self._free(gradient)
            return found
        single_bytes = self._tokens * width * SINGLE
        scaled, direct = self._new(single_bytes), self._new(single_bytes)
        self._free(scaled, gradient)
        cubed, through = self._new(single_bytes), self._new(single_bytes)
        self._free(cubed)
        return self._sum(direct, through, width)
