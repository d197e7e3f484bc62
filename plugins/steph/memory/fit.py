"""`steph fit`: says whether a fine-tuning run fits a card, without a GPU, a download or torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steph.base.messages import Message, say, words_of
from steph.base.terms import FitVerdict, TrainerName
from steph.contract.answers import RowLengths, row_lengths
from steph.memory import needs
from steph.memory.forecast import Forecast, floor_bytes, largest_fitting, predict, predict_any
from steph.memory.shapes import TINY, ModelShape, linear_shapes, parameter_count
from steph.memory.trainers import ASSUMED_TRAINER, TRAINERS, AdapterCount, Workload
from steph.plan.cards import CARDS

ALL_LINEAR = tuple(linear_shapes(TINY))
GRID_BATCHES = (1, 2, 4, 8)
GRID_LENGTHS = (256, 384, 512, 768, 1024, 1536, 2048)
MEASURED_FORMS = ("", "bitsandbytes", "bnb-4bit", "bnb-8bit")  # others keep other tensors beside their bits
Point = tuple[int, int]  # batch size, max_seq_length


class FitError(ValueError):
    """The question can't be answered; the message is one line that names the option and the value."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a run is meant, beside the settings of one step; `recompute` is None where nobody said.

    `form`: how the published weights are quantised already. `taken_for`: the common model that only the name tells of.
    """

    trainer: TrainerName
    recompute: bool | None = None
    cards: int = 1
    sharing: needs.Sharing = "ddp"
    computes_bf16: bool = True
    form: str = ""
    taken_for: str = ""

    @property
    def is_unknown(self) -> bool:
        """Whether nobody said how the program uses memory."""
        return self.trainer is TrainerName.UNKNOWN


@dataclass(frozen=True, slots=True)
class Fit:
    """Forecasts by (batch size, max_seq_length) on one card, and the largest of them that surely fits.

    `reasons`: why nothing is known, and then there are no forecasts, only `floor_bytes`, which no run can do without.
    `basis`: what the answer rests on. `change`: what makes it fit, where it does not surely. Where nobody named a
    trainer, `by_trainer` is what each known one would take of a single setting, `fitting_trainers` are those with which
    the smallest setting fits as it is, and `changing_trainers` those with which a change makes it fit.
    """

    model: str
    vram_bytes: int
    setting: Setting
    work: Workload
    forecasts: dict[Point, Forecast]
    largest: Point | None
    reasons: tuple[Message, ...]
    basis: tuple[Message, ...]
    floor_bytes: int
    host: needs.HostNeeds | None
    change: needs.Change | None = None
    larger_card: str = ""
    by_trainer: Mapping[TrainerName, Forecast] = field(default_factory=dict)
    fitting_trainers: tuple[TrainerName, ...] = ()
    changing_trainers: tuple[TrainerName, ...] = ()

    def verdict(self, forecast: Forecast) -> FitVerdict:
        """The verdict of one forecast."""
        return forecast.verdict(self.vram_bytes)

    @property
    def unforeseen_verdict(self) -> FitVerdict:
        """The verdict where there is no forecast: only what is too large for sure is said."""
        return FitVerdict.DOES_NOT_FIT if self.floor_bytes > self.vram_bytes else FitVerdict.UNKNOWN


def not_allowed(option: str, value: object, allowed: Sequence[object]) -> Message:
    """What is said of an option with another value than the allowed ones."""
    return say("fit.not_allowed", option=option, value=value, allowed=[str(one) for one in allowed])


def trainer_named(name: str) -> TrainerName:
    """The trainer of this name, `unknown` among them; raises FitError naming those that there are."""
    allowed = (*TRAINERS, TrainerName.UNKNOWN)
    if name not in allowed:
        raise FitError(not_allowed("--trainer", name, allowed))
    return TrainerName(name)


def workload_of_options(
    trainer: TrainerName,
    targets: Sequence[str],
    recompute: str | None,
    **settings: Any,  # noqa: ANN401 - Workload's own fields
) -> Workload:
    """The options as a workload of one row; raises FitError naming an option whose value is not allowed."""
    if recompute not in (None, "on", "off"):
        raise FitError(not_allowed("--recompute", recompute, ("on", "off")))
    kind = ASSUMED_TRAINER if trainer is TrainerName.UNKNOWN else trainer
    # an unknown program may do either where nobody says that it recomputes
    recomputes = recompute == "on" if trainer is TrainerName.UNKNOWN else recompute != "off"
    return Workload(kind, 1, 1, target_modules=tuple(targets), recompute=recomputes, **settings)


def rows_of(data: str, tokenizer: str | None, model: str) -> RowLengths:
    """How long a training file's rows and answers are, the chat template included; raises FitError."""
    found = Path(tokenizer or model).expanduser()
    found = found / "tokenizer.json" if found.is_dir() or not tokenizer else found
    if not found.is_file():
        raise FitError(say("fit.no_tokenizer", path=found))
    try:
        return row_lengths(Path(data), found, "keeps_answer")  # the template that a trainer `answer` goes with
    except (OSError, ValueError) as error:
        raise FitError(say("fit.data", path=data, reason=error)) from error


def fit(
    model: str,
    shape: ModelShape,
    work: Workload,
    vram_bytes: int,
    setting: Setting,
    *,
    batches: Sequence[int] = GRID_BATCHES,
    lengths: Sequence[int] = GRID_LENGTHS,
    rows: RowLengths | None = None,
    forecast: Callable[[ModelShape, Workload], Forecast] | None = None,
    trains_all: bool = False,
) -> Fit:
    """Forecast every batch size and length; `work` gives the other settings.

    Rows are as long as the length and answers direct ones, except where `rows` is given and the trainer pads to the
    longest row only. Micro-batches are not fused. `forecast`: how a record predicts. `trains_all`: there is no LoRA,
    and only what all weights and the optimizer's states take is known. Raises FitError.
    """

    def foresee(point: Workload) -> Forecast:
        return _forecast(shape, point, setting, forecast)

    def at(batch: int, length: int) -> Workload:
        point = replace(work, batch_size=batch, width=length)
        is_filled = work.kind.pads_to_maximum or work.packing
        return point if rows is None or is_filled else point.of_rows(rows.longest, rows.longest_answer)

    if trains_all:
        parameters = parameter_count(shape)
        work = replace(work, use_4bit=False, use_8bit=False, adapter=AdapterCount(0, whole=parameters))
    reasons = needs.unknown_reasons(shape, work, trains_all=trains_all)
    asked = at(max(batches), max(lengths))
    least = floor_bytes(shape, replace(asked, trainer=TrainerName.TRL), trains_all=trains_all)
    if setting.cards > 1 and setting.sharing != "ddp":
        least //= setting.cards
    if reasons:
        host = None if needs.is_unmeasured_optimizer(work.optimizer) else needs.host_needs(shape, asked, setting.cards)
        return Fit(model, vram_bytes, setting, work, {}, None, reasons, (), least, host)
    try:
        forecasts = {(batch, length): foresee(at(batch, length)) for length in lengths for batch in batches}
        whole = forecasts
        if len(forecasts) == 1:
            whole = {(batch, length): foresee(at(batch, length)) for length in GRID_LENGTHS for batch in GRID_BATCHES}
        host = needs.host_needs(shape, asked, setting.cards)
    except ValueError as error:
        raise FitError(words_of(error)) from error
    basis = _basis(shape, asked, setting, is_measured=forecast is not None)
    largest = largest_fitting(forecasts | whole, vram_bytes)
    found = Fit(model, vram_bytes, setting, work, forecasts, largest, (), basis, least, host)
    smallest = at(min(batches), min(lengths))
    if setting.is_unknown:
        each = _by_trainer(shape, smallest, setting)
        fitting = tuple(name for name, one in each.items() if one.verdict(vram_bytes) is FitVerdict.FITS)
        found = replace(found, by_trainer=each if len(forecasts) == 1 else {}, fitting_trainers=fitting)
    return _with_change(found, shape, smallest, foresee)


def _by_trainer(shape: ModelShape, work: Workload, setting: Setting) -> dict[TrainerName, Forecast]:
    """The forecast of each known trainer, as if it had been named."""
    way = replace(work, recompute=setting.recompute is not False)
    return {
        name: _forecast(shape, replace(way, trainer=name), replace(setting, trainer=name), None) for name in TRAINERS
    }


def _forecast(
    shape: ModelShape,
    work: Workload,
    setting: Setting,
    measured: Callable[[ModelShape, Workload], Forecast] | None,
) -> Forecast:
    if measured is not None:
        found = measured(shape, work)
    elif setting.is_unknown:
        found = predict_any(shape, work, recompute=True if work.recompute else setting.recompute)
    else:
        found = predict(shape, work)
    for _ in _estimates(shape, work, setting):  # each says so
        found = needs.widened(found, needs.ESTIMATE_ERROR)
    return needs.shared(found, shape, setting.cards, setting.sharing) if setting.cards > 1 else found


def _estimates(shape: ModelShape, work: Workload, setting: Setting) -> tuple[Message, ...]:
    """In what the question goes beyond what was measured."""
    reasons = needs.estimate_reasons(shape, work, setting.trainer)
    if not setting.computes_bf16:
        reasons += (say("fit.estimate.no_bf16"),)
    if setting.form not in MEASURED_FORMS:
        reasons += (say("fit.estimate.form", form=setting.form),)
    return reasons


def bits_of(form: str, published: int, bits: int | None, *, use_4bit: bool) -> int:
    """The base's bits as asked for, else as published; raises FitError where these weights can't be had in others."""
    asked = bits or (None if use_4bit else 16)
    if not form:
        return asked or 4
    if asked not in (None, published) and form.startswith(("awq", "gptq", "bitsandbytes", "bnb", "unsloth")):
        raise FitError(say("fit.other_bits", bits=asked, published=published, form=form))
    return asked or published


def _basis(shape: ModelShape, work: Workload, setting: Setting, *, is_measured: bool) -> tuple[Message, ...]:
    """What the answer rests on: the trainer's points, calibrated or not, and what is an estimate."""
    if setting.is_unknown:
        lines = [say("fit.basis.unknown", trainers=list(TRAINERS))]
    else:
        row = TRAINERS[setting.trainer]
        version = row.version or say("fit.reference")
        lines = [say("fit.basis.trainer", trainer=setting.trainer, points=row.marked_points, version=version)]
    if not is_measured:
        lines.append(say("fit.basis.uncalibrated"))
    if setting.taken_for:
        lines.append(say("fit.basis.named", known=setting.taken_for))
    if 0 < shape.max_position_embeddings < work.width:
        lines.append(say("fit.basis.positions", tokens=work.width, positions=shape.max_position_embeddings))
    lines += _estimates(shape, work, setting)
    if setting.cards > 1:
        lines.append(say(f"fit.basis.{setting.sharing}", cards=setting.cards))
        if setting.sharing != "ddp" and (work.use_4bit or work.use_8bit):
            lines.append(say("fit.basis.whole_base"))
    return tuple(lines)


def _with_change(found: Fit, shape: ModelShape, smallest: Workload, foresee: Callable[[Workload], Forecast]) -> Fit:
    """The answer with what makes the smallest of its settings fit, or a card on which it does."""
    now, setting = foresee(smallest), found.setting
    if now.verdict(found.vram_bytes) is FitVerdict.FITS:
        return found

    def fits(work: Workload) -> Forecast | None:
        forecast = foresee(work)
        return forecast if forecast.verdict(found.vram_bytes) is FitVerdict.FITS else None

    def fits_if_named(work: Workload) -> Forecast | None:
        forecast = _forecast(shape, work, replace(setting, trainer=work.trainer), None)
        return forecast if forecast.verdict(found.vram_bytes) is FitVerdict.FITS else None

    change = needs.changes(smallest, fits, is_known=not setting.is_unknown)
    if setting.is_unknown:
        named = replace(smallest, recompute=setting.recompute is not False)
        others = (name for name in TRAINERS if name not in found.fitting_trainers)
        changing = (
            name for name in others if needs.changes(replace(named, trainer=name), fits_if_named, is_known=True)
        )
        found = replace(found, changing_trainers=tuple(changing))
    # where all was foreseen with bf16, a card without it needs more
    usable = (card for card in CARDS.values() if card.computes_bf16 or not found.setting.computes_bf16)
    by_size = sorted(usable, key=lambda card: card.usable_bytes)
    larger = (card.name for card in by_size if now.verdict(card.usable_bytes) is FitVerdict.FITS)
    card = next(larger, "")
    return replace(found, change=change, larger_card=card)
