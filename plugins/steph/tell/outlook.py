"""The production model's memory for H-4: on the rented card, and on the card of the record.

Comes in: a record. Goes out: an `Outlook`, None where nothing can be said. The record's own measurements correct the
constants; an error here never costs a report.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from steph.base.terms import StageId
from steph.base.units import GIB
from steph.memory.forecast import Forecast, automatic, largest_fitting, leanest, predict
from steph.memory.measured import Calibration, calibration_or_default, workload_of
from steph.memory.readings import Reading, predict_by
from steph.memory.shapes import BUILT_IN
from steph.memory.tape import play
from steph.memory.terms import ASSUMED_TRAINER, Trainer, Workload
from steph.record.environment import Device
from steph.record.settings import TrainSettings
from steph.record.values import Record
from steph.tell import production
from steph.tell.outlook_values import CardOutlook, Outlook, Prediction

ASSUMED_CARD_BYTES = round(19.5 * GIB)  # what NVML shows of the slices 3g.20gb (A100 40GB) and 2g.20gb (A100 80GB)
LARGEST_SLICE_BYTES = 24 * GIB  # an A100 below this is a slice: the whole ones have 40 or 80 GB
GRID_BATCHES = (1, 2, 4, 8)
GRID_LENGTHS = (512, 1024, 1536, 2048)
NO_FORMULA = (
    "実測のピークがどの型の式にも合わず、別のモデルに当てはめられない。"
    "steph.toml に `trainer` を書くか、`--steph-calibrate` で二つの長さを測る"
)
SMALL_GRID_LENGTHS = (256, 384, 512, 768, 1024, 1536, 2048)


def production_outlook(record: Record) -> Outlook | None:
    """The production model's peaks on both cards, or why there are none; None before H-2 has settings."""
    here = production.final_settings(record.stages.get(StageId.H2))
    if here is None:
        return None
    try:
        return _outlook(record, here)
    except Exception as error:  # whatever it is, it costs the prediction alone
        why = f"計算できない: {type(error).__name__}: {error}"
        return Outlook(ASSUMED_TRAINER, is_described=False, readings=(Reading(),), there=None, unpredicted=why)


def _outlook(record: Record, here: TrainSettings) -> Outlook:
    found = calibration_or_default(record)
    outlook = Outlook(
        trainer=found.trainer,
        is_described=found.is_described,
        readings=found.readings,
        there=None,
        point_count=found.point_count,
        line=found.line,
        shortfall=found.shortfall,
        unexplained_error=None if found.is_explained else found.constants.relative_error,
    )
    try:
        return _with_cards(outlook, record, here, found)
    except ValueError as error:  # a target module that the production model doesn't have
        return replace(outlook, unpredicted=f"計算できない: {error}")


def _with_cards(outlook: Outlook, record: Record, here: TrainSettings, found: Calibration) -> Outlook:
    target, device = production.target_settings(here), record.context.environment.device
    is_there = device is not None and is_production_card(device)
    usable = record.context.usable_bytes
    points = _points(GRID_BATCHES, GRID_LENGTHS, target, here)
    small_points = _points(GRID_BATCHES, SMALL_GRID_LENGTHS, target, here)
    if usable is not None and not is_there and found.trainer != "answer":
        lean = _work(target, "answer", record)
        outlook = replace(outlook, lean=_card(lean, small_points, usable, found.readings_for("answer")))
    if not found.carries_over:
        return replace(outlook, unpredicted=NO_FORMULA)
    work = _work(target, found.trainer, record)
    if usable is None or not is_there:
        there = _card(work, points, ASSUMED_CARD_BYTES, found.readings, is_assumed=True)
    else:
        there = _card(work, points, usable, found.readings)
    outlook = replace(outlook, there=there)
    if usable is None or is_there:
        return outlook
    return replace(outlook, here=_card(work, small_points, usable, found.readings))


def play_ahead(trainer: Trainer, settings: TrainSettings) -> None:
    """Play the runs that `production_outlook` will ask for where H-2 ends with these settings; they are remembered."""
    target = production.target_settings(settings)
    least = leanest(workload_of(target, trainer))
    for batch, length in _points(GRID_BATCHES, SMALL_GRID_LENGTHS, target, settings):
        play(BUILT_IN[production.PRODUCTION_MODEL], replace(least, batch_size=batch, width=length))


def _work(target: TrainSettings, trainer: Trainer, record: Record) -> Workload:
    """The production run in the least memory, its answers as long as those that H-2 was trained on."""
    least, trained = leanest(workload_of(target, trainer)), record.stages[StageId.H2].last_attempt
    answer_tokens = trained.longest_answer_tokens if trained else None
    return least if answer_tokens is None else replace(least, label_positions=answer_tokens + 1)


def is_production_card(device: Device) -> bool:
    """Whether this is the 20 GB slice of an A100 that the production run is meant for."""
    return "A100" in device.name and device.total_bytes <= LARGEST_SLICE_BYTES


def _points(batches: Iterable[int], lengths: Iterable[int], *also: TrainSettings) -> tuple[tuple[int, int], ...]:
    every_batch = sorted({*batches, *(settings.batch_size for settings in also)})
    every_length = sorted({*lengths, *(settings.max_seq_length for settings in also)})
    return tuple((batch, length) for length in every_length for batch in every_batch)


def _card(
    least: Workload,
    points: tuple[tuple[int, int], ...],
    card_bytes: int,
    readings: tuple[Reading, ...],
    *,
    is_assumed: bool = False,
) -> CardOutlook:
    shape = BUILT_IN[production.PRODUCTION_MODEL]
    forecasts = {
        (batch, length): predict_by(readings, shape, replace(least, batch_size=batch, width=length))
        for batch, length in points
    }
    constants = readings[0].constants
    chosen = automatic(shape, least, card_bytes, constants)
    return CardOutlook(
        usable_bytes=card_bytes,
        is_assumed=is_assumed,
        grid={point: _prediction(found, card_bytes) for point, found in forecasts.items()},
        largest=largest_fitting(lambda batch, length: forecasts[batch, length], points, card_bytes),
        likely=_prediction(predict(shape, chosen, constants), card_bytes) if chosen != least else None,
    )


def _prediction(found: Forecast, card_bytes: int) -> Prediction:
    return Prediction(found.total_bytes, found.low_bytes, found.high_bytes, found.verdict(card_bytes))
