"""What a record's attempts say of the memory model: points, two lengths, and why there may be none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import record_factory as factory
from measured_records import OTHER, OWN, SHAPE, attempt, pair, record_of
from steph.base.messages import NOTHING
from steph.base.terms import StageId, TrainerName
from steph.base.units import GIB
from steph.memory.calibration import calibration_of, calibration_or_default, workload_of
from steph.memory.forecast import BUILT_IN_CONSTANTS, predict
from steph.memory.shapes import BUILT_IN, ShapeError
from steph.memory.terms import Workload
from steph.record.values import Candidate

# a pipeline of the plain kind whose logits cost 16 bytes where the formulas say 12, with 0.3 GiB more at any length
TRUTH = replace(BUILT_IN_CONSTANTS, logits_scale=16 / 12, offset_bytes=0.3 * GIB, context_bytes=0.6 * GIB)


def test_two_lengths_predict_a_third_and_another_model() -> None:
    """The record's pair gives back what made it: slope, intercept and context, at 1024 tokens and for Qwen3-8B."""
    own, other = pair(TRUTH)
    found = calibration_of(record_of("full", (own,), (other,)))
    assert found.line is not None
    assert not found.shortfall
    for shape in (SHAPE, BUILT_IN["Qwen/Qwen3-8B"]):
        work = Workload(TrainerName.FULL, 2, 1024, gradient_accumulation_steps=2)
        due, given = predict(shape, work, TRUTH), found.forecast(shape, work)
        assert given.peak_allocated_bytes == pytest.approx(due.peak_allocated_bytes, abs=2000)
        assert given.peak.low_bytes <= due.peak.peak_bytes <= given.peak.high_bytes
    assert found.constants.context_bytes == pytest.approx(0.6 * GIB, abs=1000)
    per_token, fixed = found.line
    due = predict(SHAPE, Workload(TrainerName.FULL, 2, 1024, gradient_accumulation_steps=2), TRUTH)
    assert fixed + per_token * 2 * 1024 == pytest.approx(due.peak_allocated_bytes, rel=0.01)


LEAN = Workload(TrainerName.ANSWER, 2, 512, gradient_accumulation_steps=2)
UNKNOWN_TRAINERS = {
    "plain": replace(LEAN, trainer=TrainerName.FULL),
    "lean": LEAN,
    "lean, no recompute": replace(LEAN, recompute=False),
    "lean, half precision": replace(LEAN, use_4bit=False),
    "half precision, all logits": replace(LEAN, trainer=TrainerName.FULL, use_4bit=False),
}


@pytest.mark.parametrize("with_second", [False, True])
@pytest.mark.parametrize("truth", UNKNOWN_TRAINERS.values(), ids=UNKNOWN_TRAINERS)
def test_another_model_of_a_trainer_that_nobody_described_is_never_promised_too_much(
    truth: Workload, with_second: bool
) -> None:
    """Whatever it really is, and however many lengths were measured: the interval holds every known trainer."""
    own, other = (
        attempt(settings, replace(truth, width=settings.max_seq_length), BUILT_IN_CONSTANTS, number)
        for number, settings in enumerate((OWN, OTHER), start=1)
    )
    shape, asked = BUILT_IN["Qwen/Qwen3-8B"], Workload(TrainerName.FULL, 2, 1024, gradient_accumulation_steps=2)
    due = predict(shape, replace(truth, width=1024)).peak.peak_bytes
    found = calibration_of(record_of("undescribed", (own,), (other,) if with_second else ()))
    assert not found.carries_over or found.forecast(shape, asked).verdict(due - 1) != "fits"


@pytest.mark.parametrize("truth", UNKNOWN_TRAINERS.values(), ids=UNKNOWN_TRAINERS)
def test_two_lengths_predict_their_own_model_whatever_the_trainer_does(truth: Workload) -> None:
    """Slope and intercept need no description: the measured model's length between is met, with a wider interval."""
    own, other = (
        attempt(settings, replace(truth, width=settings.max_seq_length), BUILT_IN_CONSTANTS, number)
        for number, settings in enumerate((OWN, OTHER), start=1)
    )
    found = calibration_of(record_of("undescribed", (own,), (other,)))
    given = found.forecast(SHAPE, Workload(TrainerName.FULL, 2, 384, gradient_accumulation_steps=2))
    due = predict(SHAPE, replace(truth, width=384))
    assert given.peak_allocated_bytes == pytest.approx(due.peak_allocated_bytes, rel=0.05)
    assert given.peak.low_bytes <= due.peak.peak_bytes <= given.peak.high_bytes


def test_two_lengths_that_no_kind_explains_predict_their_own_model_alone() -> None:
    """The same model's third length is met, another model is not promised."""
    truth = replace(BUILT_IN_CONSTANTS, offset_bytes=12 * GIB)
    own, other = pair(truth)
    found = calibration_of(record_of("undescribed", (own,), (other,)))
    work = Workload(TrainerName.FULL, 2, 1024, gradient_accumulation_steps=2)
    due = predict(SHAPE, work, truth).peak_allocated_bytes
    assert found.forecast(SHAPE, work).peak_allocated_bytes == pytest.approx(due, rel=0.001)
    assert not found.carries_over


def test_peaks_that_no_formula_explains_widen_the_interval() -> None:
    """A described trainer that took half as much again: the error is as large as that."""
    own, _ = pair(replace(BUILT_IN_CONSTANTS, offset_bytes=2.5 * GIB))
    found = calibration_of(record_of("full", (own,)))
    assert not found.is_explained
    assert 0.4 < found.constants.relative_error < 0.7


def test_one_length_alone_corrects_the_fixed_parts() -> None:
    """Without a second length there is no line; the point itself is met."""
    own, _ = pair(replace(BUILT_IN_CONSTANTS, workspace_bytes=0.2 * GIB))
    found = calibration_of(record_of("full", (own,)))
    assert (found.point_count, found.line, found.shortfall) == (1, None, NOTHING)
    assert found.constants.workspace_bytes == pytest.approx(0.2 * GIB, abs=1000)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"returncode": 1}, "最後まで終わらなかった"),
        ({"probes": ()}, "torch のピーク"),
        ({"settings": OWN}, "長さが同じ"),
        ({"settings": OTHER.model_copy(update={"batch_size": 1})}, "長さ以外の条件"),
        ({"model_name": "another/model"}, "torch のピーク"),
    ],
)
def test_a_second_length_that_says_nothing_is_named(change: dict[str, object], words: str) -> None:
    """A failed, unmeasured or unlike attempt gives no slope; the first length still corrects the fixed parts."""
    own, other = pair(BUILT_IN_CONSTANTS)
    found = calibration_of(record_of("full", (own,), (other.model_copy(update=change),)))
    assert found.line is None
    assert words in str(found.shortfall)
    assert found.point_count == 1


def test_a_peak_that_does_not_grow_with_the_length_gives_no_slope() -> None:
    """Two equal peaks were set by something else than the training step."""
    own, other = pair(BUILT_IN_CONSTANTS)
    flat = other.model_copy(update={"probes": own.probes})
    found = calibration_of(record_of("full", (own,), (flat,)))
    assert found.line is None
    assert "ほとんど変わらない" in str(found.shortfall)


@pytest.mark.parametrize("change", [{"longest_row_tokens": None}, {"training": None}])
def test_rows_of_unknown_length_give_no_slope(change: dict[str, object]) -> None:
    """Where rows may be shorter than the setting and were not counted, or not all seen, the tokens are a guess."""
    own, other = (attempt.model_copy(update=change) for attempt in pair(BUILT_IN_CONSTANTS, TrainerName.ANSWER))
    assert "長さが分からない" in str(calibration_of(record_of("answer", (own,), (other,))).shortfall)
    padded = [attempt.model_copy(update=change) for attempt in pair(BUILT_IN_CONSTANTS)]
    assert calibration_of(record_of("full", (padded[0],), (padded[1],))).line is not None


def test_short_rows_are_counted_as_they_are() -> None:
    """A trainer that pads to the longest row of 400 tokens was measured at 400, whatever the setting allows."""
    settings = OWN.model_copy(update={"max_seq_length": 1024})
    work = replace(workload_of(settings, TrainerName.ANSWER), width=400)
    own = attempt(settings, work, replace(BUILT_IN_CONSTANTS, workspace_bytes=0.15 * GIB))
    found = calibration_of(record_of("answer", (own.model_copy(update={"longest_row_tokens": 400}),)))
    assert found.constants.workspace_bytes == pytest.approx(0.15 * GIB, abs=1000)


def test_attempts_on_another_model_are_no_points() -> None:
    """What a larger model needed before H-2 went to a smaller one says nothing of the smaller one's formulas."""
    own, _ = pair(BUILT_IN_CONSTANTS)
    larger = own.model_copy(update={"model_name": "Qwen/Qwen1.5-4B-Chat"})
    assert calibration_of(record_of("full", (larger,))).point_count == 0


def test_a_twin_that_is_gone_has_its_originals_shape() -> None:
    """The candidate that H-1 chose names the shape, when the twin's folder was cleared away."""
    own, other = pair(TRUTH)
    record = record_of("full", (own,), (other,))
    gone = "/cache/twins/Qwen1.5-1.8B-Chat-0123"
    h1, h2 = record.stages[StageId.H1], record.stages[StageId.H2]
    twin = factory.model_choice(gone, source="twin", snapshot_path=gone)
    named = h1.model_copy(update={"model": twin, "candidates": (Candidate(name=factory.MODEL, outcome="chosen"),)})
    trained = tuple(attempt.model_copy(update={"model_name": gone}) for attempt in (own, other))
    h2 = h2.model_copy(update={"attempts": trained[:1], "calibration_attempts": trained[1:]})
    found = calibration_of(record.model_copy(update={"stages": {StageId.H1: named, StageId.H2: h2}}))
    assert found.line is not None
    unnamed = {StageId.H1: named.model_copy(update={"candidates": ()}), StageId.H2: h2}
    with pytest.raises(ShapeError):
        calibration_of(record.model_copy(update={"stages": unnamed}))


def test_a_model_that_is_gone_leaves_the_defaults() -> None:
    """A twin's folder that was cleared away: an error for a command, built-in constants for a report."""
    record = factory.rehearsal()
    with pytest.raises(ShapeError):
        calibration_of(record)
    found = calibration_or_default(record)
    assert (found.constants, found.point_count) == (BUILT_IN_CONSTANTS, 0)
    assert found.shortfall
