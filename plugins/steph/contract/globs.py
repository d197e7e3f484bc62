"""Finds the files that a description names with `*` and `**`. Reads folders, changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from steph.base.files import is_fresh

MOST_FILES = 10_000


def paths_at(root: Path, pattern: str) -> Iterator[Path]:
    """What a path with `*` and `**` names, from the root or absolute; a path without them names itself."""
    if not any(sign in pattern for sign in "*?["):
        yield root / pattern
        return
    base = Path(pattern)
    start, rest = (Path(base.anchor), str(base.relative_to(base.anchor))) if base.is_absolute() else (root, pattern)
    yield from (path for path, _ in zip(start.glob(rest), range(MOST_FILES), strict=False))


def files_at(root: Path, pattern: str) -> list[Path]:
    """The files that are there under such a path, in name order."""
    return sorted(path for path in paths_at(root, pattern) if path.is_file())


def newest(paths: Sequence[Path], started_unix: float) -> Path | None:
    """Of the attempt's own files the last one written, else of the older ones."""
    return max(paths, key=lambda path: (is_fresh(path, started_unix), path.stat().st_mtime, path.name), default=None)
