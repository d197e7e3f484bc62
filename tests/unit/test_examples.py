"""The example reports are what this release writes from the records beside them, in both languages."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from urllib.parse import unquote

import pytest
from examples import EXAMPLES, take, write
from steph.base.messages import LANGUAGES, Language, speaking
from steph.base.terms import StageId
from steph.record.settings import TrainSettings
from steph.run.journal import read_record, record_folders
from steph.run.runner import read_samples
from steph.tell.attempts import outside_prediction
from steph.tell.drawings import VramSample, draw
from steph.tell.keep import blocks_in
from steph.tell.outlook import production_outlook
from steph.tell.production import is_production_model
from steph.tell.report import parts
from test_figures import boxes

FOLDERS = sorted(path.parent for path in EXAMPLES.glob("*/runs"))
ON_A_CARD = [folder for folder in FOLDERS if list(folder.glob("runs/*/*/vram.txt"))]
JAPANESE = re.compile("[\u3000-\u30ff\u4e00-\u9fff\uff01-\uff60]")
ENGLISH_SENTENCE = re.compile(r"(?:\b[a-z]{2,}\b[ ,]+){4,}")
MADE_HERE = re.compile(r"/home/(?!user\b)\w+|/Users/|/root\b|\bhf_[A-Za-z]{10}|GPU-(?!0{8}-)[0-9a-f]{8}-|Linux [\d.]+-")

examples = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The examples were written where local time is UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def page_of(folder: Path, language: str) -> Path:
    """An example's one page in a language."""
    (page,) = (folder / language).glob("*.md")
    return page


@examples
def test_an_example_is_what_its_record_renders_to(folder: Path, tmp_path: Path) -> None:
    """Every byte of both pages; each of their pictures is there."""
    for made, language in zip(write(folder / "runs", tmp_path), LANGUAGES, strict=True):
        kept = page_of(folder, language)
        assert kept.read_bytes() == made.read_bytes(), "write the examples again: python tools/examples.py"
        pictures = re.findall(r"\]\((figures/[^)]+)\)", kept.read_text(encoding="utf-8"))
        assert len(pictures) >= (2 if folder in ON_A_CARD else 1)
        assert {unquote(picture) for picture in pictures} == {
            f"figures/{file.name}" for file in (kept.parent / "figures").iterdir()
        }
        assert not any(block.is_edited for block in blocks_in(kept.read_bytes()))


@examples
def test_no_message_of_an_example_is_left_in_the_other_language(folder: Path) -> None:
    """No Japanese in the English page, no English sentence in the other, whose headings all have some; tables match."""
    english, japanese = (page_of(folder, language).read_text(encoding="utf-8") for language in ("en", "ja"))
    assert JAPANESE.findall(english) == []
    told = re.sub(r"(?s)^(`{3,}).*?^\1|`[^`\n]*`|<code>.*?</code>|<!--.*?-->", "", japanese, flags=re.M)
    assert [line for line in told.splitlines() if ENGLISH_SENTENCE.search(line)] == []
    headings, theirs = (re.findall(r"^#+ (.+)$", text, re.M) for text in (english, japanese))
    assert len(headings) == len(theirs) > 10
    assert [heading for heading in theirs if not JAPANESE.search(heading)] == []
    for text in (english, japanese):
        assert "not computed" not in text
        assert "計算できません" not in text
    assert len(re.findall(r"^\|", english, re.M)) == len(re.findall(r"^\|", japanese, re.M))


@examples
def test_an_example_gives_nobody_away(folder: Path) -> None:
    """No home, token or serial number of the machine that it was made on, and nothing but what a report needs."""
    files = [path for path in (folder / "runs").rglob("*") if path.is_file()]
    assert {path.name for path in files} - {"lock", "record.json", "vram.txt"} == {"events.jsonl"}
    for path in files:
        assert MADE_HERE.findall(path.read_text(encoding="utf-8")) == [], path


def test_a_record_is_taken_masked(tmp_path: Path) -> None:
    """Its journal and memory samples alone, with neither serial number nor branch; it may be taken again."""
    given = record_folders(FOLDERS[0] / "runs")[0]
    source = tmp_path / given.name
    (source / "H-2-1").mkdir(parents=True)
    journal = (given / "events.jsonl").read_text(encoding="utf-8")
    journal = journal.replace("GPU-00000000-0000-0000-0000-000000000000", "GPU-8912d640-82a1-c508-b441-02b46d3e5116")
    (source / "events.jsonl").write_text(journal.replace('"branch": null', '"branch": "secret"'), encoding="utf-8")
    (source / "H-2-1" / "vram.txt").write_text("0 1\n")
    (source / "H-2-1" / "output.log").write_text("hf_secret\n")
    for _ in range(2):
        taken = take(source, "new", tmp_path / "examples")
    kept = sorted(path.relative_to(taken).as_posix() for path in taken.rglob("*.*"))
    assert kept == ["H-2-1/vram.txt", "events.jsonl"]
    assert (taken / "events.jsonl").read_text(encoding="utf-8") == (given / "events.jsonl").read_text(encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"no events\.jsonl"):
        take(tmp_path, "new", tmp_path / "examples")


@pytest.mark.parametrize("folder", ON_A_CARD, ids=lambda folder: folder.name)
def test_no_prediction_excludes_what_was_measured(folder: Path) -> None:
    """Of any attempt that ended well, nor of the production run where the record trained it."""
    record = read_record(record_folders(folder / "runs")[0])
    attempts = [attempt for stage in record.results.values() for attempt in stage.attempts]
    assert [f"{a.stage} {a.number}" for a in attempts if outside_prediction(a)] == []
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
@examples
def test_no_words_of_a_picture_overlap(folder: Path, language: Language) -> None:
    """In each picture of each example, in both languages; every attempt of H-2 has its number."""
    runs = record_folders(folder / "runs")[0]
    record = read_record(runs)
    samples = [VramSample(moment, used) for moment, used in read_samples(runs)]
    with speaking(language):
        drawn = draw(record, samples)
    assert set(drawn) == ({"loss", "vram"} if folder in ON_A_CARD else {"loss"})
    for svg in drawn.values():
        found = boxes(svg)
        assert found
        assert [(one.words, other.words) for one, other in combinations(found, 2) if one.overlaps(other)] == []
    h2 = record.stages[StageId.H2]
    count = len((*h2.attempts, *h2.deep_attempts, *h2.calibration_attempts))
    if folder in ON_A_CARD:
        assert len(set(re.findall(r"H-2 #\d+|(?<=>)#\d+", drawn["vram"]))) == count


def test_there_are_examples() -> None:
    """An OOM walked down, the production model in a small memory, a real model, and TRL with lm_eval."""
    assert [folder.name for folder in FOLDERS] == ["oom-walked-down", "qwen3-8b-on-10gb", "smollm2", "trl"]
    assert [folder.name for folder in ON_A_CARD] == ["oom-walked-down", "qwen3-8b-on-10gb", "smollm2"]
