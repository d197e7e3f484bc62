"""The figures in an out-of-memory message, whatever allocator wrote it.

Forms: the caching allocator of torch 1.x ("total capacity; … already allocated; … free; … reserved in total"), of
torch 2.x ("total capacity of … of which … is free"), cudaMallocAsync ("Currently allocated : …"), MPS ("MPS
allocated: …, max allowed: …"), CPU ("you tried to allocate N bytes"), numpy, Arrow, CuPy, mmap.
"""

from __future__ import annotations

import re

from steph.record.values import OomNumbers

# A counter that went below zero is printed as 2**64 bytes (17179869184.00 GiB) or near it; no machine has 64 TiB.
PLAUSIBLE_BYTES = 1 << 46

_UNIT_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50, "e": 1 << 60}
_SIZE = r"(-?\d[\d,]*(?:\.\d+)?)\s*([KMGTPE]?)i?(?:B\b|bytes\b)"

_REQUESTED = (
    rf"[Tt]ried to (?:allocate|mmap)\s+{_SIZE}",
    rf"[Tt]rying to allocate\s+{_SIZE}",
    rf"Requested\s*:\s*{_SIZE}",
    rf"[Uu]nable to (?:allocate|mmap)\s+{_SIZE}",
    rf"(?:malloc|realloc|memory allocation) of (?:size )?{_SIZE}",
    r"(?:malloc|realloc) of size (\d+)()",
    rf"(?:Out of memory|[Ff]ailed|failure)[^.\n]{{0,60}}? (?:allocat(?:e|ing)|to allocate)(?: request for)?\s+{_SIZE}",
    rf"Invalid buffer size:\s*{_SIZE}",
    rf"allocating {_SIZE} on device",
)
_TOTAL = (
    rf"{_SIZE}\s+total capacity",
    rf"total capaci?ty of\s+{_SIZE}",
    rf"Device limit\s*:\s*{_SIZE}",
    rf"max allowed:\s*{_SIZE}",
)
_FREE = (
    rf"of which\s+{_SIZE}\s+is free",
    rf"{_SIZE}\s+free\s*[;)]",
    rf"Free \(according to \w+\)\s*:\s*{_SIZE}",
)
_ALLOCATED = (
    rf"Of the allocated memory\s+{_SIZE}\s+is allocated by PyTorch",
    rf"{_SIZE}\s+already allocated",
    rf"Currently allocated\s*:\s*{_SIZE}",
    rf"(?:MPS )?allocated:\s*{_SIZE}",
    rf"allocated so far:\s*{_SIZE}",
)
_RESERVED = (rf"{_SIZE}\s+reserved in total", rf"{_SIZE}\s+cached\s*[;)]")
_UNALLOCATED = (rf"{_SIZE}\s+is reserved by PyTorch but unallocated",)


def oom_numbers(message: str) -> OomNumbers | None:
    """The figures of one message, in bytes; None where it has none.

    `reserved_bytes` is the allocator's whole reserve: torch 1.x prints it, torch 2.x prints what is allocated and what
    is reserved beyond that, and their sum is taken. Sizes that no machine has (wrapped counters) become None.
    Hard-wrapped lines are joined both ways, and the reading with more figures counts.
    """
    readings = [_read(glue.join(message.split("\n"))) for glue in (" ", "")]
    best = max(readings, key=_count)
    return best if _count(best) else None


def _count(numbers: OomNumbers) -> int:
    return sum(value is not None for value in numbers.model_dump().values())


def _read(text: str) -> OomNumbers:
    allocated, beyond = _first(_ALLOCATED, text), _first(_UNALLOCATED, text)
    reserved = allocated + beyond if allocated is not None and beyond is not None else _first(_RESERVED, text)
    return OomNumbers(
        requested_bytes=_first(_REQUESTED, text),
        total_bytes=_first(_TOTAL, text),
        free_bytes=_first(_FREE, text),
        allocated_bytes=allocated,
        reserved_bytes=reserved,
    )


def _first(patterns: tuple[str, ...], text: str) -> int | None:
    for pattern in patterns:
        match = re.search(pattern, text)
        if match:
            return _plausible(match[1], match[2])
    return None


def _plausible(figure: str, unit: str) -> int | None:
    size = float(figure.replace(",", "")) * _UNIT_BYTES[unit.lower()]
    return round(size) if 0 <= size < PLAUSIBLE_BYTES else None
