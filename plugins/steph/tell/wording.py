"""Short words for values: verdicts, causes, phases, counts, losses, how an attempt ended.

Pure functions from values to short strings, none of them Markdown.
"""

from __future__ import annotations

from datetime import datetime

from steph.base.messages import has_message, phrase, say, text
from steph.base.terms import AnyStage, Cause, EndedBy, ExtendedId, FitVerdict, Phase, RecordKind, Verdict
from steph.base.units import MISSING
from steph.record.settings import GitState
from steph.record.values import Attempt, Check, EvalOutcome, TrainOutcome


def stage_title(stage: AnyStage) -> str:
    """A stage in a word or two."""
    return text(f"report.stage.{stage}")


def stage_name(stage: AnyStage) -> str:
    """A stage's id and title; of an extended one also that it is."""
    title = stage_title(stage)
    return (
        phrase("report.stages.extended", stage=stage, title=title)
        if isinstance(stage, ExtendedId)
        else f"{stage} {title}"
    )


def short_name(model: str) -> str:
    """Give a model's id on the Hub as it is, and of a folder the last part alone."""
    return model.rstrip("/").rpartition("/")[2] if model.startswith(("/", "~", ".")) else model


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


def severity_word(check: Check) -> str:
    """Name how much a check that does not hold weighs, or that it could not be measured."""
    return text(f"report.unmeasured.{check.severity}" if check.holds is None else f"report.severity.{check.severity}")


def candidate_word(outcome: str) -> str:
    """Name what became of H-1's candidate."""
    return text(f"report.candidate.{outcome}")


def data_word(role: str) -> str:
    """Name what a data file is for."""
    return text(f"report.data.{role}")


def changes_word(state: GitState) -> str:
    """Name whether a clone is clean, or why that is not known."""
    if state.dirty is None:
        return text("report.git.no_git" if state.commit is None else "report.git.unknown")
    return text("report.git.dirty" if state.dirty else "report.git.clean")


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


def count_words(count: int | None) -> str:
    """Give a count with commas; a dash where it is unknown."""
    return MISSING if count is None else f"{count:,}"


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


def loss_words(outcome: TrainOutcome | None) -> str:
    """Say the loss: first and last logged value, and the Trainer's mean."""
    if outcome is None or (not outcome.losses and outcome.train_loss is None):
        return text("report.nothing_recorded")
    losses, mean = outcome.losses, outcome.train_loss
    parts = [say("report.loss.course", first=losses[0], last=losses[-1])] if losses else []
    if mean is not None:
        parts.append(say("report.loss.mean", mean=mean))
    return phrase("report.listed", parts=parts)


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


def ending(attempt: Attempt) -> str:
    """Say by what a failed attempt ended."""
    if attempt.ended_by not in (None, EndedBy.EXIT):
        return text(f"report.ending.{attempt.ended_by}")
    return text("report.ending.none") if attempt.returncode is None else exit_words(attempt.returncode)


def exit_words(returncode: int | None) -> str:
    """Say an exit status; a negative one is the signal that ended the process."""
    if returncode is None:
        return text("report.exit.unknown")
    if returncode < 0:
        return phrase("report.exit.signal", signal=-returncode)
    return phrase("report.exit.code", code=returncode)
