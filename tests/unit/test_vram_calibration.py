"""Measured peaks correct the memory model's constants."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steph.base.terms import TrainerName
from steph.base.units import GIB
from steph.memory.calibration import (
    CalibrationError,
    MeasuredPoint,
    calibrated,
    through_two_lengths,
)
from steph.memory.forecast import BUILT_IN_CONSTANTS, Constants, predict
from steph.memory.shapes import BUILT_IN
from steph.memory.terms import Workload

SHAPE = BUILT_IN["Qwen/Qwen1.5-1.8B-Chat"]


def _measured(truth: Constants, trainer: TrainerName, width: int, context_bytes: int | None = None) -> MeasuredPoint:
    work = Workload(trainer, 2, width)
    found = predict(SHAPE, work, truth)
    return MeasuredPoint(SHAPE, work, found.peak_allocated_bytes, context_bytes)


def test_constants_are_found_again_from_what_they_predict() -> None:
    """Points made with other workspaces and context give these back."""
    truth = Constants(workspace_bytes=0.06 * GIB, context_bytes=0.5 * GIB)
    points = [
        _measured(truth, trainer, width, round(0.5 * GIB))
        for trainer in (TrainerName.FULL, TrainerName.ANSWER)
        for width in (512, 1024, 2048)
    ]
    found = calibrated(points)
    for name in ("workspace_bytes", "context_bytes"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), abs=1000)


def test_one_point_is_met_exactly() -> None:
    """One measurement sets the workspaces to its own."""
    truth = replace(BUILT_IN_CONSTANTS, workspace_bytes=0.2 * GIB)
    point = _measured(truth, TrainerName.ANSWER, 512)
    found = calibrated([point])
    assert predict(SHAPE, point.work, found).peak_allocated_bytes == pytest.approx(point.peak_allocated_bytes, abs=10)


def test_a_point_of_another_kind_changes_nothing() -> None:
    """A peak far off the prediction is another trainer's or has shorter rows; only the error grows, where all are."""
    point = _measured(BUILT_IN_CONSTANTS, TrainerName.ANSWER, 512)
    stray = replace(point, peak_allocated_bytes=2 * point.peak_allocated_bytes)
    assert calibrated([stray]) == replace(BUILT_IN_CONSTANTS, relative_error=1.0)
    assert calibrated([stray, point]) == BUILT_IN_CONSTANTS
    assert calibrated([]) == BUILT_IN_CONSTANTS


def _pair(
    truth: Constants, work: Workload, widths: tuple[int, int] = (256, 512)
) -> tuple[MeasuredPoint, MeasuredPoint]:
    short, long = (_as_measured(truth, replace(work, width=width)) for width in widths)
    return short, long


def _as_measured(truth: Constants, work: Workload) -> MeasuredPoint:
    found = predict(SHAPE, work, truth)
    return MeasuredPoint(SHAPE, work, found.peak_allocated_bytes, round(truth.context_bytes))


LARGE = BUILT_IN["Qwen/Qwen3-8B"]


@settings(deadline=None)
@given(
    trainer=st.sampled_from(["full", "answer"]),
    scale=st.floats(0.5, 2),
    offset_gib=st.floats(-0.2, 1),
    length=st.sampled_from([512, 1024, 2048]),
)
def test_two_lengths_are_met_and_carry_over(trainer: TrainerName, scale: float, offset_gib: float, length: int) -> None:
    """Slope and intercept that differ from the formulas' are found again, for a third length and for Qwen3-8B.

    What differs in the plain trainer's slope is its logits' cost, in the other's its activations'.
    """
    scaled = {"logits_scale": scale} if trainer == "full" else {"activation_scale": scale}
    truth = replace(BUILT_IN_CONSTANTS, offset_bytes=offset_gib * GIB, **scaled)
    work = Workload(trainer, 2, 512, gradient_accumulation_steps=2)
    found = through_two_lengths(*_pair(truth, work))
    for shape in (SHAPE, LARGE):
        due, given_ = (predict(shape, replace(work, width=length), constants) for constants in (truth, found))
        assert given_.peak_allocated_bytes == pytest.approx(due.peak_allocated_bytes, rel=0.01)
        assert given_.peak.low_bytes <= due.peak.peak_bytes <= given_.peak.high_bytes


def test_a_correction_is_no_small_error() -> None:
    """Where the formulas were off by more than a tenth, the interval says so; where they hold, it stays."""
    work = Workload(TrainerName.FULL, 2, 512, gradient_accumulation_steps=2)
    assert through_two_lengths(*_pair(BUILT_IN_CONSTANTS, work)).relative_error == BUILT_IN_CONSTANTS.relative_error
    far = replace(BUILT_IN_CONSTANTS, offset_bytes=2 * GIB)
    assert through_two_lengths(*_pair(far, work)).relative_error > 0.2


@pytest.mark.parametrize("widths", [(512, 512), (1024, 512)])
def test_points_that_are_no_two_lengths_are_refused(widths: tuple[int, int]) -> None:
    """Equal lengths, or the long one first."""
    with pytest.raises(CalibrationError, match="長さが同じ"):
        through_two_lengths(*_pair(BUILT_IN_CONSTANTS, Workload(TrainerName.ANSWER, 2, 512), widths))


def test_answers_longer_than_the_short_length_are_cut_with_it() -> None:
    """A reasoning of 250 tokens has fewer logits at 224 tokens: that is the length's doing and no other setting."""
    long = Workload(TrainerName.ANSWER, 2, 512, recompute=False).of_rows(460, 250)
    short = replace(long, width=512).of_rows(224, 250)
    assert (long.label_positions, short.label_positions) == (251, 224)
    points = [
        MeasuredPoint(SHAPE, work, found.peak_allocated_bytes)
        for work in (short, long)
        for found in (predict(SHAPE, work),)
    ]
    assert through_two_lengths(points[0], points[1]).activation_scale == pytest.approx(1, abs=1e-3)
