"""Batches as narrow as their longest row, with logits only where there are labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from app.training.rows import IGNORED

# a mask of another width would be copied into an aligned one in every layer (torch's memory-efficient attention)
WIDTH_MULTIPLE = 8


@dataclass(frozen=True)
class AnswerCollator:
    """Pads on the left and keeps only the label positions that the loss needs.

    With every row's answer at the right edge, the last k positions hold all labels, k being the longest labelled tail
    plus one: the logit that predicts a token stands one position before it. `logits_to_keep=k` makes the model's head
    skip all other positions. Without that one the first answer token would lose its gradient while the loss still looks
    plausible.

    The attention mask is the causal one with the padding taken out, but every position sees itself: cuDNN's attention
    gives NaN gradients where a whole tile of 64 queries sees nothing (seen on Hopper, torch 2.11: a row with 70 pads).
    It is made of numbers to add, of the kind that attention computes in: a bool one would be turned into these in every
    layer, and kept there for the backward.
    """

    pad_token_id: int
    mask_dtype: torch.dtype = torch.bfloat16

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        """`input_ids`, `position_ids` (rows, width), `attention_mask` (rows, 1, width, width) of 0 and -inf, `labels`
        (rows, k), int `logits_to_keep`.
        """
        width = round_up(max(len(row["input_ids"]) for row in rows))
        kept = min(width, max(labelled_tokens(row["labels"]) for row in rows) + 1)
        is_token = _left_padded([[1] * len(row["input_ids"]) for row in rows], width, 0)
        return {
            "input_ids": _left_padded([row["input_ids"] for row in rows], width, self.pad_token_id),
            "attention_mask": additive(visible_positions(is_token.bool()), self.mask_dtype),
            "position_ids": (is_token.cumsum(-1) - 1).clamp(min=0),
            "labels": _left_padded([row["labels"] for row in rows], width, IGNORED)[:, -kept:],
            "logits_to_keep": kept,
        }


def round_up(width: int) -> int:
    """The next width that attention takes as it is."""
    return -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


def additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where a position is seen, -inf where it is not."""
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)


def visible_positions(is_token: torch.Tensor) -> torch.Tensor:
    """What each position sees, itself always: (rows, width) of token or padding to (rows, 1, width, width)."""
    width = is_token.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    itself = torch.eye(width, dtype=torch.bool)
    return ((causal & is_token[:, None, :]) | itself)[:, None]


def labelled_tokens(labels: Sequence[int]) -> int:
    """The length of the tail that begins with the first label."""
    return next((len(labels) - index for index, label in enumerate(labels) if label != IGNORED), 0)


def _left_padded(rows: Sequence[Sequence[int]], width: int, filler: int) -> torch.Tensor:
    return torch.tensor([[filler] * (width - len(row)) + list(row) for row in rows])
