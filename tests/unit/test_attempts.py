"""One attempt, run for real with a tiny child: what its journal entry carries."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import record_factory as factory
from steph.attempts import Finished, Request, run_attempt
from steph.console import Console
from steph.judge.evidence import CardMemory
from steph.plan.description import Description
from steph.plan.options import Options
from steph.plan.settings import load_profile, profile_path
from steph.plan.shapes import BUILT_IN
from steph.plan.vram import predict
from steph.plan.vram_terms import Workload
from steph.preparation import Setup
from steph.record import Attempt, EndedBy, Probe, StageId
from steph.run.journal import Journal
from steph.run.runner import ChildOutcome

REPOSITORY = Path(__file__).parents[2]
FORECAST = predict(BUILT_IN["Qwen/Qwen1.5-1.8B-Chat"], Workload("answer", 2, 512))
REQUEST = Request(StageId.H2, "512/b2/4bit", (sys.executable, "-c", ""), deadline_seconds=60, on_gpu=False)


def attempted(folder: Path, request: Request) -> Attempt:
    """Run one child below `folder`, on no card."""
    record = factory.rehearsal()
    options = Options("rtx3080", folder, None, None, False, None, folder)
    profile = load_profile(profile_path("rtx3080", REPOSITORY))
    setup = Setup(options, profile, Description(), sys.executable, None, record.data[0], record.context)
    journal = Journal(folder / "record")
    return run_attempt(setup, journal, Console(lambda _: None, False), request, lambda finished: finished.attempt)


def test_an_attempt_carries_its_prediction_with_the_interval(tmp_path: Path) -> None:
    """The report holds predicted and measured side by side, so the record has the peak and both its bounds."""
    attempt = attempted(tmp_path, replace(REQUEST, predicted=FORECAST))
    bounds = (attempt.predicted_low_bytes, attempt.predicted_peak_bytes, attempt.predicted_high_bytes)
    assert bounds == (FORECAST.low_bytes, FORECAST.total_bytes, FORECAST.high_bytes)
    assert attempt.returncode == 0


def test_an_attempt_that_nobody_predicted_has_no_figures_of_it(tmp_path: Path) -> None:
    """Without a prediction all three stay empty."""
    attempt = attempted(tmp_path, REQUEST)
    assert (attempt.predicted_low_bytes, attempt.predicted_peak_bytes, attempt.predicted_high_bytes) == (None,) * 3


def test_the_judge_is_given_the_cards_memory_over_the_attempt(tmp_path: Path) -> None:
    """Its size, NVML's samples, and of several processes the one whose torch reserved most; nothing on the CPU."""
    probes = (Probe(pid=1, peak_reserved_bytes=7), Probe(pid=2, peak_reserved_bytes=9), Probe(pid=3))
    outcome = ChildOutcome(0, EndedBy.EXIT, 1.0, probes=probes, memory_samples=((0.2, 5), (0.4, 6)))
    finished = Finished(factory.green_acceptance().stages[StageId.H2].attempts[0], outcome, tmp_path, 0.0, "", "")
    card = factory.device()
    assert finished.card_memory(card) == CardMemory(card.total_bytes, ((0.2, 5), (0.4, 6)), 9)
    assert finished.card_memory(None) is None
