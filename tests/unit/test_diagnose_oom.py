"""The figures in an out-of-memory message."""

from __future__ import annotations

import pytest
from steph.diagnose.figures import oom_numbers
from steph.record.values import OomNumbers

MIB, GIB = 1 << 20, 1 << 30


def test_torch_1_form() -> None:
    """The parenthesised form gives all five figures."""
    text = (
        "Tried to allocate 160.00 MiB (GPU 0; 8.00 GiB total capacity; 7.00 GiB already allocated; 0 bytes free; "
        "7.25 GiB reserved in total by PyTorch)"
    )
    assert oom_numbers(text) == OomNumbers(
        requested_bytes=160 * MIB,
        total_bytes=8 * GIB,
        free_bytes=0,
        allocated_bytes=7 * GIB,
        reserved_bytes=7 * GIB + 256 * MIB,
    )


@pytest.mark.parametrize("capacity", ["capacty", "capacity"])
def test_torch_2_form_adds_up_the_reserve(capacity: str) -> None:
    """The sentence form names what is reserved beyond the allocated part; the reserve is their sum."""
    text = (
        f"Tried to allocate 392.00 MiB. GPU 0 has a total {capacity} of 22.00 GiB of which 171.00 MiB is free. "
        f"Including "
        "non-PyTorch memory, this process has 21.50 GiB memory in use. Of the allocated memory 21.00 GiB is "
        "allocated by "
        "PyTorch, and 512.00 MiB is reserved by PyTorch but unallocated."
    )
    found = oom_numbers(text)
    assert found is not None
    assert (found.total_bytes, found.free_bytes) == (22 * GIB, 171 * MIB)
    assert (found.allocated_bytes, found.reserved_bytes) == (21 * GIB, 21 * GIB + 512 * MIB)


def test_a_wrapped_counter_is_no_figure() -> None:
    """2**64 bytes is what a counter below zero prints as; the other figures stay."""
    found = oom_numbers(
        "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 17179869184.00 GiB of which 0 bytes is free."
    )
    assert found == OomNumbers(requested_bytes=2 * GIB, free_bytes=0)


def test_hard_wrapped_figures_are_joined() -> None:
    """A terminal that cuts inside a number loses none of it."""
    found = oom_numbers(
        "CUDA out of memory. Tried to allocate 20.0\n0 MiB (GPU 0; 10.00 GiB t\notal capacity; 9.00 GiB "
        "already allocated)"
    )
    assert found == OomNumbers(requested_bytes=20 * MIB, total_bytes=10 * GIB, allocated_bytes=9 * GIB)


@pytest.mark.parametrize(
    ("text", "requested"),
    [
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 335544320 bytes.", 335544320),
        ("Unable to allocate 7.50 GiB for an array with shape (1, 2)", 7 * GIB + 512 * MIB),
        ("MPS backend out of memory (MPS allocated: 8.00 GB). Tried to allocate 256.00 MB on private pool.", 256 * MIB),
        ("Out of memory allocating 3,221,225,472 bytes (allocated so far: 0 bytes).", 3 * GIB),
        ("realloc of size 17179869184 failed", 16 * GIB),
    ],
)
def test_other_allocators(text: str, requested: int) -> None:
    """CPU, numpy, MPS, CuPy and Arrow each say what was asked for."""
    found = oom_numbers(text)
    assert found is not None
    assert found.requested_bytes == requested


def test_no_figures() -> None:
    """A message without figures has no numbers at all, rather than five nulls."""
    assert oom_numbers("CUDA error: out of memory") is None
