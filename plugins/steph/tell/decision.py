"""Whether to rent a card, and which: the decision that a record leads to, as values. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from steph.plan.cards import CARDS
from steph.record.settings import ProductionTarget
from steph.record.values import PredictedPeak
from steph.tell.advice import Advice
from steph.tell.outlook import CardOutlook

SPARE_SHARE = 0.10  # of a card that is left free at the upper end of the peak's interval


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
