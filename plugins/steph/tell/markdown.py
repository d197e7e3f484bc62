"""Markdown that text from elsewhere can't break: escaping, code, fences, tables and folds; and columns on a terminal.

Written for GitHub's dialect and VS Code's preview. What is not yet `Markdown` is escaped wherever it meets a template
(`finalize`), so that forgetting to escape is not possible.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from functools import partial
from urllib.parse import quote

from steph.base.messages import text as words_of
from steph.base.text import printable, redact
from steph.base.units import MISSING

INLINE_LIMIT_CHARACTERS = 600
FENCE_LIMIT_CHARACTERS = 12_000
FENCE_LIMIT_LINES = 160

_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "$": "&#36;"})
_BACKSLASHED = re.compile(r"([\\`*\[\]~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_BLOCK_START = re.compile(r"^(#|[-+=](?=[-+=\s]|$)|:|\d{1,9}(?=[.)](?:\s|$)))")
_PLAIN_CODE = re.compile(r"[^\s`|\\<>&$](?:[^`|\\<>&$]*[^\s`|\\<>&$])?")


class Markdown(str):
    """Text that is already safe Markdown and goes into a page as it is."""

    __slots__ = ()


def clean(text: object) -> str:
    """Return the text in printable characters, without credentials."""
    return redact(printable(str(text)))


def shorten(text: str, limit_characters: int) -> str:
    """Keep head and tail of a text over the limit and say how much is left out between them."""
    if len(text) <= limit_characters:
        return text
    head = limit_characters // 3
    tail = limit_characters - head
    values = {"head": text[:head], "characters": len(text) - limit_characters, "tail": text[-tail:]}
    return words_of("report.characters_left_out", values=values)


def inline(text: object, limit_characters: int = INLINE_LIMIT_CHARACTERS) -> Markdown:
    """The text as one line of plain words: nothing in it is markup, wherever in a line or a cell it stands."""
    words = shorten(" ".join(clean(text).split()), limit_characters)
    return Markdown(_BLOCK_START.sub(_defused, _escaped(words)))


def _escaped(words: str) -> str:
    return _BACKSLASHED.sub(r"\\\1", words.translate(_HTML))


def _defused(match: re.Match[str]) -> str:
    start = match.group(1)
    return f"{start[:-1]}&#{ord(start[-1])};"


def code(text: object, limit_characters: int = INLINE_LIMIT_CHARACTERS) -> Markdown:
    """The text as a code span, or a `<code>` element where a table's span can't hold it; `—` where there is none."""
    words = shorten(" ".join(clean("" if text is None else text).split()), limit_characters)
    if not words:
        return Markdown(MISSING)
    if _PLAIN_CODE.fullmatch(words):
        return Markdown(f"`{words}`")
    return Markdown(f"<code>{inline(words, limit_characters + 40)}</code>")


def prose(text: object, limit_characters: int = INLINE_LIMIT_CHARACTERS) -> Markdown:
    """A sentence of the suite, its `backticked` words as code and all else as plain words."""
    parts = shorten(" ".join(clean(text).split()), limit_characters).split("`")
    if len(parts) % 2 == 0 or "" in parts[1::2]:
        return inline(text, limit_characters)
    shown = [code(part) if at % 2 else _escaped(part) for at, part in enumerate(parts)]
    return Markdown("".join([_BLOCK_START.sub(_defused, shown[0]), *shown[1:]]))  # only the first can begin a line


def fence(text: str, language: str = "text", width: int | None = None) -> Markdown:
    """The text as a fenced block that no line of it can close; head and tail of a long one.

    With a `width` in characters, longer lines are broken at spaces, so that an error of one line can be read.

    Comment openers are taken apart, so that no line of it is ever read as one of the report's own marks.
    """
    lines = clean(text).replace("<!--", "<! --").rstrip().lstrip("\n").split("\n")
    if width is not None:
        wrap = partial(textwrap.wrap, width=width, break_long_words=False, break_on_hyphens=False)
        lines = [part for line in lines for part in wrap(line) or [line]]
    if len(lines) > FENCE_LIMIT_LINES:
        head = FENCE_LIMIT_LINES // 3
        tail = FENCE_LIMIT_LINES - head
        left_out = words_of("report.lines_left_out", values={"lines": len(lines) - head - tail})
        lines = [*lines[:head], left_out, *lines[-tail:]]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines))
    body = shorten(text, FENCE_LIMIT_CHARACTERS)
    longest = max((len(run) for run in re.findall(r"`+", body)), default=0)
    ticks = "`" * max(3, longest + 1)
    return Markdown(f"{ticks}{language}\n{body}\n{ticks}")


def table(header: Sequence[str], rows: Iterable[Sequence[object]], align: str = "") -> Markdown:
    """A table; cells that are not `Markdown` are escaped, and `align` has one of `l`, `r`, `c` per column."""
    marks = {"l": ":--", "r": "--:", "c": ":-:"}
    columns = align or "l" * len(header)
    lines = [
        f"| {' | '.join(cell(title) for title in header)} |",
        f"|{'|'.join(marks[column] for column in columns)}|",
        *(f"| {' | '.join(cell(value) for value in row)} |" for row in rows),
    ]
    return Markdown("\n".join(lines))


def cell(value: object) -> Markdown:
    """A value as the content of one table cell, `—` where it is empty."""
    text = value if isinstance(value, Markdown) else inline(value)
    return Markdown(text.replace("\n", " ") or MISSING)


def facts(rows: Iterable[tuple[str, str]]) -> Markdown:
    """A two-column table of names and values; rows without a value are left out."""
    header = (words_of("report.item"), words_of("report.value"))
    return table(header, [(Markdown(name), value) for name, value in rows if value])


def picture(path: str | None, words: str) -> Markdown:
    """A picture with its words; empty where there is no picture."""
    if not path:
        return Markdown()
    return Markdown(f"![{inline(words)}]({quote(path, safe='/._-~')})\n\n{inline(words)}")


def details(summary: str, body: Markdown) -> Markdown:
    """A fold with a one-line summary; the body is Markdown of its own."""
    return Markdown(f"<details><summary>{finalize(summary)}</summary>\n\n{body}\n\n</details>")


def joined(parts: Iterable[str], separator: str = "\n\n") -> Markdown:
    """Join parts, escaping those that are not `Markdown`; empty ones are left out."""
    return Markdown(separator.join(str(finalize(part)) for part in parts if part))


def said(message_id: str, /, **values: object) -> Markdown:
    """A text of the catalogs, Markdown itself, its values escaped; raises KeyError for an unknown text or value."""
    safe = {name: value if isinstance(value, int | float) else finalize(value) for name, value in values.items()}
    return Markdown(words_of(message_id, values=safe))


def finalize(value: object) -> Markdown:
    """Any value as safe Markdown: what every expression of a template goes through."""
    if isinstance(value, Markdown):
        return value
    return inline("" if value is None else value)


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out rows for a terminal, two blanks between columns; a Japanese character takes two cells."""
    cells = [[" ".join(clean(value).split()) for value in row] for row in (header, *rows)]
    widths = [max(width(row[at]) for row in cells) for at in range(len(header))]
    return ["  ".join(left(value, widths[at]) for at, value in enumerate(row)).rstrip() for row in cells]


def width(text: str) -> int:
    """The number of terminal cells that a text takes."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text) - text.count("\ufe0f")


def left(text: str, cells: int) -> str:
    """A text with blanks behind it, up to as many cells."""
    return text + " " * (cells - width(text))


def right(text: str, cells: int) -> str:
    """A text with blanks before it, up to as many cells."""
    return " " * (cells - width(text)) + text
