"""Operations that a LoRA training step can't do without, counted from a model's shape and the rows' lengths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from steph.memory.shapes import ModelShape, linear_shapes, parameter_parts

FORMULA = (
    "Σ over rows of (4 + 2·recompute)·N·t + (6 + 2·recompute)·N_lora·t + 4·h·V·k + (6 + 2·recompute)·L·d·t², with "
    "t tokens (padding not counted), k labelled positions, N parameters of the frozen linear layers, "
    "d = heads × head_dim; frozen weights need no weight gradient, hence 4·N and not 6·N; attention is causal, "
    "half of 4·d·t² a layer forward and twice that backward"
)


@dataclass(frozen=True)
class RowSize:
    """One row's tokens and how many of them are labels."""

    tokens: int
    labels: int


def row_sizes(encoded: Iterable[dict[str, list[int]]], ignored: int) -> list[RowSize]:
    """The sizes of encoded rows."""
    return [RowSize(len(row["input_ids"]), sum(label != ignored for label in row["labels"])) for row in encoded]


def lora_parameters(shape: ModelShape, rank: int, targets: Sequence[str]) -> int:
    """Weights of a LoRA adapter of this rank on the named projections of every layer."""
    linear = linear_shapes(shape)
    return shape.num_hidden_layers * rank * sum(sum(linear[name]) for name in targets)


def flops_per_row(shape: ModelShape, lora: int, sizes: Sequence[RowSize], *, recompute: bool) -> float:
    """The mean over rows of what one row costs in forward and backward (see FORMULA)."""
    again = 2 if recompute else 0
    frozen = parameter_parts(shape).quantised_linear
    attention_width = shape.num_attention_heads * shape.head_dim
    total = 0.0
    for size in sizes:
        total += ((4 + again) * frozen + (6 + again) * lora) * size.tokens
        total += 4 * shape.hidden_size * shape.vocab_size * size.labels
        total += (6 + again) * shape.num_hidden_layers * attention_width * size.tokens**2
    return total / len(sizes)
