"""One run at a time on one GPU: a lock per UUID that names its holder and goes with its holder's process.

The lock is flock(2) on a small file in the user's cache folder; its content is only there for a message to a person, so
a file that outlived its process locks nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from steph.base.messages import say


@dataclass(frozen=True)
class Holder:
    """Who holds a GPU: a pid, its command line, and since when (ISO 8601, UTC)."""

    pid: int
    command: str
    since: str


class GpuLockError(Exception):
    """This GPU can't be held for a run; the message is one line."""


class GpuBusyError(GpuLockError):
    """Another run holds this GPU; the message is one line, `holder` is None where it could not be read."""

    def __init__(self, uuid: str, holder: Holder | None) -> None:
        who = say("lock.holder", **asdict(holder)) if holder else say("lock.process")
        super().__init__(say("lock.gpu", uuid=uuid, who=who))
        self.uuid = uuid
        self.holder = holder


@contextlib.contextmanager
def gpu_lock(uuid: str, folder: Path | None = None) -> Iterator[None]:
    """Hold this GPU or slice for the time of the block; raises GpuBusyError at once where another run holds it.

    `folder` defaults to `lock_folder()`. Children do not inherit the lock. Raises GpuLockError where no lock can be
    kept there.
    """
    place = lock_folder() if folder is None else folder
    try:
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"{re.sub(r'[^A-Za-z0-9-]', '_', uuid)}.lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _no_place(place, error) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = None
            with contextlib.suppress(OSError, ValueError, TypeError):
                holder = Holder(**json.loads(os.pread(fd, 4096, 0)))
            raise GpuBusyError(uuid, holder) from error
        except OSError as error:
            raise _no_place(place, error) from error
        own = Holder(os.getpid(), shlex.join(sys.orig_argv)[:500], datetime.now(UTC).isoformat(timespec="seconds"))
        with contextlib.suppress(OSError):  # a full disk takes the message, not the lock
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(asdict(own), ensure_ascii=False).encode(), 0)
        yield
    finally:
        # the file stays: deleting it would let a third run lock a new file while a second one still waits for this
        os.close(fd)


def _no_place(place: Path, error: OSError) -> GpuLockError:
    return GpuLockError(say("lock.no_place", place=place, error=error.strerror))


def lock_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Where locks lie: `steph/locks` below `$XDG_CACHE_HOME`, else below `~/.cache`; GpuLockError without a home."""
    # not below XDG_RUNTIME_DIR: cron jobs and containers lack it, and two folders would be two locks
    cache = (os.environ if environ is None else environ).get("XDG_CACHE_HOME")
    try:
        return (Path(cache) if cache else Path.home() / ".cache") / "steph" / "locks"
    except RuntimeError as error:
        raise GpuLockError(say("lock.no_home", error=error)) from error
