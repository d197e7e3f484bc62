"""`steph fit`: says whether a fine-tuning run fits a card, without a GPU, a download or torch.

Also what the run needs beside the card's memory, what the answer rests on, and what would make it fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

from steph.base.messages import Message, say, words_of
from steph.base.terms import FitVerdict, TrainerName
from steph.base.units import GIB
from steph.contract.options import OptionError, parse_size
from steph.contract.rows import RowLengths, row_lengths
from steph.contract.settings import CARDS, Card, card_by_name
from steph.memory import terms
from steph.memory.forecast import (
    Forecast,
    Sharing,
    floor_bytes,
    largest_fitting,
    on_several_cards,
    predict,
    predict_any,
)
from steph.memory.shapes import ModelShape, parameter_count
from steph.memory.terms import ASSUMED_TRAINER, DEFAULT_TARGETS, HALF, TRAINERS, AdapterCount, Workload

GRID_BATCHES = (1, 2, 4, 8)
GRID_LENGTHS = (256, 384, 512, 768, 1024, 1536, 2048)
LIBRARIES_BYTES = 4 * GIB  # torch, its CUDA libraries and transformers in one process; seen 3 to 4 GiB
SHARD_BYTES = 5_000_000_000  # of a published checkpoint, of which one is read at a time
ESTIMATE_ERROR = 0.10  # of settings near those that were measured
LONGEST_MEASURED = 3584  # tokens of one row
MEASURED_FORMS = ("", "bitsandbytes", "bnb-4bit", "bnb-8bit")  # others keep other tensors beside their bits
MEASURED_WITH = {  # which trainers a kind of base or of row was measured with
    "packing": (TrainerName.TRL,),
    "dora": (TrainerName.TRL,),
    "use_8bit": (TrainerName.TRL, TrainerName.LIGER),
}
Point = tuple[int, int]  # batch size, max_seq_length
Offer = tuple[Message, Callable[[Workload], Workload]]


class FitError(ValueError):
    """The question can't be answered; the message is one line that names the option and the value."""


@dataclass(frozen=True, slots=True)
class HostNeeds:
    """Bytes of host memory and of disk: estimates, since both depend on how a program loads and saves.

    `checkpoint_bytes`: of one checkpoint with the optimizer's state. `merged_bytes`: on disk, and about as much in
    host memory while an adapter is merged into 16 bits.
    """

    memory_bytes: int
    model_bytes: int
    checkpoint_bytes: int
    merged_bytes: int


@dataclass(frozen=True, slots=True)
class Change:
    """One or several changes after which a run surely fits, and what it then takes."""

    words: tuple[Message, ...]
    forecast: Forecast


@dataclass(frozen=True, slots=True)
class Setting:
    """How a run is meant, beside the settings of one step; `recompute` is None where nobody said.

    `form`: how the published weights are quantised already. `taken_for`: the common model that only the name tells of.
    """

    trainer: TrainerName
    recompute: bool | None = None
    cards: int = 1
    sharing: Sharing = "ddp"
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
    trainer, `by_trainer` is what each known one would take of a single setting, `largest_by_trainer` the largest of
    several that fits with each, `fitting_trainers` are those with which the smallest setting fits as it is, and
    `changing_trainers` those with which a change makes it fit.
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
    host: HostNeeds | None
    change: Change | None = None
    larger_card: str = ""
    by_trainer: Mapping[TrainerName, Forecast] = field(default_factory=dict)
    largest_by_trainer: Mapping[TrainerName, Point | None] = field(default_factory=dict)
    fitting_trainers: tuple[TrainerName, ...] = ()
    changing_trainers: tuple[TrainerName, ...] = ()

    def verdict(self, forecast: Forecast) -> FitVerdict:
        """The verdict of one forecast."""
        return forecast.verdict(self.vram_bytes)

    @property
    def unforeseen_verdict(self) -> FitVerdict:
        """The verdict where there is no forecast: only what is too large for sure is said."""
        return FitVerdict.DOES_NOT_FIT if self.floor_bytes > self.vram_bytes else FitVerdict.UNKNOWN


def require(option: str, value: object, allowed: Sequence[object]) -> None:
    """Raise FitError where an option was given another value than the allowed ones."""
    if value is not None and value not in allowed:
        raise FitError(say("fit.not_allowed", option=option, value=value, allowed=[str(one) for one in allowed]))


def card_of(name: str | None, vram: str | None) -> tuple[Card | None, int]:
    """The card, where it was named, and what a process can use of it in bytes; raises FitError."""
    if (vram is None) == (name is None):
        raise FitError(say("fit.vram_or_card"))
    try:
        if name is not None:
            card = card_by_name(name)
            return card, card.usable_bytes
        return None, parse_size(vram or "", "--vram")
    except OptionError as error:
        raise FitError(say("fit.no_size", value=repr(vram))) from error
    except ValueError as error:
        raise FitError(say("fit.or_vram", reason=error)) from error


def trainer_named(name: str) -> TrainerName:
    """The trainer of this name, `unknown` among them; raises FitError naming those that there are."""
    require("--trainer", name, (*TRAINERS, TrainerName.UNKNOWN))
    return TrainerName(name)


def workload_of_options(
    trainer: TrainerName,
    targets: Sequence[str],
    recompute: bool | None,
    bits: int,
    **settings: Any,  # noqa: ANN401 - Workload's own fields
) -> Workload:
    """The options as a workload of one row; `recompute` is None where nobody said."""
    kind = ASSUMED_TRAINER if trainer is TrainerName.UNKNOWN else trainer
    # an unknown program may do either where nobody says that it recomputes
    recomputes = trainer is not TrainerName.UNKNOWN if recompute is None else recompute
    settings |= {"use_4bit": bits == 4, "use_8bit": bits == 8, "recompute": recomputes}
    return Workload(kind, 1, 1, target_modules=tuple(targets), **settings)


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
        return point if rows is None or is_filled else point.of_rows(rows.longest_tokens, rows.longest_answer_tokens)

    if trains_all:
        parameters = parameter_count(shape)
        work = replace(work, use_4bit=False, use_8bit=False, adapter=AdapterCount(0, whole=parameters))
    largest, smallest = at(max(batches), max(lengths)), at(min(batches), min(lengths))
    least = floor_bytes(shape, replace(largest, trainer=TrainerName.TRL), trains_all=trains_all)
    if setting.cards > 1 and setting.sharing != "ddp":
        least //= setting.cards
    is_unmeasured = work.optimizer not in terms.OPTIMIZER_BYTES and work.optimizer.startswith(terms.UNKNOWN_OPTIMIZERS)
    reasons = [say("fit.unknown.whole")] if trains_all else []
    if shape.num_experts:
        reasons.append(say("fit.unknown.experts", type=shape.type_words))
    elif not shape.family.is_measured:
        reasons.append(say("fit.unknown.family", type=shape.type_words))
    if is_unmeasured:
        reasons.append(say("fit.unknown.optimizer", optimizer=work.optimizer))
    if reasons:
        host = None if is_unmeasured else host_needs(shape, largest, setting.cards)
        return Fit(model, vram_bytes, setting, work, {}, None, tuple(reasons), (), least, host)
    try:
        forecasts = {(batch, length): foresee(at(batch, length)) for length in lengths for batch in batches}
        whole = forecasts
        if len(forecasts) == 1:
            whole = {(batch, length): foresee(at(batch, length)) for length in GRID_LENGTHS for batch in GRID_BATCHES}
        host = host_needs(shape, largest, setting.cards)
    except ValueError as error:
        raise FitError(words_of(error)) from error
    basis = _basis(shape, largest, setting, is_measured=forecast is not None)
    fitting = largest_fitting(forecasts | whole, vram_bytes)
    found = Fit(model, vram_bytes, setting, work, forecasts, fitting, (), basis, least, host)
    if setting.is_unknown:  # each known trainer, as if it had been named
        recompute = setting.recompute is not False
        each = {
            name: {
                point: _forecast(
                    shape, replace(at(*point), trainer=name, recompute=recompute), replace(setting, trainer=name)
                )
                for point in forecasts
            }
            for name in TRAINERS
        }
        first = {name: min(of_name.items(), key=lambda one: one[0])[1] for name, of_name in each.items()}
        found = replace(
            found,
            by_trainer=first if len(forecasts) == 1 else {},
            largest_by_trainer={name: largest_fitting(one, vram_bytes) for name, one in each.items()},
            fitting_trainers=tuple(name for name, one in first.items() if one.verdict(vram_bytes) is FitVerdict.FITS),
        )
    now = foresee(smallest)
    return found if now.verdict(vram_bytes) is FitVerdict.FITS else _with_change(found, shape, smallest, now, foresee)


def host_needs(shape: ModelShape, work: Workload, processes: int = 1) -> HostNeeds:
    """Host memory and disk of a run; every process has its libraries, its paged states and what Unsloth moves there."""
    whole = parameter_count(shape) * HALF
    state = terms.optimizer_bytes(shape, work)
    each = LIBRARIES_BYTES + (state if work.optimizer.startswith("paged_") else 0.0)
    if work.kind.offloads_checkpoints and work.recompute:
        each += HALF * work.tokens * shape.hidden_size * shape.num_hidden_layers
    return HostNeeds(
        memory_bytes=round(processes * each + min(whole, SHARD_BYTES)),
        model_bytes=whole,
        checkpoint_bytes=round(terms.trained_bytes(shape, work) + state),
        merged_bytes=whole,
    )


def _forecast(
    shape: ModelShape,
    work: Workload,
    setting: Setting,
    measured: Callable[[ModelShape, Workload], Forecast] | None = None,
) -> Forecast:
    if measured is not None:
        found = measured(shape, work)
    elif setting.is_unknown:
        found = predict_any(shape, work, recompute=True if work.recompute else setting.recompute)
    else:
        found = predict(shape, work)
    for _ in _estimates(shape, work, setting):  # each says so
        found = replace(found, peak=found.peak.widened(ESTIMATE_ERROR))
    return on_several_cards(found, shape, setting.cards, setting.sharing) if setting.cards > 1 else found


def _estimates(shape: ModelShape, work: Workload, setting: Setting) -> tuple[Message, ...]:
    """In what the question goes beyond what was measured, though the formulas cover it."""
    reasons = [
        say(f"fit.estimate.{kind}", trainer=setting.trainer)
        for kind, trainers in MEASURED_WITH.items()
        if getattr(work, kind) and setting.trainer not in (*trainers, TrainerName.UNKNOWN)
    ]
    if work.modules_to_save or {"embed_tokens", "lm_head"} & set(work.target_modules):
        reasons.append(say("fit.estimate.head"))
    if shape.more_linears:
        reasons.append(say("fit.estimate.tower"))
    if work.width > LONGEST_MEASURED:
        reasons.append(say("fit.estimate.length", tokens=LONGEST_MEASURED))
    if not setting.computes_bf16:
        reasons.append(say("fit.estimate.no_bf16"))
    if setting.form not in MEASURED_FORMS:
        reasons.append(say("fit.estimate.form", form=setting.form))
    return tuple(reasons)


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


def _with_change(
    found: Fit, shape: ModelShape, smallest: Workload, now: Forecast, foresee: Callable[[Workload], Forecast]
) -> Fit:
    """The answer with what makes the smallest of its settings fit, which takes `now`, or a card on which it does."""
    setting = found.setting

    def surely(forecast: Forecast) -> Forecast | None:
        return forecast if forecast.verdict(found.vram_bytes) is FitVerdict.FITS else None

    def fits_if_named(work: Workload) -> Forecast | None:
        return surely(_forecast(shape, work, replace(setting, trainer=work.trainer)))

    change = changes(smallest, lambda work: surely(foresee(work)), is_known=not setting.is_unknown)
    changing: list[TrainerName] = []
    if setting.is_unknown:
        named = replace(smallest, recompute=setting.recompute is not False)
        changing = [
            name
            for name in TRAINERS
            if name not in found.fitting_trainers
            and changes(replace(named, trainer=name), fits_if_named, is_known=True)
        ]
    # where all was foreseen with bf16, a card without it needs more
    usable = (card for card in CARDS.values() if card.computes_bf16 or not setting.computes_bf16)
    by_size = sorted(usable, key=lambda card: card.usable_bytes)
    larger = next((card.name for card in by_size if now.verdict(card.usable_bytes) is FitVerdict.FITS), "")
    return replace(found, change=change, changing_trainers=tuple(changing), larger_card=larger)


def changes(work: Workload, fits: Callable[[Workload], Forecast | None], *, is_known: bool) -> Change | None:
    """The cheapest change that makes a run fit, else the fewest of them together, cheapest first; None where none do.

    `fits` gives the forecast of a workload that surely fits. `is_known`: the trainer is, so that one of its options or
    another one can be named.
    """

    def fitting(offers: Sequence[Offer]) -> Forecast | None:
        return fits(reduce(lambda changed, offer: offer[1](changed), offers, work))

    offered = list(_offers(work, is_known=is_known))
    for offer in offered:
        if found := fitting([offer]):
            return Change((offer[0],), found)
    enough = next((count for count in range(1, len(offered) + 1) if fitting(offered[:count])), None)
    if enough is None:
        return None
    taken = offered[:enough]
    for offer in tuple(taken):
        fewer = [kept for kept in taken if kept is not offer]
        if fitting(fewer):
            taken = fewer
    found = fitting(taken)
    return Change(tuple(words for words, _ in taken), found) if found else None


def _offers(work: Workload, *, is_known: bool) -> Iterator[Offer]:
    """Changes, the cheapest first: nothing but a word, then speed, then precision, then the task itself."""

    def changed(words: Message, **to: Any) -> Offer:  # noqa: ANN401 - Workload's own fields
        return words, lambda old: replace(old, **to)

    if is_known and work.trainer is TrainerName.TRL:
        yield changed(say("fit.change.liger"), trainer=TrainerName.LIGER)
    if not work.optimizer.startswith("paged_") and work.optimizer in terms.OPTIMIZER_BYTES:
        yield changed(say("fit.change.paged"), optimizer="paged_adamw_8bit")
    if not work.recompute:
        yield changed(say("fit.change.recompute"), recompute=True)
    batch = work.batch_size
    while batch > 1:
        batch //= 2
        steps = work.gradient_accumulation_steps * work.batch_size // batch
        words = say("fit.change.batch", batch=batch, steps=steps)
        yield changed(words, batch_size=batch, gradient_accumulation_steps=steps)
    if work.use_4bit and not work.double_quant:
        yield changed(say("fit.change.double"), double_quant=True)
    if not work.use_4bit:
        yield changed(say("fit.change.four"), use_4bit=True, use_8bit=False)
    if is_known and work.trainer is not TrainerName.UNSLOTH:
        yield changed(say("fit.change.unsloth"), trainer=TrainerName.UNSLOTH)
    if work.adapter is None and set(work.target_modules) > set(DEFAULT_TARGETS):
        yield changed(say("fit.change.targets"), target_modules=DEFAULT_TARGETS)
    width = work.width
    while width > 512:
        width //= 2
        yield changed(
            say("fit.change.length", tokens=width), width=width, label_positions=min(width, work.label_positions)
        )
