"""The shape of a model by its name: built in, in a folder, or in the Hub's cache.

Comes in: a name or a path. Goes out: a `ModelShape`. Reads a `config.json`; asks no network, downloads nothing.
"""

from __future__ import annotations

from pathlib import Path

from steph.base.files import UnreadableError, read_json
from steph.plan.shapes import BUILT_IN, ModelShape, shape_from_config


class ShapeError(ValueError):
    """A model's shape can't be had; the message is one line that begins with the model's name."""


class UnknownShapeError(ShapeError):
    """No model of this name is known here."""


def model_shape(name_or_path: str) -> ModelShape:
    """The shape of a built-in name, of a model folder or config.json, or of a model in the Hub's cache.

    Raises ShapeError, UnknownShapeError where nothing of that name is found.
    """
    if name_or_path in BUILT_IN:
        return BUILT_IN[name_or_path]
    config = _config_file(name_or_path)
    if config is None:
        known = ", ".join(sorted(BUILT_IN))
        raise UnknownShapeError(
            f"{name_or_path}: no folder with a config.json, not in the Hub's cache and not built in; "
            f"built in are: {known}"
        )
    try:
        return shape_from_config(read_json(config, finite=False))
    except UnreadableError as error:
        raise ShapeError(f"{name_or_path}: {config} {error.english}") from error
    except ValueError as error:
        raise ShapeError(f"{name_or_path}: {error}") from error


def _config_file(name_or_path: str) -> Path | None:
    path = _path(name_or_path)
    config = path / "config.json" if path.is_dir() else path
    if config.is_file():
        return config
    from steph.run.model_files import cached_config

    return cached_config(name_or_path)


def _path(text: str) -> Path:
    """The path with ~ as a home folder; raises ShapeError where it can't be one."""
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise ShapeError(f"{text}: {error}") from error
    return path
