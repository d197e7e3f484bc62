"""torch's CUDA caching allocator, as far as reserved memory goes: which segments a row of requests makes it take.

Comes in: sizes in bytes, in the order of a program's requests and releases. Goes out: peaks. No GPU is asked. Source of
the rules: c10/cuda/CUDACachingAllocator.cpp of torch 2.11, one stream, expandable_segments off. It is what makes
reserved memory larger than allocated: a block is given from the smallest free piece that is large enough, and a
segment goes on being reserved for as long as any piece of it is in use, and after that until memory runs out.
"""

from __future__ import annotations

from bisect import bisect_left, insort

GRANULE_BYTES = 512  # kMinBlockSize
SMALL_BYTES = 1 << 20  # kSmallSize: requests up to this come from segments of their own kind
SMALL_SEGMENT_BYTES = 2 << 20  # kSmallBuffer
LARGE_SEGMENT_BYTES = 20 << 20  # kLargeBuffer, for requests below:
MIN_OWN_SEGMENT_BYTES = 10 << 20  # kMinLargeAlloc; larger ones get a segment of their own, rounded up to:
SEGMENT_ROUNDING_BYTES = 2 << 20  # kRoundLarge


class Block:
    """A piece of a segment, in use or free, between its neighbours there; `order` breaks ties as addresses do."""

    __slots__ = ("after", "before", "in_use", "is_small", "order", "size")

    def __init__(self, size: int, order: float, is_small: bool) -> None:
        self.size = size
        self.order = order
        self.is_small = is_small
        self.in_use = False
        self.before: Block | None = None
        self.after: Block | None = None


class CachingAllocator:
    """Serves requests as torch does, and remembers the most that was allocated and reserved, in bytes."""

    def __init__(self) -> None:
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self.peak_allocated_bytes = 0
        self.peak_reserved_bytes = 0
        self._segments = 0
        self._free: dict[bool, list[tuple[int, float, Block]]] = {True: [], False: []}

    def allocate(self, size_bytes: float) -> Block:
        """A block for so many bytes."""
        size = (-(-int(size_bytes) // GRANULE_BYTES) or 1) * GRANULE_BYTES
        is_small = size <= SMALL_BYTES
        free = self._free[is_small]
        at = bisect_left(free, (size,))
        block = free.pop(at)[2] if at < len(free) else self._segment(size, is_small)
        rest = block.size - size
        if rest >= GRANULE_BYTES if is_small else rest > SMALL_BYTES:
            self._split(block, size)
        block.in_use = True
        self.allocated_bytes += block.size
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.peak_allocated_bytes = self.allocated_bytes
        return block

    def release(self, block: Block) -> None:
        """Give a block back; it grows together with free neighbours."""
        self.allocated_bytes -= block.size
        block.in_use = False
        if block.after is not None and not block.after.in_use:
            self._take(block.after)
            self._join(block, block.after)
        if block.before is not None and not block.before.in_use:
            self._take(block.before)
            self._join(block.before, block)
            block = block.before
        insort(self._free[block.is_small], (block.size, block.order, block))

    def _segment(self, size: int, is_small: bool) -> Block:
        if is_small:
            taken = SMALL_SEGMENT_BYTES
        elif size < MIN_OWN_SEGMENT_BYTES:
            taken = LARGE_SEGMENT_BYTES
        else:
            taken = -(-size // SEGMENT_ROUNDING_BYTES) * SEGMENT_ROUNDING_BYTES
        self.reserved_bytes += taken
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        self._segments += 1
        return Block(taken, self._segments, is_small)

    def _split(self, block: Block, size: int) -> None:
        # a place between this block and whatever follows it in its segment
        rest = Block(block.size - size, block.order + size / (1 << 50), block.is_small)
        rest.before, rest.after = block, block.after
        if rest.after is not None:
            rest.after.before = rest
        block.after, block.size = rest, size
        insort(self._free[rest.is_small], (rest.size, rest.order, rest))

    def _take(self, free: Block) -> None:
        pieces = self._free[free.is_small]
        pieces.pop(bisect_left(pieces, (free.size, free.order)))

    @staticmethod
    def _join(block: Block, following: Block) -> None:
        block.size += following.size
        block.after = following.after
        if block.after is not None:
            block.after.before = block
