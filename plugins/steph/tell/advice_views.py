"""How H-4 and its decision are shown: tables and sentences.

Takes an `Advice`, gives Markdown; computes nothing.
"""

from __future__ import annotations

from steph.base import units
from steph.base.messages import NOTHING, Message, say, text, verbatim
from steph.record.settings import ProductionTarget
from steph.record.values import ProductionCall, Record
from steph.tell import summary
from steph.tell.advice import Advice
from steph.tell.commands import production_command
from steph.tell.decision import Decision, Rent, decide
from steph.tell.markdown import Markdown, code, fence, inline, joined, prose, said, table
from steph.tell.production import ProductionTime

WIDE = 1.5  # the upper end of an interval that asks for a reason, as a multiple of the peak


def decision(record: Record, advice: Advice) -> tuple[Markdown, ...]:
    """Answer what a person who pays for the card asks: whether to rent, which card, how long, and what first."""
    decided = decide(advice)
    has_price = advice.time is not None and advice.time.price_per_hour is not None
    answers = {
        "rent": _rent_words(record, advice, decided),
        "card": _card_to_rent(advice, decided),
        "cost" if has_price else "time": _hours(advice, decided),
        "first": _first(record, advice, decided),
    }
    return tuple(
        Markdown(f"**{text(f'advice.ask.{name}')}** {prose(words)}") for name, words in answers.items() if words
    )


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
    return joined((inline(say("advice.edit_inside", settings=call.to_edit)), shown))


def time_words(advice: Advice) -> Markdown:
    """Say how long each part of the production run takes at this card's speed and what that is from, and the cost."""
    time = advice.time
    if time is None or (time.training_seconds is None and time.evaluation_seconds is None):
        return said("advice.time.unmeasured")
    download = say("advice.time.unmeasured_download", size=units.gib(time.download_bytes))
    if time.download_seconds is not None:
        about = units.about_duration(time.download_seconds)
        download = say("advice.time.download", time=about, size=units.gib(time.download_bytes))
    lines = [download]
    evaluation = "evaluation_at_most" if time.evaluation_is_most else "evaluation"
    parts = {"training": time.training_seconds, evaluation: time.evaluation_seconds, "loading": time.loading_seconds}
    for name, seconds in parts.items():
        if seconds is not None:
            lines.append(say(f"advice.time.{name}", time=units.about_duration(seconds)))
    if time.price_per_hour is not None:
        lines.append(_cost(advice.destination, time))
    there = NOTHING if advice.is_production_card else say("advice.time.not_there", card=advice.destination.card)
    listed = "\n".join(f"- {prose(line)}" for line in lines)
    how = said("advice.time.how", ratio=time.parameter_ratio)
    return joined((how, Markdown(listed), said("advice.time.caveat", there=inline(there))))


def _cost(target: ProductionTarget, time: ProductionTime) -> Message:
    """The cost of the whole run, and what it is computed from."""
    price = say("advice.cost.price", price=time.price_per_hour, currency=target.currency)
    if time.cost is None:
        return say("advice.cost.unmeasured", price=price)
    return say("advice.cost.sum", cost=time.cost, currency=target.currency, price=price)


def _titles(*columns: str) -> tuple[str, ...]:
    return tuple(text(f"advice.column.{column}") for column in columns)
