"""The words and figures of everything that people read: verdicts, causes, phases, sizes, times.

Pure functions from values to short strings, none of them Markdown.
"""

from __future__ import annotations

from collections import UserDict
from datetime import datetime
from typing import TypeVar

from steph.base.messages import phrase, text
from steph.base.terms import (
    AnyStage,
    Cause,
    EndedBy,
    ExtendedId,
    FitVerdict,
    Phase,
    RecordKind,
    Severity,
    StageId,
    Verdict,
)
from steph.record.values import Attempt, EvalOutcome

K = TypeVar("K")


class Words(UserDict[K, str]):
    """Ids of messages by what they name; a look-up gives the words in the language in use."""

    def __getitem__(self, key: K) -> str:
        return text(self.data[key])


STAGE_TITLES: Words[AnyStage] = Words(
    {
        StageId.H1: "report.stage.h1",
        StageId.H2: "report.stage.h2",
        StageId.H3: "report.stage.h3",
        ExtendedId.COT_TRAINING: "report.stage.cot_training",
        ExtendedId.COT: "report.stage.cot",
        ExtendedId.RAG: "report.stage.rag",
        ExtendedId.BASE: "report.stage.base",
        ExtendedId.ONE_STEP: "report.stage.one_step",
        ExtendedId.HEART: "report.stage.heart",
    }
)

_ENDS: Words[EndedBy] = Words(
    {
        EndedBy.DEADLINE: "report.end.deadline",
        EndedBy.INTERRUPTED: "report.end.interrupted",
        EndedBy.SUPERVISOR_LOST: "report.end.supervisor_lost",
        EndedBy.SUITE_ERROR: "report.end.suite_error",
    }
)

CANDIDATES = Words(
    {
        "chosen": "report.candidate.chosen",
        "rejected": "report.candidate.rejected",
        "not_tried": "report.candidate.not_tried",
    }
)
FITS: Words[FitVerdict | None] = Words(
    {
        FitVerdict.FITS: "report.fits.fits",
        FitVerdict.DOES_NOT_FIT: "report.fits.does_not_fit",
        FitVerdict.TOO_CLOSE: "report.fits.too_close",
        None: "report.fits.unknown",
    }
)
SEVERITIES = Words(
    {
        Severity.FAIL: "report.severity.fail",
        Severity.WARN: "report.severity.warn",
        Severity.INFO: "report.severity.info",
    }
)
UNMEASURED = Words(
    {
        Severity.FAIL: "report.unmeasured.fail",
        Severity.WARN: "report.unmeasured.warn",
        Severity.INFO: "report.unmeasured.info",
    }
)

_VERDICTS = Words(
    {
        Verdict.PASS: "report.verdict.pass",
        Verdict.PASS_DEGRADED: "report.verdict.pass_degraded",
        Verdict.FAIL: "report.verdict.fail",
        Verdict.TIMEOUT: "report.verdict.timeout",
        Verdict.CRASHED: "report.verdict.crashed",
        Verdict.BLOCKED: "report.verdict.blocked",
        Verdict.NOT_RUN: "report.verdict.not_run",
    }
)
_REHEARSED = Words(
    {
        Verdict.PASS: "report.rehearsed.pass",
        Verdict.PASS_DEGRADED: "report.rehearsed.pass_degraded",
        Verdict.FAIL: "report.rehearsed.fail",
    }
)

_SOURCES = Words(
    {
        "hub": "report.source.hub",
        "cache": "report.source.cache",
        "local": "report.source.local",
        "twin": "report.source.twin",
    }
)


def cause_name(cause: Cause) -> str:
    """A cause in a few words."""
    return text(f"diagnose.cause.{cause.value}.name")


def phase_name(phase: Phase) -> str:
    """How far a program had come, in a few words."""
    return text(f"diagnose.phase.{phase.value}")


def verdict_word(verdict: Verdict, kind: RecordKind) -> str:
    """Name a stage's verdict with its code; a rehearsal's never says that it passed."""
    words = _REHEARSED if kind is RecordKind.REHEARSAL and verdict in _REHEARSED else _VERDICTS
    return phrase("report.verdict_with_code", word=words[verdict], code=verdict.value)


def source_word(source: str) -> str:
    """Name where a model came from."""
    return _SOURCES.get(source, source)


def seconds_between(start: str, end: str | None) -> float | None:
    """Give the seconds from one ISO 8601 time to another; None where one is missing or no time."""
    try:
        return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() if end else None
    except (ValueError, TypeError):
        return None


def parameters(count: int | None) -> str:
    """Give a parameter count as the size class that people name, the exact count behind it."""
    if count is None:
        return text("report.not_recorded")
    if count < 100_000:
        return f"{count:,}"
    return phrase("report.parameters", size=size_class(count), count=count)


def size_class(count: int | None) -> str:
    """Give a parameter count as a size class alone, as in 1.8B."""
    if count is None:
        return text("report.size_unknown")
    if count < 10_000:
        return f"{count:,}"
    return f"{count / 1e9:.1f}B" if count >= 50_000_000 else f"{count / 1e6:.2f}M"


def accuracy_words(correct: int | None, total: int | None) -> str:
    """Say an accuracy in words, as in `2 of 3 right`."""
    if correct is None or total is None:
        return text("report.unmeasured")
    if not total:
        return phrase("report.accuracy_of_none", correct=correct, total=total)
    return phrase("report.accuracy", correct=correct, total=total, share=correct / total)


def score_words(outcome: EvalOutcome) -> str:
    """Say what an evaluation came to: the right answers, or the score of a format that gives one."""
    if outcome.score is None:
        return accuracy_words(outcome.correct, outcome.total)
    metric = outcome.metric or text("report.score_name")
    if not outcome.total:
        return phrase("report.score", metric=metric, score=outcome.score)
    return phrase("report.score_of", metric=metric, score=outcome.score, total=outcome.total)


def outcome_words(attempt: Attempt) -> str:
    """Say how an attempt ended in the spec's words: success, OOM or another error."""
    if attempt.ended_well:
        return text("report.outcome.success")
    if attempt.ran_out_of_memory:
        return "OOM"
    cause = attempt.diagnosis.cause if attempt.diagnosis else Cause.NONE
    if cause is not Cause.NONE:
        if cause is Cause.OTHER:
            return text("report.outcome.other")
        return phrase("report.outcome.other_because", reason=cause_name(cause))
    if attempt.ended_by is None:
        return text("report.outcome.no_end")
    if attempt.ended_by in _ENDS:
        ended = _ENDS[attempt.ended_by]
    else:
        ended = text("report.end.undiagnosed") if attempt.returncode == 0 else exit_words(attempt.returncode)
    return phrase("report.outcome.other_because", reason=ended)


def exit_words(returncode: int | None) -> str:
    """Say an exit status; a negative one is the signal that ended the process."""
    if returncode is None:
        return text("report.exit.unknown")
    if returncode < 0:
        return phrase("report.exit.signal", signal=-returncode)
    return phrase("report.exit.code", code=returncode)
