"""H-4: what the three stages say about the production run on the rented card, computed from the record.

Takes a record and, where there is one, an outlook on memory; gives an `Advice`, and from it the decision whether to
rent a card, which, for how long and what first. Nothing in it is a fixed text where the record has a measured value,
and without green H-2 and H-3 it says what is missing instead of advising.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from steph.base import units
from steph.base.messages import NOTHING, Message, phrase, say, text, verbatim
from steph.base.terms import Cause, EndedBy, RecordKind, Severity, StageId
from steph.contract.settings import CARDS
from steph.judge import verdict
from steph.record.settings import EvalSettings, ProductionTarget, TrainSettings
from steph.record.values import Attempt, PredictedPeak, ProductionCall, Record, StageResult
from steph.tell import production, wording
from steph.tell.markdown import Markdown, prose
from steph.tell.outlook import Outlook

SPARE_SHARE = 0.10  # of a card that is left free at the upper end of the peak's interval
WIDE = 1.5  # the upper end of an interval that asks for a reason, as a multiple of the peak


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
    how: str
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
    choice, wanted, card = record.model, record.context.production, _card_words(record)
    how = _how(h2)
    reach, reach_sentence = _reach(h2, card, how)
    found = Advice(
        is_rehearsal=record.context.kind is RecordKind.REHEARSAL,
        card=card,
        model=choice.name if choice else phrase("advice.undecided"),
        size=wording.parameters(choice.parameters) if choice else units.MISSING,
        reach=reach,
        reach_sentence=reach_sentence,
        how=text(f"advice.how.{how}"),
        attempts=tuple(
            phrase("advice.attempt", number=one.number, label=one.label, outcome=wording.outcome_words(one))
            for one in (h2.attempts if h2 else ())
        ),
        evaluation_sentence=_evaluation_sentence(h3),
        blockers=blockers(record),
        mend_first=tuple(
            phrase("advice.finding", stage=stage, finding=check.message)
            for stage, result in sorted(record.stages.items())
            for check in result.findings
            if check.severity in (Severity.FAIL, Severity.WARN)
        ),
        destination=wanted,
        outlook=outlook,
    )
    settings, evaluation = production.final_settings(h2), production.final_evaluation(h3)
    if found.blockers or settings is None or evaluation is None:
        return found
    target, last = production.target_settings(record, settings), record.stages[StageId.H2].last_attempt
    return replace(
        found,
        carry_over=tuple(production.carry_over(record, settings, target, evaluation)),
        change=production.changes(record, settings, target, evaluation),
        here=settings,
        target=target,
        train_call=production.train_call(record, target),
        eval_call=production.eval_call(record, evaluation),
        trained_here=last if production.is_production_model(record.model, wanted) else None,
        time=production.production_time(record, target),
    )


def _card_words(record: Record) -> str:
    card, cap = record.context.environment.device, record.context.vram_cap_bytes
    if card is None:
        return phrase("advice.this_cpu")
    words = "advice.capped_card" if cap else "advice.card"
    return phrase(words, card=card.name, size=units.gib(cap or card.total_bytes))


def _how(h2: StageResult | None) -> Literal["four_bit", "plain"]:
    """Whether 4-bit is a word for this training at all: `plain` where no attempt had it and none can be told so."""
    if h2 is None or not h2.attempts or "use_4bit" in production.said_to(h2):
        return "four_bit"
    settings = (production.final_settings(h2), *(one.settings for one in h2.attempts))
    return "four_bit" if any(isinstance(one, TrainSettings) and one.use_4bit for one in settings) else "plain"


def _reach(h2: StageResult | None, card: str, how: Literal["four_bit", "plain"]) -> tuple[Reach, str]:
    """How far the training went, and the sentence that says so."""
    training = say(f"advice.how.{how}")
    if h2 is None or not h2.attempts:
        return Reach.NOT_RUN, phrase("advice.reach.not_run", how=training)
    ooms, last, settings = wording.ran_out_of_memory(h2), h2.attempts[-1], production.final_settings(h2)
    reach = Reach.AVOIDED if ooms else Reach.NO_OOM
    if not h2.verdict.is_green:
        is_oom = last.diagnosis is not None and last.diagnosis.cause is Cause.CUDA_OOM
        reach = Reach.ALWAYS_OOM if is_oom else Reach.OTHER_FAILURE
    elif settings and not settings.use_4bit and how == "four_bit":
        reach = Reach.WITHOUT_4BIT
    name = f"advice.reach.{reach}"
    used_4bit = any(isinstance(one.settings, TrainSettings) and one.settings.use_4bit for one in h2.attempts)
    if reach is Reach.NO_OOM and last.peak_device_bytes is None:
        name = "advice.reach.no_oom_unmeasured"
    elif reach is Reach.WITHOUT_4BIT and not used_4bit:
        name = "advice.reach.only_without_4bit"
    elif reach is Reach.OTHER_FAILURE and last.ended_well:
        name = "advice.reach.checks_failed"
    first, outcome = h2.attempts[0].label, wording.outcome_words(last)
    values = {"card": card, "first": first, "last": last.label, "outcome": outcome, "how": training}
    return reach, phrase(name, count=len(h2.attempts), ooms=len(ooms), **values)


def _evaluation_sentence(h3: StageResult | None) -> str:
    attempt = h3.last_attempt if h3 else None
    if h3 is None or attempt is None:
        return phrase("advice.eval.not_run")
    has_modes = "use_rag" in production.said_to(h3)
    if not h3.verdict.is_green:
        of = "advice.eval.failed" if has_modes else "advice.eval.failed_plain"
        return phrase(of, verdict=h3.verdict, why=h3.explanation)
    outcome, seconds = attempt.evaluation, units.duration(attempt.seconds)
    settings = attempt.settings if isinstance(attempt.settings, EvalSettings) else EvalSettings()
    mode = f"{'CoT' if settings.use_cot else 'direct'} / {'RAG' if settings.use_rag else 'no-RAG'}"
    score = wording.score_words(outcome) if outcome else phrase("advice.eval.no_result")
    if not has_modes:
        return phrase("advice.eval.scored", score=score, seconds=seconds)
    backend = (outcome.backend if outcome else None) or say("advice.eval.unknown_backend")
    return phrase("advice.eval.passed", mode=mode, score=score, seconds=seconds, backend=backend)


def blockers(record: Record) -> tuple[str, ...]:
    """The reasons why there is no advice yet; none where all three stages are green and fresh."""
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
        elif broken := verdict.failing_check_of_green_stage(result):
            lines.append(say("advice.block.finding", stage=stage, finding=broken.message))
        elif stage is not StageId.H1 and (result.last_attempt is None or result.last_attempt.settings is None):
            lines.append(say("advice.block.no_settings", stage=stage))
    return tuple(map(str, lines))


class Rent(StrEnum):
    """Whether to rent; each member is the end of its sentence's id."""

    YES = "yes"
    HERE = "here"  # this record was made on the card of the production run
    NO_CARD = "no_card"  # no size of that card holds the run with a tenth to spare
    UNPREDICTED = "unpredicted"
    MEND = "mend"  # the stages passed, with findings that a person should look at
    BLOCKED = "blocked"
    REHEARSAL = "rehearsal"  # which decides nothing


@dataclass(frozen=True)
class Size:
    """A card to rent: its name, and what a training process may take of it."""

    name: str
    usable_bytes: int

    def holds(self, peak: PredictedPeak) -> bool:
        """Whether a tenth is to spare at the upper end of the interval."""
        return peak.high_bytes <= (1 - SPARE_SHARE) * self.usable_bytes


@dataclass(frozen=True)
class Decision:
    """`size` is the smallest of the card's sizes that holds `peak`, None where none does or nothing is predicted.

    `line`: what the sizes are of, `A100` or the card itself. `is_larger`: whether it must be a larger one than the
    profile's.
    """

    rent: Rent
    peak: PredictedPeak | None
    size: Size | None
    line: str
    is_larger: bool = False


def decide(advice: Advice) -> Decision:
    """Decide by the stages, the findings, and the upper end of the production run's predicted peak."""
    there, peak, target = advice.outlook.there if advice.outlook else None, advice.prediction, advice.destination
    sizes = []
    if there is not None:
        sizes = [Size(target.card, there.usable_bytes)]
        line = target.card.split()[0]  # A100; of RTX each number is another card
        if there.is_assumed and target.card_memory_gib is None and not line.isalpha():
            of_line = (card for card in CARDS.values() if card.name.split()[0] == line)
            others = [Size(card.name, card.usable_bytes) for card in of_line]
            by_bytes = {size.usable_bytes: size for size in (*others, *sizes)}
            sizes = sorted(by_bytes.values(), key=lambda size: size.usable_bytes)
    size = next((size for size in sizes if peak is not None and size.holds(peak)), None)
    line = target.card.split()[0] if len(sizes) > 1 else target.card
    is_larger = size is not None and there is not None and size.usable_bytes > there.usable_bytes
    return Decision(_rent(advice, peak, size), peak, size, line, is_larger)


def _rent(advice: Advice, peak: PredictedPeak | None, size: Size | None) -> Rent:
    if advice.is_rehearsal:
        return Rent.REHEARSAL
    if advice.blockers:
        return Rent.BLOCKED
    if peak is None:
        return Rent.UNPREDICTED
    if size is None:
        return Rent.NO_CARD
    if advice.mend_first:
        return Rent.MEND
    return Rent.HERE if advice.is_production_card else Rent.YES


def answers(record: Record, advice: Advice) -> tuple[Markdown, ...]:
    """Answer what a person who pays for the card asks: whether to rent, which card, how long, and what first."""
    decided, target = decide(advice), advice.destination
    has_price = advice.time is not None and advice.time.price_per_hour is not None
    asked = {
        "rent": say(
            f"advice.rent.{decided.rent}",
            card=decided.size.name if decided.size else target.card,
            line=decided.line,
            model=target.model,
            findings=len(advice.mend_first),
            reasons=record.context.rehearsal_reasons or say("report.nothing_recorded"),
        ),
        "card": _card_to_rent(advice, decided),
        "cost" if has_price else "time": _hours(advice, decided),
        "first": _first(record, advice, decided),
    }
    return tuple(Markdown(f"**{text(f'advice.ask.{name}')}** {prose(words)}") for name, words in asked.items() if words)


def _card_to_rent(advice: Advice, decided: Decision) -> Message:
    """The smallest size of the card that holds the advised settings, and the peak that it has to hold."""
    peak, model = decided.peak, advice.destination.model
    if peak is None:
        return NOTHING
    peaks = {"peak": units.gib(peak.peak_bytes), "high": units.gib(peak.high_bytes)}
    need = say("advice.need.measured" if peak.is_measured else "advice.need.predicted", model=model, **peaks)
    if peak.high_bytes > WIDE * peak.peak_bytes:
        is_unnamed = advice.outlook is not None and not advice.outlook.calibration.is_described
        need = say("advice.need.wide_unnamed" if is_unnamed else "advice.need.wide", need=need)
    if decided.size is None:
        return say("advice.card_to_rent.none", need=need)
    size, asked = decided.size, advice.destination.card
    figures = {"card": size.name, "usable": units.gib(size.usable_bytes), "need": need}
    if decided.is_larger:
        return say("advice.card_to_rent.instead", asked=asked, **figures)
    return say("advice.card_to_rent", **figures)


def _hours(advice: Advice, decided: Decision) -> Message:
    """How long and for how much, as far as it was measured."""
    time, target = advice.time, advice.destination
    if advice.blockers:
        return NOTHING
    if time is not None and time.training_seconds is not None and not time.has_questions:
        return say("advice.hours.no_questions", training=units.about_duration(time.training_seconds))
    if time is None or time.total_seconds is None:
        return say("advice.hours.unmeasured")
    whole = units.about_duration(time.total_seconds)
    parts = [say("advice.hours.training", time=units.about_duration(time.training_seconds))]
    evaluation = "advice.hours.evaluation_at_most" if time.evaluation_is_most else "advice.hours.evaluation"
    parts.append(say(evaluation, time=units.about_duration(time.evaluation_seconds)))
    if time.download_seconds is not None:
        parts.insert(0, say("advice.hours.download", time=units.about_duration(time.download_seconds)))
    elif time.download_bytes:
        parts.append(say("advice.hours.no_download", size=units.gib(time.download_bytes)))
    cost = NOTHING if time.cost is None else say("advice.hours.cost", cost=time.cost, currency=target.currency)
    card = decided.size.name if decided.size else target.card
    speed = say("advice.hours.here") if advice.is_production_card else say("advice.hours.elsewhere", card=card)
    return say("advice.hours", whole=whole, parts=parts, cost=cost, speed=speed)


def _first(record: Record, advice: Advice, decided: Decision) -> Message:
    if step := wording.next_step(record):
        return step
    for stage in StageId:
        result = record.stages.get(stage)
        if result and not result.verdict.is_green:
            last = result.last_attempt
            if last and last.ended_by is EndedBy.INTERRUPTED and not record.live:
                return say("advice.first.interrupted", stage=stage)
            break
    for blocker in advice.blockers:
        return verbatim(blocker) if record.live else say("advice.first.rerun", why=blocker)
    for finding in advice.mend_first:
        return say("advice.first.finding", finding=finding)
    if decided.rent is Rent.REHEARSAL:
        return say("advice.first.accept")
    if decided.rent is Rent.NO_CARD and advice.target is not None and not advice.target.use_4bit:
        return say("advice.first.no_card_without_4bit", model=advice.destination.model)
    if decided.rent is Rent.NO_CARD and advice.outlook and not advice.outlook.calibration.is_described:
        return say("advice.first.name_trainer")
    if decided.rent in (Rent.NO_CARD, Rent.UNPREDICTED):
        return say(f"advice.first.{decided.rent}")
    return say("advice.first.paste")
