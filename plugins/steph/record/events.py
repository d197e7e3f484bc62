"""The journal's events: each is one line of `events.jsonl`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from steph.base.messages import Message
from steph.base.terms import AnyStage, StageId, Verdict
from steph.base.values import Value
from steph.record.values import RECORD_VERSION, Attempt, Candidate, Check, Context, DataFile, ModelChoice, SkippedRung


class RecordOpened(Value):
    """First line of every journal."""

    event: Literal["record_opened"] = "record_opened"
    at: str
    id: str
    context: Context
    version: int = RECORD_VERSION


class SessionStarted(Value):
    """A pytest run begins to write into this record."""

    event: Literal["session_started"] = "session_started"
    at: str
    command: tuple[str, ...]
    stages: tuple[AnyStage, ...]
    pipeline_dirty: bool | None = None
    report_name: str | None = None


class DataRead(Value):
    """The input files of this record, replacing what was known before."""

    event: Literal["data_read"] = "data_read"
    at: str
    data: tuple[DataFile, ...]


class StageStarted(Value):
    """A stage is in flight from here to its StageEnded; what an earlier run of it said is replaced."""

    event: Literal["stage_started"] = "stage_started"
    at: str
    stage: AnyStage


class ModelChosen(Value):
    """The model that the stages of this record use."""

    event: Literal["model_chosen"] = "model_chosen"
    at: str
    stage: AnyStage
    model: ModelChoice


class CandidatesPredicted(Value):
    """The models that H-1 could choose, each with its predicted peak."""

    event: Literal["candidates_predicted"] = "candidates_predicted"
    at: str
    stage: StageId
    candidates: tuple[Candidate, ...]


class AttemptStarted(Value):
    """A child process is in flight from here to its AttemptEnded."""

    event: Literal["attempt_started"] = "attempt_started"
    at: str
    attempt: Attempt


class AttemptEnded(Value):
    """The same attempt, complete."""

    event: Literal["attempt_ended"] = "attempt_ended"
    at: str
    attempt: Attempt


class RungSkipped(Value):
    """A rung of the ladder was not tried."""

    event: Literal["rung_skipped"] = "rung_skipped"
    at: str
    stage: AnyStage
    skipped: SkippedRung


class StageEnded(Value):
    """The stage's verdict, with the checks it stands on."""

    event: Literal["stage_ended"] = "stage_ended"
    at: str
    stage: AnyStage
    verdict: Verdict
    explanation: Message
    seconds: float
    checks: tuple[Check, ...] = ()
    given_up: tuple[Message, ...] = ()


class ChecksAdded(Value):
    """What was found of a stage beside the checks that its verdict stands on, also after its end."""

    event: Literal["checks_added"] = "checks_added"
    at: str
    stage: AnyStage
    checks: tuple[Check, ...]


class CrashFound(Value):
    """A stage in flight was found with nobody running it; `last_lines` are what its child printed last."""

    event: Literal["crash_found"] = "crash_found"
    at: str
    stage: AnyStage
    last_lines: tuple[str, ...] = ()


class SessionEnded(Value):
    """The pytest run ended by itself."""

    event: Literal["session_ended"] = "session_ended"
    at: str
    exit_status: int


InsideStage = ModelChosen | CandidatesPredicted | AttemptStarted | AttemptEnded | RungSkipped | ChecksAdded | CrashFound
Event = RecordOpened | SessionStarted | DataRead | StageStarted | InsideStage | StageEnded | SessionEnded
EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])
