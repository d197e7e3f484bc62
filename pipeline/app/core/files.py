"""Reading and writing files so that a reader never meets half of one."""

import hashlib
import json
import os
from pathlib import Path

from app.core.errors import PipelineError


def require_file(path: Path, flag: str, remedy: str) -> Path:
    """Give `path` back if it is a file; raise `PipelineError` naming the flag and the remedy otherwise."""
    if path.is_dir():
        raise PipelineError(f"{flag} {path} is a folder, not a file; {remedy}")
    if not path.is_file():
        raise PipelineError(f"{flag} {path} does not exist; {remedy}")
    return path


def require_writable_place(path: Path, flag: str, *, folder: bool) -> None:
    """Raise `PipelineError` if `path` can't become a file (or a folder); creates nothing."""
    if path.exists() and path.is_dir() != folder:
        kind = "a file, not a folder" if folder else "a folder, not a file"
        raise PipelineError(f"{flag} {path} is {kind}; name another path")
    nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if nearest != path and not nearest.is_dir():
        raise PipelineError(f"{flag} {path} can't be made because {nearest} is a file; name another path")
    if not os.access(nearest, os.W_OK):
        raise PipelineError(f"{flag} {path} can't be written because {nearest} is read-only; name another path")


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to a neighbour of `path` and rename it, making the parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json_atomically(path: Path, value: object) -> None:
    """Write `value` as indented UTF-8 JSON, whole or not at all; NaN is refused (ValueError)."""
    write_text_atomically(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def sha256_of(path: Path) -> str:
    """SHA-256 of the file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
