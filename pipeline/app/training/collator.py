"""Batches as wide as their longest row."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from app.training.rows import IGNORED


@dataclass(frozen=True)
class AnswerCollator:
    """Pads on the right: a causal model's tokens see only what comes before them, so they never see padding."""

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and `labels`, all (rows, width), and `answer_positions`.

        Those are the positions of the flattened batch whose logits predict a label; each stands before its label.
        """
        width = max(len(row["input_ids"]) for row in rows)
        labels = _padded([row["labels"] for row in rows], width, IGNORED)
        return {
            "input_ids": _padded([row["input_ids"] for row in rows], width, self.pad_token_id),
            "attention_mask": _padded([[1] * len(row["input_ids"]) for row in rows], width, 0),
            "labels": labels,
            "answer_positions": next_tokens(labels).flatten().ne(IGNORED).nonzero().flatten(),
        }


def next_tokens(labels: torch.Tensor) -> torch.Tensor:
    """The label that each position predicts: the one after it, none after the last."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def _padded(rows: Sequence[Sequence[int]], width: int, filler: int) -> torch.Tensor:
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])
