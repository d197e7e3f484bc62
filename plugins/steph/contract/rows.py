"""Training rows, JSON objects one a line: the one reader of those who refuse a file, count its tokens or judge by it.

A byte order mark before the first row is no part of it, and only line breaks end a row: statutes hold U+2028 and the
like, which Python's `str.splitlines` takes for one.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class JsonLine:
    """A line that is not blank: its number from 1 and its object, else why it has none."""

    number: int
    row: Mapping[str, object] | None
    trouble: str = ""


def json_lines(data: bytes, errors: Literal["strict", "replace"] = "strict") -> Iterator[JsonLine]:
    """The lines of a file of rows in order; with `replace` a byte that is no UTF-8 spoils no row."""
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        if line.strip():
            yield _json_line(number, line, errors)


def rows_in(path: Path) -> Iterator[Mapping[str, object]]:
    """The rows of a file, whatever else is in it; raises OSError where it can't be read."""
    return (line.row for line in json_lines(path.read_bytes(), "replace") if line.row is not None)


def _json_line(number: int, line: bytes, errors: str) -> JsonLine:
    try:
        row = json.loads(line.decode("utf-8", errors))
    except UnicodeDecodeError as error:
        return JsonLine(number, None, f"not UTF-8 (byte {error.start} of it); save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        return JsonLine(number, None, f"not valid JSON: {error}")
    return JsonLine(number, row) if isinstance(row, Mapping) else JsonLine(number, None, "no JSON object")
