"""The table of common models against what transformers builds of the same sizes, without memory for it."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from steph.memory import shapes
from steph.memory.shapes import BUILT_IN, COMMON, config_of, linears, parameter_count, parameter_parts

ROWS = tomllib.loads(Path(shapes.__file__).with_name("models.toml").read_text())
TOWER = {  # of Gemma 3's published config.json
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 896,
    "vision_use_head": False,
}


QWEN_TOWER = {  # of Qwen2.5-VL's
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
}


def _built(name: str) -> Any:  # noqa: ANN401 - a transformers model
    """The whole model on the meta device, image tower and all."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    shape = {**BUILT_IN, **COMMON}[name]
    values = config_of(shape)
    model_type = values.pop("model_type")
    with torch.device("meta"):
        if shape.more_linears and model_type == "qwen2":
            tower = {**QWEN_TOWER, "out_hidden_size": shape.hidden_size}
            config = AutoConfig.for_model("qwen2_5_vl", **values, vision_config=tower)
            return AutoModelForImageTextToText.from_config(config)
        if shape.more_linears and shape.family.is_measured:
            sizes = {
                "text_config": {**values, "model_type": model_type},
                "vision_config": TOWER,
                "mm_tokens_per_image": 256,
            }
            return AutoModelForImageTextToText.from_config(AutoConfig.for_model("gemma3", **sizes))
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values))


@pytest.mark.parametrize("name", [*BUILT_IN, *COMMON])
def test_the_table_counts_what_transformers_builds(name: str) -> None:
    """All parameters, and each kind of linear that is quantised, of the model on the meta device."""
    import torch

    shape, model = {**BUILT_IN, **COMMON}[name], _built(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameter_count(shape)
    found: Counter[tuple[str, int, int]] = Counter()
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings():
            found[path.rpartition(".")[2], module.in_features, module.out_features] += 1
    ours: Counter[tuple[str, int, int]] = Counter()
    for linear in linears(shape):
        ours[linear.name, linear.inputs, linear.outputs] += linear.count
    assert found == ours
    assert sum(i * o * count for (_, i, o), count in found.items()) == parameter_parts(shape).quantised_linear


@pytest.mark.parametrize("name", ROWS)
def test_the_table_has_the_published_counts(name: str) -> None:
    """Each model counts to the last parameter what its checkpoint holds, as its page says."""
    assert parameter_count({**BUILT_IN, **COMMON}[name]) == ROWS[name]["parameters"]
