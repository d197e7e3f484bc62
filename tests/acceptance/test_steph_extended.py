"""StepH beyond the smallest test, only where `-m extended` asks for it: CoT, retrieval, the adapter, what it remembers.

They stand on the H-1 to H-3 of the same record, and no acceptance stands on them.
"""

from __future__ import annotations

import pytest
from steph.base.terms import Verdict
from steph.plugin import StageRunner

pytestmark = [pytest.mark.gpu, pytest.mark.extended]


@pytest.mark.steph_stage("H-2cot")
@pytest.mark.order(4)
@pytest.mark.timeout(3900)
def test_h2_trains_on_cot_rows(steph: StageRunner) -> None:
    """H-2 on CoT rows: rows that teach a reason and an answer are trained on, to the same standard as H-2."""
    trained = steph.run()
    applicable = trained.unbroken | trained.not_applicable
    assert {"adapter_weights", "adapter_config", "checkpoint_trainer_state", "adapter_trained"} <= applicable
    assert {"adapter_finite", "loss_finite", "steps_complete"} <= trained.unbroken
    assert {"training_seen", "steps_seen", "tokens_supervised", "model_loaded", "adapter_moved"} <= trained.unbroken


@pytest.mark.steph_stage("H-3cot")
@pytest.mark.order(5)
@pytest.mark.timeout(1500)
def test_h3_evaluates_with_cot(steph: StageRunner) -> None:
    """H-3 with `--use-cot` on the adapter of the CoT rows."""
    asked = steph.run()
    applicable = asked.unbroken | asked.not_applicable
    assert {"line_cot_enabled", "line_rag_disabled", "model_named", "json_consistent", "no_error_answers"} <= applicable
    assert {"total_samples", "json_written", "json_fresh"} <= asked.unbroken
    assert {"answers_generated", "adapter_active", "model_loaded"} <= asked.unbroken


@pytest.mark.steph_stage("H-3rag")
@pytest.mark.order(6)
@pytest.mark.timeout(1500)
def test_h3_evaluates_with_rag(steph: StageRunner) -> None:
    """H-3 without `--no-rag`: every question was answered with passages of an index that was built just before."""
    asked = steph.run()
    applicable = asked.unbroken | asked.not_applicable
    assert {"line_rag_enabled", "rag_retrieved", "model_named", "json_consistent", "no_error_answers"} <= applicable
    assert {"total_samples", "json_written", "json_fresh"} <= asked.unbroken
    assert {"answers_generated", "adapter_active", "model_loaded"} <= asked.unbroken


@pytest.mark.steph_stage("H-3base")
@pytest.mark.order(7)
@pytest.mark.timeout(1500)
def test_h3_evaluates_the_base_model(steph: StageRunner) -> None:
    """H-3's questions without the adapter: how many answers it changes, and which way, is in the record."""
    asked = steph.run()
    applicable = asked.unbroken | asked.not_applicable
    assert {
        "base_same_questions",
        "lora_path_named",
        "model_named",
        "json_consistent",
        "no_error_answers",
    } <= applicable
    assert {"total_samples", "json_written", "json_fresh"} <= asked.unbroken
    assert {"answers_generated", "adapter_active", "model_loaded"} <= asked.unbroken
    assert asked.attempts[-1].evaluation is not None
    assert asked.attempts[-1].evaluation.with_adapter is not None


@pytest.mark.steph_stage("H-2step")
@pytest.mark.order(8)
@pytest.mark.timeout(3900)
def test_h2_takes_one_step_as_asked(steph: StageRunner) -> None:
    """One step without 4-bit and with `--loss-on-output-only`: nothing is quantised, only the answer carries labels."""
    step = steph.run()
    unseen = {check.id for check in step.checks if check.holds is None}
    assert {"step_unquantised"} <= step.unbroken | unseen
    assert step.attempts[-1].settings is not None
    assert "--use-4bit" not in step.attempts[-1].argv


@pytest.mark.steph_stage("H-3heart")
@pytest.mark.order(9)
@pytest.mark.timeout(5100)
def test_h3_adapter_remembers_what_it_learned(steph: StageRunner) -> None:
    """Eight answers that nobody can know are learnt: with the adapter 7 are given at least, without it 4 at most."""
    asked = steph.run()
    assert {"adapter_weights", "adapter_finite", "steps_complete"} <= asked.unbroken
    if asked.verdict is Verdict.PASS:  # else the loss did not get low, or the questions could not be asked: it says so
        assert {"heart_loss_low", "heart_remembered", "heart_unknown"} <= asked.unbroken
