"""Replaces a file at once or not at all, one writer at a time.

Takes a path and a function from the file's old bytes to its new ones. A writer that is killed leaves the old file whole
and at most a hidden `.part` beside it, which the next one clears away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from steph.base.messages import say

LOCK_SECONDS = 10.0  # a writer needs milliseconds
_MOST_WRITES = 5
_PART = ".part"


def renew(path: Path, renewed: Callable[[bytes | None], bytes]) -> Path:
    """Replace the file by what `renewed` makes of its bytes (None: there is none); give the file's real path.

    A file that changes meanwhile is read again, so that what an editor saved is not lost. A link stays one, and the
    file behind it keeps mode and owner. Raises OSError where the file can't be read or replaced.
    """
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _one_writer(target):
        for _ in range(_MOST_WRITES):
            before = _state_of(target)
            existing = target.read_bytes() if before else None
            content = renewed(existing)
            if content == existing or _replace(target, content, before):
                return target
    raise OSError(say("report.keeps_changing", path=target))


@contextlib.contextmanager
def _one_writer(target: Path) -> Iterator[None]:
    """Hold the folder's lock, and clear away what a killed writer left; without the lock nothing is cleared."""
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        if _locked(folder):
            with contextlib.suppress(OSError):  # another user's in a shared folder stays
                for path in target.parent.iterdir():
                    if path.name.startswith(f".{target.name}.") and path.name.endswith(_PART):
                        path.unlink()
        yield
        with contextlib.suppress(OSError):
            os.fsync(folder)
    finally:
        os.close(folder)


def _locked(folder: int) -> bool:
    """Whether the lock was had: not on a file system without locks, nor where a stopped writer keeps it too long."""
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.02)
        except OSError:
            return False


def _state_of(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino


def _replace(target: Path, content: bytes, before: tuple[int, int, int] | None) -> bool:
    """Replace the file at once, unless it changed since."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}{_PART}")
    # a new report is for whom the umask says; what replaces a closed one must not be open for a moment
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600 if before else 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if before:
            state = target.stat()
            with contextlib.suppress(OSError):  # root in a container writes people's files, others can't give them away
                os.chown(temporary, state.st_uid, state.st_gid)
            temporary.chmod(stat.S_IMODE(state.st_mode))
        if _state_of(target) != before:
            return False
        temporary.replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    return True
