"""Whether this card can have kernels of our own."""

import contextlib
import functools
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from app.fast.ranks import note


@functools.cache
def begin_compiling() -> "Future[Any]":
    """Compile the kernels beside whatever comes next: 3 to 5 s where Triton's cache lacks them, else one (H200)."""
    return ThreadPoolExecutor(1).submit(_compiled)


@functools.cache
def card_kernels() -> Any:  # noqa: ANN401 - a module without types
    """`app.fast.kernels`, or None where there is no GPU, no Triton (Windows) or no C compiler for it."""
    if not torch.cuda.is_available():
        return None
    try:
        kernels = begin_compiling().result()
        kernels.try_each()
        return kernels
    except Exception as error:  # whatever is missing: training works the same without
        lines = str(error).strip().splitlines() or [""]
        note(f"Without kernels of its own, which is slower: {type(error).__name__}: {lines[-1]}")
        return None


def _compiled() -> Any:  # noqa: ANN401 - a module without types
    from app.fast import kernels

    card = torch.cuda.device(int(os.environ.get("LOCAL_RANK", "0")))  # a new thread is on the first one
    # its numbers don't count: a model that is loaded meanwhile changes torch's defaults for all threads
    with card, contextlib.suppress(kernels.OtherNumbersError):
        kernels.try_each()
    return kernels
