"""Bytes of a running child on their way to disk: capped logs that a full disk can't stop, and arrival times.

Used by the supervisor alone; standard library only. Nothing is buffered here: what was handed over has been written,
so it outlives a SIGKILL of whoever wrote it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from steph.run import output

_TIMES_KEPT = 100_000


class CappedLog:
    """One log of bounded size: a head file, then numbered tail files of which only the last two are kept.

    What can't be written (disk full, quota, file limit) is dropped and counted, never an error: a child must not die or
    stall because its log has no room.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.position = 0  # bytes stored so far, those in deleted tails included
        self.dropped_bytes = 0
        self._folder = folder
        self._name = name
        self._tail = 0  # number of the tail file being written, 0: the head
        self._room = output.HEAD_BYTES
        self._fd: int | None = None
        self._gap = 0  # bytes dropped since the last one that was stored

    def write(self, data: bytes) -> None:
        """Append `data`, as far as there is room on the disk."""
        if self._gap:
            mark = b"\n[... %d bytes dropped: no room on the disk ...]\n" % self._gap
            if self._store(mark) < len(mark):
                self._drop(len(data))
                return
            self._gap = 0
        self._drop(len(data) - self._store(data))

    def close(self) -> None:
        """Close the file being written."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _drop(self, count: int) -> None:
        self.dropped_bytes += count
        self._gap += count

    def _store(self, data: bytes) -> int:
        view = memoryview(data)
        stored = 0
        try:
            while stored < len(view):
                if self._room == 0:
                    self._next_tail()
                written = os.write(self._open(), view[stored : stored + self._room])
                stored += written
                self._room -= written
        except OSError:
            pass
        self.position += stored
        return stored

    def _open(self) -> int:
        if self._fd is None:
            number = self._tail
            path = (
                output.tail_path(self._folder, self._name, number)
                if number
                else output.head_path(self._folder, self._name)
            )
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        return self._fd

    def _next_tail(self) -> None:
        self.close()
        self._tail += 1
        self._room = output.TAIL_BYTES
        # the oldest goes first: on a full disk its room is what the next one is written into
        with contextlib.suppress(OSError):
            output.tail_path(self._folder, self._name, self._tail - output.TAILS_KEPT).unlink()


class ArrivalTimes:
    """When a log's bytes arrived: one `seconds offset` line per chunk, the first hundred thousand."""

    def __init__(self, folder: Path, name: str) -> None:
        self._left = _TIMES_KEPT
        self._fd: int | None = None
        with contextlib.suppress(OSError):
            path = output.times_path(folder, name)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def add(self, seconds: float, position: int) -> None:
        """Note that the log reached `position` bytes at this second after the child's start."""
        if self._fd is None or not self._left:
            return
        self._left -= 1
        try:
            os.write(self._fd, b"%.3f %d\n" % (seconds, position))
        except OSError:
            self._left = 0
