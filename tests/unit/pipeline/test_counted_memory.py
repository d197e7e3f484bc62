"""The memory model's terms against every tensor that a training step really allocates."""

from __future__ import annotations

from dataclasses import replace

import pytest
from counted_step import counted_peak_bytes
from steph.plan.shapes import BUILT_IN, ModelShape, linear_shapes
from steph.plan.vram import moving_bytes
from steph.plan.vram_terms import Workload

SMALL, TIED, NORMED = (
    BUILT_IN[f"Qwen/{name}"] for name in ("Qwen1.5-1.8B-Chat", "Qwen2.5-1.5B-Instruct", "Qwen3-1.7B")
)
ALL_LINEAR = tuple(linear_shapes(SMALL))
ANSWER, FULL = Workload("answer", 2, 512), Workload("full", 2, 512)
LAYERS = 6  # a layer more costs the same as the one before; the published depths only take longer


@pytest.mark.parametrize(
    ("shape", "work"),
    [
        (SMALL, ANSWER),
        (SMALL, replace(ANSWER, recompute=False)),
        (TIED, replace(ANSWER, batch_size=4)),
        (NORMED, replace(ANSWER, target_modules=ALL_LINEAR, width=2048, lora_r=64)),
        (NORMED, replace(ANSWER, target_modules=ALL_LINEAR, recompute=False)),
        (SMALL, FULL),
        (NORMED, replace(FULL, target_modules=ALL_LINEAR, width=1024)),
    ],
    ids=["small", "small-kept", "tied", "normed-all", "normed-all-kept", "small-full", "normed-full"],
)
def test_predicted_bytes_are_the_counted_ones(shape: ModelShape, work: Workload) -> None:
    """What a step allocates beside the weights is predicted to 3 % of the tensors counted, at real widths."""
    shallow = replace(shape, num_hidden_layers=LAYERS)
    assert moving_bytes(shallow, work) == pytest.approx(counted_peak_bytes(shallow, work), rel=0.03)


def test_each_further_layer_keeps_what_the_formula_says() -> None:
    """Without recompute six layers keep six times one layer's formula: the difference of two depths is exact to 1 %."""
    work = replace(ANSWER, recompute=False, target_modules=ALL_LINEAR)
    counted = [counted_peak_bytes(replace(NORMED, num_hidden_layers=layers), work) for layers in (3, 6)]
    predicted = [moving_bytes(replace(NORMED, num_hidden_layers=layers), work) for layers in (3, 6)]
    assert predicted[1] - predicted[0] == pytest.approx(counted[1] - counted[0], rel=0.01)
