"""Bytes in words, and how many of them a GiB has."""

from __future__ import annotations

GIB, MIB = 1 << 30, 1 << 20


def size_words(size_bytes: int) -> str:
    """Bytes in words, as in `3.42 GiB` or, below one of these, `12.5 MiB`."""
    return f"{size_bytes / GIB:.2f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:.1f} MiB"
