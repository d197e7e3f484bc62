"""`child/count.py` with the installed transformers and peft: a model's parts, and LoRA on whatever it is put on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from steph.base.terms import TrainerName
from steph.child.count import CountError, counted, meta_model
from steph.memory import terms
from steph.memory.shapes import BUILT_IN, COUNTED_SIZES, config_of, linears, parameter_count, shape_of_counts
from steph.memory.terms import Workload

SHAPE = BUILT_IN["Qwen/Qwen3-0.6B"]


def _count(tmp_path: Path, values: dict[str, Any], adapter: dict[str, Any] | None = None) -> dict[str, Any]:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(values))
    return counted(config, COUNTED_SIZES, adapter)


def test_a_counted_model_is_the_shape_that_its_config_gives(tmp_path: Path) -> None:
    """Parameters and linears to the last one, and nothing beside."""
    found = shape_of_counts(_count(tmp_path, config_of(SHAPE)))
    assert (found.more_linears, found.more_parameters) == ((), 0)
    assert parameter_count(found) == parameter_count(SHAPE)
    assert linears(found) == linears(SHAPE)


@pytest.mark.parametrize(
    ("adapter", "work"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, {"target_modules": ("q_proj", "v_proj")}),
        ({"target_modules": "all-linear"}, {"target_modules": tuple(linear.name for linear in linears(SHAPE))}),
        ({"target_modules": ["embed_tokens", "q_proj"]}, {"target_modules": ("embed_tokens", "q_proj")}),
        (
            {"target_modules": ["down_proj"], "use_dora": True, "modules_to_save": ["lm_head"]},
            {"target_modules": ("down_proj",), "dora": True, "modules_to_save": ("lm_head",)},
        ),
    ],
)
def test_pefts_count_is_the_formulas(tmp_path: Path, adapter: dict[str, Any], work: dict[str, Any]) -> None:
    """LoRA, DoRA's magnitudes and modules trained as a whole, where names alone say them."""
    found = _count(tmp_path, config_of(SHAPE), {"r": 8, **adapter})["adapter"]
    asked = Workload(TrainerName.TRL, 1, 1, lora_r=8, **work)
    assert found["lora"] == terms.lora_parameters(SHAPE, asked)
    assert found["magnitude"] == terms.magnitude_parameters(SHAPE, asked)
    assert found["whole"] == terms.whole_parameters(SHAPE, asked)


def test_a_regular_expression_is_taken_as_peft_takes_it(tmp_path: Path) -> None:
    """q of the first four layers alone."""
    adapter = {"r": 8, "target_modules": r".*layers\.[0-3]\.self_attn\.q_proj"}
    found = _count(tmp_path, config_of(SHAPE), adapter)["adapter"]
    assert (found["lora"], found["modules"]) == (4 * 8 * (1024 + 2048), ["q_proj"])


def test_an_image_tower_is_counted_with_its_model(tmp_path: Path) -> None:
    """A small Gemma 3 that sees: its tower's linears are beside the text model's."""
    text: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    text |= {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": 1000, "model_type": "gemma3_text"}
    tower: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    tower |= {"patch_size": 14, "image_size": 56, "vision_use_head": False, "model_type": "siglip_vision_model"}
    values = {"model_type": "gemma3", "text_config": text, "vision_config": tower, "mm_tokens_per_image": 4}
    answer = _count(tmp_path, values)
    found = shape_of_counts(answer)
    assert found.model_type == "gemma3_text"
    assert {linear.name for linear in found.more_linears} == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    assert all(linear.count == 3 for linear in found.more_linears)
    assert parameter_count(found) == answer["parameters"]


def test_quantised_weights_are_counted_as_they_were(tmp_path: Path) -> None:
    """A quantization_config of the published weights changes no count."""
    values = {**config_of(SHAPE), "quantization_config": {"quant_method": "mxfp4"}}
    assert _count(tmp_path, values) == _count(tmp_path, config_of(SHAPE))


@pytest.mark.parametrize("values", [{}, {"model_type": "vit"}])
def test_what_is_no_language_model_is_refused_by_name(values: dict[str, Any]) -> None:
    """A config without a model_type, or of a model that writes no text."""
    with pytest.raises(CountError, match="model_type"):
        meta_model(dict(values))


def test_a_module_that_the_model_has_not_is_refused_by_name(tmp_path: Path) -> None:
    """peft passes over it, so that what would be trained would not be counted."""
    adapter = {"r": 8, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "score"]}
    with pytest.raises(CountError, match="modules_to_save score: "):
        _count(tmp_path, config_of(SHAPE), adapter)
