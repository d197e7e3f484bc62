"""H-2's walk where the memory model speaks: what can't fit is passed over, with its figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripted_training import BASE, LADDER, LARGE, NO_BNB, OOM, SMALL, ScriptedTraining, card_for, offer
from steph.base.terms import Verdict
from suite_runs import lengthen_rows, make_model


def test_rungs_that_cannot_fit_are_passed_over_with_their_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a card that holds 256/b2 at best, the walk begins there, and both rungs above are on record with figures."""
    stage = ScriptedTraining(tmp_path, trainer="full", card=card_for(LARGE, "full", rung=2))
    outcome = stage.walk(monkeypatch, LARGE)
    assert stage.tried == ["256/b2/4bit"]
    assert tuple(map(str, outcome.given_up)) == ("max-seq-length 512 → 256",)
    assert [str(rung.label) for rung in stage.recorded.skipped_rungs] == ["512/b2/4bit", "384/b2/4bit"]
    assert all(
        "予測ピーク" in str(rung.reason) and "試さない" in str(rung.reason) for rung in stage.recorded.skipped_rungs
    )
    assert [line.partition(": ")[0] for line in stage.said] == ["H-2 512/b2/4bit", "H-2 384/b2/4bit"]
    predicted = stage.planned[0].predicted
    assert predicted is not None
    assert predicted.low_bytes is not None
    assert predicted.low_bytes <= card_for(LARGE, "full", rung=2).total_bytes


def test_rows_that_are_short_make_a_long_limit_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that pads to the longest row is predicted by that: 512 is tried where only 256 tokens would fit."""
    stage = ScriptedTraining(tmp_path, trainer="answer", card=card_for(LARGE, "answer", rung=2))
    lengthen_rows(stage.setup.root, 100)
    model = LARGE.model_copy(update={"snapshot_path": str(make_model(tmp_path / "model"))})
    stage.walk(monkeypatch, model)
    assert stage.tried == ["512/b2/4bit"]


@pytest.mark.parametrize(("trainer", "no_predict"), [(None, False), ("full", True)])
def test_a_prediction_that_binds_nobody_skips_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: str | None, no_predict: bool
) -> None:
    """A trainer that nobody described, or `--steph-no-predict`: the first rung is tried all the same."""
    card = card_for(LARGE, "full", rung=2)
    stage = ScriptedTraining(tmp_path, trainer=trainer, no_predict=no_predict, card=card)
    stage.walk(monkeypatch, LARGE)
    assert (stage.tried, stage.recorded.skipped_rungs) == (["512/b2/4bit"], ())


def test_where_no_rung_can_fit_a_smaller_model_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card too small for the large model on every rung, untried: the small one is, from its own first rung on."""
    offer(monkeypatch, SMALL.name)
    stage = ScriptedTraining(tmp_path, trainer="full", card=card_for(SMALL, "full", rung=0))
    outcome = stage.walk(monkeypatch, LARGE)
    assert len(stage.recorded.skipped_rungs) == len(LADDER) + 1
    assert [plan.model_name for plan in stage.planned] == [SMALL.name]
    assert stage.recorded.model is not None
    assert stage.recorded.model.name == SMALL.name
    assert tuple(map(str, outcome.given_up)) == (f"より小さいモデル {SMALL.name} に変更",)


def test_where_nothing_can_fit_it_fails_with_the_figures_and_the_way_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No rung and no smaller model: nothing is tried, and the last rung's prediction says why."""
    offer(monkeypatch)
    stage = ScriptedTraining(tmp_path, trainer="full", card=card_for(SMALL, "answer", rung=3))
    outcome = stage.walk(monkeypatch, LARGE)
    assert (stage.tried, outcome.verdict, outcome.checks) == ([], Verdict.FAIL, ())
    assert str(outcome.explanation).startswith("載る設定がない: 予測ピーク")
    assert str(outcome.explanation).endswith("--steph-no-predict で全段を試せる")


def test_giving_up_4bit_is_no_cure_of_an_oom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every 4-bit rung ran out of memory, the one without 4-bit, whose weights are larger, must fit for sure."""
    asked = offer(monkeypatch, SMALL.name)
    stage = ScriptedTraining(tmp_path, [OOM] * 4, trainer="answer", card=card_for(LARGE, "answer", rung=4))
    outcome = stage.walk(monkeypatch, LARGE)
    assert stage.tried == ["512/b2/4bit", "384/b2/4bit", "256/b2/4bit", "256/b1/4bit"]
    assert [str(rung.label) for rung in stage.recorded.skipped_rungs] == ["256/b1/bf16"]
    assert (asked, outcome.verdict) == ([], Verdict.FAIL)
    assert "原因: CUDA OOM" in str(outcome.explanation)


def test_without_bitsandbytes_a_setting_that_may_just_fit_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No OOM was seen, so that nothing speaks against larger weights but a prediction that they can't fit."""
    plain = BASE.model_copy(update={"use_4bit": False, "mixed_precision": "bf16"})
    card = card_for(LARGE, "answer", rung=0, base=plain)
    stage = ScriptedTraining(tmp_path, [NO_BNB], trainer="answer", card=card)
    stage.walk(monkeypatch, LARGE)
    assert stage.tried == ["512/b2/4bit", "512/b2/bf16"]


@pytest.mark.parametrize(("use_4bit", "bits"), [(True, "4bit"), (False, "bf16")])
def test_a_lower_rung_that_may_just_fit_is_tried_after_an_oom_where_4bit_is_kept_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_4bit: bool, bits: str
) -> None:
    """Only giving up 4-bit needs a sure fit: a shorter row is a cure, also in a profile that never asked for 4-bit."""
    train = BASE.model_copy(update={"use_4bit": use_4bit, "mixed_precision": None if use_4bit else "bf16"})
    card = card_for(LARGE, "answer", rung=1, base=train)
    stage = ScriptedTraining(tmp_path, [OOM], trainer="answer", card=card, train=train)
    stage.walk(monkeypatch, LARGE)
    assert stage.tried == [f"384/b2/{bits}", f"256/b2/{bits}"]
