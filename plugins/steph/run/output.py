"""The files that a supervisor leaves of its child: capped logs, arrival times, and `exit.json`, how the child ended.

A log `output` is `output.log`, at most its first HEAD_BYTES, and tail files `output.tail-OFFSET.log` of up to
TAIL_BYTES, each named by the place of its first byte; of these the newest are kept. `stdout.times` has `seconds offset`
lines: how far into the log a moment's bytes reached. Standard library only, because the supervisor that writes these
files runs without any site packages.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HEAD_BYTES = 8 << 20
TAIL_BYTES = 4 << 20
_EXIT_FILE = "exit.json"
_EXIT_FILE_BYTES = 4096


class Segment(NamedTuple):
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
        with contextlib.suppress(OSError), path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - limit_bytes + len(data)))
            data = file.read(limit_bytes - len(data)) + data
        if len(data) >= limit_bytes:
            break
    lines = (line.rstrip("\r").rpartition("\r")[2].rstrip() for line in data.decode(errors="replace").split("\n"))
    return [line for line in lines if line][-count:]


def timed_lines(
    folder: Path, is_wanted: Callable[[str], bool], name: str = "stdout", limit: int = 20_000
) -> list[tuple[float, str]]:
    """The log's first `limit` wanted lines with the second, from the child's start, at which their end arrived."""
    arrived: list[tuple[int, float]] = []
    with contextlib.suppress(OSError, ValueError):  # a full disk cut the line
        for entry in times_path(folder, name).read_text().split("\n")[:-1]:
            second, _, offset = entry.partition(" ")
            arrived.append((int(offset), float(second)))
    found: list[tuple[float, str]] = []
    for segment in segments(folder, name):
        end = segment.offset
        for line in segment.data.splitlines(keepends=True):
            end += len(line)
            text = line.decode(errors="replace").rstrip("\r\n")
            place = bisect.bisect_left(arrived, (end, 0.0))
            if place < len(arrived) and is_wanted(text):
                found.append((arrived[place][1], text))
            if len(found) >= limit:
                return found
    return found


def _files(folder: Path, name: str) -> list[tuple[int, Path]]:
    head = head_path(folder, name)
    found = [(0, head)] if head.exists() else []
    tails = folder.glob(f"{name}.tail-*.log")  # each named by its offset
    return found + sorted((int(path.name.rpartition("-")[2].removesuffix(".log")), path) for path in tails)


class Exit:
    """How the child ended; times are CLOCK_MONOTONIC seconds, comparable across processes."""

    # no dataclass: its import is a fifth of the supervisor's start
    def __init__(
        self,
        child_pid: int,
        started_monotonic: float,
        by_itself: bool = True,  # not by a signal to the supervisor, nor because its parent was gone
        returncode: int | None = None,  # negative for a signal, None where it could not be ended
        ended_monotonic: float | None = None,
        killed_descendants: int = 0,  # left beside the child, and signalled
        left_alive: int = 0,  # survived SIGKILL for seconds
        dropped_bytes: int = 0,
        left_behind: tuple[str, ...] = (),  # the first that a child left running which ended by itself
    ) -> None:
        self.child_pid = child_pid
        self.started_monotonic = started_monotonic
        self.by_itself = by_itself
        self.returncode = returncode
        self.ended_monotonic = ended_monotonic
        self.killed_descendants = killed_descendants
        self.left_alive = left_alive
        self.dropped_bytes = dropped_bytes
        self.left_behind = tuple(map(str, left_behind))


def is_written(folder: Path) -> bool:
    """Whether the folder's child has ended and its supervisor said how."""
    return (folder / _EXIT_FILE).exists()


def read_exit(folder: Path) -> Exit | None:
    """How the folder's child ended; None where no supervisor lived to say it, or the file is none of its."""
    try:
        return Exit(**json.loads((folder / _EXIT_FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


class ExitFile:
    """`exit.json`, whose room on the disk is taken while there still is some."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _EXIT_FILE
        self._reserved = folder / f".{_EXIT_FILE}"
        with contextlib.suppress(OSError):
            self._reserved.write_bytes(b" " * _EXIT_FILE_BYTES)

    def write(self, outcome: Exit) -> None:
        """Put the outcome in place, whole or not at all."""
        data = json.dumps(vars(outcome)).encode().ljust(_EXIT_FILE_BYTES)
        with contextlib.suppress(OSError):
            fd = os.open(self._reserved, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                complete = os.pwrite(fd, data, 0) == len(data)
                os.fsync(fd)
            finally:
                os.close(fd)
            if complete:
                self._reserved.rename(self._path)
