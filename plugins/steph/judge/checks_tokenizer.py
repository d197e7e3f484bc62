"""Checks that the tokenizer beside an adapter is the model's: the same words, the same numbers. Reads files only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from steph.base.files import UnreadableError, read_json
from steph.base.text import one_line
from steph.judge.kinds import WARN, CheckKind
from steph.record.values import Check

TOKENIZER_NAME = "tokenizer.json"

TOKENIZER_KEPT = CheckKind("tokenizer_kept", "H-2", WARN, optional=True)


def tokenizer_check(saved: Path, base: Path | None) -> Check:
    """Compare two `tokenizer.json` by their words: a word may be added, but none may change its number."""
    known = _readable(base) if base is not None else None
    if known is None or not saved.is_file():
        return TOKENIZER_KEPT.check(None, "none")
    words = _readable(saved)
    if words is None:
        return TOKENIZER_KEPT.check(False, "unreadable")
    changed = [word for word, number in known.items() if words.get(word) != number]
    return TOKENIZER_KEPT.check(
        not changed,
        "changed" if changed else "kept",
        words=len(known),
        changed=len(changed),
        example=one_line(changed[0], 40) if changed else "",
        added=len(words.keys() - known.keys()),
    )


def _readable(path: Path) -> dict[str, int] | None:
    try:
        return _words(read_json(path))
    except UnreadableError:
        return None


def _words(raw: object) -> dict[str, int] | None:
    """All words of a tokenizer with their numbers: BPE and WordPiece have a table, Unigram a list; None for others."""
    model = raw.get("model") if isinstance(raw, Mapping) else None
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocabulary, list):
        vocabulary = {str(entry[0]): number for number, entry in enumerate(vocabulary) if isinstance(entry, list)}
    if not isinstance(raw, Mapping) or not isinstance(vocabulary, Mapping):
        return None
    entries = raw.get("added_tokens")
    added = [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
    return {**vocabulary, **{str(entry.get("content")): entry.get("id") for entry in added}}
