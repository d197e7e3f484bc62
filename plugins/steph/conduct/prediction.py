"""Predicts the peak memory of each candidate model and of each rung before it runs.

Peaks are of the whole process, in bytes; None where the model's shape is unknown or no GPU is used. An error in here
never stops a run.
"""

from __future__ import annotations

from dataclasses import dataclass

from steph.base.messages import Message, say
from steph.base.terms import FitVerdict
from steph.base.units import GIB
from steph.conduct.models import NoModel
from steph.conduct.preparation import Setup
from steph.contract.rows import RowLengths
from steph.memory.calibration import shape_of, workload_of
from steph.memory.forecast import Forecast, automatic, leanest, predict
from steph.memory.shapes import ModelShape, UnknownShapeError, model_shape, parameter_count
from steph.memory.trainers import ASSUMED_TRAINER
from steph.record.settings import TrainSettings
from steph.record.values import Attempt, Candidate, ModelChoice, PredictedPeak


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
    def verdict(self) -> FitVerdict:
        """Whether it fits this card, the trainer falling back on the least where it can't have the likely."""
        return (
            FitVerdict.FITS
            if self.likely.verdict(self.card_bytes) is FitVerdict.FITS
            else self.least.verdict(self.card_bytes)
        )

    @property
    def peak(self) -> PredictedPeak:
        """The likely forecast as a record keeps it."""
        return self.likely.peak.changed(verdict=self.verdict)

    @property
    def cannot_fit(self) -> bool:
        """Whether even the least that is needed is more than there is."""
        return self.least.verdict(self.card_bytes) is FitVerdict.DOES_NOT_FIT

    @property
    def surely_fits(self) -> bool:
        """Whether the least that is needed is there with certainty."""
        return self.least.verdict(self.card_bytes) is FitVerdict.FITS

    def words(self) -> Message:
        """The prediction and the card."""
        low, peak, card = (
            size / GIB for size in (self.least.peak.low_bytes, self.least.peak.peak_bytes, self.card_bytes)
        )
        return say("forecast.peak", peak=peak, low=low, card=card)


def expected(
    setup: Setup, model: ModelChoice, settings: TrainSettings, rows: RowLengths | None = None
) -> Expectation | None:
    """What a training attempt will need; rows as long as they can be where they are not known."""
    try:
        return expected_of_shape(setup, shape_of(model), settings, rows)
    except Exception:  # a shape or module that the model doesn't know, or sizes that nothing can be computed of
        return None


def expected_of_shape(
    setup: Setup, shape: ModelShape, settings: TrainSettings, rows: RowLengths | None = None
) -> Expectation | None:
    """What training a model of this shape will need, None without a GPU; raises ValueError for an unknown module."""
    card_bytes = usable_bytes(setup)
    if card_bytes is None:
        return None
    work = workload_of(settings, setup.description.trainer or ASSUMED_TRAINER)
    if rows is not None and not work.kind.pads_to_maximum:
        work = work.of_rows(rows.longest, rows.longest_answer)
    likely = predict(shape, automatic(shape, work, card_bytes))
    is_binding = setup.description.trainer is not None and not setup.options.no_predict
    return Expectation(likely, predict(shape, leanest(work)), card_bytes, is_binding)


def worth_trying(expectation: Expectation, last: Attempt | None, *, gave_up_4bit: bool) -> bool:
    """Whether a rung is tried: not where it can't fit; without 4-bit after an OOM only where it surely fits.

    Giving up 4-bit makes the weights larger, which no OOM is cured by.
    """
    if not expectation.is_binding:
        return True
    ran_out = last is not None and last.ran_out_of_memory
    return expectation.surely_fits if ran_out and gave_up_4bit else not expectation.cannot_fit


def usable_bytes(setup: Setup) -> int | None:
    """What a training process may take of the smallest of its cards, None without a GPU."""
    cards = setup.devices(setup.profile.train.num_processes)
    return min((card.usable_bytes(setup.options.vram_cap_bytes) for card in cards), default=None)


def predicted_candidates(setup: Setup, found: ModelChoice | NoModel) -> tuple[Candidate, ...]:
    """The model asked for and the profile's, in order; the one chosen is the first that was not passed over."""
    asked = (setup.options.model,) if setup.options.model else ()
    names = tuple(dict.fromkeys((*asked, *setup.profile.model.candidates)))
    passed_over = {item.name for item in found.rejected}
    chosen = next((name for name in names if name not in passed_over), None) if isinstance(found, ModelChoice) else None
    settings = setup.profile.train.short()
    candidates = []
    for name in names:
        if name == chosen and isinstance(found, ModelChoice):
            candidate = Candidate(name=name, outcome="chosen", settings=settings, parameters=found.parameters)
            candidates.append(_predicted(setup, candidate, found))
            continue
        candidate = Candidate(name=name, outcome="rejected" if name in passed_over else "not_tried", settings=settings)
        candidates.append(_predicted(setup, candidate, None))
    return tuple(candidates)


def _predicted(setup: Setup, candidate: Candidate, choice: ModelChoice | None) -> Candidate:
    """The candidate with its forecast; the shape is the chosen model's own, else the one known by the name."""
    try:
        shape = shape_of(choice) if choice else model_shape(candidate.name)
        candidate = candidate.changed(parameters=candidate.parameters or parameter_count(shape))
        expectation = expected_of_shape(setup, shape, setup.profile.train)
    except UnknownShapeError:
        return candidate.changed(unpredicted_reason=say("forecast.unknown_shape"))
    except Exception as error:  # a kind of model or a target module that the formulas don't know, or absurd sizes
        return candidate.changed(unpredicted_reason=say("forecast.not_computed", error=error))
    if expectation is None:
        return candidate.changed(unpredicted_reason=say("forecast.no_gpu"))
    return candidate.changed(predicted=expectation.peak)
