"""The fingerprints of texts that several checks look at: computed once."""

from __future__ import annotations

from functools import lru_cache

from steph.base import fingerprint


@lru_cache(maxsize=1024)  # a long prompt's take some 50 KB
def fingerprints(text: str) -> tuple[str, ...]:
    """As `steph.base.fingerprint` has them."""
    return fingerprint.fingerprints(text)
