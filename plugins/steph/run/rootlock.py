"""One run at a time in one pipeline root: two would move and judge each other's files.

The lock is flock(2) on the folder itself: nothing is written, every name and link of the folder leads to the same lock,
and it goes with its holder's process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from steph.base.messages import Message, say, verbatim


class RootBusyError(Exception):
    """Another run works in this pipeline root; the message is one line."""


@contextlib.contextmanager
def root_lock(root: Path) -> Iterator[None]:
    """Hold this pipeline root for the time of the block; raises RootBusyError at once where another run holds it.

    Children do not inherit the lock. A file system that knows no locks is passed over.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(os.fstat(fd).st_ino)
            raise RootBusyError(say("lock.root", root=root, who=holder)) from error
        except OSError:
            pass
        yield
    finally:
        os.close(fd)


def _holder(inode: int) -> Message:
    """Who holds the lock on this inode, by proc_locks(5): `1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF`."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="ascii", errors="replace").splitlines():
            words = line.split()
            if words[1:2] == ["FLOCK"] and words[5].rpartition(":")[2] == str(inode):
                return verbatim(f"pid {words[4]}{_command(words[4])}")
    return say("lock.run")


def _command(pid: str) -> str:
    try:
        raw = Path("/proc", pid, "cmdline").read_bytes()
    except OSError:
        return ""
    return ": " + " ".join(raw.decode(errors="replace").replace("\0", " ").split())[:200]
