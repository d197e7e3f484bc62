"""The decision that a record leads to, and its words: whether to rent a card, which, for how long, what first."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from steph.base import units
from steph.base.messages import NOTHING, Message, say, text, verbatim
from steph.plan.cards import CARDS
from steph.record.settings import ProductionTarget
from steph.record.values import PredictedPeak, Record
from steph.tell import summary
from steph.tell.advice import Advice
from steph.tell.markdown import Markdown, prose
from steph.tell.outlook import CardOutlook

SPARE_SHARE = 0.10  # of a card that is left free at the upper end of the peak's interval
WIDE = 1.5  # the upper end of an interval that asks for a reason, as a multiple of the peak


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
    sizes = _sizes(target, there) if there is not None else []
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


def _sizes(target: ProductionTarget, there: CardOutlook) -> list[Size]:
    """The card in all its sizes, smallest first; of a card that has but one, or is measured, that one alone."""
    line = target.card.split()[0]  # A100; of RTX each number is another card
    others = [Size(card.name, card.usable_bytes) for card in CARDS.values() if card.name.split()[0] == line]
    own = Size(target.card, there.usable_bytes)
    if line.isalpha() or not there.is_assumed or target.card_memory_gib is not None:
        return [own]
    return sorted({size.usable_bytes: size for size in (*others, own)}.values(), key=lambda size: size.usable_bytes)


def answers(record: Record, advice: Advice) -> tuple[Markdown, ...]:
    """Answer what a person who pays for the card asks: whether to rent, which card, how long, and what first."""
    decided = decide(advice)
    has_price = advice.time is not None and advice.time.price_per_hour is not None
    asked = {
        "rent": _rent_words(record, advice, decided),
        "card": _card_to_rent(advice, decided),
        "cost" if has_price else "time": _hours(advice, decided),
        "first": _first(record, advice, decided),
    }
    return tuple(Markdown(f"**{text(f'advice.ask.{name}')}** {prose(words)}") for name, words in asked.items() if words)


def _rent_words(record: Record, advice: Advice, decided: Decision) -> Message:
    target, named = advice.destination, decided.size
    return say(
        f"advice.rent.{decided.rent}",
        card=named.name if named else target.card,
        line=decided.line,
        model=target.model,
        findings=len(advice.mend_first),
        reasons=record.context.rehearsal_reasons or say("report.nothing_recorded"),
    )


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
    if time is None or time.total_seconds is None:
        return say("advice.hours.unmeasured")
    whole = units.about_duration(time.total_seconds)
    parts = [say("advice.hours.training", time=units.about_duration(time.training_seconds))]
    evaluation = "advice.hours.evaluation_at_most" if time.evaluation_is_most else "advice.hours.evaluation"
    parts.append(say(evaluation, time=units.about_duration(time.evaluation_seconds)))
    if time.download_seconds is not None:
        parts.insert(0, say("advice.hours.download", time=units.about_duration(time.download_seconds)))
    cost = NOTHING if time.cost is None else say("advice.hours.cost", cost=time.cost, currency=target.currency)
    card = decided.size.name if decided.size else target.card
    speed = say("advice.hours.here") if advice.is_production_card else say("advice.hours.elsewhere", card=card)
    return say("advice.hours", whole=whole, parts=parts, cost=cost, speed=speed)


def _first(record: Record, advice: Advice, decided: Decision) -> Message:
    if step := summary.next_step(record):
        return step
    for blocker in advice.blockers:
        return verbatim(blocker) if record.live else say("advice.first.rerun", why=blocker)
    for finding in advice.mend_first:
        return say("advice.first.finding", finding=finding)
    if decided.rent is Rent.REHEARSAL:
        return say("advice.first.accept")
    if decided.rent is Rent.NO_CARD and advice.outlook and not advice.outlook.calibration.is_described:
        return say("advice.first.name_trainer")
    if decided.rent in (Rent.NO_CARD, Rent.UNPREDICTED):
        return say(f"advice.first.{decided.rent}")
    return say("advice.first.paste")
