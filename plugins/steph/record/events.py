"""The journal's events, each one line of `events.jsonl`, and their fold to the record that they add up to.

`fold` is pure, so that a record can be rebuilt from its events at any time, also after the process that wrote them was
killed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from steph.base.messages import Message, Value, say
from steph.base.terms import NEEDS, AnyStage, Purpose, StageId, Verdict
from steph.record.settings import Context, DataFile
from steph.record.values import (
    RECORD_VERSION,
    Attempt,
    Candidate,
    Check,
    ModelChoice,
    Record,
    Session,
    SkippedRung,
    StageResult,
)


class _Event(Value):
    at: str


class _OfStage(_Event):
    stage: AnyStage


class RecordOpened(_Event):
    """First line of every journal."""

    event: Literal["record_opened"] = "record_opened"
    id: str
    context: Context
    version: int = RECORD_VERSION


class SessionStarted(_Event):
    """A pytest run begins to write into this record."""

    event: Literal["session_started"] = "session_started"
    command: tuple[str, ...]
    stages: tuple[AnyStage, ...]
    pipeline_dirty: bool | None = None
    report_name: str | None = None


class DataRead(_Event):
    """The input files of this record, replacing what was known before."""

    event: Literal["data_read"] = "data_read"
    data: tuple[DataFile, ...]


class StageStarted(_OfStage):
    """A stage is in flight from here to its StageEnded; what an earlier run of it said is replaced."""

    event: Literal["stage_started"] = "stage_started"


class ModelChosen(_OfStage):
    """The model that the stages of this record use."""

    event: Literal["model_chosen"] = "model_chosen"
    model: ModelChoice


class CandidatesPredicted(_Event):
    """The models that H-1 could choose, each with its predicted peak."""

    event: Literal["candidates_predicted"] = "candidates_predicted"
    stage: StageId
    candidates: tuple[Candidate, ...]


class AttemptStarted(_Event):
    """A child process is in flight from here to its AttemptEnded."""

    event: Literal["attempt_started"] = "attempt_started"
    attempt: Attempt


class AttemptEnded(_Event):
    """The same attempt, complete."""

    event: Literal["attempt_ended"] = "attempt_ended"
    attempt: Attempt


class RungSkipped(_OfStage):
    """A rung of the ladder was not tried."""

    event: Literal["rung_skipped"] = "rung_skipped"
    skipped: SkippedRung


class StageEnded(_OfStage):
    """The stage's verdict, with the checks it stands on."""

    event: Literal["stage_ended"] = "stage_ended"
    verdict: Verdict
    explanation: Message
    seconds: float
    checks: tuple[Check, ...] = ()
    given_up: tuple[Message, ...] = ()


class ChecksAdded(_OfStage):
    """Further checks of a stage, on which its verdict does not stand; also after its end."""

    event: Literal["checks_added"] = "checks_added"
    checks: tuple[Check, ...]


class CrashFound(_OfStage):
    """A stage in flight was found with nobody running it; `last_lines` are what its child printed last."""

    event: Literal["crash_found"] = "crash_found"
    last_lines: tuple[str, ...] = ()


class SessionEnded(_Event):
    """The pytest run ended by itself."""

    event: Literal["session_ended"] = "session_ended"
    exit_status: int


OfAttempt = AttemptStarted | AttemptEnded
InsideStage = ModelChosen | CandidatesPredicted | OfAttempt | RungSkipped | ChecksAdded | StageEnded | CrashFound
Event = RecordOpened | SessionStarted | DataRead | StageStarted | InsideStage | SessionEnded
EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


_ATTEMPTS = {
    Purpose.STAGE: "attempts",
    Purpose.DEEP: "deep_attempts",
    Purpose.CALIBRATE: "calibration_attempts",
}
_BEGUN_NOTHING = (Verdict.BLOCKED, Verdict.NOT_RUN, Verdict.CRASHED)  # where there is no attempt
IN_FLIGHT = Message(id="verdict.in_flight")
LOST = Message(id="verdict.lost")


def fold(events: Iterable[Event], *, live: bool = False) -> Record:
    """Events to the record that they add up to.

    A stage without an end is CRASHED, or NOT_RUN while the conductor lives (`live`). Raises ValueError where the first
    event does not open a record.
    """
    stream = iter(events)
    opened = next(stream, None)
    if not isinstance(opened, RecordOpened):
        raise ValueError(say("record.no_beginning"))
    if opened.version > RECORD_VERSION:
        raise ValueError(newer_version(opened.version))
    record = Record(id=opened.id, context=opened.context, live=live)
    for event in stream:
        record = _apply(record, event, Verdict.NOT_RUN if live else Verdict.CRASHED)
    return record


def newer_version(version: int) -> Message:
    """The message about a record that this steph is too old for."""
    return say("record.newer", version=version, known=RECORD_VERSION)


def _apply(record: Record, event: Event, unfinished_verdict: Verdict) -> Record:
    match event:
        case RecordOpened():
            return record
        case SessionStarted(at=at, command=command, stages=stages, report_name=name):
            session, context = Session(started_at=at, command=command, stages=stages, report_name=name), record.context
            if event.pipeline_dirty:  # as soon as one session found it so
                context = context.changed(pipeline_git=context.pipeline_git.changed(dirty=True))
            return record.changed(sessions=(*record.sessions, session), context=context)
        case DataRead(data=data):
            return record.changed(data=data)
        case SessionEnded(at=at, exit_status=status):
            return _last_session(record, ended_at=at, exit_status=status)
        case StageStarted(stage=replaced, at=at):
            for stage, result in record.results.items():
                if replaced in NEEDS[stage]:
                    record = _stage(record, result.changed(stale=True))
            started = StageResult(stage=replaced, verdict=unfinished_verdict, explanation=IN_FLIGHT, started_at=at)
            known = record.results.get(replaced)
            before = (known.earlier or known) if known else None
            if before is not None and (before.attempts or before.verdict.is_green):
                started = started.changed(earlier=before)
            return _stage(record, started)
        case _:
            return _inside_stage(record, event)


def _inside_stage(record: Record, event: InsideStage) -> Record:
    stage = event.attempt.stage if isinstance(event, OfAttempt) else event.stage
    result = record.results.get(stage)
    if result is None:  # a torn journal lost the stage's beginning: what follows is still kept
        result = StageResult(stage=stage, verdict=Verdict.CRASHED, explanation=IN_FLIGHT, started_at=event.at)
    match event:
        case ModelChosen(model=model):
            return _stage(record, result.changed(model=model))
        case CandidatesPredicted(candidates=candidates):
            return _stage(record, result.changed(candidates=candidates))
        case AttemptStarted(attempt=attempt) | AttemptEnded(attempt=attempt):
            return _stage(record, _with_attempt(result, attempt))
        case RungSkipped(skipped=skipped):
            return _stage(record, result.changed(skipped_rungs=(*result.skipped_rungs, skipped)))
        case ChecksAdded(checks=checks):
            return _stage(record, result.changed(checks=(*result.checks, *checks)))
        case StageEnded(at=at):
            kept = {name: getattr(event, name) for name in ("verdict", "explanation", "seconds", "checks", "given_up")}
            earlier = result.earlier if event.verdict in _BEGUN_NOTHING else None
            result = result.changed(ended_at=at, earlier=earlier, **kept)
        case CrashFound(at=at, last_lines=lines):
            newest = result.newest_attempt
            told = _with_attempt(result, newest.changed(last_lines=lines)) if newest else result
            result = told.changed(verdict=Verdict.CRASHED, explanation=LOST, ended_at=at)
    verdicts = {**record.sessions[-1].verdicts, stage: result.verdict} if record.sessions else {}
    return _last_session(_stage(record, result), verdicts=verdicts)


def _with_attempt(result: StageResult, attempt: Attempt) -> StageResult:
    """The stage with this attempt in place of what was known of it, as its newest."""
    place = _ATTEMPTS[attempt.purpose]
    known: tuple[Attempt, ...] = getattr(result, place)
    attempts = (*(other for other in known if other.folder != attempt.folder), attempt)
    return result.changed(**{place: attempts, "earlier": None})


def _last_session(record: Record, **update: object) -> Record:
    if not record.sessions:
        return record
    return record.changed(sessions=(*record.sessions[:-1], record.sessions[-1].changed(**update)))


def _stage(record: Record, result: StageResult) -> Record:
    if isinstance(result.stage, StageId):
        return record.changed(stages={**record.stages, result.stage: result})
    return record.changed(extended={**record.extended, result.stage: result})
