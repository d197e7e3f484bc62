"""How H-4 is shown: its tables and sentences.

Takes an `Advice`, gives Markdown; computes nothing.
"""

from __future__ import annotations

from steph.base import units
from steph.base.messages import NOTHING, Message, say, text
from steph.base.terms import FitVerdict
from steph.plan.cards import CARDS
from steph.record.settings import ProductionTarget
from steph.record.values import ProductionCall
from steph.tell.advice import Advice
from steph.tell.commands import production_command
from steph.tell.markdown import Markdown, code, fence, inline, joined, prose, table
from steph.tell.production import ProductionTime

SPARE_SHARE = 0.10  # of a card that is left free at the predicted peak


def decision(advice: Advice) -> tuple[str, ...]:
    """Say whether to rent, which card, for how long, for how much, and what comes first; nothing in a rehearsal."""
    if advice.is_rehearsal:
        return ()
    first = (*advice.blockers, *advice.mend_first)[:1]
    found = (_card_to_rent(advice), _hours(advice), *(say("advice.go.first", what=what) for what in first))
    return (go_sentence(advice), *(str(words) for words in found if words))


def _card_to_rent(advice: Advice) -> Message:
    """The smallest size of that card that holds the advised settings with a tenth to spare."""
    peak = advice.prediction
    line = advice.destination.card.split()[0]  # A100; of RTX each number is another card
    sizes = [card for card in CARDS.values() if card.name.split()[0] == line and not line.isalpha()]
    if peak is None or not sizes:
        return NOTHING
    cards = sorted(sizes, key=lambda card: card.usable_bytes)
    fitting = [card for card in cards if peak.peak_bytes <= (1 - SPARE_SHARE) * card.usable_bytes]
    model, predicted = advice.destination.model, units.gib(peak.peak_bytes)
    if not fitting:
        return say("advice.go.no_card", line=line, model=model, peak=predicted)
    size = units.gib(fitting[0].usable_bytes)
    return say("advice.go.card", card=fitting[0].name, usable=size, model=model, peak=predicted)


def _hours(advice: Advice) -> Message:
    """How long and for how much, as far as it was measured."""
    time = advice.time
    if time is None or time.training_seconds is None or time.evaluation_seconds is None:
        return NOTHING
    seconds = time.training_seconds + time.evaluation_seconds
    if time.cost is None:
        return say("advice.go.hours", time=units.about_duration(seconds))
    currency = advice.destination.currency
    return say("advice.go.cost", time=units.about_duration(seconds), cost=time.cost, currency=currency)


def go_sentence(advice: Advice) -> str:
    """Say in one sentence whether to go on to the rented card."""
    if advice.blockers:
        return str(say("advice.go.blocked", card=advice.destination.card))
    if advice.mend_first:
        return str(say("advice.go.mend", card=advice.destination.card, findings=len(advice.mend_first)))
    ready = say("advice.go.there" if advice.is_production_card else "advice.go.ready", card=advice.destination.card)
    return str(say("advice.go.with_memory", ready=ready, memory=_memory_sentence(advice)))


def _memory_sentence(advice: Advice) -> Message:
    """What of memory belongs on the first screen: a run that does not surely fit, or that fits here already."""
    if advice.prediction is None or advice.outlook is None or advice.target is None:
        return say("advice.memory.unpredicted")
    if advice.prediction.verdict is not FitVerdict.FITS:
        is_over = advice.prediction.verdict is FitVerdict.DOES_NOT_FIT
        return say("advice.memory.does_not_fit" if is_over else "advice.memory.too_close")
    here, wanted = advice.outlook.here, (advice.target.batch_size, advice.target.max_seq_length)
    fits_here = here is not None and here.grid[wanted].verdict is FitVerdict.FITS
    if advice.trained_here:
        return say("advice.memory.trained_here", model=advice.destination.model)
    return say("advice.memory.fits_here", model=advice.destination.model) if fits_here else NOTHING


def carry_over_table(advice: Advice) -> Markdown:
    """Give the settings that carry over unchanged."""
    return table(
        _titles("setting", "value", "ground"), [(code(s.name), code(s.value), s.why) for s in advice.carry_over]
    )


def change_table(advice: Advice) -> Markdown:
    """Give the settings to change, from here to there."""
    rows = [(code(c.name), inline(c.here), Markdown(f"**{inline(c.there)}**"), c.why) for c in advice.change]
    return table((*_titles("setting", "here"), advice.destination.card, *_titles("reason")), rows)


def command_words(call: ProductionCall) -> Markdown:
    """Give a production command to paste, and what must first be changed inside the program."""
    shown = fence(production_command(call), "bash")
    if not call.to_edit:
        return shown
    return joined((inline(str(say("advice.edit_inside", settings=call.to_edit))), shown))


def time_words(advice: Advice) -> Markdown:
    """Say how long the production run takes at this card's speed, or that nothing was measured."""
    time = advice.time
    if time is None or (time.training_seconds is None and time.evaluation_seconds is None):
        return Markdown(say("advice.time.unmeasured"))
    lines = [str(say("advice.time.how", ratio=time.parameter_ratio)), ""]
    if time.training_seconds is not None:
        lines.append(str(say("advice.time.training", time=units.about_duration(time.training_seconds))))
    if time.evaluation_seconds is not None:
        lines.append(str(say("advice.time.evaluation", time=units.about_duration(time.evaluation_seconds))))
    if advice.destination.price_per_hour is not None:
        lines.append(f"- {prose(str(_cost(advice.destination, time)))}")
    there = NOTHING if advice.is_production_card else say("advice.time.not_there", card=advice.destination.card)
    lines.append(f"\n{say('advice.time.caveat', there=there)}")
    return Markdown("\n".join(lines))


def _cost(target: ProductionTarget, time: ProductionTime) -> Message:
    """The cost of the whole run, and what it is computed from."""
    price = say("advice.cost.price", price=target.price_per_hour, currency=target.currency)
    if time.cost is None:
        return say("advice.cost.unmeasured", price=price)
    return say("advice.cost.sum", cost=time.cost, currency=target.currency, price=price)


def _titles(*columns: str) -> tuple[str, ...]:
    return tuple(text(f"advice.column.{column}") for column in columns)
