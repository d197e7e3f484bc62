"""A record that 0.1.0 wrote is read, told in both languages and drawn; the sentences that it holds stay Japanese."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from record_factory import render
from steph.base.messages import Language, speaking
from steph.base.terms import ExtendedId, StageId, Verdict
from steph.record.values import Record
from steph.run.journal import read_record
from steph.run.runner import read_samples
from steph.tell.compare import listing_rows, listing_text
from steph.tell.drawings import VramSample, draw
from steph.tell.outlook import production_outlook
from test_report_languages import JAPANESE, latin

FOLDER = Path(__file__).parent / "samples" / "record_0.1.0" / "20261125-224716-97fe"
STORED = "終了後、GPU メモリは開始前の水準に戻った。"  # a finding's sentence, as 0.1.0 kept it


@pytest.fixture(scope="module")
def old() -> Record:
    """All stages on a capped card, with the trainings of `--steph-deep` and `--steph-calibrate`."""
    return read_record(FOLDER)


def test_its_stages_are_what_they_were(old: Record) -> None:
    """Verdicts, extended stages, and the trainings that no later release makes."""
    assert {stage: result.verdict for stage, result in old.stages.items()} == dict.fromkeys(StageId, Verdict.PASS)
    assert set(old.extended) == set(ExtendedId) - {ExtendedId.ONE_STEP, ExtendedId.HEART}
    assert old.stages[StageId.H2].deep_attempts
    assert old.stages[StageId.H2].calibration_attempts


@pytest.mark.parametrize("language", ["ja", "en"])
def test_its_report_is_written_in_both_languages(old: Record, language: Language) -> None:
    """Nothing in it could not be computed; what the record holds as a sentence is shown as it is."""
    with speaking(language):
        told = render(old)
        assert listing_text(listing_rows([(old, 1)]))
        own = render(latin(old))
    assert STORED in told
    assert ("計算できません" if language == "ja" else "not computed") not in told
    assert (JAPANESE.search(own) is None) is (language == "en")


def test_its_pictures_and_forecast_are_made(old: Record) -> None:
    """The losses and the memory over time, with every training's number, and H-4's outlook."""
    drawn = draw(old, [VramSample(moment, used) for moment, used in read_samples(FOLDER)])
    assert set(drawn) == {"loss", "vram"}
    assert len(set(re.findall(r"H-2 #\d+|(?<=>)#\d+", drawn["vram"]))) >= len(old.stages[StageId.H2].deep_attempts)
    outlook = production_outlook(old)
    assert outlook is not None
    assert outlook.here is not None
