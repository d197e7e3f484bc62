"""The report in each language: no word of the other one in it, and people's notes outlive a change of language."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import record_factory as factory
from record_factory import render
from steph.base.messages import LANGUAGES, Language, say, speaking, text
from steph.base.terms import Cause, EndedBy, ExtendedId, Phase, RecordKind, Severity, StageId, Verdict
from steph.record.values import AnswerComparison, Check, Diagnosis, ModelChoice, PredictedPeak, Record, StageResult
from steph.run.journal import read_record, record_folders
from steph.tell import compare, keep
from steph.tell.report import parts, write_report

JAPANESE = re.compile("[\u3000-\u30ff\u4e00-\u9fff\uff01-\uff60]")
DURATION = re.compile(r"(約 )?[\d.]+ ?(秒|分|時間)")
EXAMPLES = Path(__file__).parents[2] / "reports" / "examples"


def without_japanese(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Give dumped data with a word in the place of every text that holds Japanese: what is kept as it was said."""
    if isinstance(value, dict):
        return {key: without_japanese(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_japanese(item) for item in value]
    return JAPANESE.sub("x", value) if isinstance(value, str) else value


def latin(record: Record) -> Record:
    """Give the record whose own texts have no Japanese, so that what is left in a report is the report's."""
    return Record.model_validate(without_japanese(record.model_dump(mode="json")))


def with_stage(record: Record, result: StageResult) -> Record:
    """Give the record with this stage's result."""
    if isinstance(result.stage, ExtendedId):
        return record.changed(extended={**record.extended, result.stage: result})
    return record.changed(stages={**record.stages, result.stage: result})


def verdicts() -> Iterator[Record]:
    """Every verdict of a stage, in acceptances and rehearsals, and what goes with it."""
    for record in (factory.green_acceptance(), factory.rehearsal()):
        h2 = record.stages[StageId.H2]
        yield with_stage(record, h2.changed(stale=True))
        yield record.changed(stages={}, sessions=())
        yield from (with_stage(record, h2.changed(verdict=verdict)) for verdict in Verdict)
        yield from (
            with_stage(record, h2.changed(checks=checks))
            for checks in (
                (Check(id="loss_finite", severity=severity, holds=holds, message=say("verdict.clean"), trap=2),) * 3
                for severity in Severity
                for holds in (False, None)
            )
        )


def ends() -> Iterator[Record]:
    """Every end of an attempt, every cause and phase, with and without a message."""
    green = factory.green_acceptance()
    h2 = green.stages[StageId.H2]
    (attempt,) = h2.attempts
    for cause in Cause:
        for phase in Phase:
            found = Diagnosis(cause=cause, phase=phase, rank=1, meaning=say("verdict.clean"), evidence=("line",))
            broken = attempt.changed(returncode=1, diagnosis=found)
            yield with_stage(green, h2.changed(attempts=(broken,), verdict=Verdict.FAIL))
    for ended_by in (None, *EndedBy):
        for returncode in (None, 0, 1, -9):
            broken = attempt.changed(ended_by=ended_by, returncode=returncode, diagnosis=None, predicted=None)
            yield with_stage(green, h2.changed(attempts=(broken, attempt), verdict=Verdict.FAIL))


def odds() -> Iterator[Record]:
    """Caps, slices, substitutes, extended stages, predictions, figures that are missing, checks ruled out."""
    green = factory.green_acceptance()
    card = green.context.environment.device
    assert card is not None
    h1, h2, h3 = (green.stages[stage] for stage in StageId)
    yield green.changed(context=green.context.changed(vram_cap_bytes=3 << 30))
    slices = green.context.environment.changed(is_wsl=True, device=card.changed(is_mig=True), further_devices=(card,))
    yield green.changed(context=green.context.changed(environment=slices), data=())
    choice: ModelChoice = factory.model_choice(source="cache", parameters=None, licence=None)
    yield with_stage(green, h1.changed(model=choice))
    yield from (with_stage(green, h1.changed(model=choice.changed(source=one))) for one in ("hub", "local", "twin"))
    compared = AnswerComparison(questions=3, same_responses=1, changed_answers=1, right_to_wrong=1, wrong_to_right=0)
    for stage in ExtendedId:
        base = h2 if stage in (ExtendedId.COT_TRAINING, ExtendedId.ONE_STEP) else h3
        (attempt,) = base.attempts
        if attempt.evaluation:
            attempt = attempt.changed(evaluation=attempt.evaluation.changed(with_adapter=compared))
        attempt = attempt.changed(stage=stage)
        yield with_stage(green, base.changed(stage=stage, attempts=(attempt,), verdict=Verdict.FAIL))
    (attempt,) = h2.attempts
    peak = PredictedPeak(peak_bytes=9 << 30, low_bytes=8 << 30, high_bytes=10 << 30)
    unmeasured = attempt.changed(number=2, device_peaks=(), argv=(), training=None, folder="")
    yield with_stage(green, h2.changed(attempts=(attempt.changed(predicted=peak), unmeasured)))
    ruled_out = Check(
        id="line_results", severity=Severity.INFO, holds=None, message=say("verdict.clean"), applies=False
    )
    yield with_stage(green, h2.changed(checks=(*h2.checks, ruled_out), calibration_attempts=h2.attempts))
    (attempt,) = h3.attempts
    assert attempt.evaluation is not None
    for changes in ({"score": 1.0}, {"score": 1.0, "total": None}, {"correct": None}, {"correct": 0, "total": 0}):
        outcome = attempt.evaluation.changed(**changes)
        yield with_stage(green, h3.changed(attempts=(attempt.changed(evaluation=outcome),)))


def recorded() -> Iterator[Record]:
    """The records of the examples: what real runs left."""
    return (read_record(record_folders(path)[0]) for path in sorted(EXAMPLES.glob("*/runs")))


def samples() -> Iterator[Record]:
    """The samples that other tests use."""
    return (sample() for sample in factory.ALL_SAMPLES)


@pytest.mark.parametrize("records", [samples, verdicts, ends, odds, recorded])
def test_an_english_report_has_no_japanese_of_its_own(records: Callable[[], Iterator[Record]]) -> None:
    """Nor has the list of records; nothing in it could not be computed."""
    for record in map(latin, records()):
        with speaking("en"):
            made = parts(record, figures={"loss": "loss.svg", "vram": "vram.svg"})
            page = "".join(part.text + part.notes for part in made)
            page += compare.listing_text(compare.listing_rows([(record, 100)]))
            failed = text("report.not_computed", values={"error": ""})
        assert [line for line in page.splitlines() if JAPANESE.search(DURATION.sub("", line))] == []
        assert failed not in page


def test_no_rehearsal_is_said_to_have_passed() -> None:
    """In English no more than in Japanese: neither in its headline nor beside its stages."""
    for record in verdicts():
        if record.context.kind is RecordKind.REHEARSAL:
            with speaking("en"):
                first_screen = parts(record)[0].text
            assert "assed" not in first_screen


@pytest.mark.parametrize("records", [samples, odds, recorded])
def test_english_table_headers_are_in_sentence_case(records: Callable[[], Iterator[Record]]) -> None:
    """Every header begins with a capital letter; `sha256` and the axes `seq \\ batch` are names."""
    headers = set()
    for record in records():
        with speaking("en"):
            page = render(record)
        for line in re.findall(r"^(\|.*)\n\|:?-", page, re.MULTILINE):
            headers |= {cell.strip() for cell in line.strip("|").split("|")}
    assert len(headers) > 20
    assert sorted(one for one in headers if one[:1].islower() and "\\" not in one) == ["sha256"]


@pytest.mark.parametrize("sample", factory.ALL_SAMPLES)
def test_both_languages_have_the_same_sections(sample: Callable[[], Record]) -> None:
    """The same headings of each level, tables, fences and folds, in the same order."""
    shapes = []
    for language in LANGUAGES:
        with speaking(language):
            page = render(sample())
        shapes.append(re.findall(r"^(#+ |\|[-:|]+\|$|```|<details>|</details>|> )", page, re.MULTILINE))
    assert shapes[0] == shapes[1]


def written(path: Path, language: Language, *records: Record) -> bytes:
    """Write the report of these records, one after the other, without pictures; give its bytes."""
    with speaking(language):
        for record in records:
            write_report(record, [], path, with_figures=False)
    return path.read_bytes()


@pytest.mark.parametrize(("first", "second"), [("ja", "en"), ("en", "ja")])
def test_notes_outlive_a_change_of_language_and_back(tmp_path: Path, first: Language, second: Language) -> None:
    """Each part is renewed in its place, every byte between the parts stays, and back again it is the same file."""
    path = tmp_path / "r.md"
    record = factory.walked_down()
    begun = written(path, first, factory.green_acceptance(), record)
    note = "メモ — note {x} \udce9\n".encode("utf-8", "surrogateescape")
    for block in keep.blocks_in(begun):
        begun = begun.replace(end := f"<!-- steph:end {block.id} 1 -->\n".encode(), end + note)
    path.write_bytes(begun)
    for language in (second, first, second):
        page = written(path, language, record)
        assert page.count(note) == len(keep.blocks_in(page)) == len(parts(record))
        assert not any(text("report.evacuated", one).encode() in page for one in LANGUAGES)
        assert page.count(f"| `{factory.green_acceptance().id}` |".encode()) == 1
        with speaking(language):
            assert f"## {text('report.h2.title')}\n".encode() in page
    assert written(path, first, record) == begun


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_a_person_edited_is_moved_out_in_any_language(tmp_path: Path, language: Language) -> None:
    """An edit made in the one language is kept when the page is made again in the other."""
    path = tmp_path / "r.md"
    (other,) = (one for one in LANGUAGES if one != language)
    edited = written(path, other, factory.walked_down()).replace(b"512/b2/4bit", b"512/b2/mine", 1)
    path.write_bytes(edited)
    page = written(path, language, factory.walked_down()).decode()
    assert page.count("512/b2/mine") == 1
    assert f"#### {text('report.evacuated', language)}\n" in page


@pytest.mark.parametrize(("first", "second"), [("ja", "en"), ("en", "ja")])
def test_an_invitation_to_write_is_in_the_language_of_the_page(
    tmp_path: Path, first: Language, second: Language
) -> None:
    """Each is translated with its part, with notes below it or none; one that a person changed is theirs."""
    path, record = tmp_path / "r.md", factory.green_acceptance()
    begun = written(path, first, record).decode()
    mine, changed = text("report.notes.h1", first), text("report.notes.h2", first)
    path.write_text(begun.replace(f"#### {mine}\n\n", f"#### {mine}\n\nthe fan\n").replace(changed, "H-2!"))
    page = written(path, second, record).decode()
    assert f"#### {text('report.notes.h1', second)}\n\nthe fan\n" in page
    assert page.count(text("report.notes.invitation", second)) == 7
    assert page.count(text("report.notes.invitation", first)) == 1
    assert "#### H-2!\n" in page
    assert page.count(text("report.notes.h3", second)) == 1
    assert text("report.notes.h3", first) not in page
