"""Identifies text without keeping it: a hash of the whole, and fingerprints that show whether one text holds another.

Standard library only, Python 3.9 and later, and no import from the suite: the hooks in a pipeline's process load it by
path, the judge imports it, and both must come to the same digits.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable

SHINGLE_CHARS = 12
KEPT_OF = 8  # one shingle in so many is kept, chosen by its hash, so that both sides choose the same ones


def normal_form(text: str) -> str:
    """The text in NFKC without any whitespace; width, line breaks and indents of a template make no difference."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def text_hash(text: str) -> str:
    """Return 16 hex digits for a text's normal form; special tokens are the caller's to remove."""
    return hashlib.blake2b(_bytes(normal_form(text)), digest_size=8).hexdigest()


def fingerprints(text: str) -> tuple[str, ...]:
    """Return the kept hashes (8 hex digits each) of all pieces of 12 characters, in order, each once.

    A text that contains another has all of the other's fingerprints, whatever stands around it.
    """
    plain = normal_form(text)
    pieces = (plain[at : at + SHINGLE_CHARS] for at in range(len(plain) - SHINGLE_CHARS + 1))
    hashes = (hashlib.blake2b(_bytes(piece), digest_size=4).digest() for piece in pieces)
    return tuple(dict.fromkeys(kept.hex() for kept in hashes if int.from_bytes(kept, "big") % KEPT_OF == 0))


def holds(container: Iterable[str], text: str) -> float | None:
    """Return the share of a text's fingerprints that are in `container`; None for a text too short to have any."""
    wanted = fingerprints(text)
    if not wanted:
        return None
    present = set(container)
    return sum(one in present for one in wanted) / len(wanted)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
