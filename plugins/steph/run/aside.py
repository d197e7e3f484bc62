"""What lies where an attempt will write is moved out of its way, and back. Nothing is ever deleted."""

from __future__ import annotations

import shutil
from pathlib import Path

from steph.run.inputs import InputError


def set_aside(path: Path, folder: Path) -> None:
    """Move what lies at `path` into `folder`, so that no attempt lends its files to another; nothing is deleted.

    A link to a folder stays: what it leads to is moved and made anew, empty. Raises InputError where it can't be moved.
    """
    if not (path.exists() or path.is_symlink()):
        return
    is_linked_folder = path.is_symlink() and path.is_dir()
    place = path.resolve() if is_linked_folder else path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.move(place, folder / path.name)
        if is_linked_folder:
            place.mkdir()
    except OSError as error:  # shutil.Error is one
        raise InputError(f"{path}: can't be moved to {folder}: {error}; make room there or move it yourself") from error


def put_back(path: Path, folder: Path) -> None:
    """Undo `set_aside` where something was moved and nothing lies at `path` now."""
    if (folder / path.name).exists() and not path.exists():
        shutil.move(folder / path.name, path)
