"""Words for people: a message is an id with values, and each language has a gettext catalog that turns it into text.

The catalogs are `words/ja.po` and `words/en.po`, read as they are, so that a clone needs no build step. A placeholder
is a name in braces, as `str.format` has it; braces of the text itself are doubled.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from babel.messages.pofile import read_po

Language = Literal["ja", "en"]
LANGUAGES: tuple[Language, ...] = ("ja", "en")
WORDS = Path(__file__).parent / "words"


@functools.cache
def catalog(language: Language) -> Mapping[str, str]:
    """Every message id of a language with its text, placeholders still in it."""
    with (WORDS / f"{language}.po").open("rb") as file:
        return {str(one.id): str(one.string) for one in read_po(file, abort_invalid=True) if one.id and one.string}


def has_message(message_id: str) -> bool:
    """Whether there are words for this id; both catalogs have the same ids."""
    return message_id in catalog("ja")


def text(message_id: str, language: Language, values: Mapping[str, object] | None = None) -> str:
    """The words of a message, its placeholders replaced.

    Raises KeyError where the catalog has no such id, or `values` lacks a placeholder of its text.
    """
    return catalog(language)[message_id].format_map({} if values is None else values)


def placeholders(pattern: str) -> frozenset[str]:
    """The names in braces in a catalog's text."""
    return frozenset(name for _, name, _, _ in string.Formatter().parse(pattern) if name)
