"""Reads files that other programs wrote: JSON, JSON lines, source text; hashes them; and writes a file whole."""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import os
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NoReturn

from steph.base.messages import NOTHING, Message, say, words_of

CLOCK_SLACK_SECONDS = 0.05  # the kernel stamps files with a clock that lags by up to one tick of 10 ms
LATER_SLACK_SECONDS = 2.0  # FAT stamps every second second only
MAX_JSON_BYTES = 64 << 20
MOST_FILES = 10_000  # that a path with `*` names
MAX_JSON_DEPTH = 100  # no format that is read here comes near; more would break whoever walks through it


class UnreadableError(ValueError):
    """A file can't be used; it is raised with the message that says why, a clause."""


def parse_json(data: bytes, *, finite: bool = True) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return what JSON in UTF-8 holds, with or without a byte order mark.

    Raises UnreadableError where it is not UTF-8, no JSON, nested deeper than `MAX_JSON_DEPTH` or, unless `finite` is
    off, holds NaN or infinity.
    """
    try:
        content = json.loads(data.decode("utf-8-sig"), parse_constant=_refuse_constant if finite else float)
    except UnicodeDecodeError as error:
        raise UnreadableError(say("unreadable.no_utf8", byte=error.start)) from error
    except UnreadableError:
        raise
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        raise UnreadableError(say("unreadable.no_json", error=error)) from error
    if data.count(b"[") + data.count(b"{") > MAX_JSON_DEPTH and _is_deep(content):
        raise _too_deep()
    return content


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES, *, finite: bool = True) -> Any:  # noqa: ANN401
    """Return what a regular file of at most `max_bytes` holds; raises UnreadableError as `parse_json` does."""
    return parse_json(read_bytes(path, max_bytes), finite=finite)


def read_bytes(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Return the bytes of a regular file that has at most `max_bytes`; raises UnreadableError."""
    try:
        if not path.is_file():
            raise UnreadableError(say("unreadable.missing"))
        if (size_bytes := path.stat().st_size) > max_bytes:
            raise UnreadableError(say("unreadable.too_large", bytes=size_bytes))
        return path.read_bytes()
    except OSError as error:
        raise UnreadableError(say("unreadable.refused", error=error.strerror)) from error


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES, *, finite: bool = True) -> dict[str, Any]:
    """Return the object that a file holds; raises UnreadableError as `read_json` does, and where it is no object."""
    return parse_json_object(read_bytes(path, max_bytes), finite=finite)


def parse_json_object(data: bytes, *, finite: bool = True) -> dict[str, Any]:
    """Return the object that the bytes hold; raises UnreadableError as `parse_json` does, and where it is no object."""
    content = parse_json(data, finite=finite)
    if not isinstance(content, dict):
        raise UnreadableError(say("unreadable.no_object"))
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise UnreadableError(say("unreadable.no_number", name=name))


def _too_deep() -> UnreadableError:
    return UnreadableError(say("unreadable.too_deep", levels=MAX_JSON_DEPTH))


def _is_deep(content: object) -> bool:
    level = [content]
    for _ in range(MAX_JSON_DEPTH):
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
        if not level:
            return False
    return True


@dataclass(frozen=True, slots=True)
class JsonLine:
    """A row of a file: its number from 1 (line, or place in the array), its object or why it has none."""

    number: int
    row: Mapping[str, object] | None
    trouble: Message = NOTHING


def json_lines(data: bytes, errors: Literal["strict", "replace"] = "strict") -> Iterator[JsonLine]:
    """Yield the objects of JSON lines, or of one JSON array, in order; with `replace`, no UTF-8 becomes U+FFFD.

    Blank lines are no rows. Only line breaks end a line: statutes hold U+2028 and the like, which `str.splitlines`
    takes for one.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    if data.lstrip()[:1] == b"[" and isinstance(rows := _parsed(data, errors), list):
        yield from (_json_line(number, row) for number, row in enumerate(rows, start=1))
        return
    for number, line in enumerate(data.splitlines(), start=1):
        if line.strip():
            yield _json_line(number, _parsed(line, errors))


def _parsed(data: bytes, errors: str) -> object:
    """What JSON holds, or the error that it raises."""
    try:
        return parse_json(data if errors == "strict" else data.decode("utf-8", errors).encode(), finite=False)
    except UnreadableError as error:
        return error


def _json_line(number: int, row: object) -> JsonLine:
    if isinstance(row, dict):
        return JsonLine(number, row)
    return JsonLine(number, None, words_of(row) if isinstance(row, UnreadableError) else say("unreadable.no_object"))


def json_rows(path: Path) -> Iterator[Mapping[str, object]]:
    """Yield the objects of a file of rows and pass over everything else; raises OSError if it can't be read."""
    return (line.row for line in json_lines(path.read_bytes(), "replace") if line.row is not None)


def read_json_rows(path: Path, max_bytes: int = MAX_JSON_BYTES) -> list[Mapping[str, object]]:
    """Return the rows of a file of at most `max_bytes`; raises UnreadableError naming the row that is none."""
    try:
        if path.stat().st_size > max_bytes:
            raise UnreadableError(say("unreadable.rows_too_large", file=path.name))
        lines = list(json_lines(path.read_bytes()))
    except OSError as error:
        raise UnreadableError(say("unreadable.rows_refused", file=path.name, error=error.strerror)) from error
    for line in lines:
        if line.row is None:
            raise UnreadableError(say("unreadable.row", file=path.name, row=line.number, trouble=line.trouble))
    return [line.row for line in lines if line.row is not None]


def read_source(path: Path) -> str:
    """Return the text of a Python file as Python decodes it; empty where the file can't be read."""
    try:
        data = path.read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    except OSError:
        return ""
    except SyntaxError:  # it names an encoding that does not exist
        encoding = "utf-8"
    return data.decode(encoding, errors="replace")


def is_fresh(path: Path, started_unix: float) -> bool:
    """Whether the file (a link's target) was written since the attempt started."""
    try:
        return path.stat().st_mtime >= started_unix - CLOCK_SLACK_SECONDS
    except OSError:
        return False


def is_later(path: Path, ended_unix: float) -> bool:
    """Whether the file (a link's target) says that it was written after the attempt's end."""
    try:
        return path.stat().st_mtime > ended_unix + LATER_SLACK_SECONDS
    except OSError:
        return False


def paths_at(root: Path, pattern: str) -> Iterator[Path]:
    """What a path with `*` and `**` names, from the root or absolute; a path without them names itself."""
    if not any(sign in pattern for sign in "*?["):
        yield root / pattern
        return
    base = Path(pattern)
    start, rest = (Path(base.anchor), str(base.relative_to(base.anchor))) if base.is_absolute() else (root, pattern)
    yield from islice(start.glob(rest), MOST_FILES)


def files_at(root: Path, pattern: str) -> list[Path]:
    """The files that are there under such a path, in name order."""
    return sorted(path for path in paths_at(root, pattern) if path.is_file())


def newest(paths: Sequence[Path], started_unix: float) -> Path | None:
    """Of the attempt's own files the last one written, else of the older ones."""
    return max(paths, key=lambda path: (is_fresh(path, started_unix), path.stat().st_mtime, path.name), default=None)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes in hex; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_or_none(path: Path) -> str | None:
    """Return the sha256 of a file's bytes in hex, None where it can't be read."""
    try:
        return sha256_of(path)
    except OSError:
        return None


def write_whole(path: Path, text: str) -> None:
    """Write a file, and the folders above it, whole or not at all; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
