"""Reads the files that an attempt left: their age, size and hash. Never writes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from steph.base.files import sha256_of
from steph.record.values import Artifact

MAX_ARTIFACTS = 200
MAX_HASHED_BYTES = 8 << 30  # hashing more would hold up the run for minutes


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
