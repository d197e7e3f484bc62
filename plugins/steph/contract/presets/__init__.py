"""Descriptions that come with the suite, one TOML file each; its name is what `preset` says."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any

from steph.base.messages import say

_FOLDER = resources.files(__name__)


def preset_names() -> tuple[str, ...]:
    """The presets that there are."""
    return tuple(sorted(file.name.removesuffix(".toml") for file in _FOLDER.iterdir() if file.name.endswith(".toml")))


def preset_text(name: str) -> str:
    """A preset's file; raises ValueError naming those that there are."""
    if name not in preset_names():
        raise ValueError(say("description.no_preset", preset=repr(name), known=preset_names()))
    return (_FOLDER / f"{name}.toml").read_text(encoding="utf-8")


@cache
def preset_table(name: str) -> dict[str, Any]:
    """A preset's tables; raises ValueError naming those that there are."""
    return tomllib.loads(preset_text(name))
