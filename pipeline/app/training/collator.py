"""Batches as narrow as their longest row, with logits only where there are labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from app.training.rows import IGNORED


@dataclass(frozen=True)
class AnswerCollator:
    """Pads on the left and keeps only the label positions that the loss needs.

    With every row's answer at the right edge, the last k positions hold all labels, k being the longest labelled tail
    plus one: the logit that predicts a token stands one position before it. `logits_to_keep=k` makes the model's head
    skip all other positions. Without that one the first answer token would lose its gradient while the loss still looks
    plausible.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        """`input_ids`, `attention_mask`, `position_ids` (rows, width), `labels` (rows, k), int `logits_to_keep`."""
        width = max(len(row["input_ids"]) for row in rows)
        kept = min(width, max(labelled_tokens(row["labels"]) for row in rows) + 1)
        attention_mask = _left_padded([[1] * len(row["input_ids"]) for row in rows], width, 0)
        return {
            "input_ids": _left_padded([row["input_ids"] for row in rows], width, self.pad_token_id),
            "attention_mask": attention_mask,
            "position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0),
            "labels": _left_padded([row["labels"] for row in rows], width, IGNORED)[:, -kept:],
            "logits_to_keep": kept,
        }


def labelled_tokens(labels: Sequence[int]) -> int:
    """The length of the tail that begins with the first label."""
    return next((len(labels) - index for index, label in enumerate(labels) if label != IGNORED), 0)


def _left_padded(rows: Sequence[Sequence[int]], width: int, filler: int) -> torch.Tensor:
    return torch.tensor([[filler] * (width - len(row)) + list(row) for row in rows])
