"""The memory model against the GPU's own figures: the committed points of the grid."""

from __future__ import annotations

import functools
from pathlib import Path
from statistics import median

import pytest

from benchmarks.vram_points import SHAPES, Use
from benchmarks.vram_report import Judged, constants_from, judge, read_points, verdict

POINTS = Path(__file__).parents[2] / "benchmarks" / "results" / "vram_points.jsonl"


@functools.cache
def judged(use: Use) -> list[Judged]:
    """Predictions by the constants that the calibration points give."""
    points = read_points(POINTS)
    return judge(points, constants_from(points), (use,))


@pytest.mark.parametrize("use", ["judge", "seen"])
def test_reserved_peaks_are_predicted_to_three_percent_and_never_off_by_more_than_eight(use: Use) -> None:
    """On at least 24 uncapped runs of both trainers and four shapes that set no constant."""
    free = [found for found in judged(use) if found.measured.point.allowed_gib is None]
    errors = [abs(found.reserved_error) for found in free]
    assert len(errors) >= 24
    assert {found.measured.point.trainer for found in free} == {"full", "answer"}
    assert len({found.measured.point.model for found in free} & set(SHAPES)) >= 4
    assert median(errors) <= 0.03
    assert max(errors) <= 0.08


@pytest.mark.parametrize("use", ["judge", "seen"])
def test_no_run_that_ran_out_of_memory_is_said_to_fit_and_none_that_trained_not_to(use: Use) -> None:
    """Under caps that lie at the interval's ends, and under an RTX 3080's."""
    constants = constants_from(read_points(POINTS))
    ended = [(verdict(found, constants), found.measured.oom) for found in judged(use)]
    assert {True, False} == {oom for _, oom in ended}
    assert ("fits", True) not in ended
    assert ("does_not_fit", False) not in ended
