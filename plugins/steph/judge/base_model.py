"""What a base model's own folder says of it: layers, vocabulary, and which matrices it has. Reads headers alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from steph.judge.artifacts import UnreadableError, read_json
from steph.judge.tensors import Tensor, TensorFileError, read_header

MAX_CONFIG_BYTES = 4 << 20
MOST_SHARDS = 400
TWIN_MARKER = "twin.json"
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
    """Whether a model says of itself that nothing was ever learned: a twin, or one that is named so."""
    return (folder / TWIN_MARKER).is_file() or re.search(r"(?i)(?<![a-z])random(?![a-z])", name) is not None


def read_base(folder: Path | None) -> BaseModel:
    """Read a model's folder; what is not there or not readable is left empty."""
    if folder is None:
        return BaseModel()
    try:
        raw = read_json(folder / "config.json", MAX_CONFIG_BYTES)
    except UnreadableError:
        return BaseModel(matrices=_matrices(folder))
    config = raw if isinstance(raw, Mapping) else {}
    text = config.get("text_config")
    texts = (text, config) if isinstance(text, Mapping) else (config,)
    kinds = next((found for part in texts if isinstance(found := part.get("layer_types"), list)), [])
    return BaseModel(
        layers=_count(texts, "num_hidden_layers", "n_layer"),
        vocabulary=_count(texts, "vocab_size"),
        is_mixed=len({str(kind) for kind in kinds}) > 1,
        matrices=_matrices(folder),
    )


def _count(parts: tuple[Mapping[str, object], ...], *keys: str) -> int | None:
    values = (part.get(key) for part in parts for key in keys)
    return next((value for value in values if type(value) is int and 0 < value < 10**9), None)


def _matrices(folder: Path) -> dict[str, tuple[int, ...]]:
    try:
        files = sorted(folder.glob("*.safetensors"))[:MOST_SHARDS]
        tensors = [tensor for path in files for tensor in read_header(path)]
    except (OSError, TensorFileError):
        return {}
    return {tensor.name.removesuffix(".weight"): tensor.shape for tensor in tensors if _is_matrix(tensor)}


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.name.endswith(".weight") and len(tensor.shape) == 2 and math.prod(tensor.shape) > 0
