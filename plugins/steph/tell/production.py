"""The production run on the rented card: its settings and commands, derived from what was measured here.

Takes a record whose H-2 and H-3 ended well, gives values; which settings are proven comes from the record alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from steph.base import units
from steph.base.messages import phrase, text
from steph.base.terms import StageId, TrainerName
from steph.contract import commands as contract
from steph.contract.description import Description
from steph.contract.placeholders import spelled
from steph.memory.shapes import ShapeError, model_shape, parameter_count
from steph.memory.terms import TRAINERS
from steph.record.settings import EvalSettings, ProductionTarget, TrainSettings
from steph.record.values import ModelChoice, ProductionCall, Record, StageResult

WEIGHT_BYTES = 2  # a parameter in bf16 or fp16, as models are published
LEAST_DOWNLOAD_BYTES = 100 << 20  # less says nothing of a line's speed
MOST_PRICE = 1e9  # an hour, in any currency: more is no price


@dataclass(frozen=True)
class Setting:
    """One setting that carries over as it is."""

    name: str
    value: str
    why: str


@dataclass(frozen=True)
class Change:
    """One setting to change on the production card."""

    name: str
    here: str
    there: str
    why: str


@dataclass(frozen=True)
class ProductionTime:
    """The production run's durations at this card's speed, in seconds, None where they were not measured.

    Training and evaluation are with what loading the model takes in each, which `loading_seconds` says for both
    together. `download_bytes`: of the model's weights, and how long they take at the speed of H-1's download.
    `parameter_ratio`: the production model's parameters by those of the model that was measured. `price_per_hour`: of
    the rented card, None where the profile does not say it. `has_questions`: whether it is known how many there are in
    all. `evaluation_is_most`: the evaluation gave no time of its
    questions alone, so that loading is in each one's.
    """

    training_seconds: float | None
    evaluation_seconds: float | None
    parameter_ratio: float
    price_per_hour: float | None = None
    download_bytes: int = 0
    download_seconds: float | None = None
    loading_seconds: float | None = None
    evaluation_is_most: bool = False
    has_questions: bool = True

    @property
    def total_seconds(self) -> float | None:
        """All of it; None where training or evaluation was not measured. A download that was not is left out."""
        if self.training_seconds is None or self.evaluation_seconds is None:
            return None
        return units.plausible_seconds(self.training_seconds + self.evaluation_seconds + (self.download_seconds or 0.0))

    @property
    def cost(self) -> float | None:
        """Price an hour times all of the time; None where one of them is not known."""
        if self.price_per_hour is None or self.total_seconds is None:
            return None
        return self.total_seconds / 3600 * self.price_per_hour


def production_parameters(target: ProductionTarget) -> int | None:
    """How many parameters the production model has: as the profile says, else by its shape; None where unknown."""
    if target.parameters is not None:
        return target.parameters
    try:
        return parameter_count(model_shape(target.model))
    except ShapeError:
        return None


def is_production_model(choice: ModelChoice | None, target: ProductionTarget) -> bool:
    """Whether this is the production model, or a twin in its shape."""
    return choice is not None and choice.parameters is not None and choice.parameters == production_parameters(target)


def final_settings(h2: StageResult | None) -> TrainSettings | None:
    """What H-2's last attempt was asked for; in 4 bits exactly where its model was seen to be so."""
    attempt = h2.last_attempt if h2 else None
    if attempt is None or not isinstance(attempt.settings, TrainSettings):
        return None
    bits = attempt.training.weight_bits if attempt.training else None
    return attempt.settings if bits is None else attempt.settings.changed(use_4bit=bits == 4)


def final_evaluation(h3: StageResult | None) -> EvalSettings | None:
    attempt = h3.last_attempt if h3 else None
    return attempt.settings if attempt and isinstance(attempt.settings, EvalSettings) else None


def said_to(result: StageResult | None) -> Mapping[str, str]:
    """How a stage's program is told each setting; of an older record the published script's words, or plain names."""
    attempt = result.last_attempt if result else None
    if attempt is not None and attempt.production is not None and attempt.production.said is not None:
        return attempt.production.said
    published = Description()
    for section, flag in ((published.train, "--model-name"), (published.evaluate, "--hf-model-name")):
        if attempt is not None and flag in attempt.argv:
            return contract.spellings(section)
    return {name: name for name in ("model", "samples", *contract.MUST_BE_SAID)}


def target_settings(record: Record, here: TrainSettings) -> TrainSettings:
    """The production run's settings, as far as this record's program can be told them."""
    has_4bit = bool(said_to(record.stages.get(StageId.H2)).get("use_4bit"))
    return contract.target_settings(here, record.context.production, has_4bit=has_4bit)


def carry_over(record: Record, here: TrainSettings, there: TrainSettings, evaluation: EvalSettings) -> list[Setting]:
    """The settings of the attempts that ended well which the production run keeps, as their programs spell them."""
    (said, asked), trained = (
        (said_to(record.stages[stage]) for stage in (StageId.H2, StageId.H3)),
        text("production.trained"),
    )
    rows = []
    if here.use_4bit:
        kinds = [name for name in ("bnb_4bit_quant_type", "bnb_4bit_compute_dtype") if name in said]
        kept = {
            said[name] or name: getattr(here, name) for name in kinds if getattr(here, name) == getattr(there, name)
        }
        option = said.get("use_4bit") or text("production.weights")
        if len(kept) == 2:
            kept = {phrase("production.four_bit", option=option): " + ".join(kept.values())}
        rows = [Setting(name, kind, trained) for name, kind in (kept or {option: text("production.on")}).items()]
    for names in (("lora_r", "lora_alpha", "lora_dropout"), ("learning_rate",), ("warmup_ratio",), ("target_modules",)):
        told = {said[name] or name: _value(getattr(here, name)) for name in names if name in said}
        if any(told.values()):
            rows.append(Setting(" / ".join(told), " / ".join(told.values()), trained))
    rows += [Setting(flag, old, trained) for flag, old, new, _ in _numbers(said, here, there) if old == new]
    last, evaluated = record.stages[StageId.H3].last_attempt, text("production.evaluated")
    for words in (asked.get(name, "").split(" / ") for name in ("use_4bit", "use_rag", "use_cot")):
        given = [word for word in words if word and last is not None and {*word.split()} <= {*last.argv}]
        rows += [Setting(word, text("production.on"), evaluated) for word in given]
    counts = [name for name in ("load_in_4bit", "top_k", "ensemble") if asked.get(name)]
    return [*rows, *(Setting(asked[name], _value(getattr(evaluation, name)), evaluated) for name in counts)]


def _value(setting: object) -> str:
    return f"{setting:g}" if isinstance(setting, float) else spelled(setting)


def _numbers(
    said: Mapping[str, str], here: TrainSettings, there: TrainSettings
) -> tuple[tuple[str, str, str, str], ...]:
    """The settings that may differ: how the program is told it, value here, value there, reason for a difference."""
    reasons = {
        "max_seq_length": text("production.asked"),
        "batch_size": text("production.asked"),
        "gradient_accumulation_steps": phrase("production.effective", batch=there.effective_batch_size),
        "num_epochs": text("production.epochs"),
    }
    return tuple(
        (said[name] or name, str(getattr(here, name)), str(getattr(there, name)), reason)
        for name, reason in reasons.items()
        if name in said
    )


def changes(record: Record, here: TrainSettings, there: TrainSettings, evaluation: EvalSettings) -> tuple[Change, ...]:
    """The settings that the production run changes, measured value and new value side by side."""
    choice, target, last = record.model, record.context.production, record.stages[StageId.H2].last_attempt
    said, asked = (said_to(record.stages[stage]) for stage in (StageId.H2, StageId.H3))
    model = said.get("model") or text("production.of_model")
    rows = [Change(model, choice.name if choice else units.MISSING, target.model, text("production.model"))]
    rows += [Change(*number) for number in _numbers(said, here, there)]
    if there.use_4bit and not here.use_4bit:
        needs = phrase("production.needs_4bit", model=target.model, card=target.card)
        rows.append(Change(said["use_4bit"], text("production.off"), text("production.on"), needs))
    no_bf16 = phrase("production.no_bf16", card=target.card)
    for name in ("bnb_4bit_compute_dtype", "mixed_precision"):
        if name in said:
            rows.append(Change(said[name] or name, getattr(here, name) or "", getattr(there, name) or "", no_bf16))
    limit, whole = said.get("max_steps"), train_call(record, there)
    passed = _told(last.argv, last.env) - _told(*whole.commands, whole.env) if last and whole else set()
    if limit == "" or limit in passed:  # the whole run's command may have one of its own: that of all its epochs
        steps = text("production.drop"), text("production.whole")
        rows.append(Change(limit or "max_steps", str(here.max_steps), *steps))
    questions = contract.questions_of(record)
    if "samples" in asked:
        every = text("production.all") if questions is None else str(questions)
        rows.append(Change(asked["samples"] or "samples", str(evaluation.samples), every, text("production.questions")))
    if any(file.is_sample for file in record.data):
        rows.append(Change(*(text(f"production.{word}") for word in ("data", "sample", "real_data", "not_sample"))))
    return tuple(row for row in rows if row.here != row.there)


def _told(*words: Iterable[str]) -> set[str]:
    """Options and variables without their values."""
    return {word.partition("=")[0] for several in words for word in several}


def production_time(record: Record, target: TrainSettings) -> ProductionTime | None:
    """Scale what was measured here: loading once, and each row's time as often as the production run has rows.

    All of it grows with the parameters, a training row also with its length where rows are padded to the maximum. None
    where no GPU was used, or where one model's parameters are not known. What is no plausible time was not measured.
    """
    choice, parameters = record.model, production_parameters(record.context.production)
    if record.context.environment.device is None or choice is None or not choice.parameters or parameters is None:
        return None
    ratio = parameters / choice.parameters
    training, training_load = _training_seconds(record, target)
    evaluation, evaluation_load = _evaluation_seconds(record)
    loads = [load for load in (training_load, evaluation_load) if load is not None]
    weights, h1 = parameters * WEIGHT_BYTES, record.stages.get(StageId.H1)
    downloaded, download = choice.download_bytes or 0, None
    # at the speed of H-1's own download, with all that H-1 did in that time
    h1_seconds = units.plausible_seconds(h1.seconds) if h1 and choice.source == "hub" else None
    if h1_seconds and downloaded >= LEAST_DOWNLOAD_BYTES:
        download = units.plausible_seconds(weights / (downloaded / h1_seconds))
    return ProductionTime(
        training_seconds=_times(training, ratio),
        evaluation_seconds=_times(evaluation, ratio),
        parameter_ratio=ratio,
        price_per_hour=price_of(record.context.production),
        download_bytes=weights,
        download_seconds=download,
        loading_seconds=_times(sum(loads), ratio) if loads else None,
        evaluation_is_most=evaluation is not None and evaluation_load is None,
        has_questions=contract.questions_of(record) is not None,
    )


def price_of(target: ProductionTarget) -> float | None:
    """The price of an hour of the rented card; None where nobody said, or what was said is no price."""
    price = target.price_per_hour
    return price if price is not None and 0 <= price < MOST_PRICE else None


def _times(seconds: float | None, ratio: float) -> float | None:
    return None if seconds is None else units.plausible_seconds(seconds * ratio)


def _training_seconds(record: Record, target: TrainSettings) -> tuple[float | None, float | None]:
    """The production training's seconds if its model were this record's, and those of loading in them."""
    trained = record.stages[StageId.H2].last_attempt
    if trained is None or trained.training is None or not isinstance(trained.settings, TrainSettings):
        return None, None
    found, settings = trained.training, trained.settings
    row_seconds, whole = (units.plausible_seconds(x) for x in (found.train_runtime_seconds, trained.seconds))
    rows_done = (found.steps_done or 0) * settings.effective_batch_size
    if found.train_rows and found.epochs_done and math.isfinite(found.epochs_done):
        # an epoch's last batch may be short
        rows_done = min(rows_done, max(1, round(found.train_rows * found.epochs_done)))
    if not row_seconds or rows_done <= 0:
        return None, None
    trainer = TRAINERS.get(record.context.trainer or TrainerName.UNDESCRIBED)
    pads = trainer is not None and trainer.pads_to_maximum
    growth = target.max_seq_length / settings.max_seq_length if pads else 1.0
    per_row = growth * settings.num_processes * row_seconds / rows_done
    loading = max(0.0, (whole or 0.0) - row_seconds)
    # the training file's rows where the data are the real ones, else one for each question; without such a file as seen
    rows = [file.rows for file in record.data if file.role == "train_file"]
    is_sample = any(file.is_sample for file in record.data)
    due = contract.questions_of(record) if is_sample else next(iter(rows), found.train_rows)
    return None if due is None else loading + per_row * due * target.num_epochs, loading


def _evaluation_seconds(record: Record) -> tuple[float | None, float | None]:
    """Likewise of the whole evaluation; where its questions have no times of their own, loading is in each one's."""
    answered = record.stages[StageId.H3].last_attempt
    whole = units.plausible_seconds(answered.seconds) if answered else None
    if answered is None or not whole or answered.evaluation is None or not answered.evaluation.total:
        return None, None
    cards = answered.settings.num_processes if answered.settings else 1
    own = units.plausible_seconds(answered.evaluation.answering_seconds)
    answering = own or cards * whole
    loading, questions = max(0.0, whole - answering / cards), contract.questions_of(record)
    if questions is None:
        return None, loading if own else None
    return loading + answering / answered.evaluation.total * questions, loading if own else None


def train_call(record: Record, target: TrainSettings) -> ProductionCall | None:
    """The production training's command; None for an older record of another program than the published script."""
    attempt = record.stages[StageId.H2].last_attempt
    if attempt is None or attempt.production is not None or "--model-name" not in attempt.argv:
        return attempt.production if attempt else None
    return contract.production_training(Description(), _files(record), record.context.production.model, target)


def eval_call(record: Record, evaluation: EvalSettings) -> ProductionCall | None:
    """The production evaluation's command, likewise."""
    attempt = record.stages[StageId.H3].last_attempt
    if attempt is None or attempt.production is not None or "--hf-model-name" not in attempt.argv:
        return attempt.production if attempt else None
    model, in_4bit = record.context.production.model, evaluation.changed(load_in_4bit=True)
    return contract.production_evaluation(Description(), _files(record), model, in_4bit, contract.questions_of(record))


def _files(record: Record) -> contract.Files:
    """The files of an older record's commands, which it does not have ready."""
    real = {file.role: file.path for file in record.data if not file.is_sample}
    train_file = next((file.path for file in record.data if file.role == "train_file"), None)
    dataset = real.get("dataset", Description().paths.dataset)
    return contract.Files(Path(record.context.pipeline_root), train_file=train_file, dataset=dataset)
