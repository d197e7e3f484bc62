"""Rows as columns on a terminal, where a Japanese character takes two cells."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from steph.tell.markdown import clean


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out rows for a terminal, two blanks between columns, wide characters counted as two."""
    cells = [[" ".join(clean(value).split()) for value in row] for row in (header, *rows)]
    widths = [max(width(row[at]) for row in cells) for at in range(len(header))]
    return ["  ".join(left(value, widths[at]) for at, value in enumerate(row)).rstrip() for row in cells]


def width(text: str) -> int:
    """Give how many terminal cells a text takes."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text) - text.count("\ufe0f")


def left(text: str, cells: int) -> str:
    """Give a text with blanks behind it, up to as many cells."""
    return text + " " * (cells - width(text))


def right(text: str, cells: int) -> str:
    """Give a text with blanks before it, up to as many cells."""
    return " " * (cells - width(text)) + text
