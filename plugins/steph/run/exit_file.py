"""`exit.json`: what a supervisor tells the runner of how its child ended.

Standard library only, because the supervisor runs without any site packages.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

_NAME = "exit.json"
_BYTES = 4096


@dataclass
class Exit:
    """How the child ended; times are CLOCK_MONOTONIC seconds, comparable across processes.

    `by_itself`: it was not told to end, by a signal to the supervisor or because the supervisor's parent was gone.
    `returncode` is negative for a signal and None where the child could not be ended. `killed_descendants` counts what
    was left beside the child and had to be signalled, `left_alive` what survived SIGKILL for seconds. `left_behind`
    names the first of those that a child which ended by itself left running ("sleep (pid 7)").
    """

    child_pid: int
    started_monotonic: float
    by_itself: bool = True
    returncode: int | None = None
    ended_monotonic: float | None = None
    killed_descendants: int = 0
    left_alive: int = 0
    dropped_bytes: int = 0
    start_error: str | None = None
    left_behind: tuple[str, ...] = ()


def is_written(folder: Path) -> bool:
    """Whether the folder's child has ended and its supervisor said how."""
    return (folder / _NAME).exists()


def read_exit(folder: Path) -> Exit | None:
    """How the folder's child ended; None where no supervisor lived to say it, or the file is none of its."""
    try:
        found = json.loads((folder / _NAME).read_bytes())
        end = Exit(**found)
        end.left_behind = tuple(map(str, end.left_behind))
        return end
    except (OSError, ValueError, TypeError):
        return None


class ExitFile:
    """`exit.json`, whose room on the disk is taken while there still is some."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        self._reserved = folder / f".{_NAME}"
        with contextlib.suppress(OSError):
            self._reserved.write_bytes(b" " * _BYTES)

    def write(self, outcome: Exit) -> None:
        """Put the outcome in place, whole or not at all."""
        data = json.dumps(asdict(outcome)).encode().ljust(_BYTES)
        with contextlib.suppress(OSError):
            fd = os.open(self._reserved, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                complete = os.pwrite(fd, data, 0) == len(data)
                os.fsync(fd)
            finally:
                os.close(fd)
            if complete:
                self._reserved.rename(self._path)
