"""The fold: each event's facts are in the record, in their own place, and no other event touches them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import record_factory as factory
from hypothesis import given
from hypothesis import strategies as st
from steph.base.messages import say, speaking, verbatim
from steph.base.terms import AnyStage, EndedBy, ExtendedId, Severity, StageId, Verdict
from steph.record.events import (
    IN_FLIGHT,
    LOST,
    AttemptEnded,
    AttemptStarted,
    CandidatesPredicted,
    ChecksAdded,
    CrashFound,
    DataRead,
    Event,
    ModelChosen,
    RecordOpened,
    RungSkipped,
    SessionEnded,
    SessionStarted,
    StageEnded,
    StageStarted,
    fold,
)
from steph.record.settings import DataFile
from steph.record.values import RECORD_VERSION, Attempt, Candidate, Check, PredictedPeak, Record, Session, SkippedRung
from steph.run.journal import Journal, read_events, stages_in_flight

T = "2026-01-01T00:00:00.000+00:00"
LATER = "2026-01-01T01:00:00.000+00:00"
OPENED = RecordOpened(at=T, id="r1", context=factory.context())
MODEL = factory.model_choice()
CANDIDATE = Candidate(name="m", outcome="chosen", predicted=PredictedPeak(peak_bytes=5, low_bytes=4, high_bytes=6))
SKIPPED = SkippedRung(label=verbatim("384/b2/4bit"), reason=verbatim("理由"))
CHECK = Check(id="c", severity=Severity.FAIL, holds=True, message=verbatim("よい"))
H1, H2, H3 = StageId


def _attempt(number: int, **change: object) -> Attempt:
    fields = {"stage": H2, "number": number, "label": "512/b2/4bit", "folder": f"H-2-{number}", "started_at": T}
    return Attempt.model_validate(fields | change)


def _session(*stages: AnyStage, dirty: bool | None = None, command: str = "pytest") -> SessionStarted:
    return SessionStarted(at=T, command=(command,), stages=stages, pipeline_dirty=dirty)


def _ended(stage: AnyStage, verdict: Verdict = Verdict.PASS) -> StageEnded:
    return StageEnded(
        at=LATER,
        stage=stage,
        verdict=verdict,
        explanation=verbatim("問題なし"),
        seconds=2.5,
        checks=(CHECK,),
        given_up=(verbatim("a → b"),),
    )


STORY: list[Event] = [
    OPENED,
    _session(*StageId, ExtendedId.RAG),
    DataRead(at=T, data=factory.data()),
    StageStarted(at=T, stage=H1),
    CandidatesPredicted(at=T, stage=H1, candidates=(CANDIDATE,)),
    ModelChosen(at=T, stage=H1, model=MODEL),
    _ended(H1),
    StageStarted(at=T, stage=H2),
    RungSkipped(at=T, stage=H2, skipped=SKIPPED),
    AttemptStarted(at=T, attempt=_attempt(1)),
    AttemptEnded(at=T, attempt=_attempt(1, ended_by=EndedBy.EXIT, returncode=0)),
    _ended(H2, Verdict.PASS_DEGRADED),
    StageStarted(at=T, stage=H3),
    CrashFound(at=LATER, stage=H3, last_lines=("2/3",)),
    SessionEnded(at=LATER, exit_status=1),
]


def test_each_event_comes_back_from_the_journal_as_it_was_written(tmp_path: Path) -> None:
    """What is appended is what is read, whatever kind of event it is."""
    journal = Journal(tmp_path)
    for event in STORY:
        journal.append(event)
    journal.close()
    assert list(read_events(tmp_path)) == STORY
    assert journal.events == STORY


def test_a_stages_end_has_all_that_it_stands_on() -> None:
    """Verdict, sentence, time, checks and what was given up come with the end; what happened before it stays."""
    result = fold(STORY).stages[H2]
    assert (result.verdict, str(result.explanation)) == (Verdict.PASS_DEGRADED, "問題なし")
    assert (result.started_at, result.ended_at, result.seconds) == (T, LATER, 2.5)
    assert (result.checks, result.given_up) == ((CHECK,), (verbatim("a → b"),))
    assert result.attempts == (_attempt(1, ended_by=EndedBy.EXIT, returncode=0),)
    assert result.skipped_rungs == (SKIPPED,)


def test_h1_has_its_model_and_its_candidates() -> None:
    """Both are kept beside each other."""
    result = fold(STORY).stages[H1]
    assert (result.model, result.candidates) == (MODEL, (CANDIDATE,))


def test_the_session_says_what_it_found_and_how_it_ended() -> None:
    """Command, stages, one verdict a stage, the crash found in it too, end and exit status."""
    assert fold(STORY).sessions == (
        Session(
            started_at=T,
            command=("pytest",),
            stages=(*StageId, ExtendedId.RAG),
            ended_at=LATER,
            exit_status=1,
            verdicts={H1: Verdict.PASS, H2: Verdict.PASS_DEGRADED, H3: Verdict.CRASHED},
        ),
    )


def test_a_later_session_leaves_the_earlier_ones_as_they_are() -> None:
    """Of three sessions each keeps its command, its verdicts and its end."""
    events: list[Event] = [OPENED]
    for number, (stage, verdict) in enumerate(((H1, Verdict.FAIL), (H1, Verdict.PASS), (H2, Verdict.FAIL))):
        events += [_session(stage, command=f"run {number}"), StageStarted(at=T, stage=stage), _ended(stage, verdict)]
        events += [SessionEnded(at=LATER, exit_status=number)]
    sessions = fold(events).sessions
    assert [session.command for session in sessions] == [("run 0",), ("run 1",), ("run 2",)]
    assert [session.exit_status for session in sessions] == [0, 1, 2]
    assert [session.verdicts for session in sessions] == [
        {H1: Verdict.FAIL},
        {H1: Verdict.PASS},
        {H2: Verdict.FAIL},
    ]


def test_input_files_are_replaced_by_what_was_read_last() -> None:
    """A rerun on other data shows that data alone."""
    (new,) = (DataFile(role="dataset", path="q.json", sha256="c" * 64, rows=3),)
    assert fold(STORY).data == factory.data()
    assert fold([*STORY, DataRead(at=LATER, data=(new,))]).data == (new,)


@pytest.mark.parametrize(
    ("found", "dirty"), [([None], False), ([False], False), ([True], True), ([True, False], True), ([None, True], True)]
)
def test_a_pipeline_found_dirty_once_stays_dirty(found: list[bool | None], dirty: bool) -> None:
    """One session on changed code taints the record, and nothing else of its context changes."""
    record = fold([OPENED, *(_session(dirty=state) for state in found)])
    git = OPENED.context.pipeline_git
    assert record.context == OPENED.context.model_copy(update={"pipeline_git": git.model_copy(update={"dirty": dirty})})


def test_rungs_are_listed_in_the_order_in_which_they_were_skipped() -> None:
    """One does not replace the other."""
    second = SkippedRung(label=verbatim("256/b2/4bit"), reason=verbatim("理由"))
    skipped: list[Event] = [RungSkipped(at=T, stage=H2, skipped=rung) for rung in (SKIPPED, second)]
    assert fold([OPENED, StageStarted(at=T, stage=H2), *skipped]).stages[H2].skipped_rungs == (SKIPPED, second)


def test_attempts_stand_in_the_list_of_their_purpose() -> None:
    """Deep and calibration attempts are beside the stage's own, and each replaces only its own beginning."""
    first, second = _attempt(1), _attempt(2)
    deep, calibration = _attempt(3, purpose="deep"), _attempt(4, purpose="calibrate")
    started: list[Event] = [AttemptStarted(at=T, attempt=attempt) for attempt in (first, second, deep, calibration)]
    result = fold([OPENED, StageStarted(at=T, stage=H2), *started]).stages[H2]
    assert result.attempts == (first, second)
    assert (result.deep_attempts, result.calibration_attempts) == ((deep,), (calibration,))
    complete = first.model_copy(update={"returncode": 0})
    ended = fold([OPENED, StageStarted(at=T, stage=H2), *started, AttemptEnded(at=LATER, attempt=complete)]).stages[H2]
    assert ended.attempts == (second, complete)


def test_a_deep_attempt_of_an_older_record_is_read_as_it_was() -> None:
    """What version 0.1.0 added to an H-2 that had ended: its checks count, its last attempt was not in flight."""
    own, extra = _attempt(1).model_copy(update={"returncode": 0}), _attempt(2, purpose="deep")
    found = Check(id="loss_flag_works", severity=Severity.WARN, holds=False, message=verbatim(""))
    ended = Check(id="ok", severity=Severity.FAIL, holds=True, message=verbatim(""))
    record = fold(
        [
            OPENED,
            StageStarted(at=T, stage=H2),
            AttemptEnded(at=T, attempt=own),
            StageEnded(at=T, stage=H2, verdict=Verdict.PASS, explanation=verbatim(""), seconds=1, checks=(ended,)),
            ChecksAdded(at=T, stage=H2, checks=(found,)),
            AttemptStarted(at=T, attempt=extra),
        ]
    )
    h2 = record.stages[H2]
    assert (h2.verdict, h2.last_attempt, h2.checks) == (Verdict.PASS, own, (ended, found))
    assert h2.deep_attempts == (extra,)
    assert stages_in_flight(record) == []


def test_a_stage_without_an_end_is_crashed_or_running() -> None:
    """While the conductor lives it is not run yet; both say that the end is not known."""
    begun: list[Event] = [OPENED, StageStarted(at=T, stage=H2)]
    assert fold(begun) == fold(begun, live=False)
    for live, verdict in ((True, Verdict.NOT_RUN), (False, Verdict.CRASHED)):
        record = fold(begun, live=live)
        assert record.live is live
        result = record.stages[H2]
        assert (result.verdict, result.explanation, result.ended_at) == (verdict, IN_FLIGHT, None)


@pytest.mark.parametrize("has_attempt", [True, False])
def test_a_crash_that_was_found_ends_the_stage(has_attempt: bool) -> None:
    """CRASHED with its own sentence; the last lines go to the newest attempt where there is one."""
    attempts: list[Event] = [AttemptStarted(at=T, attempt=_attempt(n)) for n in (1, 2)] if has_attempt else []
    found = CrashFound(at=LATER, stage=H2, last_lines=("step 3/50",))
    result = fold([OPENED, StageStarted(at=T, stage=H2), *attempts, found], live=True).stages[H2]
    assert (result.verdict, result.explanation, result.ended_at) == (Verdict.CRASHED, LOST, LATER)
    assert [attempt.last_lines for attempt in result.attempts] == ([(), ("step 3/50",)] if has_attempt else [])


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


@pytest.mark.parametrize(
    ("later", "is_kept"),
    [
        ([_ended(H3, Verdict.BLOCKED)], True),
        ([_ended(H3, Verdict.CRASHED)], True),
        ([CrashFound(at=LATER, stage=H3)], True),
        ([_ended(H3, Verdict.BLOCKED), StageStarted(at=LATER, stage=H3), _ended(H3, Verdict.BLOCKED)], True),
        ([_ended(H3, Verdict.FAIL)], False),
        ([_ended(H3)], False),
        ([AttemptStarted(at=LATER, attempt=_attempt(2, stage=H3)), _ended(H3, Verdict.CRASHED)], False),
        ([_ended(H3, Verdict.BLOCKED), StageStarted(at=LATER, stage=H3), _ended(H3)], False),
    ],
)
def test_a_later_run_that_began_nothing_hides_no_result(later: list[Event], is_kept: bool) -> None:
    """The verdict is the later one's, never green by the result before it, which stays until a run begins."""
    first = _attempt(1, stage=H3)
    passed: list[Event] = [StageStarted(at=T, stage=H3), AttemptStarted(at=T, attempt=first), _ended(H3)]
    result = fold([OPENED, *passed, StageStarted(at=LATER, stage=H3), *later]).stages[H3]
    assert result.verdict.is_green is (later[-1] == _ended(H3))
    assert (result.earlier is not None) is is_kept
    if result.earlier is not None:
        assert (result.earlier.verdict, result.earlier.attempts, result.earlier.earlier) == (
            Verdict.PASS,
            (first,),
            None,
        )
    blocked: list[Event] = [StageStarted(at=T, stage=H3), _ended(H3, Verdict.BLOCKED)]
    assert fold([OPENED, *blocked, *blocked]).stages[H3].earlier is None


def test_extended_stages_stand_beside_the_three() -> None:
    """None of them is part of the acceptance, one does not replace the other, and H-2 anew makes them stale."""
    events: list[Event] = [*STORY]
    for stage in (ExtendedId.RAG, ExtendedId.BASE):
        events += [StageStarted(at=T, stage=stage), _ended(stage)]
    record = fold(events)
    assert set(record.stages) == set(StageId)
    assert {stage: result.verdict for stage, result in record.extended.items()} == {
        ExtendedId.RAG: Verdict.PASS,
        ExtendedId.BASE: Verdict.PASS,
    }
    again = fold([*events, StageStarted(at=LATER, stage=H2)])
    assert {stage for stage, result in again.results.items() if result.stale} == {H3, ExtendedId.RAG, ExtendedId.BASE}


def test_a_beginning_that_comes_again_changes_nothing() -> None:
    """Two journals joined by hand are still one record."""
    again = RecordOpened(at=LATER, id="r2", context=factory.rehearsal().context)
    assert fold([*STORY, again]) == fold(STORY)


def _lost(event: Event) -> Record:
    """A record of which a torn journal kept only this event of H-2."""
    return fold([OPENED, event], live=True)


def test_what_a_torn_journal_kept_of_a_stage_is_in_the_record() -> None:
    """An attempt or an end whose StageStarted is lost still counts, and such a stage is never called running."""
    begun = _lost(AttemptStarted(at=T, attempt=_attempt(1))).stages[H2]
    assert (begun.verdict, begun.explanation, begun.started_at) == (Verdict.CRASHED, IN_FLIGHT, T)
    assert begun.attempts == (_attempt(1),)
    ended = _lost(_ended(H2)).stages[H2]
    assert (ended.verdict, ended.started_at, ended.ended_at) == (Verdict.PASS, LATER, LATER)
    assert _lost(_ended(H2)).sessions == ()


EVENTS_ANY = st.one_of(
    st.builds(StageStarted, at=st.just(T), stage=st.sampled_from(StageId)),
    st.builds(_ended, st.sampled_from(StageId), st.sampled_from(Verdict)),
    st.just(AttemptStarted(at=T, attempt=_attempt(1))),
    st.just(AttemptEnded(at=T, attempt=_attempt(1))),
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


def test_what_is_said_of_a_stage_without_an_end_is_in_the_catalogs() -> None:
    """A running one, and one whose run was killed."""
    assert (say("verdict.in_flight"), say("verdict.lost")) == (IN_FLIGHT, LOST)


def test_a_session_keeps_the_name_of_its_report() -> None:
    """`steph report` finds the file again that was asked for by name."""
    record = fold([OPENED, SessionStarted(at=T, command=("pytest",), stages=(H1,), report_name="mine.md")])
    assert record.sessions[0].report_name == "mine.md"


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([], "the journal does not begin with record_opened"),
        ([StageStarted(at=T, stage=H1), OPENED], "the journal does not begin with record_opened"),
        (
            [OPENED.changed(version=RECORD_VERSION + 1)],
            f"written by a newer steph (record version {RECORD_VERSION + 1}, this one knows {RECORD_VERSION})",
        ),
    ],
)
def test_why_a_journal_is_not_read_is_said(events: list[Event], said: str) -> None:
    """Its first line is no beginning, or of a release that is not here yet."""
    with speaking("en"), pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        fold(events)
