"""The journal: what was written is there after a crash, and the record is what the events say."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
import record_factory as factory
from hypothesis import given
from hypothesis import strategies as st
from steph.base.messages import Message, speaking, verbatim
from steph.base.terms import StageId, Verdict
from steph.record.events import AttemptEnded, AttemptStarted, RecordOpened, StageEnded, StageStarted, fold
from steph.record.values import Attempt, Probe, Record
from steph.run.journal import (
    EVENTS,
    Journal,
    JournalError,
    is_live,
    new_record_id,
    opened_event,
    read_events,
    read_record,
    readable_records,
    record_folders,
    settle_crash,
    stages_in_flight,
    write_record,
)

T = "2026-01-01T00:00:00.000+00:00"
OPENED = RecordOpened(at=T, id="r1", context=factory.context())
ATTEMPT = Attempt(stage=StageId.H2, number=1, label=verbatim("512/b2/4bit"), folder="H-2-1", started_at=T)


def _ended(stage: StageId, verdict: Verdict = Verdict.PASS) -> StageEnded:
    return StageEnded(at=T, stage=stage, verdict=verdict, explanation=verbatim("x"), seconds=1.0)


def _opened(folder: Path) -> Journal:
    journal = Journal(folder)
    journal.append(OPENED)
    return journal


def test_events_survive_without_a_close(tmp_path: Path) -> None:
    """What was appended is on the disk before append returns."""
    journal = _opened(tmp_path)
    journal.append(StageStarted(at=T, stage=StageId.H1))
    assert [event.event for event in read_events(tmp_path)] == ["record_opened", "stage_started"]


def test_a_killed_run_leaves_its_stage_crashed_with_its_last_lines(tmp_path: Path) -> None:
    """A stage without an end is CRASHED once nobody holds the journal, and its last lines are kept."""
    journal = _opened(tmp_path)
    journal.append(StageStarted(at=T, stage=StageId.H2))
    journal.append(AttemptStarted(at=T, attempt=ATTEMPT))
    assert read_record(tmp_path).verdict_of(StageId.H2) is Verdict.NOT_RUN
    journal.close()
    assert read_record(tmp_path).verdict_of(StageId.H2) is Verdict.CRASHED
    again = Journal(tmp_path)
    settle_crash(again, {StageId.H2: ("step 3/50",)})
    again.close()
    result = read_record(tmp_path).stages[StageId.H2]
    assert result.verdict is Verdict.CRASHED
    assert result.attempts[-1].last_lines == ("step 3/50",)


def test_a_torn_last_line_is_passed_over_and_the_next_event_is_whole(tmp_path: Path) -> None:
    """A power cut in mid-line costs that line alone."""
    _opened(tmp_path).close()
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(b'{"event": "stage_started", "at": "20')
    journal = Journal(tmp_path)
    journal.append(StageStarted(at=T, stage=StageId.H1))
    journal.close()
    assert [event.event for event in read_events(tmp_path)] == ["record_opened", "stage_started"]


def test_a_full_disk_gives_up_the_spare_room_before_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the disk full the event still fits, because the spare file makes room."""
    journal = _opened(tmp_path)
    spare = tmp_path / "spare"
    assert spare.stat().st_size > 0
    write = os.write

    def full_while_spare_is_there(file: int, data: bytes) -> int:
        if spare.exists():
            write(file, bytes(data)[:5])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(os, "write", full_while_spare_is_there)
    journal.append(StageStarted(at=T, stage=StageId.H1))
    monkeypatch.undo()
    assert [event.event for event in read_events(tmp_path)] == ["record_opened", "stage_started"]
    journal.close()
    assert (tmp_path / "record.json").exists()


def test_a_disk_that_stays_full_is_an_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any room left the error names the journal."""
    journal = _opened(tmp_path)

    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(JournalError, match=r"events\.jsonl: No space left"):
        journal.append(StageStarted(at=T, stage=StageId.H1))


def test_what_never_reached_the_disk_is_no_part_of_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PASS whose line could not be written is green neither here, nor in record.json, nor in the journal."""
    journal = _opened(tmp_path)
    journal.append(StageStarted(at=T, stage=StageId.H1))

    def broken(file: int, data: bytes) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", broken)
        with pytest.raises(JournalError):
            journal.append(_ended(StageId.H1))
    assert not journal.record().stages[StageId.H1].verdict.is_green
    journal.close()
    kept = Record.model_validate_json((tmp_path / "record.json").read_bytes())
    assert kept == read_record(tmp_path)
    assert not kept.stages[StageId.H1].verdict.is_green


def test_what_comes_after_a_torn_line_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line stayed on the full disk; once there is room again, the next event begins a line of its own."""
    journal = _opened(tmp_path)
    write = os.write

    def half(file: int, data: bytes) -> int:
        if len(data) > 20:
            write(file, bytes(data)[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", half)
        with pytest.raises(JournalError):
            journal.append(_ended(StageId.H1))
    journal.append(StageStarted(at=T, stage=StageId.H2))
    assert [event.event for event in read_events(tmp_path)] == ["record_opened", "stage_started"]
    assert list(read_events(tmp_path)) == journal.events


def test_an_event_is_flushed_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut after append costs nothing: the line is synced, whole."""
    journal = _opened(tmp_path)
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((tmp_path / EVENTS).read_bytes()))
    journal.append(StageStarted(at=T, stage=StageId.H1))
    assert synced == [(tmp_path / EVENTS).read_bytes()]
    assert synced[0].count(b"\n") == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_and_full_quota_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Both give up the spare room; where it is gone already, the next event is the same error again."""
    journal = _opened(tmp_path)

    def full(file: int, data: bytes) -> int:
        raise OSError(number, "full")

    monkeypatch.setattr(os, "write", full)
    for _ in range(2):
        with pytest.raises(JournalError, match=r"events\.jsonl: full"):
            journal.append(StageStarted(at=T, stage=StageId.H1))
        assert not (tmp_path / "spare").exists()


def test_a_broken_disk_keeps_the_spare_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that room does not cure names the journal and is tried once."""
    journal = _opened(tmp_path)
    tried: list[int] = []

    def broken(file: int, data: bytes) -> int:
        tried.append(file)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(JournalError, match=r"events\.jsonl: Input/output error"):
        journal.append(StageStarted(at=T, stage=StageId.H1))
    assert len(tried) == 1
    assert (tmp_path / "spare").exists()


def test_closing_gives_everything_back(tmp_path: Path) -> None:
    """After the end there is `record.json` and no spare file, no file is open, and nobody holds the record."""
    folder = tmp_path / "runs" / "r1"
    journal = _opened(folder)
    assert journal.record() == fold([OPENED], live=True)
    assert is_live(folder)
    journal.close()
    assert not is_live(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["events.jsonl", "lock", "record.json"]
    assert Record.model_validate_json((folder / "record.json").read_bytes()) == fold([OPENED])
    held = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not [path for path in held if path.is_relative_to(folder)]


def test_a_record_that_cannot_be_put_in_place_leaves_nothing_behind(tmp_path: Path) -> None:
    """`record.json` is replaced whole or not at all, and no half of it stays beside it."""
    record = fold([OPENED])
    write_record(tmp_path, record)
    write_record(tmp_path, record)
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
    (tmp_path / "taken" / "record.json").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        write_record(tmp_path / "taken", record)
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["record.json"]


def test_taking_a_sound_journal_changes_no_byte_of_it(tmp_path: Path) -> None:
    """Only a line that a crash has cut is ended."""
    _opened(tmp_path).close()
    before = (tmp_path / EVENTS).read_bytes()
    journal = Journal(tmp_path)
    assert journal.events == [OPENED]
    journal.close()
    assert (tmp_path / EVENTS).read_bytes() == before


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path: Path) -> None:
    """A file stands where the folder should be made."""
    (tmp_path / "runs").write_text("")
    with pytest.raises(JournalError, match=r"runs/r1: ここに記録を書けない: .*--steph-report"):
        Journal(tmp_path / "runs" / "r1")


def test_a_record_that_is_not_there_is_named(tmp_path: Path) -> None:
    """No journal: one line with its path, from the events and from the record, and nobody holds it."""
    for read in (read_record, lambda folder: list(read_events(folder))):
        with pytest.raises(JournalError, match=r"none/events\.jsonl: No such file"):
            read(tmp_path / "none")
    assert not is_live(tmp_path / "none")


def test_half_a_character_is_written_as_a_question_mark(tmp_path: Path) -> None:
    """What is no text can't stop the journal."""
    journal = _opened(tmp_path)
    journal.append(
        AttemptStarted(
            at=T, attempt=ATTEMPT.model_copy(update={"label": Message(id="verbatim", values={"text": "\ud83d"})})
        )
    )
    journal.close()
    (event,) = (event for event in read_events(tmp_path) if isinstance(event, AttemptStarted))
    assert str(event.attempt.label) == "?"


def test_a_new_records_first_event_has_its_id_and_context() -> None:
    """Ids sort by time, two of one second differ, and the times are UTC to the millisecond."""
    first, second = new_record_id(), new_record_id()
    assert first != second
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", first)
    opened = opened_event(first, OPENED.context)
    assert (opened.id, opened.context) == (first, OPENED.context)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", opened.at)


def test_records_are_found_oldest_first_and_those_that_cannot_be_read_left_out(tmp_path: Path) -> None:
    """A folder without a journal is no record, one with a broken journal is found and not read."""
    for name in ("b", "a", "broken"):
        _opened(tmp_path / name).close()
    (tmp_path / "broken" / EVENTS).write_text("garbage")
    (tmp_path / "c" / EVENTS).mkdir(parents=True)
    (tmp_path / "d").mkdir()
    assert record_folders(tmp_path) == [tmp_path / name for name in ("a", "b", "broken")]
    assert readable_records(tmp_path) == [(tmp_path / name, fold([OPENED])) for name in ("a", "b")]


def test_only_a_stage_without_an_end_is_in_flight() -> None:
    """A crash is stated of what was running, not of what had ended."""
    record = fold(
        [OPENED, StageStarted(at=T, stage=StageId.H1), _ended(StageId.H1), StageStarted(at=T, stage=StageId.H2)]
    )
    assert stages_in_flight(record) == [StageId.H2]


def test_two_writers_are_refused(tmp_path: Path) -> None:
    """A record has one conductor at a time."""
    journal = _opened(tmp_path)
    with pytest.raises(JournalError, match="ほかの実行"):
        Journal(tmp_path)
    journal.close()


def test_secrets_are_masked_in_every_string(tmp_path: Path) -> None:
    """A token in a child's last lines never reaches the journal."""
    token = "hf_" + "a1B2" * 9
    journal = _opened(tmp_path)
    lost = ATTEMPT.model_copy(update={"last_lines": (f"Authorization: Bearer {token}",)})
    journal.append(AttemptEnded(at=T, attempt=lost))
    journal.close()
    assert token.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())


def test_keys_are_cleaned_as_values_are(tmp_path: Path) -> None:
    """Half a character or a token that a probe's keys bring costs no record and is not told."""
    token = "hf_" + "a1B2" * 9
    journal = _opened(tmp_path)
    told = Probe(pid=1, packages={"torch\ud800": "2.13.0", token: "1.0"})
    journal.append(AttemptEnded(at=T, attempt=ATTEMPT.model_copy(update={"probes": (told,)})))
    known = list(journal.events)
    journal.close()
    assert list(read_events(tmp_path)) == known
    assert token.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())


@given(st.binary(max_size=200))
def test_garbage_lines_never_hide_good_ones(garbage: bytes) -> None:
    """Broken bytes between events cost nothing but themselves."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        line = OPENED.model_dump_json().encode()
        (folder / EVENTS).write_bytes(line + b"\n" + garbage + b"\n" + _ended(StageId.H1).model_dump_json().encode())
        assert read_record(folder).verdict_of(StageId.H1) is Verdict.PASS


def test_a_journal_without_a_beginning_is_an_error_that_names_it(tmp_path: Path) -> None:
    """A folder whose journal does not open a record can't be read, and says so."""
    (tmp_path / EVENTS).write_text("{}\n")
    with pytest.raises(JournalError, match=r"events\.jsonl"):
        read_record(tmp_path)


def test_a_record_of_a_newer_version_is_refused_by_name(tmp_path: Path) -> None:
    """A journal that a newer suite wrote is not half understood."""
    newer = OPENED.model_copy(update={"version": 99})
    (tmp_path / EVENTS).write_text(newer.model_dump_json() + "\n", encoding="utf-8")
    with speaking("en"), pytest.raises(JournalError, match="newer steph"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 3, "weather": "fine"}, "written by a newer steph (record version 3, this one knows 2)"),
        ({"context": None}, "its first line does not fit this steph: context: "),
    ],
)
def test_a_first_line_that_is_not_understood_is_no_missing_one(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    """New keys of a newer version and lost ones of a damaged record are told as what they are."""
    (tmp_path / EVENTS).write_text(json.dumps(OPENED.model_dump(mode="json") | change) + "\n")
    with speaking("en"), pytest.raises(JournalError, match=re.escape(f"{EVENTS}: {said}")):
        read_record(tmp_path)


def test_an_old_record_is_read_from_its_journal_once(tmp_path: Path) -> None:
    """A journal that did not change gives the record that is known already; one line more, and it is read again."""
    journal = _opened(tmp_path)
    journal.close()
    known = read_record(tmp_path)
    assert read_record(tmp_path) is known
    journal = Journal(tmp_path)
    journal.append(StageStarted(at=T, stage=StageId.H1))
    journal.close()
    assert read_record(tmp_path).verdict_of(StageId.H1) is Verdict.CRASHED
