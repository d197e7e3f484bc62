"""A model's shape and the parameter counts that follow from it, by a built-in name or from a `config.json`.

Asks no network and downloads nothing.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from steph.base.files import UnreadableError, read_json
from steph.base.messages import Message, say


@dataclass(frozen=True, slots=True)
class Family:
    """The traits that transformers' models of one `model_type` share, as far as parameters and memory go."""

    is_measured: bool = False  # training runs of this family were (benchmarks/memory.md)
    qkv_bias: bool = False  # q, k and v have biases
    head_norms: bool = False  # norms on q and k
    layer_norms: int = 2  # norms of one layer
    fuses: bool = False  # q, k and v are one linear, and so are gate and up
    keeps_fp32_norms: bool = False  # a copy of their input, where the trainer brings no norms of its own
    caps_logits: bool = False  # they go through a tanh


_FAMILY_ROWS = tomllib.loads(Path(__file__).with_name("families.toml").read_text(encoding="utf-8"))
FAMILIES: Mapping[str, Family] = MappingProxyType({name: Family(**row) for name, row in _FAMILY_ROWS.items()})
# text models of models that also see, whose layers are another family's
SAME_LAYERS = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
COUNTED_MARK = " (counted)"
COUNTED = Family()  # of a model_type that is in no row: its parameters are counted by transformers itself
# others are counted by transformers: their config.json leaves too much to defaults
READ_FROM_CONFIG = ("qwen2", "qwen3", "llama", "mistral", "gemma2", "gemma3_text")
HEAD_DIM_DEFAULTS = {"qwen3": 128, "gemma2": 256, "gemma3_text": 256}
ASSUMED_POSITIONS = 4096  # of a model that is made of a shape which names none
SURE_LOGIT = 20.0  # hidden size times the deviation of the head's weights: what a learnt token can stand out by


@dataclass(frozen=True, slots=True)
class Linear:
    """Linears of one kind: `name` is the last part of their paths, `count` how many the model has."""

    name: str
    inputs: int
    outputs: int
    count: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a decoder-only transformer with gated MLPs, named as in its `config.json`."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    qkv_bias: bool  # always of qwen2; the others' `attention_bias` is not supported
    max_position_embeddings: int  # 0: not known, or different between the names of one shape
    num_experts: int = 0  # of each layer, all kept in 16 bits; 0: none
    experts_per_token: int = 0  # so many of them are used
    expert_width: int = 0
    more_linears: tuple[Linear, ...] = ()  # what the formulas do not give, as an image tower's; all of a counted model
    more_parameters: int = 0  # likewise

    @property
    def type_words(self) -> Message | str:
        """Its `model_type`, and that it was counted where no formula gives its layers."""
        counted = self.model_type.removesuffix(COUNTED_MARK)
        return self.model_type if counted == self.model_type else say("fit.counted", type=counted)

    @property
    def family(self) -> Family:
        """The row of its `model_type`."""
        return FAMILIES.get(self.model_type, COUNTED)


@dataclass(frozen=True, slots=True)
class ParameterParts:
    """A model's parameters by how they are stored in 4-bit training; the sum is the published count."""

    quantised_linear: int  # weights that bitsandbytes quantises, of an image tower too
    embedding: int
    head: int  # 0 where the head shares the embedding's tensor
    norms: int  # whatever else has 16 bits, too
    biases: int
    experts: int = 0  # of all together, which transformers 5 does not hand to bitsandbytes

    @property
    def total(self) -> int:
        """All parameters, shared tensors counted once."""
        return self.quantised_linear + self.embedding + self.head + self.norms + self.biases + self.experts


_SIZES = tuple(field.name for field in fields(ModelShape))[1:8]  # from hidden_size to vocab_size
COUNTED_SIZES = (*_SIZES, "max_position_embeddings")  # which `child/count.py` is asked for


def linear_shapes(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """(in_features, out_features) of one layer's projections, by the module names that LoRA targets."""
    if shape.model_type not in FAMILIES:
        return {}
    query, key_value = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    hidden, wide, fuses = shape.hidden_size, shape.intermediate_size, shape.family.fuses
    inside = {"q_proj": (hidden, query), "k_proj": (hidden, key_value), "v_proj": (hidden, key_value)}
    found = {"qkv_proj": (hidden, query + 2 * key_value)} if fuses else inside
    found["o_proj"] = (query, hidden)
    if shape.num_experts:
        return found
    gate = {"gate_up_proj": (hidden, 2 * wide)} if fuses else {"gate_proj": (hidden, wide), "up_proj": (hidden, wide)}
    return {**found, **gate, "down_proj": (wide, hidden)}


@lru_cache(64)  # a forecast asks for them a hundred times
def linears(shape: ModelShape) -> tuple[Linear, ...]:
    """Every linear but the head, which bitsandbytes leaves as it is."""
    layers = shape.num_hidden_layers
    own = (Linear(name, *sizes, layers) for name, sizes in linear_shapes(shape).items())
    return (*own, *shape.more_linears)


@lru_cache(64)
def parameter_parts(shape: ModelShape) -> ParameterParts:
    """Count the parameters of each part."""
    quantised = sum(linear.inputs * linear.outputs * linear.count for linear in linears(shape))
    embedding = shape.vocab_size * shape.hidden_size
    head = 0 if shape.tie_word_embeddings else embedding
    if shape.model_type not in FAMILIES:
        return ParameterParts(quantised, embedding, head, shape.more_parameters, 0)
    linear, hidden, layers = linear_shapes(shape), shape.hidden_size, shape.num_hidden_layers
    bias = sum(linear[name][1] for name in ("q_proj", "k_proj", "v_proj")) if shape.qkv_bias else 0
    head_norms = 2 * shape.head_dim if shape.family.head_norms else 0
    expert = 3 * hidden * shape.expert_width
    router = hidden
    if shape.model_type == "gpt_oss":  # biases everywhere, and one number a head that attention may fall on
        bias += hidden + shape.num_attention_heads
        expert += 2 * shape.expert_width + hidden
        router += 1
    return ParameterParts(
        quantised_linear=quantised,
        embedding=embedding,
        head=head,
        norms=layers * (shape.family.layer_norms * hidden + head_norms) + hidden + shape.more_parameters,
        biases=layers * bias,
        experts=layers * shape.num_experts * (expert + router),
    )


def parameter_count(shape: ModelShape) -> int:
    """All parameters, shared tensors counted once: what a safetensors checkpoint of this shape holds."""
    return parameter_parts(shape).total


def shape_from_config(config: object) -> ModelShape:
    """Read a shape from a published `config.json`; a key that transformers leaves out at its default may be missing.

    Raises ValueError naming the key that is missing, of a wrong type, or of a kind that the counts don't cover.
    """
    if not isinstance(config, Mapping):
        raise ValueError(say("shape.no_object"))
    model_type = config.get("model_type")
    if model_type not in READ_FROM_CONFIG:
        raise ValueError(say("shape.model_type", given=repr(model_type), known=READ_FROM_CONFIG))
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(say("shape.bias", key=key, given=repr(model_type)))

    def positive(key: str, default: int | None = None) -> int:
        value = default if config.get(key) is None else config[key]
        if value is None:
            raise ValueError(say("shape.no_key", key=repr(key)))
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ValueError(say("shape.no_count", key=key, given=repr(value)))
        return value

    heads, hidden = positive("num_attention_heads"), positive("hidden_size")
    return ModelShape(
        model_type=str(model_type),
        hidden_size=hidden,
        intermediate_size=positive("intermediate_size"),
        num_hidden_layers=positive("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=positive("num_key_value_heads", heads),
        # Qwen3Config's own default, whatever hidden size and heads say, and Gemma's; the others derive it
        head_dim=positive("head_dim", HEAD_DIM_DEFAULTS.get(str(model_type), hidden // heads)),
        vocab_size=positive("vocab_size"),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", str(model_type).startswith("gemma"))),
        qkv_bias=FAMILIES[str(model_type)].qkv_bias,
        max_position_embeddings=positive("max_position_embeddings"),
    )


def shape_of_counts(found: Mapping[str, Any]) -> ModelShape:
    """The shape of a model that transformers has counted (`child/count.py`).

    Of a family whose layers the formulas give, with what they do not give beside; else everything is beside, and its
    `model_type` is one that no family has.
    """
    kinds = Counter({Linear(name, inputs, outputs, 1): count for name, inputs, outputs, count in found["linears"]})
    sizes: dict[str, Any] = {name: found["sizes"].get(name) or 0 for name in COUNTED_SIZES}
    heads = sizes["num_attention_heads"]
    sizes["num_key_value_heads"] = sizes["num_key_value_heads"] or heads
    sizes["head_dim"] = sizes["head_dim"] or sizes["hidden_size"] // max(1, heads)
    model_type, is_tied = SAME_LAYERS.get(found["model_type"], str(found["model_type"])), not found["head"]
    bias = FAMILIES.get(model_type, COUNTED).qkv_bias
    shape = ModelShape(model_type, **sizes, tie_word_embeddings=is_tied, qkv_bias=bias)
    if shape.family.is_measured and found["embedding"] == shape.vocab_size * shape.hidden_size:
        rest = kinds.copy()
        rest.subtract({replace(linear, count=1): linear.count for linear in linears(shape)})
        more = tuple(replace(kind, count=count) for kind, count in rest.items() if count > 0)
        shape = replace(shape, more_linears=more)
        beside = found["parameters"] - parameter_count(shape)
        if min(rest.values(), default=0) >= 0 and beside >= 0:
            return replace(shape, more_parameters=beside)
    whole = tuple(replace(kind, count=count) for kind, count in kinds.items())
    shape = replace(shape, model_type=f"{model_type}{COUNTED_MARK}", qkv_bias=False, more_linears=whole)
    return replace(shape, more_parameters=max(0, found["parameters"] - parameter_count(shape)))


def config_of(shape: ModelShape, name: str = "") -> dict[str, Any]:
    """A `config.json` that makes a model of this shape; the inverse of `shape_from_config`."""
    ours = ("qkv_bias", "num_experts", "experts_per_token", "expert_width", "more_linears", "more_parameters")
    sizes = {key: value for key, value in asdict(shape).items() if key not in ours}
    if shape.num_experts:
        sizes |= {"num_experts": shape.num_experts, "num_local_experts": shape.num_experts}
        sizes |= {"num_experts_per_tok": shape.experts_per_token, "moe_intermediate_size": shape.expert_width}
    sizes["max_position_embeddings"] = shape.max_position_embeddings or ASSUMED_POSITIONS
    # logits of a narrow model with weights as small as the published ones' can't be certain of any token
    return {"_name_or_path": name, **sizes, "initializer_range": max(0.02, SURE_LOGIT / shape.hidden_size)}


def _common_models() -> Iterator[tuple[str, ModelShape, bool, tuple[str, ...]]]:
    """The rows of models.toml: a model's name and shape, whether twins are made of it, and all its names."""
    for name, row in tomllib.loads(Path(__file__).with_name("models.toml").read_text(encoding="utf-8")).items():
        experts, model_type = row.get("experts", (0, 0, 0)), row["type"]
        shape = ModelShape(
            model_type,
            **dict(zip(_SIZES, row["sizes"], strict=True)),
            tie_word_embeddings=row.get("tied", False),
            qkv_bias=FAMILIES.get(model_type, COUNTED).qkv_bias,
            max_position_embeddings=row.get("positions", 0),
            num_experts=experts[0],
            experts_per_token=experts[1],
            expert_width=experts[2],
            more_linears=tuple(Linear(*linear) for linear in row.get("linears", ())),
            more_parameters=row.get("other", 0),
        )
        yield name, shape, row.get("built_in", False), (name, *row.get("also", ()))


# Models that people ask about by name, those that twins are made of first
_ROWS = tuple(_common_models())
_NAMES = {also: name for name, _, _, names in _ROWS for also in names}
BUILT_IN: Mapping[str, ModelShape] = MappingProxyType({name: shape for name, shape, is_first, _ in _ROWS if is_first})
COMMON: Mapping[str, ModelShape] = MappingProxyType({name: shape for name, shape, is_first, _ in _ROWS if not is_first})
KNOWN: Mapping[str, ModelShape] = MappingProxyType({**BUILT_IN, **COMMON})
VARIANTS = re.compile(r"-(base|chat|hf|instruct|it|pt)(?=-|$)")  # of one model: the same shape under further names

# Small enough to train on a CPU in a second, with everything that its big sisters have: grouped heads, biases, a head
TINY_NAME = "steph/tiny-qwen2"
TINY = ModelShape(
    "qwen2", 64, 128, 2, 4, 2, 16, 2048, tie_word_embeddings=False, qkv_bias=True, max_position_embeddings=32768
)


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
    if shape := known_shape(name_or_path):
        return shape
    # the known names most like this one, or all where none is
    tails = {known.rpartition("/")[2].casefold(): known for known in KNOWN}
    tail = re.sub(r"[\s:_]+", "-", name_or_path.rpartition("/")[2].casefold())
    near = [tails[found] for found in difflib.get_close_matches(tail, tails, n=6, cutoff=0.6)] or sorted(KNOWN)
    raise UnknownShapeError(say("shape.unknown", model=name_or_path, known=near))


@dataclass(frozen=True, slots=True)
class Weights:
    """How published weights are quantised: `form` and its bits, "" and 16 where they are not."""

    form: str = ""
    bits: int = 16


FORMS = re.compile(
    r"-(unsloth-bnb-4bit|bnb-4bit|bnb-8bit|(?:awq|gptq)(?:-(?:int)?[48](?:bit)?)?|fp8|gguf|(?:int)?[48](?:bit)?)$"
)


def weights_by_name(name: str) -> Weights:
    """The kind of weights that the end of a model's name tells, as in `-bnb-4bit`, `-AWQ` or `-GPTQ-Int8`."""
    found = FORMS.search(name.casefold())
    return Weights(found[1], 8 if "8" in found[1] else 4) if found else Weights()


def weights_by_config(config: object) -> Weights:
    """The kind of weights that a config.json names."""
    values = config.get("quantization_config") if isinstance(config, Mapping) else None
    if not isinstance(values, Mapping):
        return Weights()
    form = str(values.get("quant_method") or "bitsandbytes")
    groups = values.get("config_groups")  # of compressed-tensors
    every = groups.values() if isinstance(groups, Mapping) else ()
    weights = [group.get("weights") for group in every if isinstance(group, Mapping)]
    said = [one.get("num_bits") for one in weights if isinstance(one, Mapping)]
    is_four = values.get("bits") == 4 or values.get("load_in_4bit") is True or form in ("awq", "mxfp4") or said == [4]
    return Weights(form, 4 if is_four else 8)


def same_model(name: str) -> str | None:
    """The common model that others publish, or publish quantised, under this name; None where none is known."""
    tail = FORMS.sub("", name.rpartition("/")[2].casefold())
    return next((one for one in _NAMES if _plain_name(one.rpartition("/")[2]) == _plain_name(tail)), None)


def known_shape(name: str) -> ModelShape | None:
    """The shape that this suite carries of a model by name, whatever its case and variant; None where there is none."""
    if name == TINY_NAME:
        return TINY
    plain = _plain_name(name)
    for named, meant in _NAMES.items():
        if plain in (_plain_name(named), _plain_name(named.rpartition("/")[2])):
            return KNOWN[meant]
    return None


def config_file(name_or_path: str) -> Path | None:
    """The config.json of a model folder, of that file itself, or of a model in the Hub's cache; None without one.

    Raises OSError or RuntimeError where a path can't be asked for.
    """
    path = Path(name_or_path).expanduser()
    config = path / "config.json" if path.is_dir() else path
    if config.is_file():
        return config
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name_or_path, "config.json")
    except HFValidationError:  # a path, or too long for a model's name
        return None
    return Path(found) if isinstance(found, str) else None


def _plain_name(name: str) -> str:
    """A model's name without what its variants add, of which all have one shape."""
    return VARIANTS.sub("", name.casefold())
