"""The pipeline's folder: what a run starts from in it, its lock, and its outputs, moved out of the way and back.

A run starts from scripts, data set, training file, the machine, the checkouts and the files' clock. Every complaint is
an InputError of one line that names the file, the key and the remedy.

Two runs would move and judge each other's files. The lock is flock(2) on the folder itself: nothing is written, every
name and link of the folder leads to the same lock, and it goes with its holder's process. What is moved goes into the
record's folder; nothing is deleted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Literal

import psutil

from steph.base.files import TABLES, UnreadableError, json_lines, row_lines, table_rows
from steph.base.messages import Message, say, verbatim
from steph.contract.description import Description
from steph.contract.questions import samples_in
from steph.contract.rows import RowFormat, training_row
from steph.record.settings import DataFile, Device, Environment, GitState
from steph.run import processes
from steph.run.processes import output_of

SUITE_PACKAGES = ("steph", "pytest", "pytest-timeout", "pytest-order", "huggingface-hub", "pydantic", "nvidia-ml-py")
WRITTEN_SLACK_SECONDS = 0.2  # two clocks are compared: the files' and the one that timed the program


class InputError(RuntimeError):
    """An input is missing or broken; the message is one line with file, key and remedy."""


def require_script(root: Path, relative: str, key: str) -> None:
    """Raise InputError unless the pipeline root has this script."""
    if not root.is_dir():
        raise InputError(say("input.no_root", root=root))
    if not (root / relative).is_file():
        raise InputError(say("input.no_script", path=root / relative, key=key))


def require_outputs_apart(root: Path, description: Description, reports: Path) -> None:
    """Raise InputError where an output's path holds anything else: all that lies there is moved before an attempt."""
    paths = description.paths
    sources = (
        paths.train_script, paths.evaluate_script, paths.dataset_fallback, description.train_file, description.dataset
    )  # fmt: skip
    spelled = [root.resolve() / source for source in sources if source]
    kept = [root.resolve(), reports.resolve(), *spelled, *(path.resolve() for path in spelled)]
    for key, value in (("output_dir", description.output_dir), ("evaluation_output", description.output)):
        place = (root / value).resolve()
        held = next((keep for keep in kept if keep.is_relative_to(place)), None)
        if held is not None:
            raise InputError(say("input.output_holds", path=root / "steph.toml", key=key, value=repr(value), held=held))


def read_dataset(root: Path, description: Description) -> DataFile | None:
    """The evaluation questions: the real data set where it is there, else the sample that the root carries.

    None where only the evaluation knows what it asks. Raises InputError where there is none, or where it has no list
    `samples`, and for a description other than the preset `lawqa` no JSON rows either.
    """
    real, sample = description.dataset, description.paths.dataset_fallback
    if real is None:
        return None
    relative = real if sample is None or (root / real).is_file() else sample
    data = _read(root / relative, "paths.dataset", say("input.clone_dataset"))
    digest = hashlib.sha256(data).hexdigest()
    try:
        samples = samples_in(data, Path(relative), named=description.evaluate.results.format == "lawqa")
    except UnreadableError as error:
        raise InputError(say("input.bad_dataset", path=root / relative, reason=error)) from error
    if not samples:
        raise InputError(say("input.no_questions", path=root / relative))
    return DataFile(role="dataset", path=relative, sha256=digest, rows=len(samples), is_sample=relative != real)


def read_train_file(
    root: Path, relative: str, mode: Literal["direct", "cot"] = "direct", row_format: RowFormat = "input_output"
) -> DataFile:
    """The training rows; raises InputError for a missing file, a broken line or a row that is not of the format."""
    role: Literal["train_file", "train_file_cot"] = "train_file" if mode == "direct" else "train_file_cot"
    data = _read(
        root / relative,
        "train.rows.file" if row_format != "input_output" else f"paths.{role}",
        say("input.give_rows", role=role),
    )
    rows = 0
    for line in row_lines(data, Path(relative)):
        if line.row is None:
            raise InputError(say("input.bad_line", path=root / relative, line=line.number, reason=line.trouble))
        try:
            training_row(line.row, row_format)
        except ValueError as error:
            raise InputError(say("input.bad_row", path=root / relative, line=line.number, reason=error)) from error
        for key, value in line.row.items():
            # JSON may spell half of a surrogate pair, which is no character and can't be written
            if key != "meta" and re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)):
                raise InputError(say("input.half_character", path=root / relative, line=line.number, key=repr(key)))
        rows += 1
    if rows == 0:
        raise InputError(say("input.no_rows", path=root / relative))
    return DataFile(role=role, path=relative, sha256=hashlib.sha256(data).hexdigest(), rows=rows)


def needs_build(root: Path, relative: str, dataset: DataFile, samples: int) -> bool:
    """Whether the training file is missing, or was built by the root's own builder from other data.

    A file whose rows do not say what they were built from is a person's own and is left alone.
    """
    path = root / relative
    if not path.is_file():
        return True
    with path.open("rb") as lines:
        first = next(json_lines(lines.readline()), None)
    meta = first.row.get("meta") if first and first.row else None
    source, holdout = (meta.get("source_sha256"), meta.get("holdout")) if isinstance(meta, Mapping) else (None, None)
    if not isinstance(source, str) or not isinstance(holdout, int):
        return False
    return source != dataset.sha256 or holdout < samples


def count_rows(path: Path) -> int:
    """How many rows a training file has; those that are none are not counted."""
    return sum(line.row is not None for line in row_lines(path.read_bytes(), path, "replace"))


def write_subset(root: Path, relative: str, rows: int, target: Path) -> None:
    """Write the first `rows` training rows to `target`: how a pipeline without a step limit is kept short."""
    data = (root / relative).read_bytes()
    if target.suffix.lower() in TABLES:
        ends = [1, *(number for number, _ in islice(table_rows(data, target, "replace"), rows))]
        target.write_bytes(b"".join(data.splitlines(keepends=True)[: ends[-1]]))
        return
    if data.lstrip()[:1] == b"[":
        kept = [line.row for line in islice(json_lines(data), rows)]
        target.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
        return
    lines = (line for line in data.splitlines(keepends=True) if line.strip())
    target.write_bytes(b"".join(islice(lines, rows)))


def file_clock_unix(paths: Iterable[Path]) -> float:
    """The time by the clock that stamps files written at these paths, the earliest of several.

    A drive of the Windows host or a file server has a clock of its own. Where no file can be made there: our clock.
    """
    moments = []
    for path in paths:
        folder = next(place for place in (path, *path.parents) if place.is_dir())
        try:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".steph-clock-") as probe:
                moments.append(os.fstat(probe.fileno()).st_mtime)
        except OSError:
            moments.append(time.time())
    return min(moments, default=time.time())


def written_after(paths: Iterable[Path], unix: float) -> tuple[str, ...]:
    """The names of files at or below these paths that were written after this moment of the files' clock."""
    files = (file for path in paths for file in (path, *path.rglob("*")) if file.is_file())
    return tuple(sorted({file.name for file in files if file.stat().st_mtime > unix + WRITTEN_SLACK_SECONDS}))


def _read(path: Path, key: str, remedy: Message) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(say("input.no_file", path=path, key=key, remedy=remedy)) from error
    except OSError as error:
        raise InputError(say("input.refused", path=path, error=error.strerror, key=key)) from error


def environment(devices: Sequence[Device], device_error: Message | None = None) -> Environment:
    """This machine: operating system, processor, memory, the GPUs in use and the suite's own packages."""
    cpu, packages = platform.machine(), {}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    for name in SUITE_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return Environment(
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        cpu=cpu,
        cpu_count=psutil.cpu_count() or 1,
        ram_bytes=psutil.virtual_memory().total,
        is_wsl=is_wsl(),
        device=devices[0] if devices else None,
        further_devices=tuple(devices[1:]),
        device_error=device_error,
        packages=packages,
    )


def is_wsl() -> bool:
    """Whether this Linux runs inside Windows."""
    return "microsoft" in platform.release().lower()


def git_state(folder: Path) -> GitState:
    """The checkout that `folder` is a part of, not one that it only lies in as a `.venv` does; else empty."""

    def git(*arguments: str) -> str | None:
        try:
            done = output_of(["git", "-C", str(folder), *arguments], seconds=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None or not git("ls-files", "--", "."):
        return GitState()
    branch = git("symbolic-ref", "--short", "-q", "HEAD")
    status = git("status", "--porcelain", "--untracked-files=no", "--", ".")
    return GitState(branch=branch, commit=commit, dirty=None if status is None else bool(status))


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
