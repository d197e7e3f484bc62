"""The memory model's terms against every tensor that a training step really allocates."""

from __future__ import annotations

from dataclasses import replace

import pytest
from steph.base.terms import TrainerName
from steph.memory import forecast
from steph.memory.shapes import BUILT_IN, ModelShape, linear_shapes
from steph.memory.terms import Workload

SMALL, TIED, NORMED = (
    BUILT_IN[f"Qwen/{name}"] for name in ("Qwen1.5-1.8B-Chat", "Qwen2.5-1.5B-Instruct", "Qwen3-1.7B")
)
ALL_LINEAR = tuple(linear_shapes(SMALL))
ANSWER, FULL = Workload(TrainerName.ANSWER, 2, 512), Workload(TrainerName.FULL, 2, 512)
CASES = {
    "small": (SMALL, ANSWER),
    "small-kept": (SMALL, replace(ANSWER, recompute=False)),
    "tied": (TIED, replace(ANSWER, batch_size=4)),
    "normed-all": (NORMED, replace(ANSWER, target_modules=ALL_LINEAR, width=2048, lora_r=64)),
    "normed-all-kept": (NORMED, replace(ANSWER, target_modules=ALL_LINEAR, recompute=False)),
    "small-full": (SMALL, FULL),
    "normed-full": (NORMED, replace(FULL, target_modules=ALL_LINEAR, width=1024)),
    "tied-full-long": (TIED, replace(FULL, batch_size=1, width=2048)),
    "half-full": (SMALL, replace(FULL, use_4bit=False)),
}


def moving_bytes(shape: ModelShape, work: Workload) -> int:
    """Peak of the memory that a step allocates and frees again, as predicted."""
    return sum(term.size_bytes for term in forecast._highest_moment(shape, work, forecast.BUILT_IN_CONSTANTS))


LAYERS = 6  # a layer more costs the same as the one before; the published depths only take longer


@pytest.mark.parametrize("name", CASES)
def test_predicted_bytes_are_the_counted_ones(name: str) -> None:
    """What a step allocates beside the weights is predicted to 3 % of the tensors counted, at real widths."""
    from counted_step import counted  # with torch, which no other test should wait for when it is collected

    shape, work = CASES[name]
    shallow = replace(shape, num_hidden_layers=LAYERS)
    assert moving_bytes(shallow, work) == pytest.approx(counted(shallow, work).peak_allocated_bytes, rel=0.03)


def test_each_further_layer_keeps_what_the_formula_says() -> None:
    """Without recompute six layers keep six times one layer's formula: the difference of two depths is exact to 1 %."""
    from counted_step import counted

    work = replace(ANSWER, recompute=False, target_modules=ALL_LINEAR)
    peaks = [counted(replace(NORMED, num_hidden_layers=layers), work).peak_allocated_bytes for layers in (3, 6)]
    predicted = [moving_bytes(replace(NORMED, num_hidden_layers=layers), work) for layers in (3, 6)]
    assert predicted[1] - predicted[0] == pytest.approx(peaks[1] - peaks[0], rel=0.01)
