"""The production run on the rented card: its settings and commands, derived from what was measured here.

Takes a record whose H-2 and H-3 ended well, gives values; which settings are proven comes from the record alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steph.base import units
from steph.base.messages import say, text
from steph.base.terms import StageId
from steph.contract.commands import without_launcher
from steph.memory.shapes import ShapeError, model_shape, parameter_count
from steph.memory.trainers import TRAINERS
from steph.record.settings import EvalSettings, ProductionTarget, TrainSettings
from steph.record.values import ModelChoice, ProductionCall, Record, StageResult

SPEC_QUESTIONS = 140
PRODUCTION_ADAPTER = "runs/qwen3_8b/direct_norag_4bit"
PRODUCTION_EVALUATION = "results/evaluations/qwen3_8b_direct.json"
REAL_DATASET = "datasets/lawqa_jp/data/selection.json"
LOGGING_STEPS = 10


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
    """The production run's durations at this card's speed, None where they were not measured.

    `parameter_ratio`: the production model's parameters by those of the model that was measured. `price_per_hour`: of
    the rented card, None where the profile does not say it.
    """

    training_seconds: float | None
    evaluation_seconds: float | None
    parameter_ratio: float
    price_per_hour: float | None = None

    @property
    def cost(self) -> float | None:
        """Price an hour times both durations; None where one of the three is not known."""
        if self.price_per_hour is None or self.training_seconds is None or self.evaluation_seconds is None:
            return None
        return (self.training_seconds + self.evaluation_seconds) / 3600 * self.price_per_hour


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


def target_settings(here: TrainSettings, target: ProductionTarget) -> TrainSettings:
    """Give the production settings: the profile's where `[production]` has them, else what was proven here."""
    return here.changed(
        num_epochs=target.num_epochs,
        batch_size=target.batch_size,
        max_seq_length=target.max_seq_length,
        gradient_accumulation_steps=target.gradient_accumulation_steps,
        use_4bit=True,
        logging_steps=max(here.logging_steps, LOGGING_STEPS),
        max_steps=0,
        launcher="none",
        num_processes=1,
    )


def final_settings(h2: StageResult | None) -> TrainSettings | None:
    attempt = h2.last_attempt if h2 else None
    return attempt.settings if attempt and isinstance(attempt.settings, TrainSettings) else None


def final_evaluation(h3: StageResult | None) -> EvalSettings | None:
    attempt = h3.last_attempt if h3 else None
    return attempt.settings if attempt and isinstance(attempt.settings, EvalSettings) else None


def carry_over(
    record: Record, here: TrainSettings, there: TrainSettings, evaluation: EvalSettings
) -> tuple[Setting, ...]:
    """Give the settings of the attempts that ended well which the production run keeps."""
    trained, evaluated = text("production.trained"), text("production.evaluated")
    argv = _argv(record, StageId.H2)
    rows = []
    if here.use_4bit:
        kinds = f"{here.bnb_4bit_quant_type} + {here.bnb_4bit_compute_dtype}"
        rows.append(Setting(text("production.four_bit"), kinds, trained))
    lora = f"{here.lora_r} / {here.lora_alpha} / {here.lora_dropout:g}"
    rows += [
        Setting("--lora-r / --lora-alpha / --lora-dropout", lora, trained),
        Setting("--learning-rate", _value_of(argv, "--learning-rate") or f"{here.learning_rate:g}", trained),
        Setting("--warmup-ratio", _value_of(argv, "--warmup-ratio") or f"{here.warmup_ratio:g}", trained),
    ]
    if here.target_modules:
        rows.append(Setting("--target-modules", ",".join(here.target_modules), trained))
    rows += [Setting(flag, old, trained) for flag, old, new, _ in _numbers(here, there) if old == new]
    if evaluation.load_in_4bit:
        rows.append(Setting("--hf-load-in-4bit", text("production.on"), evaluated))
    form = "production.with_rag" if evaluation.use_rag else "production.without_rag"
    shape = str(say(form, top_k=evaluation.top_k, ensemble=evaluation.ensemble))
    return (*rows, Setting(text("production.evaluation"), shape, evaluated))


def _numbers(here: TrainSettings, there: TrainSettings) -> tuple[tuple[str, str, str, str], ...]:
    """Give the settings that may differ: flag, value here, value there, reason for a difference."""
    effective = there.effective_batch_size
    longer = there.max_seq_length > here.max_seq_length
    larger = there.batch_size > here.batch_size
    asked = text("production.asked")
    return (
        (
            "--max-seq-length",
            str(here.max_seq_length),
            str(there.max_seq_length),
            text("production.longer") if longer else asked,
        ),
        (
            "--batch-size",
            str(here.batch_size),
            str(there.batch_size),
            text("production.larger") if larger else asked,
        ),
        (
            "--gradient-accumulation-steps",
            str(here.gradient_accumulation_steps),
            str(there.gradient_accumulation_steps),
            str(say("production.effective", batch=effective)),
        ),
        ("--num-epochs", str(here.num_epochs), str(there.num_epochs), text("production.epochs")),
    )


def changes(record: Record, here: TrainSettings, there: TrainSettings, evaluation: EvalSettings) -> tuple[Change, ...]:
    """Give the settings that the production run changes, measured value and new value side by side."""
    choice, target = record.model, record.context.production
    rows = [Change("--model-name", choice.name if choice else units.MISSING, target.model, text("production.model"))]
    rows += [Change(*number) for number in _numbers(here, there)]
    if not here.use_4bit:
        rows.append(
            Change(
                "--use-4bit",
                text("production.off"),
                text("production.on"),
                str(say("production.needs_4bit", model=target.model, card=target.card)),
            )
        )
    steps = _value_of(_argv(record, StageId.H2), "--max-steps-override")
    if steps:
        rows.append(Change("--max-steps-override", steps, text("production.drop"), text("production.whole")))
    rows.append(Change("--samples", str(evaluation.samples), str(questions_of(record)), text("production.questions")))
    if any(file.is_sample for file in record.data):
        rows.append(Change(*(text(f"production.{word}") for word in ("data", "sample", "real_data", "not_sample"))))
    return tuple(row for row in rows if row.here != row.there)


def questions_of(record: Record) -> int:
    """How many questions the production run is asked: the profile's, else the record's own data set's, else 140."""
    if record.context.production.questions is not None:
        return record.context.production.questions
    real = [file.rows for file in record.data if file.role == "dataset" and not file.is_sample]
    return real[0] if real else SPEC_QUESTIONS


def production_time(record: Record, target: TrainSettings) -> ProductionTime | None:
    """Scale what was measured here: loading once, and each row's time as often as the production run has rows.

    All of it grows with the parameters, a training row also with its length where rows are padded to the maximum. None
    where no GPU was used, or where one model's parameters are not known.
    """
    choice, parameters = record.model, production_parameters(record.context.production)
    if record.context.environment.device is None or choice is None or not choice.parameters or parameters is None:
        return None
    ratio = parameters / choice.parameters
    trained, answered = record.stages[StageId.H2].last_attempt, record.stages[StageId.H3].last_attempt
    training = evaluation = None
    if trained and trained.training and isinstance(trained.settings, TrainSettings):
        found, settings = trained.training, trained.settings
        row_seconds = found.train_runtime_seconds
        rows_done = (found.steps_done or 0) * settings.effective_batch_size
        if found.train_rows and found.epochs_done:  # the last batch of an epoch may be short
            rows_done = min(rows_done, max(1, round(found.train_rows * found.epochs_done)))
        if row_seconds and rows_done:
            trainer = TRAINERS.get(record.context.trainer or "")
            pads = trainer is not None and trainer.pads_to_maximum
            growth = target.max_seq_length / settings.max_seq_length if pads else 1.0
            per_row = growth * settings.num_processes * row_seconds / rows_done
            loading = max(0.0, (trained.seconds or 0.0) - row_seconds)
            training = (loading + per_row * _rows_to_train(record) * target.num_epochs) * ratio
    if answered and answered.seconds and answered.evaluation and answered.evaluation.total:
        cards = answered.settings.num_processes if answered.settings else 1
        answering = answered.evaluation.answering_seconds or cards * answered.seconds  # else loading is in each row's
        loading = max(0.0, answered.seconds - answering / cards)
        evaluation = (loading + answering / answered.evaluation.total * questions_of(record)) * ratio
    return ProductionTime(training, evaluation, ratio, record.context.production.price_per_hour)


def _rows_to_train(record: Record) -> int:
    """The training file's rows where the data are the real ones, else one for each question."""
    rows = [file.rows for file in record.data if file.role == "train_file"]
    is_real = not any(file.is_sample for file in record.data)
    return rows[0] if rows and is_real else questions_of(record)


def _argv(record: Record, stage: StageId) -> tuple[str, ...]:
    result = record.stages.get(stage)
    attempt = result.last_attempt if result else None
    if attempt is None or attempt.settings is None or not attempt.argv:
        return attempt.argv if attempt else ()
    return without_launcher(attempt.argv, attempt.settings)


def _value_of(argv: Sequence[str], flag: str) -> str | None:
    for at, word in enumerate(argv):
        if word == flag and at + 1 < len(argv):
            return argv[at + 1]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def train_call(record: Record, target: TrainSettings) -> ProductionCall | None:
    """Give the production training's command; None for an older record of another program than the published script."""
    attempt = record.stages[StageId.H2].last_attempt
    return (attempt.production if attempt else None) or _as_call(_train_argv(record, target))


def eval_call(record: Record) -> ProductionCall | None:
    """Give the production evaluation's command, likewise."""
    attempt = record.stages[StageId.H3].last_attempt
    return (attempt.production if attempt else None) or _as_call(_eval_argv(record))


def _as_call(argv: tuple[str, ...]) -> ProductionCall | None:
    return ProductionCall(commands=(argv,)) if argv else None


def _train_argv(record: Record, target: TrainSettings) -> tuple[str, ...]:
    if "--model-name" not in _argv(record, StageId.H2):
        return ()
    train_file = next((file.path for file in record.data if file.role == "train_file"), None)
    return _rewritten(
        _argv(record, StageId.H2),
        {
            "--model-name": record.context.production.model,
            "--output-dir": PRODUCTION_ADAPTER,
            **({"--train-file": train_file} if train_file else {}),
            "--num-epochs": str(target.num_epochs),
            "--batch-size": str(target.batch_size),
            "--max-seq-length": str(target.max_seq_length),
            "--gradient-accumulation-steps": str(target.gradient_accumulation_steps),
            "--logging-steps": str(target.logging_steps),
            "--bnb-4bit-compute-dtype": target.bnb_4bit_compute_dtype,
            "--bnb-4bit-quant-type": target.bnb_4bit_quant_type,
        },
        switches=("--use-4bit",),
        dropped=("--max-steps-override",),
    )


def _eval_argv(record: Record) -> tuple[str, ...]:
    if "--hf-model-name" not in _argv(record, StageId.H3):
        return ()
    return _rewritten(
        _argv(record, StageId.H3),
        {
            "--data": next((f.path for f in record.data if f.role == "dataset" and not f.is_sample), REAL_DATASET),
            "--output": PRODUCTION_EVALUATION,
            "--samples": str(questions_of(record)),
            "--hf-model-name": record.context.production.model,
            "--hf-lora-path": PRODUCTION_ADAPTER,
        },
        switches=("--hf-load-in-4bit",),
        dropped=(),
    )


def _rewritten(
    argv: Sequence[str], values: Mapping[str, str], switches: Sequence[str], dropped: Sequence[str]
) -> tuple[str, ...]:
    """Give a measured command with other values; the interpreter becomes the other machine's `python`."""
    words: list[str] = ["python"]
    rest = dict(values)
    skip_value = False
    for word in argv[1:]:
        flag, _, glued = word.partition("=")
        if skip_value:
            skip_value = False
        elif flag in dropped:
            skip_value = not glued
        elif flag in values:
            words += [flag, rest.pop(flag)] if flag in rest else []
            skip_value = not glued
        else:
            words.append(word)
    words += [word for flag, value in rest.items() for word in (flag, value)]
    return (*words, *(switch for switch in switches if switch not in words))
