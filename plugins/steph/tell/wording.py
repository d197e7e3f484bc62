"""A record in words: short ones for its values, and the first screen, one verdict and a few sentences of what matters.

Pure functions from values to strings, none of them Markdown. They decide no stage's verdict, and never call a record
better than its worst stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from steph.base import units
from steph.base.messages import NOTHING, Message, has_message, phrase, say, text
from steph.base.terms import (
    AnyStage,
    Cause,
    EndedBy,
    ExtendedId,
    FitVerdict,
    RecordKind,
    Severity,
    StageId,
    Verdict,
)
from steph.base.units import MISSING
from steph.judge.verdict import failing_check_of_green_stage, in_flight, overall
from steph.record.settings import GitState
from steph.record.values import Attempt, EvalOutcome, Record, StageResult, TrainOutcome


def stage_name(stage: AnyStage) -> str:
    """A stage's id and title; of an extended one also that it is."""
    title = text(f"report.stage.{stage}")
    return (
        phrase("report.stages.extended", stage=stage, title=title)
        if isinstance(stage, ExtendedId)
        else f"{stage} {title}"
    )


def short_name(model: str) -> str:
    """A model's id on the Hub as it is, of a folder the last part alone."""
    return model.rstrip("/").rpartition("/")[2] if model.startswith(("/", "~", ".")) else model


def fits_word(verdict: FitVerdict | None) -> str:
    """Whether a prediction fits a card, with its sign; a dash where nothing was predicted."""
    return text("report.fits.unknown") if verdict is None else text(f"report.fits.{verdict}")


def cause_name(cause: Cause) -> str:
    """A cause in a few words."""
    return text(f"diagnose.cause.{cause.value}.name")


def changes_word(state: GitState) -> str:
    """Name whether a clone is clean, or why that is not known."""
    if state.dirty is None:
        return text("report.git.no_git" if state.commit is None else "report.git.unknown")
    return text("report.git.dirty" if state.dirty else "report.git.clean")


def seconds_between(start: str, end: str | None) -> float | None:
    """The seconds from one ISO 8601 time to another; None where one is missing or no time."""
    try:
        return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() if end else None
    except (ValueError, TypeError):
        return None


def count_words(count: int | None) -> str:
    """A count with commas; a dash where it is unknown."""
    return MISSING if count is None else f"{count:,}"


def parameters(count: int | None) -> str:
    """A parameter count as the size class that people name, the exact count behind it."""
    if count is None:
        return text("report.not_recorded")
    if count < 100_000:
        return f"{count:,}"
    return phrase("report.parameters", size=size_class(count), count=count)


def size_class(count: int | None) -> str:
    """A parameter count as a size class alone, as in 1.8B."""
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


MOST_SENTENCES = 4  # the fifth says whether to go on to the rented card
BRANCH_COMMAND = "git switch -c feature/steph-small-model-debug"


def headline(record: Record) -> str:
    """The verdict line; a rehearsal's says first that it is none."""
    if record.context.kind is RecordKind.REHEARSAL:
        return text(f"report.rehearsal_headline.{overall(record)}")
    return text(f"report.headline.{overall(record)}")


def stage_word(record: Record, stage: AnyStage) -> str:
    """Name a stage's state: running, its verdict with its code, and whether it is stale; no rehearsal ever passed."""
    if in_flight(record, stage):
        return text("report.state.running")
    result, verdict = record.results.get(stage), record.verdict_of(stage)
    own = f"report.rehearsed.{verdict}"
    is_own = record.context.kind is RecordKind.REHEARSAL and has_message(own)
    word = phrase("report.verdict_with_code", word=text(own if is_own else f"report.verdict.{verdict}"), code=verdict)
    if result and failing_check_of_green_stage(result):
        return phrase("report.state.contradiction", verdict=result.verdict.value)
    if result and result.earlier:
        before, started = stage_word(standing(record, stage)[0], stage), units.moment(result.earlier.started_at)
        return phrase("report.state.earlier", word=word, before=before, started=started)
    return phrase("report.state.stale", word=word) if result and result.stale else word


def standing(record: Record, stage: AnyStage) -> tuple[Record, StageResult | None]:
    """The record with what stood at a stage before, where the later result began nothing, and that result."""
    result = record.results.get(stage)
    if result is None or result.earlier is None or in_flight(record, stage):
        return record, result
    place = "stages" if isinstance(stage, StageId) else "extended"
    return record.changed(**{place: {**getattr(record, place), stage: result.earlier}}), result.earlier


def verdict_code(record: Record, stage: AnyStage) -> str:
    """A stage's verdict as its code alone, with a mark where it is stale."""
    result = record.results.get(stage)
    return record.verdict_of(stage).value + ("(stale)" if result and result.stale else "")


def capacity_bytes(record: Record) -> int | None:
    """The memory that the run could use: the cap where there is one, else the card's."""
    card = record.context.environment.device
    return record.context.vram_cap_bytes or (card.total_bytes if card else None)


def ceiling_bytes(record: Record) -> int | None:
    """The upper end of the whole card's used memory: under a cap, the cap above what was in use before the run."""
    card = record.context.environment.device
    cap = record.context.vram_cap_bytes
    return card.used_bytes + cap if card and cap is not None else capacity_bytes(record)


def card_words(record: Record) -> str:
    """Name the card with its memory, and the cap where there is one."""
    card = record.context.environment.device
    if card is None:
        return text("report.no_card")
    cap = record.context.vram_cap_bytes
    memory = units.gib(card.total_bytes)
    if not cap:
        return f"{card.name} {memory}"
    return phrase("report.card_capped", card=card.name, memory=memory, cap=units.gib(cap))


def peak_bytes(result: StageResult | None) -> int | None:
    """The whole card's peak of the attempt that counts, used memory by NVML."""
    attempt = result.last_attempt if result else None
    return attempt.peak_device_bytes if attempt else None


def ran_out_of_memory(result: StageResult | None) -> tuple[Attempt, ...]:
    """The attempts of a stage that ended in a CUDA OOM."""
    attempts = result.attempts if result else ()
    return tuple(a for a in attempts if a.ran_out_of_memory)


def packages(record: Record) -> list[tuple[str, str, str]]:
    """Each package's version in the pipeline's processes and in the suite's own, empty where it is not there."""

    def known(versions: Mapping[str, str]) -> dict[str, str]:  # pip and import lists spell names differently (PEP 503)
        return {name.lower().replace("_", "-"): version for name, version in versions.items()}

    loaded: dict[str, str] = {}
    for result in record.stages.values():
        for attempt in result.attempts:
            for probe in attempt.probes:
                loaded |= known(probe.packages)
    own = known(record.context.environment.packages)
    return [(name, loaded.get(name, ""), own.get(name, "")) for name in sorted(loaded.keys() | own.keys())]


def is_dirty_on_main(state: GitState) -> bool:
    """Whether uncommitted changes lie on the main branch itself."""
    return bool(state.dirty) and state.branch in ("main", "master")


def sentences(record: Record) -> tuple[str, ...]:
    """Up to four sentences for the first screen, most severe first; backticked words are code."""
    return tuple(str(sentence) for _, sentence in zip(range(MOST_SENTENCES), _all_sentences(record), strict=False))


def _all_sentences(record: Record) -> Iterator[Message]:
    yield from _of_broken_stages(record)
    yield from _of_findings(record.stages, Severity.FAIL)  # red extended stages have their own words
    for stage, result in record.extended.items():
        if not result.verdict.is_green and not in_flight(record, stage):
            shown = {"stage": stage, "title": text(f"report.stage.{stage}"), "verdict": result.verdict}
            yield say("report.first.extended", **shown, explanation=result.explanation)
    yield from _of_memory(record)
    choice, git = record.model, record.context.pipeline_git
    if choice and choice.automatic_substitute:
        yield say("report.first.substitute", model=choice.name, reason=choice.reason)
    elif choice and choice.source == "cache":
        yield say("report.first.cached", model=choice.name)
    yield from _of_findings(record.results, Severity.WARN)
    if is_dirty_on_main(git):
        yield say("report.first.dirty_main", branch=git.branch, command=BRANCH_COMMAND)
    if any(file.is_sample for file in record.data):
        yield say("report.first.sample_data")
    h3 = record.stages.get(StageId.H3)
    attempt = h3.last_attempt if h3 else None
    if h3 and h3.verdict.is_green and not h3.stale and attempt and attempt.evaluation:
        said = "report.first.evaluated_twin" if record.context.twin else "report.first.evaluated"
        yield say(said, score=score_words(attempt.evaluation))


def _of_broken_stages(record: Record) -> Iterator[Message]:
    for stage in StageId:
        result = record.stages.get(stage)
        if in_flight(record, stage):
            yield say("report.first.running", stage=stage)
        elif result is None:
            yield say("report.first.not_run", stage=stage, title=text(f"report.stage.{stage}"))
        elif not result.verdict.is_green:
            yield say("report.first.red", stage=stage, verdict=result.verdict, explanation=result.explanation)
        elif result.stale:
            yield say("report.first.stale", stage=stage)


def next_step(record: Record) -> Message:
    """Say the first piece of advice for the attempt that a red stage stands on; nothing where there is none."""
    for stage in StageId:
        result = record.stages.get(stage)
        attempt = result.last_attempt if result and not result.verdict.is_green else None
        if attempt and attempt.diagnosis and attempt.diagnosis.advice and not in_flight(record, stage):
            cause = cause_name(attempt.diagnosis.cause)
            return say("report.first.next_step", stage=stage, cause=cause, advice=attempt.diagnosis.advice[0])
    return NOTHING


def _of_findings(results: Mapping[Any, StageResult], severity: Severity) -> Iterator[Message]:
    """The first finding of this severity, and how many more there are."""
    found = [
        (stage, check) for stage, result in results.items() for check in result.findings if check.severity is severity
    ]
    if not found:
        return
    words = "report.first.critical" if severity is Severity.FAIL else "report.first.warning"
    if len(found) > 1:
        words = "report.first.critical_and_more" if severity is Severity.FAIL else "report.first.warning_and_more"
    (stage, first), more = found[0], len(found) - 1
    yield say(words, stage=stage, message=first.message, more=more)


def _of_memory(record: Record) -> Iterator[Message]:
    h2 = record.stages.get(StageId.H2)
    ooms = ran_out_of_memory(h2)
    if h2 and ooms and h2.verdict.is_green and h2.last_attempt:
        yield say("report.first.walked_down", ooms=len(ooms), first=ooms[0].label, last=h2.last_attempt.label)
    elif h2 and h2.verdict is Verdict.PASS_DEGRADED and h2.given_up:
        yield say("report.first.given_up", settings=h2.given_up)
    is_capped = record.context.vram_cap_bytes is not None
    last = h2.last_attempt if h2 else None
    # a capped card is fuller than the cap: what other processes and the driver hold is not the pipeline's
    peak = (last.peak_own_bytes if is_capped else last.peak_device_bytes) if last else None
    capacity = capacity_bytes(record)
    if h2 and h2.verdict.is_green and peak is not None and capacity:
        figures = {"peak": peak, "capacity": capacity, "left": max(capacity - peak, 0)}
        shown = {name: units.gib(size) for name, size in figures.items()}
        card = record.context.environment.device
        if card and is_capped:
            yield say("report.first.process_peak", before=units.gib(card.used_bytes), **shown)
        else:
            yield say("report.first.card_peak", **shown)
