"""A model's shape and the parameter counts that follow from it, by a built-in name or from a `config.json`.

Asks no network and downloads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from steph.base.files import UnreadableError, read_json
from steph.base.messages import say

SUPPORTED_MODEL_TYPES = ("qwen2", "qwen3", "llama", "mistral")
SURE_LOGIT = 20.0  # hidden size times the deviation of the head's weights: what a learnt token can stand out by


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a decoder-only transformer with gated MLPs, named as in its `config.json`.

    `qkv_bias`: whether the q, k and v projections carry a bias (qwen2 always does; the others' `attention_bias` is
    not supported). Qwen3's norms on q and k follow from `model_type`.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    qkv_bias: bool
    max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class ParameterParts:
    """A model's parameters by how they are stored in 4-bit training; the sum is the published count.

    `quantised_linear`: weights of the seven projections of every layer, the only ones that bitsandbytes quantises.
    `head`: 0 where the head shares the embedding's tensor.
    """

    quantised_linear: int
    embedding: int
    head: int
    norms: int
    biases: int

    @property
    def total(self) -> int:
        """All parameters, shared tensors counted once."""
        return self.quantised_linear + self.embedding + self.head + self.norms + self.biases


def linear_shapes(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """(in_features, out_features) of one layer's projections, by the module names that LoRA targets."""
    query, key_value = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    hidden, intermediate = shape.hidden_size, shape.intermediate_size
    return {
        "q_proj": (hidden, query),
        "k_proj": (hidden, key_value),
        "v_proj": (hidden, key_value),
        "o_proj": (query, hidden),
        "gate_proj": (hidden, intermediate),
        "up_proj": (hidden, intermediate),
        "down_proj": (intermediate, hidden),
    }


def parameter_parts(shape: ModelShape) -> ParameterParts:
    """Count the parameters of each part."""
    linear = linear_shapes(shape)
    bias = sum(linear[name][1] for name in ("q_proj", "k_proj", "v_proj")) if shape.qkv_bias else 0
    head_norms = 2 * shape.head_dim if shape.model_type == "qwen3" else 0
    embedding = shape.vocab_size * shape.hidden_size
    return ParameterParts(
        quantised_linear=shape.num_hidden_layers * sum(rows * columns for rows, columns in linear.values()),
        embedding=embedding,
        head=0 if shape.tie_word_embeddings else embedding,
        norms=shape.num_hidden_layers * (2 * shape.hidden_size + head_norms) + shape.hidden_size,
        biases=shape.num_hidden_layers * bias,
    )


def parameter_count(shape: ModelShape) -> int:
    """All parameters, shared tensors counted once: what a safetensors checkpoint of this shape holds."""
    return parameter_parts(shape).total


def shape_from_config(config: object) -> ModelShape:
    """Read a shape from a published `config.json`; a key that transformers leaves out at its default may be missing.

    Raises ValueError naming the key that is missing, of a wrong type, or of a kind that the counts don't cover.
    """
    if not isinstance(config, Mapping):
        raise ValueError("config.json: holds no JSON object")
    model_type = config.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise ValueError(f"config.json: model_type is {model_type!r}, known are {', '.join(SUPPORTED_MODEL_TYPES)}")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(f"config.json: {key} = true is not supported for model_type {model_type!r}")
    heads, hidden = _positive(config, "num_attention_heads"), _positive(config, "hidden_size")
    # Qwen3Config's own default, whatever hidden size and heads say; the other three derive it
    head_dim_default = 128 if model_type == "qwen3" else hidden // heads
    return ModelShape(
        model_type=str(model_type),
        hidden_size=hidden,
        intermediate_size=_positive(config, "intermediate_size"),
        num_hidden_layers=_positive(config, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=_positive(config, "num_key_value_heads", heads),
        head_dim=_positive(config, "head_dim", head_dim_default),
        vocab_size=_positive(config, "vocab_size"),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=model_type == "qwen2",
        max_position_embeddings=_positive(config, "max_position_embeddings"),
    )


def _positive(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = default if config.get(key) is None else config[key]
    if value is None:
        raise ValueError(f"config.json: key {key!r} is missing")
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ValueError(f"config.json: {key} = {value!r} is no positive whole number")
    return value


def config_of(shape: ModelShape, name: str = "") -> dict[str, Any]:
    """A `config.json` that makes a model of this shape; the inverse of `shape_from_config`."""
    sizes = {key: value for key, value in asdict(shape).items() if key != "qkv_bias"}
    # logits of a narrow model with weights as small as the published ones' can't be certain of any token
    return {"_name_or_path": name, **sizes, "initializer_range": max(0.02, SURE_LOGIT / shape.hidden_size)}


def _qwen(
    hidden: int, intermediate: int, layers: int, heads: int, key_value_heads: int, *, tied: bool, vocab: int = 151936
) -> ModelShape:
    """Qwen1.5 or Qwen2.5; qwen3 is made of it."""
    sizes = (hidden, intermediate, layers, heads, key_value_heads, hidden // heads, vocab)
    return ModelShape("qwen2", *sizes, tie_word_embeddings=tied, qkv_bias=True, max_position_embeddings=32768)


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int, *, tied: bool) -> ModelShape:
    older = _qwen(hidden, intermediate, layers, heads, 8, tied=tied)
    return replace(older, model_type="qwen3", head_dim=128, qkv_bias=False, max_position_embeddings=40960)


BUILT_IN: Mapping[str, ModelShape] = MappingProxyType(
    {
        "Qwen/Qwen1.5-1.8B-Chat": _qwen(2048, 5504, 24, 16, 16, tied=False),
        "Qwen/Qwen1.5-4B-Chat": _qwen(2560, 6912, 40, 20, 20, tied=False),
        "Qwen/Qwen2.5-1.5B-Instruct": _qwen(1536, 8960, 28, 12, 2, tied=True),
        "Qwen/Qwen2.5-3B-Instruct": _qwen(2048, 11008, 36, 16, 2, tied=True),
        "Qwen/Qwen3-0.6B": _qwen3(1024, 3072, 28, 16, tied=True),
        "Qwen/Qwen3-1.7B": _qwen3(2048, 6144, 28, 16, tied=True),
        "Qwen/Qwen3-4B": _qwen3(2560, 9728, 36, 32, tied=True),
        "Qwen/Qwen3-8B": _qwen3(4096, 12288, 36, 32, tied=False),
    }
)


def _llama(
    sizes: tuple[int, int, int, int, int],
    vocab: int,
    model_type: str = "llama",
    *,
    head_dim: int = 128,
    tied: bool = False,
) -> ModelShape:
    """`sizes`: hidden, intermediate, layers, heads, key-value heads."""
    return ModelShape(
        model_type, *sizes, head_dim, vocab, tie_word_embeddings=tied, qkv_bias=False, max_position_embeddings=4096
    )


# Models that people ask about by name; a test holds each to its published count and to what transformers builds
COMMON: Mapping[str, ModelShape] = MappingProxyType(
    {
        "Qwen/Qwen2.5-0.5B": _qwen(896, 4864, 24, 14, 2, tied=True),
        "Qwen/Qwen2.5-1.5B": BUILT_IN["Qwen/Qwen2.5-1.5B-Instruct"],
        "Qwen/Qwen2.5-3B": BUILT_IN["Qwen/Qwen2.5-3B-Instruct"],
        "Qwen/Qwen2.5-7B": _qwen(3584, 18944, 28, 28, 4, tied=False, vocab=152064),
        "Qwen/Qwen2.5-14B": _qwen(5120, 13824, 48, 40, 8, tied=False, vocab=152064),
        "Qwen/Qwen2.5-32B": _qwen(5120, 27648, 64, 40, 8, tied=False, vocab=152064),
        "Qwen/Qwen3-14B": _qwen3(5120, 17408, 40, 40, tied=False),
        "Qwen/Qwen3-32B": _qwen3(5120, 25600, 64, 64, tied=False),
        "meta-llama/Llama-2-7b": _llama((4096, 11008, 32, 32, 32), 32000),
        "meta-llama/Llama-2-13b": _llama((5120, 13824, 40, 40, 40), 32000),
        "meta-llama/Llama-3.1-8B": _llama((4096, 14336, 32, 32, 8), 128256),
        "meta-llama/Llama-3.1-70B": _llama((8192, 28672, 80, 64, 8), 128256),
        "meta-llama/Llama-3.2-1B": _llama((2048, 8192, 16, 32, 8), 128256, head_dim=64, tied=True),
        "meta-llama/Llama-3.2-3B": _llama((3072, 8192, 28, 24, 8), 128256, tied=True),
        "mistralai/Mistral-7B-v0.1": _llama((4096, 14336, 32, 32, 8), 32000, "mistral"),
        "mistralai/Mistral-7B-v0.3": _llama((4096, 14336, 32, 32, 8), 32768, "mistral"),
        "mistralai/Mistral-Nemo-Base-2407": _llama((5120, 14336, 40, 32, 8), 131072, "mistral"),
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0": _llama((2048, 5632, 22, 32, 4), 32000, head_dim=64),
    }
)
VARIANTS = re.compile(r"-(base|chat|hf|instruct|it)(?=-|$)")  # of one model: the same shape under further names

# Small enough to train on a CPU in a second, with everything that its big sisters have: grouped heads, biases, a head
TINY_NAME = "steph/tiny-qwen2"
TINY = _qwen(64, 128, 2, 4, 2, tied=False, vocab=2048)


class ShapeError(ValueError):
    """A model's shape can't be had; the message is one line that begins with the model's name."""


class UnknownShapeError(ShapeError):
    """No model of this name is known here."""


def model_shape(name_or_path: str) -> ModelShape:
    """The shape of a built-in name, a model folder or config.json, a model in the Hub's cache, or a common model.

    Common ones are known by Hub id or by what follows the slash, whatever the case and the variant (`-Instruct`).

    Raises ShapeError, UnknownShapeError where nothing of that name is found.
    """
    if name_or_path in BUILT_IN:
        return BUILT_IN[name_or_path]
    try:
        found = config_file(name_or_path)
        if found is not None:
            return shape_from_config(read_json(found, finite=False))
    except (UnreadableError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: no such home folder
        raise ShapeError(say("shape.unreadable", model=name_or_path, reason=error)) from error
    known = {**BUILT_IN, **COMMON}
    shape = known_shape(name_or_path)
    if shape is not None:
        return shape
    raise UnknownShapeError(say("shape.unknown", model=name_or_path, known=sorted(known)))


def known_shape(name: str) -> ModelShape | None:
    """The shape that this suite carries of a model by name, whatever its case and variant; None where there is none."""
    if name == TINY_NAME:
        return TINY
    plain = _plain_name(name)
    for known, shape in {**BUILT_IN, **COMMON}.items():
        if plain in (_plain_name(known), _plain_name(known.rpartition("/")[2])):
            return shape
    return None


def config_file(name_or_path: str) -> Path | None:
    """The config.json of a model folder, of that file itself, or of a model in the Hub's cache; None without one.

    Raises OSError or RuntimeError where a path can't be asked for.
    """
    path = Path(name_or_path).expanduser()
    config = path / "config.json" if path.is_dir() else path
    return config if config.is_file() else _cached_config(name_or_path)


def _plain_name(name: str) -> str:
    """A model's name without what its variants add, of which all have one shape."""
    return VARIANTS.sub("", name.casefold())


def _cached_config(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # a path, or too long for a model's name
        return None
    return Path(found) if isinstance(found, str) else None
