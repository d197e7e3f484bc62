"""The example reports are the ones of the records that lie beside them, and none of their pictures is missing."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from urllib.parse import unquote

import pytest
from steph.base.messages import LANGUAGES, Language, speaking, text
from steph.base.terms import StageId
from steph.gpu.watch import read_samples
from steph.record.settings import TrainSettings
from steph.run.journal import read_record, record_folders
from steph.tell.drawings import VramSample
from steph.tell.figures import draw
from steph.tell.keep import blocks_in
from steph.tell.outlook import production_outlook
from steph.tell.pieces import missed
from steph.tell.production import is_production_model
from steph.tell.report import REHEARSAL_REPORT, parts
from test_figures import boxes

EXAMPLES = Path(__file__).parents[2] / "reports" / "examples"
FOLDERS = sorted(path.parent for path in EXAMPLES.glob("*/runs"))


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The examples were written where local time is UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_an_example_is_its_records_report(folder: Path) -> None:
    """First screen and history are what the record renders to today, and each picture of the page is there."""
    page = (folder / REHEARSAL_REPORT).read_bytes()
    found = {block.id: block for block in blocks_in(page)}
    record = read_record(record_folders(folder / "runs")[0])
    today = {part.id: part.text.strip() for part in parts(record, outlook=production_outlook(record))}
    assert {name: found[name].text.strip() for name in ("summary", "history")} == {
        name: today[name] for name in ("summary", "history")
    }, "write the examples again: steph report --reports reports/examples/NAME"
    assert not any(block.is_edited for block in found.values())
    assert not any(text("report.evacuated", one) in page.decode() for one in LANGUAGES)
    pictures = re.findall(r"\]\((figures/[^)]+)\)", page.decode())
    assert len(pictures) >= 2
    assert all((folder / unquote(picture)).is_file() for picture in pictures)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_no_prediction_excludes_what_was_measured(folder: Path) -> None:
    """Of any attempt that ended well, nor of the production run where the record trained it."""
    record = read_record(record_folders(folder / "runs")[0])
    attempts = [attempt for stage in record.results.values() for attempt in stage.attempts]
    assert [f"{a.stage} {a.number}" for a in attempts if missed(a)] == []
    outlook, last = production_outlook(record), record.stages[StageId.H2].last_attempt
    assert outlook is not None
    assert outlook.here is not None
    assert last is not None
    assert isinstance(last.settings, TrainSettings)
    shown = outlook.here.grid.get((last.settings.batch_size, last.settings.max_seq_length))
    if is_production_model(record.model, record.context.production):
        assert shown is not None
        assert shown.peak_bytes == last.peak_own_bytes
        made = {part.id: part.text for part in parts(record, outlook=outlook)}
        assert f"({StageId.H2} の実測)" in made["h1"]
        assert "この記録の実測" in made["advice"]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_no_words_of_a_picture_overlap(folder: Path, language: Language) -> None:
    """In each picture of each example, in both languages; every attempt of H-2 has its number."""
    runs = record_folders(folder / "runs")[0]
    record = read_record(runs)
    samples = [VramSample(moment, used) for moment, used in read_samples(runs)]
    with speaking(language):
        drawn = draw(record, samples)
    assert set(drawn) == {"loss", "vram"}
    for svg in drawn.values():
        found = boxes(svg)
        assert found
        assert [(one.words, other.words) for one, other in combinations(found, 2) if one.overlaps(other)] == []
    h2 = record.stages[StageId.H2]
    count = len((*h2.attempts, *h2.deep_attempts, *h2.calibration_attempts))
    assert len(set(re.findall(r"H-2 #\d+|(?<=>)#\d+", drawn["vram"]))) == count


def test_there_are_examples() -> None:
    """A green run, one with an OOM walked down, and the production model on a small card."""
    assert [folder.name for folder in FOLDERS] == ["emulated-rtx3080", "oom-walked-down", "qwen3-8b-on-10gb"]
