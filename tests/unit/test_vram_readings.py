"""A pipeline that nobody described: which kinds of training explain its peaks, and what they say of another model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steph.base.units import GIB
from steph.memory.calibration import MeasuredPoint
from steph.memory.constants import MEASURED
from steph.memory.forecast import predict
from steph.memory.readings import Reading, explanations, predict_by
from steph.memory.shapes import BUILT_IN, linear_shapes
from steph.memory.terms import Workload

LARGE = BUILT_IN["Qwen/Qwen3-8B"]
SMALL = ("Qwen/Qwen1.5-1.8B-Chat", "Qwen/Qwen1.5-4B-Chat", "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen3-1.7B")
ALL_LINEAR = tuple(linear_shapes(LARGE))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(SMALL),
    truth=st.builds(
        Workload,
        trainer=st.sampled_from(["full", "answer"]),
        batch_size=st.sampled_from([1, 2, 4]),
        width=st.sampled_from([256, 512, 1024]),
        gradient_accumulation_steps=st.just(2),
        recompute=st.booleans(),
        use_4bit=st.booleans(),
        target_modules=st.sampled_from([("q_proj", "v_proj"), ALL_LINEAR]),
    ),
    inaccuracy=st.floats(0.95, 1.05),
    offset_gib=st.floats(-0.1, 0.1),
)
def test_what_is_measured_on_a_small_model_never_promises_too_much_for_the_large_one(
    name: str, truth: Workload, inaccuracy: float, offset_gib: float
) -> None:
    """Whatever the trainer does, seen only through two peaks of it: Qwen3-8B does not fit where it needs more."""
    constants = replace(MEASURED, activation_scale=inaccuracy, offset_bytes=offset_gib * GIB)
    assumed = replace(truth, trainer="full", recompute=True, use_4bit=True)
    points = []
    for width in (truth.width // 2, truth.width):
        found = predict(BUILT_IN[name], replace(truth, width=width), constants)
        measured = (found.peak_allocated_bytes, found.peak_reserved_bytes)
        points.append(MeasuredPoint(BUILT_IN[name], replace(assumed, width=width), *measured))
    readings = explanations(*points)
    for batch, width in ((2, 1024), (4, 2048)) if readings else ():
        needed = predict(LARGE, replace(truth, batch_size=batch, width=width), constants).total_bytes
        asked = replace(assumed, batch_size=batch, width=width)
        assert predict_by(readings, LARGE, asked).verdict(needed - 1) != "fits"


def test_a_reading_says_only_what_it_knows() -> None:
    """None leaves the workload as it is asked for."""
    work = Workload("answer", 2, 512, recompute=False, use_4bit=False)
    assert Reading().applied(work) == work
    assert Reading(trainer="full", recompute=True).applied(work) == replace(work, trainer="full", recompute=True)


def test_a_prediction_spans_all_readings() -> None:
    """The first one's terms and peak, the lowest low and the highest high."""
    work = Workload("answer", 2, 1024)
    lean, plain = Reading(), Reading(trainer="full")
    found = predict_by((lean, plain), LARGE, work)
    alone = [predict_by((reading,), LARGE, work) for reading in (lean, plain)]
    assert found.terms == alone[0].terms
    assert (found.low_bytes, found.high_bytes) == (alone[0].low_bytes, alone[1].high_bytes)


def test_peaks_of_no_known_kind_have_no_explanation() -> None:
    """Ten times what any trainer takes."""
    point = MeasuredPoint(LARGE, Workload("full", 2, 512), 10**12, 10**12)
    assert explanations(replace(point, work=replace(point.work, width=256)), point) == ()


@pytest.mark.parametrize("use_4bit", [True, False])
def test_a_flag_that_does_nothing_is_seen(use_4bit: bool) -> None:
    """Asked with 4-bit and measured without it, or the other way round, the best reading says which it was."""
    shape, asked = BUILT_IN[SMALL[0]], Workload("answer", 2, 512, gradient_accumulation_steps=2, use_4bit=use_4bit)
    points = []
    for width in (256, 512):
        found = predict(shape, replace(asked, width=width, use_4bit=not use_4bit))
        peaks = (found.peak_allocated_bytes, found.peak_reserved_bytes)
        points.append(MeasuredPoint(shape, replace(asked, width=width), *peaks))
    assert explanations(*points)[0].use_4bit is (not use_4bit)
