"""The order of the rows: like lengths together, and the same order however many ranks share a step's rows."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers import Trainer
from transformers.trainer_pt_utils import get_length_grouped_indices

from app.fast.ranks import rank_count
from app.training.rows import IGNORED

Row = dict[str, list[int]]


def with_filler(rows: Sequence[Row]) -> list[Row]:
    """The rows and, for several ranks, behind them one without a label, which changes neither loss nor gradient.

    It fills up the ranks' last batches, into which accelerate would else put the first rows a second time.
    """
    filler: list[Row] = [{"input_ids": rows[0]["input_ids"][:1], "labels": [IGNORED]}]
    return [*rows, *(filler if rank_count() > 1 else [])]


class LengthGroupedRows(Sampler[int]):  # type: ignore[misc]
    """One epoch's indices in a random order that puts rows of like length into the same optimizer step.

    `lengths` are the rows' tokens, the filler's left out; `step_rows` is what one step takes. The count is filled up
    to a multiple of `multiple` with the index behind the last.
    """

    def __init__(self, lengths: Sequence[int], *, step_rows: int, multiple: int, seed: int) -> None:
        self._lengths = lengths
        self._missing = -len(lengths) % multiple
        self._step_rows = step_rows
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Name the epoch whose order comes next; each has its own."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Indices of an epoch."""
        return len(self._lengths) + self._missing

    def __iter__(self) -> Iterator[int]:
        """The epoch's order."""
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        yield from get_length_grouped_indices(self._lengths, self._step_rows, generator=generator)
        yield from [len(self._lengths)] * self._missing


class LengthGroupedTrainer(Trainer):  # type: ignore[misc]
    """The Trainer with the same order of rows for one rank and for several with the same effective batch."""

    def _get_train_sampler(self, train_dataset: object = None) -> LengthGroupedRows:
        args = self.args
        batch_rows = args.train_batch_size * args.world_size
        return LengthGroupedRows(
            [len(row["input_ids"]) for row in self.train_dataset if row["labels"] != [IGNORED]],
            step_rows=batch_rows * args.gradient_accumulation_steps,
            multiple=batch_rows if args.world_size > 1 else 1,
            seed=args.seed,
        )
