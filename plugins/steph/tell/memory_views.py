"""How predicted memory is shown: H-1's candidates, the calibration, and H-4's cards.

Takes values of a record or of an `Outlook`, gives Markdown; computes nothing.
"""

from __future__ import annotations

from steph.base import units
from steph.base.messages import NOTHING, Message, phrase, say, text
from steph.base.terms import FitVerdict, StageId
from steph.base.units import GIB
from steph.memory.calibration import Calibration
from steph.memory.trainers import TRAINERS
from steph.record.values import Attempt, Candidate, PredictedPeak, Record
from steph.tell import wording
from steph.tell.advice import Advice
from steph.tell.markdown import Markdown, code, inline, joined, prose, said, table
from steph.tell.outlook import CardOutlook, Outlook

Point = tuple[int, int]  # batch size, max_seq_length


def candidates_table(record: Record) -> Markdown:
    """Give every candidate with its predicted peak, or why there is none; empty where the record has none.

    The chosen one's is the measured peak where H-2 trained it at those settings.
    """
    result = record.stages.get(StageId.H1)
    if result is None or not result.candidates:
        return Markdown()
    rows = []
    for candidate in result.candidates:
        trained = _trained_at(record, candidate)
        peak = units.gib(trained.peak_own_bytes) if trained else ""
        words = phrase("memory.measured_in", peak=peak, stage=StageId.H2) if trained else _candidate_peak(candidate)
        verdict = candidate.predicted.verdict if candidate.predicted else None
        fits = wording.fits_word(FitVerdict.FITS if trained else verdict)
        sizes = wording.parameters(candidate.parameters)
        rows.append((code(candidate.name), text(f"report.candidate.{candidate.outcome}"), sizes, words, fits))
    predicted = phrase("memory.column.predicted", settings=result.candidates[0].settings)
    header = (*_titles("candidate", "treated", "parameters"), predicted, *_titles("on_card"))
    return table(header, rows)


def _trained_at(record: Record, candidate: Candidate) -> Attempt | None:
    """The training of this candidate at the settings that it was predicted for, where its memory was measured."""
    h2 = record.stages.get(StageId.H2)
    if h2 is None or candidate.outcome != "chosen":
        return None
    same = (a for a in h2.attempts if a.ended_well and a.peak_own_bytes and str(a.label) == candidate.settings)
    return next(same, None)


def _candidate_peak(candidate: Candidate) -> str:
    predicted = candidate.predicted
    if predicted is None:
        return phrase("memory.no_peak", reason=candidate.unpredicted_reason)
    return _peak_words(predicted)


def unnamed_trainer_words(record: Record, stage: StageId) -> Markdown:
    """Say why a stage's predicted intervals are wide, and what narrows them; empty where the trainer is named."""
    result = record.stages.get(stage)
    if result is None or record.context.trainer != "undescribed":
        return Markdown()
    found = [*(one.predicted for one in result.candidates), *(one.predicted for one in result.attempts)]
    if not any(one is not None and not one.is_measured for one in found):
        return Markdown()
    return said("memory.unnamed_trainer")


def calibration_words(outlook: Outlook | None) -> Markdown:
    """Say what the second length gave: slope and intercept, or why none."""
    line = outlook.calibration.line if outlook else None
    if outlook is None or line is None:
        reason = (outlook.calibration.shortfall if outlook else None) or say("memory.calibration.no_prediction")
        return prose(say("memory.calibration.none", reason=reason))
    per_token, fixed = line[0] / 2**20, line[1] / GIB
    use = say("memory.calibration.used" if outlook.calibration.is_described else "memory.calibration.not_used")
    return prose(say("memory.calibration.line", fixed=fixed, per_token=per_token, use=use))


def prediction_words(advice: Advice) -> Markdown:
    """Say the predicted peak of the production run, its headroom and the grid, or that there is no prediction."""
    outlook, target, here = advice.outlook, advice.target, advice.here
    if outlook is None or outlook.there is None or target is None or here is None:
        why = say("memory.because", reason=outlook.unpredicted) if outlook and outlook.unpredicted else NOTHING
        return Markdown(say("memory.unpredicted", model=inline(advice.destination.model), why=prose(why)))
    there, wanted = outlook.there, outlook.asked
    proven = (here.batch_size, here.max_seq_length)
    rows = [_row("same", there, proven)] if proven != wanted else []
    rows.append(_row("changed", there, wanted))
    if there.likely:
        rows.append(_row("likely", there, wanted, there.likely))
    if there.largest:
        rows.append(_row("largest", there, there.largest))
    settings = phrase("memory.column.settings", model=advice.destination.model)
    header = (settings, "seq/batch", *_titles("peak", "verdict", "left"))
    return joined(
        (
            _card_sentence(advice, there),
            prose(_basis(outlook.calibration)),
            table(header, rows, align="llllr"),
            said("memory.grid", **{str(fits): wording.fits_word(fits) for fits in FitVerdict}),
            _grid(there),
            inline("" if there.largest else text("memory.nothing_fits")),
            inline(text("memory.caveat")),
        )
    )


def _card_sentence(advice: Advice, there: CardOutlook) -> Markdown:
    size = inline(units.gib(there.usable_bytes))
    if not there.is_assumed:
        return inline(say("memory.card.measured", card=advice.card, size=size))
    is_given = advice.destination.card_memory_gib is not None
    source = say("memory.card.of_profile" if is_given else "memory.card.of_name")
    return Markdown(say("memory.card.assumed", card=inline(advice.destination.card), size=size, source=source))


def _basis(found: Calibration) -> str:
    if not found.is_described:
        name = "undescribed"
    elif found.line is not None:
        name = "line"
    elif not found.is_explained:
        name = "off"
    else:
        name = "points" if found.point_count else "built_in"
    off, points = found.constants.relative_error, found.point_count
    return phrase(f"memory.basis.{name}", trainer=found.trainer, trainers=list(TRAINERS), off=off, points=points)


def _titles(*columns: str) -> tuple[str, ...]:
    return tuple(text(f"memory.column.{column}") for column in columns)


def _grid(card: CardOutlook) -> Markdown:
    batches = sorted({batch for batch, _ in card.grid})
    lengths = sorted({length for _, length in card.grid})
    rows = [(f"{length}", *(_peak(card.grid.get((batch, length))) for batch in batches)) for length in lengths]
    return table(("seq \\ batch", *map(str, batches)), rows)


def _row(name: str, card: CardOutlook, point: Point, prediction: PredictedPeak | None = None) -> tuple[str, ...]:
    found = prediction or card.grid[point]
    return (
        text(f"memory.row.{name}"),
        code(_short(point)),
        _peak_words(found),
        wording.fits_word(found.verdict),
        _headroom(card, found),
    )


def _headroom(card: CardOutlook, prediction: PredictedPeak) -> str:
    left = card.headroom_bytes(prediction)
    return units.gib(left) if left >= 0 else phrase("memory.short", size=units.gib(-left))


def _peak_words(prediction: PredictedPeak) -> str:
    if prediction.is_measured:
        return phrase("memory.measured", peak=units.gib(prediction.peak_bytes))
    peak, low, high = (units.gib(x) for x in (prediction.peak_bytes, prediction.low_bytes, prediction.high_bytes))
    return phrase("memory.peak", peak=peak, low=low, high=high)


def _peak(prediction: PredictedPeak | None) -> str:
    if prediction is None:
        return text("memory.no_forecast")
    sign = wording.fits_word(prediction.verdict).split()[0]
    low, high = prediction.low_bytes / GIB, prediction.high_bytes / GIB
    span = text("memory.as_measured") if prediction.is_measured else phrase("memory.range", low=low, high=high)
    return Markdown(f"{sign} {prediction.peak_bytes / GIB:.2f}<br>{inline(span)}")


def _short(point: Point) -> str:
    return f"{point[1]}/b{point[0]}"


def here_words(advice: Advice) -> Markdown:
    """Say plainly whether the production model trains on this record's own card, and how; empty without one."""
    outlook, target = advice.outlook, advice.target
    any_trainer = (outlook.here or outlook.lean) if outlook else None
    if outlook is None or any_trainer is None or target is None:
        return Markdown()
    wanted = outlook.asked
    card = say("memory.here.card", card=advice.card, size=units.gib(any_trainer.usable_bytes))
    own = _fit_words(outlook.here, wanted)
    trained = _trained_words(advice, card)
    if own:
        headline = trained or _bold(say("memory.here.fits", model=advice.destination.model, card=card))
        return Markdown("\n".join([headline, "", *own, *_how(outlook)]))
    peak = say("memory.no_forecast")
    if outlook.here:
        peak = say("memory.here.peak", peak=_peak_words(outlook.here.grid[wanted]))
    if trained:
        return Markdown(f"{trained} {inline(say('memory.here.not_all', peak=peak))}")
    refused = inline(say("memory.here.refused", model=advice.destination.model, card=card, peak=peak))
    lean = _fit_words(outlook.lean, wanted)
    if not lean:
        return refused
    better = _bold(say("memory.here.lean"))
    why = _item(say("memory.here.lean_why"))
    return Markdown("\n".join([f"{refused} {better}", "", *lean, why]))


def _trained_words(advice: Advice, card: Message) -> Markdown:
    trained = advice.trained_here
    if trained is None:
        return Markdown()
    if not trained.peak_own_bytes:
        return _bold(say("memory.here.trained", model=advice.destination.model, card=card, label=trained.label))
    peak = units.gib(trained.peak_own_bytes)
    return _bold(
        say("memory.here.trained_peak", model=advice.destination.model, card=card, label=trained.label, peak=peak)
    )


def _bold(words: Message) -> Markdown:
    return Markdown(f"**{prose(words)}**")


def _item(words: Message) -> Markdown:
    return Markdown(f"- {prose(words)}")


def _how(outlook: Outlook) -> list[Markdown]:
    lines = [_item(say("memory.here.same_command"))]
    if TRAINERS[outlook.calibration.trainer].picks_its_way:
        lines.append(_item(say("memory.here.picks")))
    return lines


def _fit_words(card: CardOutlook | None, wanted: Point) -> list[Markdown]:
    """The wanted setting where it surely fits, and the largest that does; empty where none does."""
    if card is None or card.largest is None:
        return []
    fits = card.grid[wanted].verdict is FitVerdict.FITS
    lines = [_setting_line("changed", card, wanted)] if fits else []
    if not fits or card.largest != wanted:
        lines.append(_setting_line("surely", card, card.largest))
    return lines


def _setting_line(name: str, card: CardOutlook, point: Point) -> Markdown:
    prediction = card.grid[point]
    left, name = _headroom(card, prediction), text(f"memory.row.{name}")
    return _item(say("memory.here.setting", name=name, setting=_short(point), peak=_peak_words(prediction), left=left))
