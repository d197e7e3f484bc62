"""What a child wrote: one head file and its newest tail files, read back as text.

A log `output` is `output.log`, at most its first HEAD_BYTES, and tail files `output.tail-OFFSET.log` of up to
TAIL_BYTES, each named by the place of its first byte; of these the newest are kept. `stdout.times` has `seconds offset`
lines: how far into the log a moment's bytes reached. Standard library only, because the supervisor that writes these
files takes their layout from here.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HEAD_BYTES = 8 << 20
TAIL_BYTES = 4 << 20


@dataclass(frozen=True)
class Segment:
    """Consecutive bytes of a log; `offset` counts from the log's first byte, what was cut included."""

    offset: int
    data: bytes


def head_path(folder: Path, name: str) -> Path:
    """Path of the log's first HEAD_BYTES."""
    return folder / f"{name}.log"


def tail_path(folder: Path, name: str, offset: int) -> Path:
    """Path of the log's tail file whose first byte is the log's byte `offset`."""
    return folder / f"{name}.tail-{offset:012d}.log"


def times_path(folder: Path, name: str) -> Path:
    """Path of the log's arrival times."""
    return folder / f"{name}.times"


def segments(folder: Path, name: str = "output") -> list[Segment]:
    """The log's kept bytes, neighbouring files joined; empty where there is no log."""
    joined: list[Segment] = []
    for offset, path in _files(folder, name):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        if joined and joined[-1].offset + len(joined[-1].data) == offset:
            joined[-1] = Segment(joined[-1].offset, joined[-1].data + data)
        else:
            joined.append(Segment(offset, data))
    return joined


def read_output(folder: Path, name: str = "output") -> str:
    """Text of a log, with a `[... N bytes cut ...]` line where its middle is gone; invalid UTF-8 becomes U+FFFD."""
    text = ""
    end = 0
    for segment in segments(folder, name):
        if segment.offset > end:
            text += f"\n[... {segment.offset - end} bytes cut ...]\n"
        text += segment.data.decode(errors="replace")
        end = segment.offset + len(segment.data)
    return text


def stdout_text(folder: Path) -> str:
    """Text of what the child wrote to stdout alone."""
    return read_output(folder, "stdout")


def tail_lines(folder: Path, count: int, name: str = "output", limit_bytes: int = 64 << 10) -> list[str]:
    """The last `count` lines that aren't blank, from at most the last `limit_bytes`.

    A line that a progress bar rewrote with carriage returns shows in its last state.
    """
    data = b""
    for _, path in reversed(_files(folder, name)):
        data = _last_bytes(path, limit_bytes - len(data)) + data
        if len(data) >= limit_bytes:
            break
    lines = (line.rstrip("\r").rpartition("\r")[2].rstrip() for line in data.decode(errors="replace").split("\n"))
    return [line for line in lines if line][-count:]


def timed_lines(
    folder: Path, is_wanted: Callable[[str], bool], name: str = "stdout", limit: int = 20_000
) -> list[tuple[float, str]]:
    """The log's first `limit` wanted lines with the second, from the child's start, at which their end arrived."""
    offsets, seconds = _times(folder, name)
    found: list[tuple[float, str]] = []
    for segment in segments(folder, name):
        end = segment.offset
        for line in segment.data.splitlines(keepends=True):
            end += len(line)
            text = line.decode(errors="replace").rstrip("\r\n")
            entry = bisect.bisect_left(offsets, end)
            if entry < len(offsets) and is_wanted(text):
                found.append((seconds[entry], text))
            if len(found) >= limit:
                return found
    return found


def _files(folder: Path, name: str) -> list[tuple[int, Path]]:
    head = head_path(folder, name)
    found = [(0, head)] if head.exists() else []
    tails = folder.glob(f"{name}.tail-*.log")  # each named by its offset
    return found + sorted((int(path.name.rpartition("-")[2].removesuffix(".log")), path) for path in tails)


def _last_bytes(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - limit))
            return file.read(limit)
    except OSError:
        return b""


def _times(folder: Path, name: str) -> tuple[list[int], list[float]]:
    offsets: list[int] = []
    seconds: list[float] = []
    try:
        text = times_path(folder, name).read_text()
    except OSError:
        return offsets, seconds
    for line in text.split("\n")[:-1]:
        second, _, offset = line.partition(" ")
        try:
            entry = int(offset), float(second)
        except ValueError:  # a full disk cut the line
            break
        offsets.append(entry[0])
        seconds.append(entry[1])
    return offsets, seconds
