"""The shapes and counts that memory predictions and twins start from."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from japanese import is_told_in_japanese
from steph.base.messages import speaking, words_of
from steph.memory.shapes import (
    BUILT_IN,
    COMMON,
    TINY,
    ModelShape,
    UnknownShapeError,
    config_of,
    linear_shapes,
    model_shape,
    parameter_count,
    parameter_parts,
    shape_from_config,
)

PUBLISHED_COUNTS = {
    "Qwen/Qwen1.5-1.8B-Chat": 1_836_828_672,
    "Qwen/Qwen1.5-4B-Chat": 3_950_369_280,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
}

QWEN3_CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 40960,
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_counts_equal_the_published_ones(name: str) -> None:
    """Every built-in shape counts to the last parameter what its checkpoint holds."""
    assert parameter_count(BUILT_IN[name]) == PUBLISHED_COUNTS[name]


def test_built_in_shapes_equal_the_measured_ones() -> None:
    """Each built-in shape agrees key by key with the shapes that were counted on the meta device."""
    data = os.environ.get("STEPH_TEST_DATA")
    if not data:
        pytest.skip("STEPH_TEST_DATA is not set")
    measured = json.loads((Path(data) / "model_shapes" / "qwen.json").read_text())
    ours = {name: {**asdict(shape), "parameters": parameter_count(shape)} for name, shape in BUILT_IN.items()}
    assert ours.keys() == measured.keys()
    for name, sizes in measured.items():
        assert {key: ours[name][key] for key in sizes} == sizes
        assert not any((BUILT_IN[name].num_experts, BUILT_IN[name].more_linears, BUILT_IN[name].more_parameters))


def test_quantised_part_is_the_projections_alone() -> None:
    """The part that 4-bit shrinks is the seven projections of each layer, by hand for the tiny shape."""
    per_layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128
    parts = parameter_parts(TINY)
    assert parts.quantised_linear == 2 * per_layer
    assert (parts.embedding, parts.head) == (2048 * 64, 2048 * 64)
    assert (parts.norms, parts.biases) == (2 * 2 * 64 + 64, 2 * (64 + 32 + 32))


def test_tied_head_counts_nothing() -> None:
    """A head that shares the embedding's tensor adds no parameters."""
    assert parameter_parts(BUILT_IN["Qwen/Qwen3-0.6B"]).head == 0


def test_grouped_heads_shrink_keys_and_values() -> None:
    """With 12 heads and 2 key-value heads, k and v are a sixth as wide as q."""
    linear = linear_shapes(BUILT_IN["Qwen/Qwen2.5-1.5B-Instruct"])
    assert (linear["q_proj"], linear["k_proj"]) == ((1536, 1536), (1536, 256))


def test_qwen3_config_without_head_dim_means_128() -> None:
    """Qwen3's head size is 128 where its config leaves it out, not hidden size over heads."""
    assert shape_from_config(QWEN3_CONFIG) == BUILT_IN["Qwen/Qwen3-0.6B"]


def test_llama_config_without_key_value_heads_has_one_per_head() -> None:
    """A llama config that names no key-value heads has as many as heads, and no bias."""
    config = {**QWEN3_CONFIG, "model_type": "llama", "num_key_value_heads": None}
    shape = shape_from_config(config)
    assert (shape.num_key_value_heads, shape.head_dim, shape.qkv_bias) == (16, 64, False)


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"])
def test_missing_key_is_named(key: str) -> None:
    """A config without a needed key is refused with that key's name."""
    config = {name: value for name, value in QWEN3_CONFIG.items() if name != key}
    with speaking("en"), pytest.raises(ValueError, match=f"'{key}' is missing") as caught:
        shape_from_config(config)
    assert is_told_in_japanese(words_of(caught.value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma3"}, "model_type is 'gemma3'"),
        ({"model_type": None}, "model_type is None"),
        ({"hidden_size": "1024"}, "hidden_size = '1024'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"model_type": "llama", "attention_bias": True}, "attention_bias"),
    ],
)
def test_config_that_the_counts_do_not_cover_is_refused(change: dict[str, object], message: str) -> None:
    """A config of another kind is refused by name instead of being counted wrongly."""
    with speaking("en"), pytest.raises(ValueError, match=message) as caught:
        shape_from_config({**QWEN3_CONFIG, **change})
    assert is_told_in_japanese(words_of(caught.value))


@given(
    st.builds(
        ModelShape,
        model_type=st.sampled_from(["qwen2", "qwen3", "llama", "mistral"]),
        hidden_size=st.integers(8, 8192),
        intermediate_size=st.integers(8, 32768),
        num_hidden_layers=st.integers(1, 100),
        num_attention_heads=st.integers(1, 64),
        num_key_value_heads=st.integers(1, 64),
        head_dim=st.integers(8, 256),
        vocab_size=st.integers(256, 300_000),
        tie_word_embeddings=st.booleans(),
        qkv_bias=st.just(False),
        max_position_embeddings=st.integers(1, 1 << 20),
    )
)
def test_a_shape_survives_its_config(shape: ModelShape) -> None:
    """Writing a shape as config.json and reading it back gives the same sizes."""
    back = shape_from_config(config_of(shape, "a/b"))
    assert asdict(back) == {**asdict(shape), "qkv_bias": shape.model_type == "qwen2"}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
        ("qwen/qwen2.5-7b-instruct", "Qwen/Qwen2.5-7B"),
        ("meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-2-7b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistralai/Mistral-7B-v0.3"),
        ("Mistral-Nemo-Instruct-2407", "mistralai/Mistral-Nemo-Base-2407"),
    ],
)
def test_a_common_model_is_known_by_id_name_and_variant(name: str, meant: str) -> None:
    """Whatever the case, with or without its organisation, as a base model or tuned to chat."""
    assert model_shape(name) == COMMON[meant]


@pytest.mark.parametrize("name", ["someone/Qwen2.5-7B", "Qwen2.5-7B-AWQ", "Qwen2.5-7", "instruct"])
def test_a_name_that_only_resembles_a_common_one_is_not_known(name: str) -> None:
    """Another organisation's model, or a quantised one, may have another shape."""
    with pytest.raises(UnknownShapeError):
        model_shape(name)


def test_the_bare_name_of_a_built_in_model_is_enough() -> None:
    """Those that twins are made of are known by name, too."""
    assert model_shape("Qwen3-8B") == BUILT_IN["Qwen/Qwen3-8B"]
