"""The production model's memory for H-4, on the rented card and on the card of the record; and how memory is said.

The record's own measurements correct the constants; an error here never costs a report.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from steph.base import units
from steph.base.messages import NOTHING, Message, phrase, say, text
from steph.base.terms import FitVerdict, StageId, TrainerName
from steph.base.units import GIB
from steph.contract.settings import card_by_name
from steph.memory.calibration import FP32_BITS, Calibration, calibration_or_default, workload_of
from steph.memory.forecast import KEPT_FREE_BYTES, automatic, largest_fitting, leanest
from steph.memory.shapes import ModelShape, model_shape
from steph.memory.terms import ASSUMED_TRAINER, TRAINERS, Workload
from steph.record.settings import Device, ProductionTarget, TrainSettings
from steph.record.values import Attempt, Candidate, PredictedPeak, Record
from steph.tell import production, wording
from steph.tell.markdown import Markdown, inline, prose, said, table

SAME_CARD_SHARE = 0.15  # by which a card's memory may differ from what the rented one is said to have
Grid = tuple[tuple[int, int], ...]  # (batch size, max_seq_length)
GRID_BATCHES = (1, 2, 4, 8)
GRID_LENGTHS = (512, 1024, 1536, 2048)
SMALL_GRID_LENGTHS = (256, 384, 512, 768, 1024, 1536, 2048)
LEAN_TRAINER = TrainerName.REFERENCE  # the reference pipeline's, which wastes no memory


@dataclass(frozen=True)
class CardOutlook:
    """The production model on one card, by (batch size, max_seq_length), in the least memory that its trainer can do.

    Where this record trained it at one of these settings, its measured peak stands in the prediction's place.
    `usable_bytes`: what a training process may take of it; `is_assumed`: the card's usual size, not read from it.
    `largest` is the setting with the most tokens that surely fits, None where none does. `likely` is what a trainer
    that trades free memory for speed will take at the advised settings, None for one that does not.
    """

    usable_bytes: int
    is_assumed: bool
    grid: Mapping[tuple[int, int], PredictedPeak]
    largest: tuple[int, int] | None
    likely: PredictedPeak | None = None

    def headroom_bytes(self, prediction: PredictedPeak) -> int:
        """Bytes left at the predicted peak; below zero where it is more than the card."""
        return self.usable_bytes - prediction.peak_bytes


@dataclass(frozen=True)
class Outlook:
    """Whether the production model will fit, and what that is computed from.

    `point` is the production run's (batch size, max_seq_length).
    `there` is the rented card, None with the reason in `unpredicted` where the record's own peaks say that
    no formula holds; `here` is this record's card, None without one or where it is the rented one; `lean` is
    this card with a trainer that wastes no memory, where the pipeline's own does.
    """

    calibration: Calibration
    there: CardOutlook | None
    here: CardOutlook | None = None
    lean: CardOutlook | None = None
    unpredicted: Message = NOTHING
    point: tuple[int, int] = (0, 0)

    @property
    def prediction(self) -> PredictedPeak | None:
        """The production run's peak on the rented card; None where nothing is predicted."""
        return self.there.grid.get(self.point) if self.there is not None else None


def production_outlook(record: Record) -> Outlook | None:
    """The production model's peaks on both cards, or why there are none; None before H-2 has settings."""
    here = production.final_settings(record.stages.get(StageId.H2))
    if here is None:
        return None
    try:
        wanted = record.context.production
        outlook = Outlook(calibration_or_default(record), there=None, point=(wanted.batch_size, wanted.max_seq_length))
        try:
            return _with_cards(outlook, record, here)
        except ValueError as error:  # a target module that the production model doesn't have
            return replace(outlook, unpredicted=say("forecast.not_computed", error=error))
    except Exception as error:  # whatever it is, it costs the prediction alone
        why = say("forecast.not_computed", error=f"{type(error).__name__}: {error}")
        return Outlook(Calibration(ASSUMED_TRAINER, is_described=False), there=None, unpredicted=why)


def _with_cards(outlook: Outlook, record: Record, here: TrainSettings) -> Outlook:
    found = outlook.calibration
    wanted, device = record.context.production, record.context.environment.device
    target, shape = production.target_settings(record, here), model_shape(wanted.model)
    is_there = device is not None and is_production_card(device, wanted)
    usable = record.context.usable_bytes
    points = _points(GRID_BATCHES, GRID_LENGTHS, target, here)
    small_points = _points(GRID_BATCHES, SMALL_GRID_LENGTHS, target, here)
    if usable is not None and not is_there and found.trainer != LEAN_TRAINER:
        lean = _card(found, shape, _work(target, LEAN_TRAINER, record), small_points, usable)
        outlook = replace(outlook, lean=lean)
    bits = _seen_bits(record)
    if bits == FP32_BITS and not target.use_4bit:
        parameters = production.production_parameters(wanted)
        size = (
            NOTHING
            if parameters is None
            else say("outlook.fp32_size", model=wanted.model, size=units.gib(4 * parameters))
        )
        on_cpu = say("outlook.fp32_on_cpu", size=size)  # where many programs are in fp32 that are not on a card
        return replace(outlook, lean=None, unpredicted=on_cpu if usable is None else say("outlook.fp32", size=size))
    if not found.carries_over:
        return replace(outlook, unpredicted=say("outlook.no_formula"))
    work, measured = _work(target, found.trainer, record), None
    # the peak of the production run's own training step, where this record took one
    last = record.stages[StageId.H2].last_attempt
    is_same = here.changed(num_epochs=0, max_steps=0, logging_steps=0) == target.changed(num_epochs=0, logging_steps=0)
    if last is not None and last.ended_well and is_same and production.is_production_model(record.model, wanted):
        measured = last.peak_own_bytes
    point = (target.batch_size, target.max_seq_length)
    if usable is not None and is_there:
        return replace(outlook, there=_measured(_card(found, shape, work, points, usable), point, measured))
    there = _card(found, shape, work, points, target_card_bytes(wanted), is_assumed=True)
    # a trainer that picks its way took a faster one here, if it took more than the leanest needs: no word of that card
    is_lean = measured is not None and measured <= there.grid[point].high_bytes
    outlook = replace(outlook, there=_measured(there, point, measured if is_lean else None))
    if usable is None:
        return outlook
    return replace(outlook, here=_measured(_card(found, shape, work, small_points, usable), point, measured))


def _measured(card: CardOutlook, point: tuple[int, int], measured: int | None) -> CardOutlook:
    if not measured:
        return card
    has_room = not card.is_assumed or card.usable_bytes - measured >= KEPT_FREE_BYTES  # it ran on this record's card
    verdict = FitVerdict.FITS if has_room else FitVerdict.TOO_CLOSE
    peak = PredictedPeak(peak_bytes=measured, low_bytes=measured, high_bytes=measured, verdict=verdict)
    return replace(card, grid={**card.grid, point: peak})


def _work(target: TrainSettings, trainer: TrainerName, record: Record) -> Workload:
    """The production run in the least memory, its answers as long as those that H-2 was trained on."""
    trained = record.stages[StageId.H2].last_attempt
    least = leanest(workload_of(target, trainer, None if target.use_4bit else _seen_bits(record)))
    answer_tokens = trained.longest_answer_tokens if trained else None
    return least if answer_tokens is None else replace(least, label_positions=answer_tokens + 1)


def _seen_bits(record: Record) -> int | None:
    """The bits of the weights that this record's training was seen to have."""
    trained = record.stages[StageId.H2].last_attempt
    return trained.training.weight_bits if trained and trained.training else None


def target_card_bytes(target: ProductionTarget) -> int:
    """Bytes that a training process may take of the rented card, as the profile or the table of cards says.

    Raises ValueError for a card that is in neither.
    """
    if target.card_memory_gib is not None:
        return round(target.card_memory_gib * GIB)
    return card_by_name(target.card).usable_bytes


def is_production_card(device: Device, target: ProductionTarget) -> bool:
    """Whether this is the card that the production run is meant for: by its name, and by its size for slices."""
    name = re.sub(r"\b\d+ ?GB\b|\bslice\b", "", target.card, flags=re.I).strip()
    another = r"(?![\ds]| ?(?:Ti|SUPER|NVL|Laptop)\b)"  # what makes another card of a name
    is_named = name != "" and re.search(rf"\b{re.escape(name)}{another}", device.name, re.I) is not None
    wanted_bytes = target_card_bytes(target)
    return is_named and abs(device.total_bytes - wanted_bytes) <= SAME_CARD_SHARE * wanted_bytes


def _points(batches: Iterable[int], lengths: Iterable[int], *also: TrainSettings) -> Grid:
    every_batch = sorted({*batches, *(settings.batch_size for settings in also)})
    every_length = sorted({*lengths, *(settings.max_seq_length for settings in also)})
    return tuple((batch, length) for length in every_length for batch in every_batch)


def _card(
    found: Calibration,
    shape: ModelShape,
    least: Workload,
    grid: Grid,
    card_bytes: int,
    *,
    is_assumed: bool = False,
) -> CardOutlook:
    forecasts = {
        (batch, length): found.forecast(shape, replace(least, batch_size=batch, width=length)) for batch, length in grid
    }
    chosen = automatic(shape, least, card_bytes, found.constants)
    return CardOutlook(
        usable_bytes=card_bytes,
        is_assumed=is_assumed,
        grid={point: forecast.peak_on(card_bytes) for point, forecast in forecasts.items()},
        largest=largest_fitting(forecasts, card_bytes),
        likely=found.forecast(shape, chosen).peak_on(card_bytes) if chosen != least else None,
    )


def trained_at(record: Record, candidate: Candidate) -> Attempt | None:
    """Find the training of this candidate at the settings that it was predicted for, where its memory was measured."""
    h2 = record.stages.get(StageId.H2)
    if h2 is None or candidate.outcome != "chosen":
        return None
    same = (a for a in h2.attempts if a.ended_well and a.peak_own_bytes and str(a.label) == candidate.settings)
    return next(same, None)


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


def basis_words(found: Calibration) -> str:
    """Say what a prediction rests on: measured peaks, or constants that were built in."""
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


def picks_its_way(found: Calibration) -> bool:
    """Whether the trainer trades free memory for speed by itself."""
    return TRAINERS[found.trainer].picks_its_way


def point_words(point: tuple[int, int]) -> str:
    """A setting as `512/b2`."""
    return f"{point[1]}/b{point[0]}"


def peak_words(prediction: PredictedPeak) -> str:
    """A predicted peak with its interval, or the measured one that stands in its place."""
    if prediction.is_measured:
        return phrase("memory.measured", peak=units.gib(prediction.peak_bytes))
    peak, low, high = (units.gib(x) for x in (prediction.peak_bytes, prediction.low_bytes, prediction.high_bytes))
    return phrase("memory.peak", peak=peak, low=low, high=high)


def headroom_words(card: CardOutlook, prediction: PredictedPeak) -> str:
    """Say what is left of the card at a peak, or what it is short of."""
    left = card.headroom_bytes(prediction)
    return units.gib(left) if left >= 0 else phrase("memory.short", size=units.gib(-left))


def grid(card: CardOutlook) -> Markdown:
    """The card's predictions by length and batch size."""
    batches = sorted({batch for batch, _ in card.grid})
    rows = []
    for length in sorted({length for _, length in card.grid}):
        cells = []
        for found in (card.grid.get((batch, length)) for batch in batches):
            if found is None:
                cells.append(text("memory.no_forecast"))
                continue
            sign = wording.fits_word(found.verdict).split()[0]
            span = text("memory.as_measured")
            if not found.is_measured:
                span = phrase("memory.range", low=found.low_bytes / GIB, high=found.high_bytes / GIB)
            cells.append(Markdown(f"{sign} {found.peak_bytes / GIB:.2f}<br>{inline(span)}"))
        rows.append((str(length), *cells))
    return table(("seq \\ batch", *map(str, batches)), rows)
