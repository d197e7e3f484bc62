"""What `steph fit` is asked about: a model's shape and LoRA's targets, counted where no table has them."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steph.base.files import UnreadableError, read_json
from steph.base.messages import Message, say
from steph.memory.shapes import (
    READ_FROM_CONFIG,
    ModelShape,
    ShapeError,
    UnknownShapeError,
    config_file,
    config_of,
    linears,
    model_shape,
)
from steph.memory.trainers import DEFAULT_TARGETS, AdapterCount
from steph.run.counting import Counted, CountingError, counted, hub_config
from steph.run.hub_query import is_offline

ALL = ("all", "all-linear")
HEAD = ("embed_tokens", "lm_head")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
NAMES = re.compile(r"[\w\s,]*")


@dataclass(frozen=True, slots=True)
class Asked:
    """LoRA as the options say it, and who counts: the interpreter, the folder that keeps answers, who hears of it."""

    targets: str | None
    r: int
    modules_to_save: tuple[str, ...]
    dora: bool
    python: str
    cache: Path
    tell: Callable[[Message], object]

    def count(self, model: str, config: Path, adapter: dict[str, Any] | None = None) -> Counted:
        """Ask transformers and peft about a model's configuration."""
        return counted(model, config, adapter, python=self.python, cache=self.cache, tell=self.tell)


@dataclass(frozen=True, slots=True)
class Subject:
    """A model's shape, the modules that LoRA is on, and its parameters where peft had to count them."""

    shape: ModelShape
    targets: tuple[str, ...]
    adapter: AdapterCount | None = None


def subject(model: str, asked: Asked) -> Subject:
    """The model and its adapter; from the tables at once, else counted. Raises ShapeError, CountingError."""
    shape = _shape(model, asked)
    names = tuple(dict.fromkeys(linear.name for linear in linears(shape)))
    targets = asked.targets or _usual(names)
    is_all = targets in ALL
    # peft's all-linear takes experts along, which are no linears
    counts_all = is_all and (shape.num_experts > 0 or not shape.family.is_measured)
    wanted = names if is_all else tuple(name.strip() for name in targets.split(","))
    is_plain = NAMES.fullmatch(targets) is not None or is_all
    if is_plain and not counts_all and set(asked.modules_to_save) <= set(HEAD):
        return Subject(shape, wanted)
    adapter = {
        "r": asked.r,
        "use_dora": asked.dora,
        "modules_to_save": list(asked.modules_to_save) or None,
        "target_modules": "all-linear" if is_all else list(wanted) if is_plain else targets,
    }
    found = _counted_adapter(model, shape, adapter, asked)
    return Subject(shape, found.modules, found.adapter)


def _usual(names: tuple[str, ...]) -> str:
    """What LoRA is on where nobody says: q and v, or the linear that holds them."""
    found = [name for name in (*DEFAULT_TARGETS, "qkv_proj") if name in names]
    return ",".join(found or names)


def _shape(model: str, asked: Asked) -> ModelShape:
    try:
        return model_shape(model)
    except UnknownShapeError:
        if not HUB_ID.fullmatch(model) or is_offline():
            raise
        return asked.count(model, hub_config(model, asked.cache)).shape
    except ShapeError:
        with contextlib.suppress(OSError, RuntimeError):  # what made the error is no file
            config = config_file(model)
            if config is not None and _is_countable(config):
                return asked.count(model, config).shape
        raise


def _is_countable(config: Path) -> bool:
    """Whether a config.json that the formulas refuse is one that transformers may know."""
    try:
        values = read_json(config, finite=False)
    except (UnreadableError, OSError):
        return False
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        return False
    return values["model_type"] not in READ_FROM_CONFIG or bool(values.get("attention_bias") or values.get("mlp_bias"))


def _counted_adapter(model: str, shape: ModelShape, adapter: dict[str, Any], asked: Asked) -> Counted:
    """LoRA by peft, on the model's own configuration or on one of the table's sizes."""
    config = config_file(model)
    if config is not None:
        return asked.count(model, config, adapter)
    if shape.more_linears:
        if HUB_ID.fullmatch(model):
            return asked.count(model, hub_config(model, asked.cache), adapter)
        raise CountingError(say("fit.needs_config", model=model))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "config.json"
        made.write_text(json.dumps(config_of(shape, model)), encoding="utf-8")
        return asked.count(model, made, adapter)
