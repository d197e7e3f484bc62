"""The memory model against the GPU's own figures: the committed points of the grid."""

from __future__ import annotations

import functools
from pathlib import Path
from statistics import median

import pytest
from steph.base.messages import text
from steph.base.terms import TrainerName
from steph.memory.forecast import BUILT_IN_CONSTANTS
from steph.memory.terms import TRAINERS

from benchmarks.vram_points import SFT, SHAPES, Use
from benchmarks.vram_report import Judged, constants_from, judge, read_points, slack_share_from, verdict

POINTS = Path(__file__).parents[2] / "benchmarks" / "results" / "vram_points.jsonl"


@functools.cache
def judged(use: Use) -> list[Judged]:
    """Predictions by the constants that the calibration points give."""
    points = read_points(POINTS)
    return judge(points, constants_from(points), (use,))


def uncapped(use: Use) -> list[Judged]:
    """Those of runs that had a whole card, whose peaks are their own."""
    return [found for found in judged(use) if found.measured.point.allowed_gib is None]


@pytest.mark.parametrize("use", ["judge", "seen"])
def test_reserved_peaks_are_predicted_to_three_percent_and_never_off_by_more_than_eight(use: Use) -> None:
    """On at least 24 uncapped runs of `full` and `answer` and four shapes that set no constant."""
    free = [found for found in uncapped(use) if found.measured.point.trainer in ("full", "answer")]
    errors = [abs(found.reserved_error) for found in free]
    assert len(errors) >= 24
    assert len({found.measured.point.model for found in free} & set(SHAPES)) >= 4
    assert median(errors) <= 0.03
    assert max(errors) <= 0.08


@pytest.mark.parametrize(("use", "shapes"), [("judge", 3), ("seen", 4)])
@pytest.mark.parametrize("trainer", SFT)
def test_peaks_of_trls_trainer_and_of_those_built_on_it_are_predicted_to_four_percent(
    trainer: str, use: Use, shapes: int
) -> None:
    """And never off by more than ten: TRL as it comes, with Liger, and Unsloth, on shapes that set no constant."""
    free = [found for found in uncapped(use) if found.measured.point.trainer == trainer]
    errors = [abs(found.reserved_error) for found in free]
    assert len(errors) >= 12
    assert len({found.measured.point.model for found in free}) >= shapes
    assert median(errors) <= 0.04
    assert max(errors) <= 0.10


def test_the_reference_pipelines_peaks_are_predicted_to_three_percent() -> None:
    """And never off by more than eight: CUDA graphs, host memory, no dropout; three shapes judge, two were seen."""
    found = [one for use in ("judge", "seen") for one in uncapped(use) if one.measured.point.trainer == "reference"]
    errors = [abs(one.reserved_error) for one in found]
    assert len(errors) >= 29
    assert {one.measured.point.host_memory for one in found} == {"off", "embeddings", "all"}
    assert {one.measured.point.cuda_graph for one in found} == {True, False}
    assert median(errors) <= 0.02
    assert max(errors) <= 0.05


def kind_of(found: Judged) -> str:
    """What is new of a point of the later series."""
    point = found.measured.point
    flags = {"packing": point.packing, "dora": point.dora, "8 bits": point.use_8bit, "16 bits": not point.use_4bit}
    family = SHAPES[point.model].model_type
    return next((name for name, is_on in flags.items() if is_on), family)


def test_what_was_drawn_up_after_the_later_formulas_is_predicted_to_three_percent() -> None:
    """And never off by more than ten: Gemma, Phi, 8 and 16 bits, packed rows, DoRA, long answers; at least 34 runs."""
    found = [one for one in uncapped("judge") if one.measured.point.series == 4]
    errors = [abs(one.reserved_error) for one in found]
    assert len(errors) >= 34
    assert {kind_of(one) for one in found} >= {"gemma2", "gemma3_text", "phi3", "packing", "dora", "8 bits", "16 bits"}
    assert median(errors) <= 0.03
    assert max(errors) <= 0.10


def test_all_later_points_that_set_nothing_are_predicted_to_three_percent() -> None:
    """TRL, Liger and Unsloth on shapes of their own, and what came after: at least 40 runs, none off by over ten."""
    errors = [
        abs(one.reserved_error)
        for one in uncapped("judge")
        if one.measured.point.series == 4 or one.measured.point.trainer in SFT
    ]
    assert len(errors) >= 40
    assert median(errors) <= 0.03
    assert max(errors) <= 0.10


@pytest.mark.parametrize("use", ["judge", "seen"])
def test_no_run_that_ran_out_of_memory_is_said_to_fit_and_none_that_trained_not_to(use: Use) -> None:
    """Under caps that lie at the interval's ends, and under an RTX 3080's."""
    constants = constants_from(read_points(POINTS))
    ended = [(verdict(found, constants), found.measured.oom) for found in judged(use)]
    assert {True, False} == {oom for _, oom in ended}
    assert ("fits", True) not in ended
    assert ("does_not_fit", False) not in ended


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_trainers_slack_is_that_of_the_points_marked_for_fitting(trainer: TrainerName) -> None:
    """Each row's share, in hundredths, is the median of its calibration points, and as many as it says."""
    points = read_points(POINTS)
    row = TRAINERS[trainer]
    assert row.slack_share == round(slack_share_from(points, trainer), 2)
    marked = [found for found in points if found.point.use == "calibrate" and found.point.trainer == trainer]
    assert row.marked_points == len(marked)


def test_every_measured_peak_lies_within_its_interval() -> None:
    """Of all runs on a whole card, by the built-in constants: what the allocator reserved."""
    points = [found for found in read_points(POINTS) if found.point.allowed_gib is None]
    assert len(points) >= 300
    for found in points:
        forecast = found.point.forecast(BUILT_IN_CONSTANTS)
        low, high = (
            size - BUILT_IN_CONSTANTS.context_bytes for size in (forecast.peak.low_bytes, forecast.peak.high_bytes)
        )
        assert low <= found.reserved_bytes <= high, found.point


def test_the_errors_that_people_are_told_are_the_measured_ones() -> None:
    """README, the page on the model and the report name the median and the largest error of the judging points.

    But for the reference pipeline's, which were on view when its formulas were written.
    """
    free = [found for found in uncapped("judge") if found.measured.point.trainer != TrainerName.REFERENCE]
    errors = [abs(found.reserved_error) for found in free]
    middle, largest = f"{100 * median(errors):.1f} %", f"{100 * max(errors):.1f} %"
    root = POINTS.parents[2]
    pages = ("README.md", "README.ja.md", "docs/memory-model.en.md", "docs/memory-model.md")
    assert f"{len(free)} runs" in (root / "README.md").read_text()
    told = [text("memory.caveat"), *((root / name).read_text() for name in pages)]
    assert f"by {middle} in the median and {largest} at most" in told[1]
    assert f"中央値 {middle}、最大 {largest}" in told[0]
    assert f"中央値 {middle}、最大 {largest}" in told[2]
    assert all(f"| {middle} | {largest} |" in page for page in told[3:])
