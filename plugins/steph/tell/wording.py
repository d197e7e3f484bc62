"""The words and figures of everything that people read: verdicts, causes, phases, sizes, times.

Pure functions from values to short strings, none of them Markdown.
"""

from __future__ import annotations

from datetime import datetime

from steph.base.messages import has_message, phrase, text
from steph.base.terms import (
    AnyStage,
    Cause,
    EndedBy,
    FitVerdict,
    Phase,
    RecordKind,
    Verdict,
)
from steph.record.values import Attempt, EvalOutcome


def stage_title(stage: AnyStage) -> str:
    """A stage in a word or two."""
    return text(f"report.stage.{stage}")


def fits_word(verdict: FitVerdict | None) -> str:
    """Whether a prediction fits a card, with its sign; a dash where nothing was predicted."""
    return text("report.fits.unknown") if verdict is None else text(f"report.fits.{verdict}")


def cause_name(cause: Cause) -> str:
    """A cause in a few words."""
    return text(f"diagnose.cause.{cause.value}.name")


def phase_name(phase: Phase) -> str:
    """How far a program had come, in a few words."""
    return text(f"diagnose.phase.{phase.value}")


def verdict_word(verdict: Verdict, kind: RecordKind) -> str:
    """Name a stage's verdict with its code; a rehearsal's never says that it passed."""
    own = f"report.rehearsed.{verdict}"
    word = text(own if kind is RecordKind.REHEARSAL and has_message(own) else f"report.verdict.{verdict}")
    return phrase("report.verdict_with_code", word=word, code=verdict.value)


def source_word(source: str) -> str:
    """Name where a model came from."""
    own = f"report.source.{source}"
    return text(own) if has_message(own) else source


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
    if attempt.ended_by is not EndedBy.EXIT:
        ended = text(f"report.end.{attempt.ended_by}")
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
