"""Finds a model's shape and LoRA's targets for `steph fit`: in the tables, else counted by transformers and peft."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steph.base.files import UnreadableError, read_json
from steph.base.messages import Message, say
from steph.memory.shapes import (
    READ_FROM_CONFIG,
    ModelShape,
    ShapeError,
    UnknownShapeError,
    Weights,
    config_file,
    config_of,
    linears,
    model_shape,
    same_model,
    weights_by_config,
    weights_by_name,
)
from steph.memory.trainers import DEFAULT_TARGETS, AdapterCount
from steph.run.hub import hub_config, is_offline
from steph.run.model_files import Counted, CountingError, counted

ALL = ("all", "all-linear")
HEAD = ("embed_tokens", "lm_head")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
NAMES = re.compile(r"[\w\s,]*")


@dataclass(frozen=True, slots=True)
class LoraOptions:
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
    """A model's shape, the modules that LoRA is on, and its parameters where peft had to count them.

    `weights`: how the published ones are quantised. `taken_for`: the common model whose shape it is, by its name alone.
    """

    shape: ModelShape
    targets: tuple[str, ...]
    adapter: AdapterCount | None = None
    weights: Weights = field(default_factory=Weights)
    taken_for: str = ""


def subject(model: str, options: LoraOptions) -> Subject:
    """The model and its adapter; from the tables at once, else counted. Raises ShapeError, CountingError."""
    shape, weights, taken_for = _shape(model, options)
    names = tuple(dict.fromkeys(linear.name for linear in linears(shape)))
    found = Subject(shape, names, weights=weights, taken_for=taken_for)
    usual = [name for name in (*DEFAULT_TARGETS, "qkv_proj") if name in names]  # q and v, or what holds them
    targets = options.targets or ",".join(usual or names)
    is_all = targets in ALL
    # peft's all-linear takes experts along, which are no linears
    counts_all = is_all and (shape.num_experts > 0 or not shape.family.is_measured)
    wanted = names if is_all else tuple(name.strip() for name in targets.split(","))
    is_plain = NAMES.fullmatch(targets) is not None or is_all
    if is_plain and not counts_all and set(options.modules_to_save) <= set(HEAD):
        return replace(found, targets=wanted)
    adapter = {
        "r": options.r,
        "use_dora": options.dora,
        "modules_to_save": list(options.modules_to_save) or None,
        "target_modules": "all-linear" if is_all else list(wanted) if is_plain else targets,
    }
    lora = _counted_adapter(found.taken_for or model, shape, adapter, options)
    return replace(found, targets=lora.modules, adapter=lora.adapter)


def _shape(model: str, options: LoraOptions) -> tuple[ModelShape, Weights, str]:
    """The shape, how the published weights are quantised, and the common model that the name is taken for."""
    if weights_by_name(model).form == "gguf":
        raise CountingError(say("fit.gguf", model=model))
    try:
        return model_shape(model), _weights(model), ""
    except UnknownShapeError:
        try:
            if HUB_ID.fullmatch(model) and not is_offline():
                published = hub_config(model)
                return options.count(model, published).shape, _weights(str(published)), ""
        except CountingError:
            if same_model(model) is None:
                raise
        known = same_model(model)
        if known is None:
            raise
        return model_shape(known), weights_by_name(model), known
    except ShapeError:
        with contextlib.suppress(OSError, RuntimeError, UnreadableError):  # what made the error is no file
            config = config_file(model)
            values = read_json(config, finite=False) if config is not None else None
            kind = values.get("model_type") if isinstance(values, dict) else None
            has_biases = isinstance(values, dict) and bool(values.get("attention_bias") or values.get("mlp_bias"))
            if config is not None and isinstance(kind, str) and (kind not in READ_FROM_CONFIG or has_biases):
                return options.count(model, config).shape, _weights(model), ""  # transformers may know it
        raise


def _weights(model: str) -> Weights:
    """How the weights beside a config.json are quantised, which a model known by its name need not have."""
    with contextlib.suppress(UnreadableError, OSError, RuntimeError):
        config = config_file(model)
        return Weights() if config is None else weights_by_config(read_json(config, finite=False))
    return Weights()


def _counted_adapter(model: str, shape: ModelShape, adapter: dict[str, Any], options: LoraOptions) -> Counted:
    """LoRA by peft, on the model's own configuration or on one of the table's sizes."""
    config = config_file(model)
    if config is not None:
        return options.count(model, config, adapter)
    if shape.more_linears:
        if HUB_ID.fullmatch(model):
            return options.count(model, hub_config(model), adapter)
        raise CountingError(say("fit.needs_config", model=model))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "config.json"
        made.write_text(json.dumps(config_of(shape, model)), encoding="utf-8")
        return options.count(model, made, adapter)
