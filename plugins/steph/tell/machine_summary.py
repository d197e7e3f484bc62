"""`summary.json`: what a record came to, in a few stable keys for programs that read no Markdown.

Pure, except for `write_summary`. Sizes are bytes, durations seconds, times ISO 8601 in UTC; tools/schemas.py makes
docs/summary.schema.json of these values.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from pydantic import Field

from steph.base.messages import Message, Part, Value
from steph.base.terms import AnyStage, Cause, RecordKind, StageId, Verdict
from steph.base.text import redact_tree
from steph.base.units import highest
from steph.judge.verdict import Overall, in_flight, overall
from steph.record.values import Attempt, PredictedPeak, Record, StageResult
from steph.tell import keep
from steph.tell.advice import blockers
from steph.tell.outlook import Outlook

SUMMARY_VERSION = 1  # raised where a key goes or changes its meaning; a new key leaves it
ACCEPTANCE_SUMMARY = "summary.json"
REHEARSAL_SUMMARY = "summary-rehearsal.json"


class Explanation(Value):
    """Why something is as it is: the message's id and values, and its text in English."""

    id: str
    values: dict[str, Part]
    english: str


class StageFigures(Value):
    """The figures of the attempt that counts, each None where it was not; `attempts` counts all of the stage."""

    attempts: int = 0
    peak_device_bytes: int | None = None  # of the fullest card, of all processes, by NVML
    peak_own_bytes: int | None = None  # of the attempt alone: without what was there before, or others took
    peak_reserved_bytes: int | None = None  # by torch's allocator, of the fullest process
    peak_allocated_bytes: int | None = None
    tokens_per_second: float | None = None
    train_loss: float | None = None
    accuracy: float | None = None  # 0 to 1
    score: float | None = None  # of an evaluation that has no accuracy, as its results give it
    metric: str | None = None  # of `score`
    questions: int | None = None  # that were answered


class StageSummary(Value):
    """One stage; `explanation` is None where it has not run."""

    verdict: Verdict
    running: bool
    stale: bool  # built on a result that has been replaced since
    cause: Cause | None  # why the attempt that counts failed
    seconds: float | None
    explanation: Explanation | None
    figures: StageFigures


class Production(Value):
    """The run that H-4 advises on, and its predicted peak; `predicted` is None where nothing could be predicted."""

    model: str
    card: str
    ready: bool  # an acceptance whose stages are green and fresh; a rehearsal decides nothing
    predicted: PredictedPeak | None
    unpredicted_reason: Explanation | None  # why nothing could be, where that is known


class Paths(Value):
    """Where the rest is, absolute on the machine that wrote the summary."""

    report: str
    record: str
    pipeline_root: str


class Summary(Value):
    """The summary of one record; every key is always there."""

    schema_version: int = Field(default=SUMMARY_VERSION, serialization_alias="schema")
    record: str
    kind: RecordKind
    verdict: Overall
    profile: str
    model: str | None
    started_at: str | None
    ended_at: str | None  # None while a session is running, or where its end was lost
    exit_status: int | None
    stages: dict[AnyStage, StageSummary]  # H-1 to H-3 always, an extended one where it ran
    production: Production
    paths: Paths


def summary_of(record: Record, outlook: Outlook | None, *, report: Path, folder: Path) -> Summary:
    """Sum up a record whose Markdown is `report` and whose folder is `folder`."""

    def spelled(path: Path) -> str:  # in letters, also under a locale that has no Japanese ones
        return os.fsencode(path).decode("utf-8", "replace")

    first, last = (record.sessions[0], record.sessions[-1]) if record.sessions else (None, None)
    target = record.context.production
    try:
        is_ready = not blockers(record)
    except Exception:  # the report says in that part why it can't be computed
        is_ready = False
    predicted = outlook.prediction if outlook and is_ready else None
    why = outlook.unpredicted if outlook and predicted is None else None
    return Summary(
        record=record.id,
        kind=record.context.kind,
        verdict=overall(record),
        profile=record.context.profile,
        model=record.model.name if record.model else None,
        started_at=first.started_at if first else None,
        ended_at=last.ended_at if last else None,
        exit_status=last.exit_status if last else None,
        stages={stage: _stage(record, stage) for stage in (*StageId, *record.extended)},
        production=Production(
            model=target.model,
            card=target.card,
            ready=is_ready and record.context.kind is RecordKind.ACCEPTANCE,
            predicted=predicted,
            unpredicted_reason=_explanation(why) if why else None,
        ),
        paths=Paths(
            report=spelled(report.absolute()),
            record=spelled(folder.absolute()),
            pipeline_root=record.context.pipeline_root,
        ),
    )


def _stage(record: Record, stage: AnyStage) -> StageSummary:
    result = record.results.get(stage)
    last = result.last_attempt if result else None
    return StageSummary(
        verdict=record.verdict_of(stage),
        running=in_flight(record, stage),
        stale=result.stale if result else False,
        cause=last.diagnosis.cause if last and last.diagnosis else None,
        seconds=result.seconds if result else None,
        explanation=_explanation(result.explanation) if result and result.explanation else None,
        figures=_figures(result, last) if result and last else StageFigures(),
    )


def _explanation(message: Message) -> Explanation:
    return Explanation(id=message.id, values=message.values, english=message.text("en"))


def _figures(result: StageResult, attempt: Attempt) -> StageFigures:
    trained, evaluated = attempt.training, attempt.evaluation
    return StageFigures(
        attempts=len(result.attempts),
        peak_device_bytes=attempt.peak_device_bytes,
        peak_own_bytes=attempt.peak_own_bytes,
        peak_reserved_bytes=highest(probe.peak_reserved_bytes for probe in attempt.probes),
        peak_allocated_bytes=highest(probe.peak_allocated_bytes for probe in attempt.probes),
        tokens_per_second=trained.tokens_per_second if trained else None,
        train_loss=trained.train_loss if trained else None,
        accuracy=evaluated.accuracy if evaluated else None,
        score=evaluated.score if evaluated else None,
        metric=evaluated.metric if evaluated else None,
        questions=evaluated.total if evaluated else None,
    )


def write_summary(summary: Summary, reports_dir: Path) -> Path:
    """Replace the summary of its kind; raises OSError where that fails, and takes the one of before away."""
    name = REHEARSAL_SUMMARY if summary.kind is RecordKind.REHEARSAL else ACCEPTANCE_SUMMARY
    dumped = json.dumps(summary.model_dump(mode="json", by_alias=True))
    values = json.loads(dumped, parse_constant=lambda _: None)  # JSON has no NaN, which a loss may be
    text = json.dumps(redact_tree(values), indent=2) + "\n"
    try:
        return keep.renew(reports_dir / name, lambda _: text.encode())
    except OSError:
        with contextlib.suppress(OSError):
            (reports_dir / name).unlink()
        raise
