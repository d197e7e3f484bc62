"""How predicted memory is shown: H-1's candidates, the calibration, H-4's cards, and `steph fit`.

Takes values of a record, of an `Outlook` or of a `Fit`, gives Markdown or the terminal's text; computes nothing.
"""

from __future__ import annotations

import json
from typing import Any

from steph.base import units
from steph.base.messages import NOTHING, Message, phrase, say, text
from steph.base.terms import FitVerdict, StageId
from steph.base.units import GIB
from steph.memory.calibration import Calibration
from steph.memory.fit import Fit
from steph.memory.forecast import Forecast
from steph.memory.shapes import ModelShape
from steph.memory.trainers import TRAINERS, Workload
from steph.plan.cards import Card
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
    same = (a for a in h2.attempts if a.ended_well and a.peak_own_bytes and a.label == candidate.settings)
    return next(same, None)


def _candidate_peak(candidate: Candidate) -> str:
    predicted = candidate.predicted
    if predicted is None:
        return phrase("memory.no_peak", reason=candidate.unpredicted_reason)
    return _peak_words(predicted)


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


def fit_json(result: Fit, card: Card | None = None) -> str:
    """One object for one setting; for several `grid` with one object each, named by its setting, and `largest`.

    With a card that was looked up by its name, `card` says what is usable of it, and how that is known. `basis`: what
    the answer rests on; where nothing is known there are `reasons`, and `at_least_gib` instead of a forecast.
    """
    beside = {"basis": [str(line) for line in result.basis], **_host_values(result), **_change_values(result)}
    if card is not None:
        beside["card"] = card.words()
    if result.reasons:
        reasons = [str(reason) for reason in result.reasons]
        at_least = {"verdict": result.unforeseen_verdict, "reasons": reasons, "at_least_gib": _gib(result.floor_bytes)}
        return json.dumps({**at_least, **beside}, ensure_ascii=False, indent=1)
    rows = {
        (batch, length): {"batch_size": batch, "max_seq_length": length, **_fit_values(result, forecast)}
        for (batch, length), forecast in result.forecasts.items()
    }
    if len(rows) == 1:
        (only,) = result.forecasts.values()
        largest = dict(zip(("batch_size", "max_seq_length"), result.largest, strict=True)) if result.largest else None
        values = {**_fit_values(result, only), "largest": largest, **beside}
        return json.dumps(values, ensure_ascii=False, indent=1)
    largest = rows[result.largest] if result.largest else None
    return json.dumps({"grid": list(rows.values()), "largest": largest, **beside}, ensure_ascii=False, indent=1)


def _fit_values(result: Fit, forecast: Forecast) -> dict[str, Any]:
    if result.setting.is_unknown:  # no single trainer's peak would be the run's
        interval = {"low_gib": _gib(forecast.low_bytes), "high_gib": _gib(forecast.high_bytes)}
        by_trainer = {
            name: {"low_gib": _gib(one.low_bytes), "high_gib": _gib(one.high_bytes), "verdict": result.verdict(one)}
            for name, one in result.by_trainer.items()
        }
        return {**interval, "verdict": result.verdict(forecast), **({"by_trainer": by_trainer} if by_trainer else {})}
    sizes = ("peak_allocated", "peak_reserved", "total", "low", "high")
    return {
        **{f"{name}_gib": _gib(getattr(forecast, f"{name}_bytes")) for name in sizes},
        "verdict": result.verdict(forecast),
        "terms": {term.name: _gib(term.size_bytes) for term in forecast.terms if term.at_peak},
    }


def _host_values(result: Fit) -> dict[str, Any]:
    if result.host is None:
        return {}
    disk = {"model": result.host.model_bytes, "checkpoint": result.host.checkpoint_bytes}
    disk["merged"] = result.host.merged_bytes
    return {
        "host_memory_gib": _gib(result.host.memory_bytes),
        "disk_gib": {name: _gib(size) for name, size in disk.items()},
    }


def _change_values(result: Fit) -> dict[str, Any]:
    words = [str(line) for line in result.change.words] if result.change else []
    return {"changes": words, "larger_card": result.larger_card or None}


def _gib(size_bytes: float) -> float:
    return round(size_bytes / GIB, 4)


def fit_text(result: Fit, card: Card | None = None, basis: str = "") -> str:
    """The breakdown of one setting, or the grid and the largest that fits; `basis`: where constants come from."""
    work, setting = result.work, result.setting
    base = "4-bit" if work.use_4bit else "8-bit" if work.use_8bit else "16-bit"
    kinds = "".join(f", {name}" for name, is_on in (("packing", work.packing), ("DoRA", work.dora)) if is_on)
    cards = f"{setting.cards} cards ({setting.sharing}) of" if setting.cards > 1 else "card"
    lines = [
        f"{result.model}, trainer {setting.trainer}, {base}, LoRA r {work.lora_r} on {_targets(work)}{kinds}, "
        f"{work.optimizer}; {cards} {result.vram_bytes / GIB:.2f} GiB; figures in GiB, the whole process"
    ]
    lines += [line for line in (card.words() if card else "", basis) if line]
    lines += [str(line) for line in result.basis]
    if result.reasons:
        size = units.gib(result.floor_bytes)
        lines += [
            "",
            *(phrase("fit.why", reason=reason) for reason in result.reasons),
            phrase("fit.floor", size=size),
        ]
        lines += [result.unforeseen_verdict]
    elif len(result.forecasts) == 1:
        lines += _breakdown(result, next(iter(result.forecasts.values())))
    else:
        lines += _fit_grid(result)
    return "\n".join([*lines, *_change_lines(result), "", *_host_lines(result), ""])


def _targets(work: Workload) -> str:
    return (
        ",".join(work.target_modules)
        if len(work.target_modules) <= 8
        else f"{len(work.target_modules)} kinds of modules"
    )


def _change_lines(result: Fit) -> list[str]:
    """What makes the setting, or the grid's smallest, fit; nothing where it does, or where nothing is known."""
    if result.change is None and not result.larger_card:
        first = next(iter(result.forecasts.values()), None)
        is_short = first is not None and result.verdict(first) != FitVerdict.FITS
        return [phrase("fit.change.none")] if is_short else []
    lines = [phrase("fit.change.first")]
    if result.change is not None:
        lines += [f"  - {words}" for words in result.change.words]
    else:
        lines = [phrase("fit.change.none")]
    return [*lines, phrase("fit.change.card", card=result.larger_card)] if result.larger_card else lines


def _host_lines(result: Fit) -> list[str]:
    host = result.host
    if host is None:
        return []
    memory, merging = units.gib(host.memory_bytes), units.gib(host.merged_bytes)
    model, checkpoint = units.gib(host.model_bytes), units.gib(host.checkpoint_bytes)
    return [
        phrase("fit.host", memory=memory, merging=merging),
        phrase("fit.disk", model=model, checkpoint=checkpoint, merged=units.gib(host.merged_bytes)),
    ]


def _fit_grid(result: Fit) -> list[str]:
    batches = sorted({batch for batch, _ in result.forecasts})
    lines = ["", "max-seq-length  " + "".join(f"{f'batch {batch}':>22}" for batch in batches)]
    for length in sorted({length for _, length in result.forecasts}):
        row = [result.forecasts[batch, length] for batch in batches]
        cells = [f"{_cell(result, forecast)} {result.verdict(forecast)}" for forecast in row]
        lines.append(f"{length:>14}  " + "".join(f"{cell:>22}" for cell in cells))
    largest = "none"
    if result.largest is not None:
        largest = f"--batch-size {result.largest[0]} --max-seq-length {result.largest[1]}"
    return [*lines, "", f"largest that fits: {largest}"]


def _cell(result: Fit, forecast: Forecast) -> str:
    """A forecast in a word: its total, or its interval where that spans trainers."""
    if result.setting.is_unknown:
        return f"{forecast.low_bytes / GIB:.1f}-{forecast.high_bytes / GIB:.1f}"
    return f"{forecast.total_bytes / GIB:.2f}"


def _breakdown(result: Fit, forecast: Forecast) -> list[str]:
    work = forecast.workload
    low, high, context = forecast.low_bytes, forecast.high_bytes, forecast.total_bytes - forecast.peak_reserved_bytes
    if result.setting.is_unknown:
        lines = ["", f"{'whole process':<44}{low / GIB:>8.2f} to {high / GIB:.2f}"]
        for name, one in result.by_trainer.items():
            span = f"{one.low_bytes / GIB:>8.2f} to {one.high_bytes / GIB:.2f}"
            lines.append(f"{f'  with trainer {name}':<44}{span}  {result.verdict(one)}")
    else:
        lines = [
            f"recompute {'on' if work.recompute else 'off'}, {work.rows} rows of {work.width} tokens a forward",
            "",
        ]
        for term in forecast.terms:
            note = "" if term.at_peak else "  (not at the peak)"
            lines.append(f"{term.name:<44}{term.size_bytes / GIB:>8.3f}{note}")
        lines += [
            "",
            f"{'peak allocated':<44}{forecast.peak_allocated_bytes / GIB:>8.2f}",
            f"{'peak reserved':<44}{forecast.peak_reserved_bytes / GIB:>8.2f}",
            f"{'whole process':<44}{forecast.total_bytes / GIB:>8.2f}  ({low / GIB:.2f} to {high / GIB:.2f})",
        ]
    allocator = f"{max(0, low - context) / GIB:.2f} to {(high - context) / GIB:.2f}"
    lines.append(phrase("fit.measures", allocator=allocator, total=f"{low / GIB:.2f} to {high / GIB:.2f}"))
    largest = "none"
    if result.largest is not None:
        largest = f"--batch-size {result.largest[0]} --max-seq-length {result.largest[1]}"
    return [*lines, "", result.verdict(forecast), f"largest that fits: {largest}"]


def fit_basis(found: Calibration, trainer: str, shape: ModelShape) -> str:
    """What a record gave to a prediction for a trainer and a model, in English."""
    if not found.point_count:
        return "the record has no measured peaks that can be used: built-in constants"
    if trainer != found.trainer:
        return f"the record's trainer is {found.trainer}: only what the card holds beside the allocator is its own"
    if not found.is_explained and found.line is None:
        error = found.constants.relative_error
        return f"the record's measured peaks are off by {error:.0%}, which the interval therefore allows for"
    if not found.is_described and (found.line is None or shape != found.shape):
        return "steph.toml names no trainer: the interval holds all that are known, with and without recompute"
    if found.line is not None:
        return "slope and intercept by two measured lengths of the record"
    attempts = f"{found.point_count} measured attempt{'s' if found.point_count > 1 else ''}"
    return f"constants corrected by {attempts} of the record"
