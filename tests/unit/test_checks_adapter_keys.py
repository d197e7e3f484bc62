"""What PEFT can load into a base model: key names, layers and widths, with the base's own headers beside them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from steph.base.files import Tensor
from steph.judge.checks_adapter import key_checks
from steph.judge.evidence import BaseModel, has_random_weights, layer_of, read_base
from steph.record.values import Check

LINEAR = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
BASE = BaseModel(layers=4, matrices={f"model.layers.{n}.{module}": (64, 32) for n in range(4) for module in LINEAR})


def lora(*places: str, rank: int = 8, out: int = 64, into: int = 32) -> tuple[Tensor, ...]:
    """A pair of matrices for each of these modules."""
    return tuple(
        Tensor(f"base_model.model.{place}.lora_{part}.weight", "F32", shape, 0, 0)
        for place in places
        for part, shape in (("A", (rank, into)), ("B", (out, rank)))
    )


def on_layers(*layers: int, modules: tuple[str, ...] = LINEAR[:2]) -> tuple[str, ...]:
    """These modules of these layers."""
    return tuple(f"model.layers.{n}.{module}" for n in layers for module in modules)


def check(
    check_id: str,
    tensors: tuple[Tensor, ...],
    base: BaseModel = BASE,
    targets: object = None,
    *,
    whole: bool = True,
) -> Check:
    """One check of such an adapter."""
    targets = ["q_proj", "v_proj"] if targets is None else targets
    return next(found for found in key_checks(tensors, (), base, targets, whole=whole) if found.id == check_id)


@pytest.mark.parametrize(
    ("places", "base", "targets", "whole", "holds"),
    [
        (on_layers(0, 1, 2, 3), BASE, None, True, True),
        (on_layers(2, 3), BASE, None, True, False),
        (on_layers(0, 1, 2), BASE, None, True, False),
        (on_layers(0, 2, 3), BaseModel(layers=4), None, True, False),
        (on_layers(0, 1, 2, 3), BaseModel(layers=4), None, True, True),
        (on_layers(0, 1, 2, 3, modules=LINEAR[:1]), BASE, None, True, False),
        (on_layers(0, 1, 2, 3), BASE, r".*\.(q_proj|v_proj)", True, True),
        (on_layers(1, 2, 3), BASE, r".*\.(q_proj|v_proj)", True, False),
        (on_layers(2, 3), BASE, r"model\.layers\.[23]\..*_proj|nothing", True, False),  # down_proj is named too
        (on_layers(2, 3), BASE, r"model\.layers\.[23]\.self_attn\..*", True, True),
        (on_layers(2, 3), BASE, None, False, None),  # layers_to_transform, exclude_modules
        (on_layers(2, 3), BaseModel(), None, True, False),
        (on_layers(0, 1), BaseModel(), None, True, True),
        (on_layers(3), BaseModel(layers=4, is_mixed=True), None, True, None),  # attention in each fourth layer
        (("lm_head",), BASE, None, True, None),
    ],
)
def test_every_matrix_that_the_targets_mean_has_its_pair(
    places: tuple[str, ...], base: BaseModel, targets: object, whole: bool, holds: bool | None
) -> None:
    """By the base's own names where its headers are there, else by its count of layers; chosen layers accuse nobody."""
    assert check("adapter_layers", lora(*places), base, targets, whole=whole).holds is holds


def test_a_hybrid_bases_attention_stands_in_some_layers_only() -> None:
    """A target that the base has in each fourth layer needs LoRA there and nowhere else."""
    mixed = {f"model.layers.{n}.{'self_attn' if n % 4 == 3 else 'linear_attn'}.q_proj": (64, 32) for n in range(8)}
    base = BaseModel(layers=8, is_mixed=True, matrices=mixed)
    tensors = lora(*(name for name in mixed if "self_attn" in name))
    assert check("adapter_layers", tensors, base, ["self_attn.q_proj"]).holds is True


@pytest.mark.parametrize(
    ("tensors", "base", "said"),
    [
        (lora(*on_layers(0, 1)), BASE, None),
        (lora(*on_layers(0, 1)), BaseModel(), None),
        (lora("visual.blocks.31.attn.qkv", *on_layers(0)), BASE, None),
        (lora("model.layers.0.mlp.experts.7.up_proj", *on_layers(0)), BASE, None),
        (lora("model.layers.5.self_attn.q_proj"), BASE, "ベースは 4 層"),
        (lora("transformer.h.0.attn.c_attn"), BASE, "モジュールがない"),
        (lora(*on_layers(0), into=48), BASE, "の形"),
        (lora(*on_layers(0), out=48), BASE, "の形"),
        (lora(*on_layers(0), out=32, into=64), BASE, None),  # a base that stores its matrices the other way round
    ],
)
def test_an_adapter_of_another_base_does_not_fit(
    tensors: tuple[Tensor, ...], base: BaseModel, said: str | None
) -> None:
    """A layer too many, modules with other names, other widths; towers and experts are stored in many ways."""
    found = check("adapter_loadable", tensors, base)
    assert found.holds is (said is None)
    assert said is None or said in str(found.message)


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", True),
        ("base_model.model.model.embed_tokens.lora_embedding_A", True),
        ("base_model.model.lm_head.weight", True),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", True),
        ("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", True),
        ("_orig_mod.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", False),
        ("base_model.model.model.layers.0._checkpoint_wrapped_module.self_attn.q_proj.lora_A.weight", False),
        ("base_model.model._fsdp_wrapped_module.model.layers.0.self_attn.q_proj.lora_A.weight", False),
        ("base_model.model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", False),
        ("module.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", False),
        ("base_model.model.lm_head.modules_to_save.default.weight", False),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", False),
        ("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight", False),
        ("base_model.model.model.embed_tokens.base_layer.weight", True),
        ("base_model.model.lm_head.base_layer.weight", True),
        ("base_model.model.model.embed_tokens.token_adapter.base_layer.weight", True),  # of larger embeddings
    ],
)
def test_key_names_are_pefts_own(name: str, holds: bool) -> None:
    """What `save_pretrained` writes is loaded; wrappers, names in memory and a missing prefix are passed over."""
    assert check("adapter_loadable", (Tensor(name, "F32", (8, 32), 0, 0),)).holds is holds


@pytest.mark.parametrize(("kept", "holds"), [("base_model.model.lm_head.weight", True), ("", False)])
def test_a_module_that_is_saved_whole_may_lie_there_twice(kept: str, holds: bool) -> None:
    """PEFT writes its copies, too, where the embeddings were made larger; alone they load nothing."""
    copies = [f"base_model.model.lm_head.{name}.weight" for name in ("modules_to_save", "original_module")]
    own = tuple(Tensor(name, "F32", (70, 32), 0, 0) for name in filter(None, [*copies, kept]))
    found = check("adapter_loadable", (*lora(*on_layers(0, 1, 2, 3)), *own))
    assert found.holds is holds


def test_a_base_is_read_from_config_and_headers(tmp_path: Path) -> None:
    """Layers, vocabulary and matrices; a config of several towers has them one level down, a missing folder nothing."""
    config = {"text_config": {"num_hidden_layers": 3, "vocab_size": 99, "layer_types": ["full", "linear", "full"]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    header = json.dumps({
        "model.layers.0.mlp.up_proj.weight": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]},
        "model.norm.weight": {"dtype": "BF16", "shape": [2], "data_offsets": [8, 12]},
    }).encode()  # fmt: skip
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
    base = read_base(tmp_path)
    assert (base.layers, base.vocabulary, base.is_mixed) == (3, 99, True)
    assert base.matrices == {"model.layers.0.mlp.up_proj": (2, 2)}
    assert read_base(tmp_path / "none") == read_base(None) == BaseModel()
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    assert read_base(tmp_path).matrices == {}


def test_a_module_stands_in_a_layer_whatever_its_family_calls_them() -> None:
    """Llama's layers, GPT-2's h and a vision tower's blocks are numbered alike."""
    assert layer_of("model.layers.12.mlp.up_proj") == (12, "mlp.up_proj")
    assert layer_of("transformer.h.3.attn.c_attn") == (3, "attn.c_attn")
    assert layer_of("lm_head") is None


def test_a_model_may_say_that_its_weights_are_random(tmp_path: Path) -> None:
    """A twin has a marker, others say it in their name; a word that has it within says nothing."""
    assert has_random_weights("hf-internal-testing/tiny-random-LlamaForCausalLM", tmp_path)
    assert not has_random_weights("someone/randomness-1b", tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": 576}')
    assert not has_random_weights("SmolLM2-135M", tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": 16}')
    assert has_random_weights("local", tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "twin.json").write_text("{}")
    assert has_random_weights("local", tmp_path)
