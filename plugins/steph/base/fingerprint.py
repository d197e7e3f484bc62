"""Identifies text without keeping it: a hash of the whole, and fingerprints that show whether one text holds another.

Standard library only, Python 3.9 and later, and no import from the suite: the hooks in a pipeline's process load it by
path, the judge imports it, and both must come to the same digits. Where numpy is loaded anyway, it does the sums.
"""

from __future__ import annotations

import hashlib
import sys
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

SHINGLE_CHARS = 12
KEPT_OF = 8  # one shingle in so many is kept, chosen by its hash, so that both sides choose the same ones
# a piece's hash is its characters as digits to this base in 32 bits, which the next piece's follows from, then mixed
_BASE, _BITS = 0x01000193, (1 << 32) - 1
_MIX = 0x2C1B3C6D


def normal_form(text: str) -> str:
    """The text in NFKC without any whitespace; width, line breaks and indents of a template make no difference."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def text_hash(text: str) -> str:
    """Return 16 hex digits for a text's normal form; special tokens are the caller's to remove."""
    return hashlib.blake2b(normal_form(text).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def fingerprints(text: str) -> tuple[str, ...]:
    """Return the kept hashes (8 hex digits each) of all pieces of 12 characters, in order, each once.

    A text that contains another has all of the other's fingerprints, whatever stands around it.
    """
    plain = normal_form(text)
    if len(plain) < SHINGLE_CHARS:
        return ()
    numpy = sys.modules.get("numpy")
    # another thread may be in the middle of importing it
    is_there = numpy is not None and not getattr(numpy.__spec__, "_initializing", False)
    kept = _kept_by(numpy, plain) if is_there else _kept(plain)
    return tuple(f"{one:08x}" for one in dict.fromkeys(kept))


cached_text_hash = lru_cache(maxsize=4096)(text_hash)  # for labels, of which each answer may be any
cached_fingerprints = lru_cache(maxsize=1024)(fingerprints)  # for the judge's many looks; a long prompt's take 50 KB


def holds(container: Iterable[str], text: str) -> float | None:
    """Return the share of a text's fingerprints that are in `container`; None for a text too short to have any."""
    wanted = fingerprints(text)
    if not wanted:
        return None
    present = set(container)
    return sum(one in present for one in wanted) / len(wanted)


def _kept(plain: str) -> list[int]:
    codes = list(map(ord, plain))
    oldest = pow(_BASE, SHINGLE_CHARS, 1 << 32)
    rolling, kept = 0, []
    for place, code in enumerate(codes):
        gone = codes[place - SHINGLE_CHARS] if place >= SHINGLE_CHARS else 0
        rolling = (rolling * _BASE + code - gone * oldest) & _BITS
        if place >= SHINGLE_CHARS - 1:
            mixed = ((rolling ^ (rolling >> 15)) * _MIX) & _BITS
            mixed ^= mixed >> 12
            if mixed % KEPT_OF == 0:
                kept.append(mixed)
    return kept


def _kept_by(numpy: Any, plain: str) -> list[int]:  # noqa: ANN401 - a module that need not be there
    codes = numpy.frombuffer(plain.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(numpy.uint32)
    pieces = len(codes) - SHINGLE_CHARS + 1
    hashes = numpy.zeros(pieces, dtype=numpy.uint32)
    for offset in range(SHINGLE_CHARS):
        hashes = hashes * numpy.uint32(_BASE) + codes[offset : offset + pieces]
    mixed = (hashes ^ (hashes >> numpy.uint32(15))) * numpy.uint32(_MIX)
    mixed ^= mixed >> numpy.uint32(12)
    kept: list[int] = mixed[mixed % numpy.uint32(KEPT_OF) == 0].tolist()
    return kept
