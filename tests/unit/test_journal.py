"""The journal: what was written is there after a crash, and the record is what the events say."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import record_factory as factory
from hypothesis import given
from hypothesis import strategies as st
from steph.record import (
    Attempt,
    EndedBy,
    ModelChoice,
    StageId,
    Verdict,
)
from steph.run.events import (
    AttemptEnded,
    AttemptStarted,
    Event,
    ModelChosen,
    RecordOpened,
    SessionEnded,
    SessionStarted,
    StageEnded,
    StageStarted,
    fold,
)
from steph.run.journal import EVENTS, Journal, JournalError, read_events, read_record, settle_crash

T = "2026-01-01T00:00:00.000+00:00"
OPENED = RecordOpened(at=T, id="r1", context=factory.context())
ATTEMPT = Attempt(stage=StageId.H2, number=1, label="512/b2/4bit", folder="H-2-1", started_at=T)


def _ended(stage: StageId, verdict: Verdict = Verdict.PASS) -> StageEnded:
    return StageEnded(at=T, stage=stage, verdict=verdict, explanation="x", seconds=1.0)


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


def test_two_writers_are_refused(tmp_path: Path) -> None:
    """A record has one conductor at a time."""
    journal = _opened(tmp_path)
    with pytest.raises(JournalError, match="another run"):
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


def test_a_rerun_replaces_its_stage_and_marks_what_was_built_on_it() -> None:
    """A second H-2 replaces the first, keeps H-1, and H-3 is stale until it runs again."""
    events: list[Event] = [OPENED]
    for stage in StageId:
        events += [StageStarted(at=T, stage=stage), _ended(stage)]
    rerun: list[Event] = [StageStarted(at=T, stage=StageId.H2), _ended(StageId.H2, Verdict.FAIL)]
    record = fold([*events, *rerun])
    assert record.verdict_of(StageId.H2) is Verdict.FAIL
    assert (record.stages[StageId.H1].stale, record.stages[StageId.H3].stale) == (False, True)
    again = fold([*events, *rerun, StageStarted(at=T, stage=StageId.H3), _ended(StageId.H3)])
    assert again.stages[StageId.H3].stale is False


def test_an_attempts_end_replaces_its_start() -> None:
    """An attempt is in the record once, complete where it ended."""
    ended = ATTEMPT.model_copy(update={"ended_by": EndedBy.EXIT, "returncode": 0})
    events: list[Event] = [
        OPENED,
        StageStarted(at=T, stage=StageId.H2),
        ModelChosen(at=T, stage=StageId.H2, model=ModelChoice(name="m", source="local", reason="r")),
        AttemptStarted(at=T, attempt=ATTEMPT),
        AttemptEnded(at=T, attempt=ended),
    ]
    result = fold(events).stages[StageId.H2]
    assert result.attempts == (ended,)
    assert result.model is not None


def test_sessions_keep_their_own_verdicts() -> None:
    """Each session's row in the history says what it found, also after a later rerun."""
    first: list[Event] = [
        SessionStarted(at=T, command=("pytest",), stages=(StageId.H1,)),
        StageStarted(at=T, stage=StageId.H1),
    ]
    record = fold([OPENED, *first, _ended(StageId.H1, Verdict.FAIL), SessionEnded(at=T, exit_status=1)])
    record = fold(
        [
            OPENED,
            *first,
            _ended(StageId.H1, Verdict.FAIL),
            SessionEnded(at=T, exit_status=1),
            *first,
            _ended(StageId.H1),
        ]
    )
    assert [session.verdicts for session in record.sessions] == [
        {StageId.H1: Verdict.FAIL},
        {StageId.H1: Verdict.PASS},
    ]


EVENTS_ANY = st.one_of(
    st.builds(StageStarted, at=st.just(T), stage=st.sampled_from(StageId)),
    st.builds(_ended, st.sampled_from(StageId), st.sampled_from(Verdict)),
    st.just(AttemptStarted(at=T, attempt=ATTEMPT)),
    st.just(AttemptEnded(at=T, attempt=ATTEMPT)),
    st.just(SessionEnded(at=T, exit_status=0)),
    st.just(SessionStarted(at=T, command=(), stages=())),
)


@given(st.lists(EVENTS_ANY, max_size=12))
def test_any_order_of_events_folds_and_an_open_stage_is_never_green(events: list[Event]) -> None:
    """No sequence of events breaks the fold, and a stage whose last word is its start is not green."""
    record = fold([OPENED, *events])
    for stage in StageId:
        marks = [e for e in events if isinstance(e, StageStarted | StageEnded) and e.stage is stage]
        if marks and isinstance(marks[-1], StageStarted):
            assert not record.verdict_of(stage).is_green


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
    with pytest.raises(JournalError, match="newer steph"):
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
