"""Whether two texts name the same model or the same folder. Pure."""

from __future__ import annotations

import re
from pathlib import PurePosixPath


def same_path(one: str, other: str) -> bool:
    """Whether two paths agree, where one may be absolute and the other relative to an unknown folder."""
    first, second = _parts(one), _parts(other)
    if not first or not second:
        return False
    if one.strip().startswith("/") == other.strip().startswith("/"):
        return first == second
    relative, absolute = sorted((first, second), key=len)
    return absolute[-len(relative) :] == relative


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in PurePosixPath(path.strip()).parts if part not in ("/", "."))


def same_model(asked: str, named: str) -> bool:
    """Whether `named` is the model `asked`: the same id or folder, or the id's snapshot in the Hub's cache."""
    cached = "models--" + asked.strip().strip("/").replace("/", "--")
    return same_path(asked, named) or cached in _parts(named)


def names_model(text: str, asked: str) -> bool:
    """Whether a printed value names the model `asked`, alone or with a remark beside it."""
    if same_model(asked, text):
        return True
    whole_name = rf"(?<![\w./-]){re.escape(asked.strip().rstrip('/'))}/?(?![\w./-])"
    return re.search(whole_name, text) is not None
