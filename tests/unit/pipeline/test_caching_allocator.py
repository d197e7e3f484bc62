"""The rules of torch's caching allocator, through which the counted steps send their storages."""

from __future__ import annotations

import pytest
from caching_allocator import Block, CachingAllocator
from hypothesis import given
from hypothesis import strategies as st

MIB = 1 << 20


@pytest.mark.parametrize(
    ("requested", "segment"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 1, 12 * MIB),
        (33 * MIB, 34 * MIB),
    ],
)
def test_a_request_takes_a_segment_of_its_class(requested: int, segment: int) -> None:
    """Up to 1 MiB from 2 MiB, below 10 MiB from 20 MiB, larger ones from their own, in steps of 2 MiB."""
    memory = CachingAllocator()
    memory.allocate(requested)
    assert memory.reserved_bytes == segment


def test_the_smallest_piece_that_is_large_enough_is_taken() -> None:
    """Of holes of 40 and 20 MiB a request for 15 MiB takes the smaller one, and 40 MiB still fit without a segment."""
    memory = CachingAllocator()
    holes = [memory.allocate(size * MIB) for size in (40, 20)]
    for hole in holes:
        memory.release(hole)
    memory.allocate(15 * MIB)
    memory.allocate(40 * MIB)
    assert memory.reserved_bytes == 60 * MIB


def test_a_hole_that_is_broken_into_costs_a_new_segment() -> None:
    """What lives in the middle of a freed gigabyte keeps the next gigabyte out: reserved without being used."""
    memory = CachingAllocator()
    memory.release(memory.allocate(1024 * MIB))
    memory.allocate(16 * MIB)
    memory.allocate(1024 * MIB)
    assert memory.reserved_bytes == 2048 * MIB
    assert memory.allocated_bytes == 1040 * MIB


def test_free_neighbours_grow_together() -> None:
    """Three pieces of one segment given back in any order are one hole again."""
    memory = CachingAllocator()
    memory.release(memory.allocate(60 * MIB))
    pieces = [memory.allocate(20 * MIB) for _ in range(3)]
    for at in (0, 2, 1):
        memory.release(pieces[at])
    memory.allocate(60 * MIB)
    assert memory.reserved_bytes == 60 * MIB


def test_a_rest_of_a_megabyte_stays_with_its_block() -> None:
    """A piece is cut only where more than 1 MiB is left over: 10 of 11 MiB are handed out as 11."""
    memory = CachingAllocator()
    memory.allocate(9 * MIB)
    memory.allocate(10 * MIB)
    assert memory.allocated_bytes == 20 * MIB
    assert memory.reserved_bytes == 20 * MIB


@given(st.lists(st.tuples(st.integers(1, 64 * MIB), st.integers(0, 7)), max_size=60))
def test_nothing_is_lost_or_handed_out_twice(requests: list[tuple[int, int]]) -> None:
    """Allocated is the sum of the blocks in use, never more than reserved, and 0 when all are given back."""
    memory = CachingAllocator()
    blocks: list[Block] = []
    for size, given_back in requests:
        blocks.append(memory.allocate(size))
        if given_back < len(blocks):
            memory.release(blocks.pop(given_back))
        assert memory.allocated_bytes == sum(block.size for block in blocks) <= memory.reserved_bytes
    for block in blocks:
        memory.release(block)
    assert memory.allocated_bytes == 0
    assert memory.peak_allocated_bytes <= memory.peak_reserved_bytes
