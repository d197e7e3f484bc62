"""The table of common models against what transformers builds of the same sizes, without memory for it."""

from __future__ import annotations

import pytest
import torch
from steph.memory.shapes import BUILT_IN, COMMON, config_of, linear_shapes, parameter_count, parameter_parts
from transformers import AutoConfig, AutoModelForCausalLM

PUBLISHED_COUNTS = {  # safetensors metadata of the models' pages
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "meta-llama/Llama-2-7b": 6_738_415_616,
    "meta-llama/Llama-2-13b": 13_015_864_320,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "mistralai/Mistral-Nemo-Base-2407": 12_247_782_400,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
}


@pytest.mark.parametrize("name", [*BUILT_IN, *COMMON])
def test_the_table_counts_what_transformers_builds(name: str) -> None:
    """All parameters, and those of the linears that are quantised, of the model on the meta device."""
    shape = {**BUILT_IN, **COMMON}[name]
    values = config_of(shape)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameter_count(shape)
    linears = [
        module.weight.numel()
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and path.rpartition(".")[2] in linear_shapes(shape)
    ]
    assert sum(linears) == parameter_parts(shape).quantised_linear


def test_the_table_has_the_published_counts() -> None:
    """Each common model counts to the last parameter what its checkpoint holds."""
    assert {name: parameter_count(shape) for name, shape in COMMON.items()} == PUBLISHED_COUNTS
