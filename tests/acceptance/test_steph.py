"""StepH on one page: a small model can be had, trains in 4-bit, and its evaluation runs; H-4 closes the report."""

from __future__ import annotations

import pytest
from steph.plugin import StageRunner

pytestmark = pytest.mark.gpu


@pytest.mark.steph_stage("H-1")
@pytest.mark.order(1)
@pytest.mark.timeout(3900)
def test_h1_model_is_reachable(steph: StageRunner) -> None:
    """H-1: a chat model of 1.5 to 4B parameters can be had from the Hub, and its name, size and reason are recorded."""
    h1 = steph.run()
    assert h1.model is not None
    assert h1.model.reason
    assert {"model_available"} <= h1.unbroken


@pytest.mark.steph_stage("H-2")
@pytest.mark.order(2)
@pytest.mark.timeout(3900)
def test_h2_lora_training_completes(steph: StageRunner) -> None:
    """H-2: 4-bit LoRA training completes, on a lower rung after an OOM, and leaves weights, log and checkpoint."""
    h2 = steph.run()
    applicable = h2.unbroken | h2.not_applicable  # a description or an initialisation may rule some out
    assert {"adapter_weights", "adapter_config", "checkpoint_trainer_state", "adapter_trained"} <= applicable
    assert {"adapter_finite", "loss_finite", "steps_complete"} <= h2.unbroken
    assert {"training_seen", "steps_seen", "tokens_supervised", "model_loaded", "adapter_moved"} <= h2.unbroken


@pytest.mark.steph_stage("H-3")
@pytest.mark.order(3)
@pytest.mark.timeout(1500)
def test_h3_hf_evaluation_runs(steph: StageRunner) -> None:
    """H-3: the HF evaluation of three questions prints its lines in order and writes a JSON that agrees with them."""
    h3 = steph.run()
    applicable = h3.unbroken | h3.not_applicable  # a description may rule out lines that its evaluation does not print
    assert {"line_initializing", "line_rag_disabled", "model_named", "line_results", "line_accuracy"} <= applicable
    assert {"json_consistent", "no_error_answers"} <= applicable
    assert {"total_samples", "json_written", "json_fresh"} <= h3.unbroken
    assert {"answers_generated", "adapter_active", "model_loaded"} <= h3.unbroken
