"""H-1 asks the Hub within the profile's limits, and says in one line what is set wrongly."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import record_factory as factory
from scripted_training import PROFILE, SMALL
from steph.base.terms import StageId, Verdict
from steph.conduct.models import choose_model
from steph.conduct.preparation import Console, Setup, StageRun
from steph.conduct.stages import Conductor
from steph.contract.description import Description
from steph.contract.options import Options
from steph.record.values import ModelChoice
from steph.run import hub
from steph.run.journal import Journal, opened_event


def test_the_profiles_limit_holds_for_both_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a slow proxy the download waits for the Hub as long as the choice did."""
    waits: list[object] = []

    def choose(candidates: object, **options: hub.Hub) -> ModelChoice:
        waits.append(options["hub"].timeout_seconds)
        return SMALL

    def download(choice: ModelChoice, **options: hub.Hub) -> ModelChoice:
        waits.append(options["hub"].timeout_seconds)
        return choice

    monkeypatch.setattr(hub, "choose", choose)
    monkeypatch.setattr(hub, "download", download)
    profile = PROFILE.model_copy(update={"limits": PROFILE.limits.model_copy(update={"hub_request_seconds": 120})})
    options = Options("rtx3080", tmp_path, None, None, False, None, tmp_path)
    setup = Setup(options, profile, Description(), "python", None, factory.data()[0], factory.context())
    choose_model(StageRun(setup, Journal(tmp_path / "record"), Console(lambda _: None, False), time.monotonic() + 60))
    assert waits == [120, 120]


@pytest.mark.parametrize("place", ["nowhere", ""])
def test_a_tokenizer_that_is_none_fails_h1_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """STEPH_TOKENIZER set wrongly: FAIL with the variable, its value and the remedy, and nothing is raised."""
    named = tmp_path / place
    monkeypatch.setenv("STEPH_TOKENIZER", str(named))
    context = factory.context().model_copy(update={"twin": True})
    options = Options("rtx3080", tmp_path, None, None, True, None, tmp_path)
    setup = Setup(options, PROFILE, Description(), "python", None, factory.data()[0], context)
    journal = Journal(tmp_path / "record")
    journal.append(opened_event("r", context))
    found = Conductor(setup, journal, Console(lambda _: None, False), lambda _: None).run(StageId.H1, 60)
    assert found.verdict is Verdict.FAIL
    remedy = "name a Qwen model's folder or its tokenizer.json, or unset it"
    said = f"STEPH_TOKENIZER={named}: no tokenizer.json with <|im_start|> there; {remedy}"
    assert found.explanation.text("en").endswith(said)
    assert str(found.explanation).startswith(f"実行に必要なものが揃わない: STEPH_TOKENIZER={named}: ")
