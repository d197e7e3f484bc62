"""H-4: what the three stages say about the production run on the rented card, computed from the record.

Takes a record and, where there is one, an outlook on memory; gives an `Advice`. Nothing in it is a fixed text where the
record has a measured value, and without green H-2 and H-3 it says what is missing instead of advising.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from steph.base import units
from steph.base.messages import phrase, say
from steph.base.terms import Cause, RecordKind, Severity, StageId
from steph.contract import production as contract
from steph.judge import verdict
from steph.record.settings import EvalSettings, ProductionTarget, TrainSettings
from steph.record.values import Attempt, PredictedPeak, ProductionCall, Record, StageResult
from steph.tell import production, summary, wording
from steph.tell.outlook import Outlook


class Reach(StrEnum):
    """How far 4-bit QLoRA training went on this machine."""

    NO_OOM = "no_oom"
    AVOIDED = "avoided"
    ALWAYS_OOM = "always_oom"
    WITHOUT_4BIT = "without_4bit"
    OTHER_FAILURE = "other_failure"
    NOT_RUN = "not_run"


@dataclass(frozen=True)
class Advice:
    """H-4 as values; `blockers` is empty exactly where it advises.

    `trained_here`: H-2's training where it was of the production model, or of a twin in its shape.
    """

    is_rehearsal: bool
    card: str
    model: str
    size: str
    reach: Reach
    reach_sentence: str
    attempts: tuple[str, ...]
    evaluation_sentence: str
    blockers: tuple[str, ...]
    mend_first: tuple[str, ...]
    destination: ProductionTarget
    carry_over: tuple[production.Setting, ...] = ()
    change: tuple[production.Change, ...] = ()
    here: TrainSettings | None = None
    target: TrainSettings | None = None
    train_call: ProductionCall | None = None
    eval_call: ProductionCall | None = None
    trained_here: Attempt | None = None
    outlook: Outlook | None = None
    time: production.ProductionTime | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the stages are green and fresh, so that there is something to carry over."""
        return not self.blockers

    @property
    def prediction(self) -> PredictedPeak | None:
        """The production run's peak on the rented card, at the settings that are advised."""
        return self.outlook.prediction if self.target is not None and self.outlook is not None else None

    @property
    def is_production_card(self) -> bool:
        """Whether the record was made on the card of the production run itself."""
        there = self.outlook.there if self.outlook else None
        return there is not None and not there.is_assumed


def advise(record: Record, outlook: Outlook | None = None) -> Advice:
    """Compute H-4; `outlook` says what the production model needs of memory."""
    h2, h3 = record.stages.get(StageId.H2), record.stages.get(StageId.H3)
    choice = record.model
    reach = _reach(h2)
    found = Advice(
        is_rehearsal=record.context.kind is RecordKind.REHEARSAL,
        card=_card_words(record),
        model=choice.name if choice else phrase("advice.undecided"),
        size=wording.parameters(choice.parameters) if choice else units.MISSING,
        reach=reach,
        reach_sentence=_reach_sentence(reach, h2, _card_words(record)),
        attempts=tuple(_attempt_words(a) for a in (h2.attempts if h2 else ())),
        evaluation_sentence=_evaluation_sentence(h3),
        blockers=blockers(record),
        mend_first=_mend_first(record),
        destination=record.context.production,
        outlook=outlook,
    )
    settings, evaluation = production.final_settings(h2), production.final_evaluation(h3)
    if found.blockers or settings is None or evaluation is None:
        return found
    return _with_settings(found, record, settings, evaluation)


def _with_settings(found: Advice, record: Record, settings: TrainSettings, evaluation: EvalSettings) -> Advice:
    wanted = record.context.production
    target, last = contract.target_settings(settings, wanted), record.stages[StageId.H2].last_attempt
    return replace(
        found,
        carry_over=production.carry_over(settings, target, evaluation),
        change=production.changes(record, settings, target, evaluation),
        here=settings,
        target=target,
        train_call=production.train_call(record, target),
        eval_call=production.eval_call(record, evaluation),
        trained_here=last if production.is_production_model(record.model, wanted) else None,
        time=production.production_time(record, target),
    )


def _attempt_words(attempt: Attempt) -> str:
    outcome = wording.outcome_words(attempt)
    return phrase("advice.attempt", number=attempt.number, label=attempt.label, outcome=outcome)


def _card_words(record: Record) -> str:
    card = record.context.environment.device
    if card is None:
        return phrase("advice.this_cpu")
    cap = record.context.vram_cap_bytes
    if cap:
        return phrase("advice.capped_card", card=card.name, size=units.gib(cap))
    return phrase("advice.card", card=card.name, size=units.gib(card.total_bytes))


def _reach(h2: StageResult | None) -> Reach:
    if h2 is None or not h2.attempts:
        return Reach.NOT_RUN
    ooms = summary.ran_out_of_memory(h2)
    if not h2.verdict.is_green:
        last = h2.attempts[-1].diagnosis
        return Reach.ALWAYS_OOM if last and last.cause is Cause.CUDA_OOM else Reach.OTHER_FAILURE
    settings = production.final_settings(h2)
    if settings and not settings.use_4bit:
        return Reach.WITHOUT_4BIT
    return Reach.AVOIDED if ooms else Reach.NO_OOM


def _reach_sentence(reach: Reach, h2: StageResult | None, card: str) -> str:
    if h2 is None or reach is Reach.NOT_RUN:
        return phrase("advice.reach.not_run")
    last = h2.attempts[-1]
    name = f"advice.reach.{reach}"
    if reach is Reach.NO_OOM and last.peak_device_bytes is None:
        name = "advice.reach.no_oom_unmeasured"
    elif reach is Reach.WITHOUT_4BIT and not any(_used_4bit(attempt) for attempt in h2.attempts):
        name = "advice.reach.only_without_4bit"
    elif reach is Reach.OTHER_FAILURE and last.ended_well:
        name = "advice.reach.checks_failed"
    return phrase(
        name,
        card=card,
        first=h2.attempts[0].label,
        last=last.label,
        count=len(h2.attempts),
        ooms=len(summary.ran_out_of_memory(h2)),
        outcome=wording.outcome_words(last),
    )


def _used_4bit(attempt: Attempt) -> bool:
    return isinstance(attempt.settings, TrainSettings) and attempt.settings.use_4bit


def _evaluation_sentence(h3: StageResult | None) -> str:
    attempt = h3.last_attempt if h3 else None
    if h3 is None or attempt is None:
        return phrase("advice.eval.not_run")
    if not h3.verdict.is_green:
        return phrase("advice.eval.failed", verdict=h3.verdict, why=h3.explanation)
    outcome, seconds = attempt.evaluation, units.duration(attempt.seconds)
    settings = attempt.settings if isinstance(attempt.settings, EvalSettings) else EvalSettings()
    mode = f"{'CoT' if settings.use_cot else 'direct'} / {'RAG' if settings.use_rag else 'no-RAG'}"
    score = wording.score_words(outcome) if outcome else phrase("advice.eval.no_result")
    if outcome and outcome.score is not None:  # of a program that has no such modes
        return phrase("advice.eval.scored", score=score, seconds=seconds)
    backend = (outcome.backend if outcome else None) or say("advice.eval.unknown_backend")
    return phrase("advice.eval.passed", mode=mode, score=score, seconds=seconds, backend=backend)


def blockers(record: Record) -> tuple[str, ...]:
    """Give the reasons why there is no advice yet; none where all three stages are green and fresh."""
    lines = []
    for stage in StageId:
        result = record.stages.get(stage)
        if verdict.in_flight(record, stage):
            lines.append(say("advice.block.running", stage=stage))
        elif result is None:
            lines.append(say("advice.block.not_run", stage=stage))
        elif not result.verdict.is_green:
            lines.append(say("advice.block.red", stage=stage, verdict=result.verdict, why=result.explanation))
        elif result.stale:
            lines.append(say("advice.block.stale", stage=stage))
        elif broken := verdict.contradiction(result):
            lines.append(say("advice.block.finding", stage=stage, finding=broken.message))
        elif stage is not StageId.H1 and (result.last_attempt is None or result.last_attempt.settings is None):
            lines.append(say("advice.block.no_settings", stage=stage))
    return tuple(map(str, lines))


def _mend_first(record: Record) -> tuple[str, ...]:
    return tuple(
        phrase("advice.finding", stage=stage, finding=check.message)
        for stage, result in sorted(record.stages.items())
        for check in result.findings
        if check.severity in (Severity.FAIL, Severity.WARN)
    )
