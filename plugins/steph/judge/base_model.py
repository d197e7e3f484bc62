"""What a base model's own folder says of it: layers, vocabulary, and which matrices it has. Reads headers alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from steph.base.files import UnreadableError, read_json_object
from steph.base.tensors import Tensor, read_header

MAX_CONFIG_BYTES = 4 << 20
MOST_SHARDS = 400
TWIN_MARKER = "twin.json"
LEAST_WIDTH = 64  # of the narrowest language models that ever learned something
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d{1,4})\.")


@dataclass(frozen=True)
class BaseModel:
    """`layers` and `vocabulary` from `config.json`; `matrices` are the shapes of its weights by module name.

    `is_mixed`: its layers are not all of one kind. Empty or None where the folder does not say.
    """

    layers: int | None = None
    vocabulary: int | None = None
    is_mixed: bool = False
    matrices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def layer_of(name: str) -> tuple[int, str] | None:
    """The number of the layer that a module stands in, and its name within the layer; None outside of layers."""
    found = _LAYER.search(name)
    return (int(found[1]), name[found.end() :]) if found else None


def has_random_weights(name: str, folder: Path) -> bool:
    """Whether nothing was ever learned: a twin, a model that is named so, or one too narrow for anything but tests."""
    width = read_config(folder, "hidden_size", "n_embd")
    is_toy = width is not None and width < LEAST_WIDTH
    return is_toy or (folder / TWIN_MARKER).is_file() or bool(re.search(r"(?i)(?<![a-z])random(?![a-z])", name))


def read_config(folder: Path, *keys: str) -> int | None:
    """The first of these counts that the folder's `config.json` has; None where it has none or can't be read."""
    return _count(_configs(folder), *keys)


def read_base(folder: Path | None) -> BaseModel:
    """Read a model's folder; what is not there or not readable is left empty."""
    if folder is None:
        return BaseModel()
    parts = _configs(folder)
    kinds = next((found for part in parts if isinstance(found := part.get("layer_types"), list)), [])
    return BaseModel(
        layers=_count(parts, "num_hidden_layers", "n_layer"),
        vocabulary=_count(parts, "vocab_size"),
        is_mixed=len({str(kind) for kind in kinds}) > 1,
        matrices=_matrices(folder),
    )


def _configs(folder: Path) -> tuple[Mapping[str, object], ...]:
    """The configuration of the text model, which stands one level down beside other towers, and the whole."""
    try:
        raw = read_json_object(folder / "config.json", MAX_CONFIG_BYTES, finite=False)
    except UnreadableError:
        return ()
    text = raw.get("text_config")
    return (text, raw) if isinstance(text, Mapping) else (raw,)


def _count(parts: tuple[Mapping[str, object], ...], *keys: str) -> int | None:
    values = (part.get(key) for part in parts for key in keys)
    return next((value for value in values if type(value) is int and 0 < value < 10**9), None)


def _matrices(folder: Path) -> dict[str, tuple[int, ...]]:
    try:
        files = sorted(folder.glob("*.safetensors"))[:MOST_SHARDS]
        tensors = [tensor for path in files for tensor in read_header(path)]
    except (OSError, UnreadableError):
        return {}
    return {tensor.name.removesuffix(".weight"): tensor.shape for tensor in tensors if _is_matrix(tensor)}


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.name.endswith(".weight") and len(tensor.shape) == 2 and math.prod(tensor.shape) > 0
