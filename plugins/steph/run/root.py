"""The pipeline's folder during a run: held by one run at a time, outputs moved out of the way and back.

Two runs would move and judge each other's files. The lock is flock(2) on the folder itself: nothing is written, every
name and link of the folder leads to the same lock, and it goes with its holder's process. What is moved goes into the
record's folder; nothing is deleted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from steph.base.messages import say, verbatim
from steph.run import processes
from steph.run.inputs import InputError

UNFINISHED = ".unfinished"  # ending of a copy to another disk that is not whole yet


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
            holder = say("lock.run")
            with contextlib.suppress(OSError):
                # proc_locks(5): `1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF`
                for line in Path("/proc/locks").read_text(encoding="ascii", errors="replace").splitlines():
                    words = line.split()
                    if words[1:2] == ["FLOCK"] and words[5].rpartition(":")[2] == str(os.fstat(fd).st_ino):
                        command = " ".join(processes.command_line(int(words[4])))[:200]
                        holder = verbatim(f"pid {words[4]}: {command}" if command else f"pid {words[4]}")
            raise RootBusyError(say("lock.root", root=root, who=holder)) from error
        except OSError:
            pass
        yield
    finally:
        os.close(fd)


def set_aside(path: Path, folder: Path) -> Path | None:
    """Move what lies at `path` into `folder` and return its new place; None where nothing was there.

    A link to a folder stays: what it leads to is moved and made anew, empty. Raises InputError where it can't be moved;
    then all of it is still at `path`, and `folder` holds no part of it.
    """
    if not (path.exists() or path.is_symlink()):
        return None
    is_linked_folder = path.is_symlink() and path.is_dir()
    source, is_new = path.resolve() if is_linked_folder else path, not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = _free_place(folder, path.name)
        _move_whole(source, place)
        if is_linked_folder:
            source.mkdir()
    except OSError as error:  # shutil.Error is one
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise InputError(say("input.not_moved", path=path, folder=folder, error=_reason(error))) from error
    return place


def put_back(path: Path, place: Path | None) -> None:
    """Undo `set_aside`, which returned `place`, where nothing lies at `path` now; raises InputError if it can't."""
    if place is None:
        return
    target = path.resolve() if path.is_symlink() and path.is_dir() else path
    try:
        if target != path and not any(target.iterdir()):
            target.rmdir()
        if not os.path.lexists(target):
            _move_whole(place, target)
    except OSError as error:
        raise InputError(say("input.not_put_back", path=path, place=place, error=_reason(error))) from error


@contextlib.contextmanager
def kept_safe(paths: Iterable[Path], folder: Path) -> Iterator[None]:
    """Keep these outputs out of reach of what runs in the block, and put them back after it.

    What the block itself wrote at their paths ends up in `folder / "written"`. If the suite is killed meanwhile, the
    outputs lie whole in `folder / "before"`. Raises InputError where they can't be moved.
    """

    def take_written(path: Path) -> None:
        is_emptied_link = path.is_symlink() and path.is_dir() and not any(path.iterdir())  # made by `set_aside`
        if not is_emptied_link:
            set_aside(path, folder / "written")

    def remove_if_empty() -> None:
        with contextlib.suppress(OSError):
            (folder / "before").rmdir()

    with contextlib.ExitStack() as stack:
        stack.callback(remove_if_empty)
        for path in paths:
            place = set_aside(path, folder / "before")
            stack.callback(put_back, path, place)
            stack.callback(take_written, path)
        yield


def _free_place(folder: Path, name: str) -> Path:
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(folder / name for name in names if not os.path.lexists(folder / name))


def _reason(error: OSError) -> str:
    """Why, in few words: `copytree` lists each file that it could not copy, mostly for one and the same reason."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        reasons = [str(failure[-1]).partition(": '")[0] for failure in error.args[0]]
        return reasons[0] if len({*reasons}) == 1 else f"{reasons[0]} (and {len(reasons) - 1} more)"
    return error.strerror or str(error)


def _move_whole(source: Path, place: Path) -> None:
    """Rename, or to another disk: copy, and remove the source once the copy is whole. Raises OSError."""
    try:
        source.rename(place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    else:
        return
    is_folder = source.is_dir() and not source.is_symlink()
    unfinished = _free_place(place.parent, place.name + UNFINISHED)
    try:
        if is_folder:
            shutil.copytree(source, unfinished, symlinks=True)
        else:
            shutil.copy2(source, unfinished, follow_symlinks=False)
        unfinished.rename(place)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True) if is_folder else unfinished.unlink(missing_ok=True)
        raise
    shutil.rmtree(source) if is_folder else source.unlink()
