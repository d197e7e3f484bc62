"""Reads files that other programs wrote: JSON, JSON lines, source text, safetensors; hashes them; writes a file whole.

Safetensors are read without torch: the header is checked whole, the values are streamed through numpy, so that a few
MiB of memory are enough for a file of any size.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import math
import os
import struct
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

from steph.base.messages import NOTHING, Message, say, verbatim, words_of

CLOCK_SLACK_SECONDS = 0.05  # the kernel stamps files with a clock that lags by up to one tick of 10 ms
LATER_SLACK_SECONDS = 2.0  # FAT stamps every second second only
MAX_JSON_BYTES = 64 << 20
MOST_FILES = 10_000  # that a path with `*` names
# of a project's folder, and how large and how deep they are
MOST_PROJECT_FILES, MOST_PROJECT_BYTES, MOST_DEPTH = 2000, 4 << 20, 4
_NOT_OF_PROJECT = {
    ".git", ".venv", "venv", "env", "node_modules", "__pycache__", "site-packages", "steph-out", "reports",
}  # fmt: skip
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


TABLES = (".csv", ".tsv")  # files whose first line names the columns
MOST_CELL_CHARS = 1 << 20


def row_lines(data: bytes, path: Path, errors: Literal["strict", "replace"] = "strict") -> Iterator[JsonLine]:
    """Yield the rows of a file with this content: of a table by its name, else as `json_lines` does."""
    if path.suffix.lower() not in TABLES:
        yield from json_lines(data, errors)
        return
    number = 1
    try:
        for number, row in table_rows(data, path, errors):
            yield _json_line(number, None if None in row else {k: v for k, v in row.items() if v is not None})
    except UnicodeDecodeError as error:
        yield JsonLine(number, None, say("unreadable.no_utf8", byte=error.start))
    except csv.Error as error:
        yield JsonLine(number + 1, None, verbatim(str(error)))


def table_rows(
    data: bytes, path: Path, errors: Literal["strict", "replace"] = "strict"
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table with the number of the line that each ends in; cells are set apart as in its first line.

    What is no UTF-8 is read as Japanese spreadsheets write it. Raises UnicodeDecodeError and csv.Error.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        try:
            text = data.decode("cp932")
        except UnicodeDecodeError:
            text = data.decode("utf-8-sig", errors)
    head = text.partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=head.count)
    csv.field_size_limit(MOST_CELL_CHARS)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    yield from ((reader.line_num, row) for row in reader)


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
    """The value of a JSON text, or the error that reading it raises."""
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
    return (line.row for line in row_lines(path.read_bytes(), path, "replace") if line.row is not None)


def project_files(root: Path, most_bytes: int = MOST_PROJECT_BYTES) -> Iterator[Path]:
    """The files below a project's folder, in order; environments, hidden folders and larger files are passed over."""
    return islice(_files_of(root, 0, most_bytes), MOST_PROJECT_FILES)


def _files_of(folder: Path, depth: int, most_bytes: int) -> Iterator[Path]:
    try:
        children = sorted(folder.iterdir())
    except OSError:
        return
    for path in children:
        if path.is_dir() and not path.is_symlink():
            if depth < MOST_DEPTH and path.name not in _NOT_OF_PROJECT and not path.name.startswith("."):
                yield from _files_of(path, depth + 1, most_bytes)
        elif path.is_file() and path.stat().st_size <= most_bytes:
            yield path


def read_json_rows(path: Path, max_bytes: int = MAX_JSON_BYTES) -> list[Mapping[str, object]]:
    """Return the rows of a file of at most `max_bytes`; raises UnreadableError naming the row that is none."""
    try:
        if path.stat().st_size > max_bytes:
            raise UnreadableError(say("unreadable.rows_too_large", file=path.name))
        lines = list(row_lines(path.read_bytes(), path))
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
    """The paths that fit a pattern with `*` and `**`, from the root or absolute; one without them is a path itself."""
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


# https://github.com/huggingface/safetensors#format: 8 bytes of the header's length, its JSON, data without holes
MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
CHUNK_BYTES = 1 << 22
_ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
# as `struct` decodes it (BF16 is the upper half of F32), and the bits of infinity
_DECODED = {
    "F64": ("<d", 0x7FF << 52),
    "F32": ("<f", 0xFF << 23),
    "F16": ("<e", 0x1F << 10),
    "BF16": ("<f", 0xFF << 7),
}


@dataclass(frozen=True)
class Tensor:
    """One entry of the header; `begin` and `end` are byte offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Scan:
    """Figures of one tensor's values; they are None for a dtype that is not decoded."""

    tensor: Tensor
    nonfinite_values: int | None
    any_nonzero: bool | None
    largest: float | None = None  # the largest absolute value, NaN where there is one
    digest: bytes = b""  # of the tensor's bytes


def read_header(path: Path) -> tuple[Tensor, ...]:
    """List the tensors of a file in file order; raises UnreadableError unless header and length fit exactly."""
    try:
        if not path.is_file():
            raise UnreadableError(say("unreadable.no_file"))
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size_bytes - 8):
                raise UnreadableError(say("unreadable.header_length", length=length, bytes=size_bytes))
            raw = file.read(length)
    except OSError as error:
        raise UnreadableError(say("unreadable.refused", error=error.strerror)) from error
    tensors = tuple(sorted(_entries(raw, 8 + length), key=lambda t: (t.begin, t.end)))
    data_begin = 8 + length
    ends = [data_begin, *(tensor.end for tensor in tensors)]
    begins = [*(tensor.begin for tensor in tensors), size_bytes]
    for end, begin in zip(ends, begins, strict=True):
        if end != begin:
            if size_bytes < (due_bytes := max(ends)):
                raise UnreadableError(say("unreadable.cut", bytes=size_bytes, due=due_bytes))
            raise UnreadableError(say("unreadable.holes", byte=end, bytes=size_bytes))
    return tensors


def scan(path: Path, tensors: tuple[Tensor, ...]) -> Iterator[Scan]:
    """Look at every value of the given tensors, a few MiB at a time; raises OSError and UnreadableError."""
    with path.open("rb") as file:
        for tensor in tensors:
            yield _scan_one(file, tensor) if tensor.dtype in _DECODED else Scan(tensor, None, None)


def same_values(one: Path, other: Path) -> bool | None:
    """Whether two files hold the same tensors; None where names, shapes or dtypes differ. Raises as `scan`."""
    here, there = ({tensor.name: tensor for tensor in read_header(path)} for path in (one, other))
    if {(t.name, t.dtype, t.shape) for t in here.values()} != {(t.name, t.dtype, t.shape) for t in there.values()}:
        return None
    with one.open("rb") as left, other.open("rb") as right:
        return all(
            mine == theirs
            for name, tensor in here.items()
            for mine, theirs in zip(_chunks(left, tensor), _chunks(right, there[name]), strict=True)
        )


def matrix_numbers(path: Path) -> dict[str, tuple[float, float, int]]:
    """Return the norm, the sum and the size of each tensor that is decoded, by name. Raises as `scan`."""
    import numpy

    found: dict[str, tuple[float, float, int]] = {}
    tensors = read_header(path)  # before it is opened: a named pipe would never answer
    with path.open("rb") as file:
        for tensor in tensors:
            code = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}.get(tensor.dtype)
            if code is None:
                continue
            square = total = 0.0
            for chunk in _chunks(file, tensor):
                values = numpy.frombuffer(chunk, dtype=code)
                if tensor.dtype == "BF16":
                    values = (values.astype("<u4") << 16).view("<f4")
                wide = values.astype("<f8")
                square, total = square + float(wide @ wide), total + float(wide.sum())
            found[tensor.name] = (math.sqrt(square), total, math.prod(tensor.shape))
    return found


def _entries(raw: bytes, data_begin: int) -> Iterator[Tensor]:
    try:
        header = parse_json(raw)
    except UnreadableError as error:
        raise UnreadableError(say("unreadable.header_no_json", error=error)) from error
    if not isinstance(header, dict):
        raise UnreadableError(say("unreadable.header_no_object"))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        match entry:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
                if dtype not in _ITEM_BITS or not all(type(n) is int and n >= 0 for n in shape):
                    raise UnreadableError(say("unreadable.tensor_type", tensor=name[:80], type=dtype[:20]))
                if not 0 <= begin <= end or 8 * (end - begin) != math.prod(shape) * _ITEM_BITS[dtype]:
                    raise UnreadableError(say("unreadable.tensor_length", tensor=name[:80]))
                yield Tensor(name, dtype, tuple(shape), data_begin + begin, data_begin + end)
            case _:
                raise UnreadableError(say("unreadable.tensor_entry", tensor=name[:80]))


def _scan_one(file: BinaryIO, tensor: Tensor) -> Scan:
    """Without their sign bit, floats are ordered as the integers of the same bits: finite, then infinity, then NaN."""
    import numpy  # 0.1 s that only a judge of weights waits for

    code, infinity = _DECODED[tensor.dtype]
    size = _ITEM_BITS[tensor.dtype] // 8
    without_sign = (1 << (8 * size - 1)) - 1
    nonfinite, highest, digest = 0, 0, hashlib.blake2b(digest_size=16)
    for chunk in _chunks(file, tensor):
        digest.update(chunk)
        bits = numpy.frombuffer(chunk, dtype=f"<u{size}") & without_sign
        highest = max(highest, int(bits.max()))
        if highest >= infinity:
            nonfinite += int(numpy.count_nonzero(bits >= infinity))
    leading = highest.to_bytes(size, "little").rjust(struct.calcsize(code), b"\0")
    return Scan(tensor, nonfinite, highest > 0, struct.unpack(code, leading)[0], digest.digest())


def _chunks(file: BinaryIO, tensor: Tensor) -> Iterator[bytes]:
    file.seek(tensor.begin)
    offsets = [*range(tensor.begin, tensor.end, CHUNK_BYTES), tensor.end]
    for begin, end in pairwise(offsets):
        chunk = file.read(end - begin)
        if len(chunk) != end - begin:
            raise UnreadableError(say("unreadable.tensor_cut", tensor=tensor.name[:80]))
        yield chunk
