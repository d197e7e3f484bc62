"""What the suite predicts before it runs: a candidate's peak, a rung's, and the production model's for H-4.

Comes in: a run's setup or a record. Goes out: peaks of the whole process in bytes, or None where the model's shape is
not known or no GPU is used. A prediction never stops a run by an error of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from steph.fit import FitError, model_shape
from steph.measured import record_constants, workload_of
from steph.plan.description import load_description
from steph.plan.settings import ProfileError
from steph.plan.shapes import BUILT_IN, ModelShape
from steph.plan.vram import Forecast, automatic, leanest, predict
from steph.plan.vram_constants import GIB, MEASURED, Constants
from steph.plan.vram_terms import Trainer
from steph.preparation import Setup
from steph.record import Attempt, Cause, ModelChoice, Record, StageId, TrainSettings
from steph.tell import advice, production

PRODUCTION_CARD_BYTES = round(19.5 * GIB)  # what an A100's 20 GB slice shows
GRID_BATCHES = (1, 2, 4, 8)
GRID_LENGTHS = (512, 1024, 1536, 2048)


@dataclass(frozen=True, slots=True)
class Expectation:
    """A training attempt's forecast as the trainer will run it, and in the least memory that it can.

    `is_binding`: whether a setting may be passed over because of it; not for a trainer that nobody described, and not
    under `--steph-no-predict`.
    """

    likely: Forecast
    least: Forecast
    card_bytes: int
    is_binding: bool

    @property
    def cannot_fit(self) -> bool:
        """Whether even the least that is needed is more than there is."""
        return self.least.verdict(self.card_bytes) == "does_not_fit"

    @property
    def surely_fits(self) -> bool:
        """Whether the least that is needed is there with certainty."""
        return self.least.verdict(self.card_bytes) == "fits"

    def words(self) -> str:
        """The prediction and the card, in Japanese."""
        low, peak, card = (size / GIB for size in (self.least.low_bytes, self.least.total_bytes, self.card_bytes))
        return f"予測ピーク {peak:.2f} GiB(少なくとも {low:.2f} GiB)、使える VRAM {card:.2f} GiB"


def expected(
    setup: Setup, model: ModelChoice, settings: TrainSettings, longest_row_tokens: int | None = None
) -> Expectation | None:
    """What a training attempt will need; rows as long as they can be where `longest_row_tokens` is not known."""
    card_bytes = usable_bytes(setup)
    if card_bytes is None:
        return None
    try:
        shape = model_shape(model.snapshot_path or model.name)
        work = workload_of(settings, setup.description.trainer or "full")
        if longest_row_tokens is not None and work.trainer == "answer":
            work = replace(work, width=min(work.width, longest_row_tokens))
        likely = predict(shape, automatic(shape, work, card_bytes))
        is_binding = setup.description.trainer is not None and not setup.options.no_predict
        return Expectation(likely, predict(shape, leanest(work)), card_bytes, is_binding)
    except ValueError:  # FitError too: a shape or module that the model doesn't know
        return None


def worth_trying(expectation: Expectation, last: Attempt | None, *, gave_up_4bit: bool) -> bool:
    """Whether a rung is tried: not where it can't fit; without 4-bit after an OOM only where it surely fits.

    Giving up 4-bit makes the weights larger, which no OOM is cured by.
    """
    if not expectation.is_binding:
        return True
    ran_out = last is not None and last.diagnosis is not None and last.diagnosis.cause is Cause.CUDA_OOM
    return expectation.surely_fits if ran_out and gave_up_4bit else not expectation.cannot_fit


def usable_bytes(setup: Setup) -> int | None:
    """What a child may take of the card: the cap, else what others leave; None without a GPU."""
    if setup.device is None:
        return None
    free = setup.device.total_bytes - setup.device.used_bytes
    return free if setup.options.vram_cap_bytes is None else min(free, setup.options.vram_cap_bytes)


def with_prediction(setup: Setup, model: ModelChoice) -> ModelChoice:
    """The choice with its predicted peak at the profile's settings, as it is where there is none."""
    found = expected(setup, model, setup.profile.train)
    return model.model_copy(update={"predicted_peak_bytes": found.likely.total_bytes}) if found else model


def production_predictions(record: Record) -> Mapping[tuple[int, int], advice.Prediction] | None:
    """The production model's peaks on the rented card by (batch size, max_seq_length), None before H-2 has settings.

    The record's own measured peaks correct the constants.
    """
    settings = production.final_settings(record.stages.get(StageId.H2))
    if settings is None or record.context.environment.device is None:
        return None
    target = production.target_settings(settings)
    try:
        trainer = load_description(Path(record.context.pipeline_root)).trainer or "full"
        shape, constants = BUILT_IN[production.PRODUCTION_MODEL], _constants(record)
        batches = sorted({*GRID_BATCHES, target.batch_size})
        lengths = sorted({*GRID_LENGTHS, target.max_seq_length})
        return {
            (batch, length): _production(shape, target, trainer, batch, length, constants)
            for batch in batches
            for length in lengths
        }
    except (ProfileError, ValueError, OSError):
        return None


def _constants(record: Record) -> Constants:
    try:
        return record_constants(record)
    except FitError:  # a model whose shape can't be read any more
        return MEASURED


def _production(
    shape: ModelShape, target: TrainSettings, trainer: Trainer, batch: int, length: int, constants: Constants
) -> advice.Prediction:
    settings = target.model_copy(update={"batch_size": batch, "max_seq_length": length})
    work = automatic(shape, workload_of(settings, trainer), PRODUCTION_CARD_BYTES, constants)
    found = predict(shape, work, constants)
    verdict = found.verdict(PRODUCTION_CARD_BYTES)
    return advice.Prediction(found.total_bytes, found.low_bytes, found.high_bytes, verdict)
