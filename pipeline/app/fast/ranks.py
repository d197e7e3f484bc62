"""The processes of one run under `torchrun` or `accelerate launch`: one a GPU, each knowing its rank.

Started alone, a process is the first and only rank, and nothing here does anything.
"""

import contextlib
import math
import os
import pickle
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")
_TIMEOUT = timedelta(minutes=30)  # how long a rank waits for another one in a collective call; the Trainer's default


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def rank_count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the rank that prints and writes."""
    return rank() == 0


def note(text: str) -> None:
    """A line on stderr, once for all ranks."""
    if is_first():
        print(text, file=sys.stderr)


@contextlib.contextmanager
def only_first_prints() -> Iterator[None]:
    """Inside, stdout of every rank but the first goes nowhere; stderr stays, so that each rank's failure is seen."""
    if is_first():
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@contextlib.contextmanager
def joined_ranks() -> Iterator[None]:
    """Inside, each rank has its GPU, and all of them can exchange values; after an exception nothing is waited for."""
    if rank_count() == 1:
        yield
        return
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=_TIMEOUT)
    yield
    state.destroy_process_group()


def gathered(value: Value) -> list[Value]:
    """Every rank's value, in the order of ranks; waits for all of them."""
    if rank_count() == 1:
        return [value]
    from accelerate.utils import gather_object

    values: list[Value] = gather_object([value])
    return values


def own_share(order: Sequence[int], batch_size: int) -> list[list[int]]:
    """This rank's batches of those that one rank alone would have, cut smaller where a share is less than one."""
    return chunks(order, max(1, min(batch_size, math.ceil(len(order) / rank_count()))))[rank() :: rank_count()]


def chunks(indices: Sequence[int], size: int) -> list[list[int]]:
    """So many at a time."""
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


def sendable(error: Exception) -> Exception:
    """The exception as other ranks can take it: itself, or its type and text where it can't be pickled."""
    if rank_count() == 1:
        return error
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - what this very process wrote
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
