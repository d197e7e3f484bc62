"""Reads the files that an attempt left: bounded JSON, ages, hashes. Never follows a pickle, never writes."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

from steph.record.values import Artifact

MAX_JSON_BYTES = 64 << 20
MAX_ARTIFACTS = 200
MAX_HASHED_BYTES = 8 << 30  # hashing more would hold up the run for minutes
CLOCK_SLACK_SECONDS = 0.05  # the kernel stamps files with a clock that lags by up to one tick of 10 ms

LATER_SLACK_SECONDS = 2.0  # FAT stamps every second second only


class UnreadableError(ValueError):
    """A file can't be used; the text says why (Japanese)."""


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES, *, strict: bool = True) -> object:
    """Read JSON of at most `max_bytes`, without NaN and infinity unless `strict` is off; UnreadableError otherwise."""
    try:
        if not path.is_file():
            raise UnreadableError("ファイルがない")
        if (size_bytes := path.stat().st_size) > max_bytes:
            raise UnreadableError(f"{size_bytes} バイトは大きすぎる")
        return json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse_constant if strict else float)
    except OSError as error:
        raise UnreadableError(f"読めない: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UnreadableError("UTF-8 でない") from error
    except UnreadableError:
        raise
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"JSON でない（{type(error).__name__}）") from error


def _refuse_constant(name: str) -> NoReturn:
    raise UnreadableError(f"JSON に {name} がある")


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


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def artifact(path: Path, name: str) -> Artifact:
    """Describe one file under the name by which the pipeline knows it."""
    printable = name.encode("utf-8", "replace").decode()
    return Artifact(path=printable, size_bytes=path.stat().st_size, sha256=sha256_of(path))


def artifacts_under(folder: Path, name: str) -> tuple[Artifact, ...]:
    """Describe the regular files under a folder in name order, at most `MAX_ARTIFACTS`, without links and giants."""
    paths = sorted(_regular_files(folder))[:MAX_ARTIFACTS]
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter's lock
        found = pool.map(lambda path: _artifact_under(folder, path, name), paths)
    return tuple(item for item in found if item is not None)


def _artifact_under(folder: Path, path: Path, name: str) -> Artifact | None:
    try:
        return artifact(path, f"{name.rstrip('/')}/{path.relative_to(folder).as_posix()}")
    except OSError:
        return None  # a file that vanishes or can't be read is no artifact


def _regular_files(folder: Path) -> Iterable[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_size <= MAX_HASHED_BYTES:
                yield path
