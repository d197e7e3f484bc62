"""H-4: what the three stages say about the production run on the rented card, computed from the record.

Takes a record and, where there are some, memory predictions; gives an `Advice`. Nothing in it is a fixed text where the
record has a measured value, and without green H-2 and H-3 it says what is missing instead of advising.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from steph.record import (
    Cause,
    EvalSettings,
    Record,
    RecordKind,
    Severity,
    StageId,
    StageResult,
    TrainSettings,
)
from steph.tell import summary, wording

PRODUCTION_MODEL = "Qwen/Qwen3-8B"
PRODUCTION_PARAMETERS = 8_190_735_360  # safetensors metadata of Qwen/Qwen3-8B
PRODUCTION_CARD = "A100 20GB"
PRODUCTION_QUESTIONS = 140
PRODUCTION_ADAPTER = "runs/qwen3_8b/direct_norag_4bit"
PRODUCTION_EVALUATION = "results/evaluations/qwen3_8b_direct.json"
REAL_DATASET = "datasets/lawqa_jp/data/selection.json"
PRODUCTION_MINIMUM = TrainSettings(
    num_epochs=3, batch_size=2, max_seq_length=1024, gradient_accumulation_steps=4, logging_steps=10
)


class Reach(StrEnum):
    """How far 4-bit QLoRA training went on this machine."""

    NO_OOM = "no_oom"
    AVOIDED = "avoided"
    ALWAYS_OOM = "always_oom"
    WITHOUT_4BIT = "without_4bit"
    OTHER_FAILURE = "other_failure"
    NOT_RUN = "not_run"


@dataclass(frozen=True)
class Prediction:
    """Predicted peak of the production model at one batch and length, with its interval."""

    peak_bytes: int
    low_bytes: int
    high_bytes: int
    verdict: Literal["fits", "does_not_fit", "too_close"]


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
class TimeEstimate:
    """Durations of the production run at this card's speed, scaled by the parameter count alone."""

    training_seconds: float | None
    evaluation_seconds: float | None
    tokens_per_second_here: float | None
    parameter_ratio: float


@dataclass(frozen=True)
class Advice:
    """H-4 as values; `blockers` is empty exactly where it advises."""

    is_rehearsal: bool
    model: str
    size: str
    reach: Reach
    reach_sentence: str
    attempts: tuple[str, ...]
    evaluation_sentence: str
    blockers: tuple[str, ...]
    mend_first: tuple[str, ...]
    carry_over: tuple[Setting, ...] = ()
    change: tuple[Change, ...] = ()
    target: TrainSettings | None = None
    train_command: tuple[str, ...] = ()
    eval_command: tuple[str, ...] = ()
    prediction: Prediction | None = None
    predictions: Mapping[tuple[int, int], Prediction] | None = None  # by (batch size, max_seq_length)
    time: TimeEstimate | None = None

    @property
    def is_ready(self) -> bool:
        """Whether H-2 and H-3 are green and fresh, so that there is something to carry over."""
        return not self.blockers


def advise(record: Record, predictions: Mapping[tuple[int, int], Prediction] | None = None) -> Advice:
    """Compute H-4; `predictions` are peaks on the production card by (batch size, max_seq_length)."""
    h2, h3 = record.stages.get(StageId.H2), record.stages.get(StageId.H3)
    choice = summary.model_of(record)
    reach = _reach(h2)
    found = Advice(
        is_rehearsal=record.context.kind is RecordKind.REHEARSAL,
        model=choice.name if choice else "未決定",
        size=wording.parameters(choice.parameters) if choice else wording.MISSING,
        reach=reach,
        reach_sentence=_reach_sentence(reach, h2, _card_words(record)),
        attempts=tuple(f"{a.number}. {a.label}: {wording.outcome_words(a)}" for a in (h2.attempts if h2 else ())),
        evaluation_sentence=_evaluation_sentence(h3),
        blockers=_blockers(record),
        mend_first=_mend_first(record),
    )
    settings, evaluation = _final_settings(h2), _final_evaluation(h3)
    if found.blockers or settings is None or evaluation is None:
        return found
    return _with_settings(found, record, settings, evaluation, predictions)


def _with_settings(
    found: Advice,
    record: Record,
    settings: TrainSettings,
    evaluation: EvalSettings,
    predictions: Mapping[tuple[int, int], Prediction] | None,
) -> Advice:
    target = target_settings(settings)
    return Advice(
        is_rehearsal=found.is_rehearsal,
        model=found.model,
        size=found.size,
        reach=found.reach,
        reach_sentence=found.reach_sentence,
        attempts=found.attempts,
        evaluation_sentence=found.evaluation_sentence,
        blockers=(),
        mend_first=found.mend_first,
        carry_over=_carry_over(settings, evaluation),
        change=_changes(record, settings, target, evaluation),
        target=target,
        train_command=_train_command(record, target),
        eval_command=_eval_command(record),
        prediction=(predictions or {}).get((target.batch_size, target.max_seq_length)),
        predictions=predictions,
        time=_time(record, target),
    )


def target_settings(here: TrainSettings) -> TrainSettings:
    """Give the production settings: what was proven here, raised to what the production run needs at least."""
    least = PRODUCTION_MINIMUM
    return here.model_copy(
        update={
            "num_epochs": max(here.num_epochs, least.num_epochs),
            "batch_size": max(here.batch_size, least.batch_size),
            "max_seq_length": max(here.max_seq_length, least.max_seq_length),
            "gradient_accumulation_steps": least.gradient_accumulation_steps,
            "use_4bit": True,
            "logging_steps": max(here.logging_steps, least.logging_steps),
            "max_steps": 0,
        }
    )


def _final_settings(h2: StageResult | None) -> TrainSettings | None:
    attempt = h2.last_attempt if h2 else None
    return attempt.settings if attempt and isinstance(attempt.settings, TrainSettings) else None


def _final_evaluation(h3: StageResult | None) -> EvalSettings | None:
    attempt = h3.last_attempt if h3 else None
    return attempt.settings if attempt and isinstance(attempt.settings, EvalSettings) else None


def _card_words(record: Record) -> str:
    card = record.context.environment.device
    if card is None:
        return "この CPU"
    cap = record.context.vram_cap_bytes
    return f"{card.name}({wording.gib(cap)} に制限)" if cap else f"{card.name}({wording.gib(card.total_bytes)})"


def _reach(h2: StageResult | None) -> Reach:
    if h2 is None or not h2.attempts:
        return Reach.NOT_RUN
    ooms = summary.ran_out_of_memory(h2)
    if not h2.verdict.is_green:
        last = h2.attempts[-1].diagnosis
        return Reach.ALWAYS_OOM if last and last.cause is Cause.CUDA_OOM else Reach.OTHER_FAILURE
    settings = _final_settings(h2)
    if settings and not settings.use_4bit:
        return Reach.WITHOUT_4BIT
    return Reach.AVOIDED if ooms else Reach.NO_OOM


def _reach_sentence(reach: Reach, h2: StageResult | None, card: str) -> str:
    if h2 is None or reach is Reach.NOT_RUN:
        return "4bit QLoRA 学習は実行していません。"
    first, last, count = h2.attempts[0].label, h2.attempts[-1].label, len(h2.attempts)
    ooms = len(summary.ran_out_of_memory(h2))
    if reach is Reach.NO_OOM:
        memory = "OOM なし" if h2.attempts[-1].peak_device_bytes is not None else "OOM なし(VRAM は測っていない)"
        return f"{memory}: {card} で `{last}` の 4bit QLoRA 学習が完走しました。"
    if reach is Reach.AVOIDED:
        return f"設定調整で回避可能: {card} で `{first}` は OOM({ooms} 回)、`{last}` で完走しました。"
    if reach is Reach.ALWAYS_OOM:
        return f"どうしても OOM: {card} で {count} 回試し、最後の `{last}` も OOM でした。"
    if reach is Reach.WITHOUT_4BIT:
        return f"4bit では通らず、4bit なしの `{last}` で完走しました({count} 回試行、うち OOM {ooms} 回)。"
    return f"OOM 以外で失敗: {card} で `{last}` が「{wording.outcome_words(h2.attempts[-1])}」で終わりました。"


def _evaluation_sentence(h3: StageResult | None) -> str:
    attempt = h3.last_attempt if h3 else None
    if h3 is None or attempt is None:
        return "HF バックエンド評価は実行していません。"
    if not h3.verdict.is_green:
        return f"direct / no-RAG の小規模テストは通っていません({h3.verdict}): {h3.explanation}"
    outcome = attempt.evaluation
    settings = attempt.settings if isinstance(attempt.settings, EvalSettings) else EvalSettings()
    mode = f"{'CoT' if settings.use_cot else 'direct'} / {'RAG' if settings.use_rag else 'no-RAG'}"
    score = wording.accuracy_words(outcome.correct, outcome.total) if outcome else "結果の記録なし"
    backend = (outcome.backend if outcome else None) or "不明"
    return f"{mode} の小規模テストは通りました: {score}、{wording.duration(attempt.seconds)}、backend は `{backend}`。"


def _blockers(record: Record) -> tuple[str, ...]:
    lines = []
    for stage in (StageId.H2, StageId.H3):
        result = record.stages.get(stage)
        if summary.in_flight(record, stage):
            lines.append(f"{stage} は実行中です。")
        elif result is None:
            lines.append(f"{stage} は実行していません。")
        elif not result.verdict.is_green:
            lines.append(f"{stage} が通っていません({result.verdict}): {result.explanation}")
        elif result.stale:
            lines.append(f"{stage} は古い結果です。もとの結果が入れ替わったので、やり直してください。")
        elif broken := summary.contradiction(result):
            lines.append(f"{stage} に重大な所見があります: {broken.message}")
        elif result.last_attempt is None or result.last_attempt.settings is None:
            lines.append(f"{stage} の設定が記録にありません。")
    return tuple(lines)


def _mend_first(record: Record) -> tuple[str, ...]:
    return tuple(
        f"{stage}: {check.message}"
        for stage, result in sorted(record.stages.items())
        for check in result.findings
        if check.severity in (Severity.FAIL, Severity.WARN)
    )


def _carry_over(settings: TrainSettings, evaluation: EvalSettings) -> tuple[Setting, ...]:
    proven = "この記録の H-2 で完走"
    rows = [
        Setting("--lora-r / --lora-alpha / --lora-dropout",
                f"{settings.lora_r} / {settings.lora_alpha} / {settings.lora_dropout:g}", proven),
        Setting("--learning-rate", f"{settings.learning_rate:g}", proven),
        Setting("--warmup-ratio", f"{settings.warmup_ratio:g}", proven),
    ]  # fmt: skip
    if settings.use_4bit:
        four_bit = f"{settings.bnb_4bit_quant_type} + {settings.bnb_4bit_compute_dtype}"
        rows.insert(0, Setting("--use-4bit(量子化型 + 計算型)", four_bit, proven))
    if settings.target_modules:
        rows.append(Setting("--target-modules", ",".join(settings.target_modules), proven))
    if evaluation.load_in_4bit:
        rows.append(Setting("--hf-load-in-4bit", "有り", "この記録の H-3 で完走"))
    rows.append(Setting("評価の形", f"top-k {evaluation.top_k}、ensemble {evaluation.ensemble}", "H-3 で完走"))
    return tuple(rows)


def _changes(record: Record, here: TrainSettings, there: TrainSettings, evaluation: EvalSettings) -> tuple[Change, ...]:
    effective = there.batch_size * there.gradient_accumulation_steps
    rows = [
        Change("--model-name", summary.model_of(record).name if summary.model_of(record) else wording.MISSING,  # type: ignore[union-attr]
               PRODUCTION_MODEL, "本番のモデル"),
        Change("--max-seq-length", str(here.max_seq_length), str(there.max_seq_length), "長い問題でも答えを切らない"),
        Change("--batch-size", str(here.batch_size), str(there.batch_size), "下げた分を戻す"),
        Change("--gradient-accumulation-steps", str(here.gradient_accumulation_steps),
               str(there.gradient_accumulation_steps), f"実効バッチを {effective} にする"),
        Change("--num-epochs", str(here.num_epochs), str(there.num_epochs), "動作確認でなく本番の学習"),
        Change("--use-4bit", "有り" if here.use_4bit else "無し", "有り", "8B を 20 GB に載せる。この記録では未確認"),
        Change("--max-steps-override", _steps_here(record), "外す", "途中で打ち切らない"),
        Change("--samples", str(evaluation.samples), str(_questions(record)), "全問を評価する"),
    ]  # fmt: skip
    return tuple(row for row in rows if row.here != row.there)


def _steps_here(record: Record) -> str:
    argv = _argv(record, StageId.H2)
    return _value_of(argv, "--max-steps-override") or "無し(1 エポックが上限より短い)"


def _questions(record: Record) -> int:
    real = [file.rows for file in record.data if file.role == "dataset" and not file.is_sample]
    return real[0] if real else PRODUCTION_QUESTIONS


def _argv(record: Record, stage: StageId) -> tuple[str, ...]:
    result = record.stages.get(stage)
    return result.last_attempt.argv if result and result.last_attempt else ()


def _value_of(argv: Sequence[str], flag: str) -> str | None:
    for at, word in enumerate(argv):
        if word == flag and at + 1 < len(argv):
            return argv[at + 1]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def _train_command(record: Record, target: TrainSettings) -> tuple[str, ...]:
    train_file = next((file.path for file in record.data if file.role == "train_file"), None)
    return _rewritten(
        _argv(record, StageId.H2),
        {
            "--model-name": PRODUCTION_MODEL,
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


def _eval_command(record: Record) -> tuple[str, ...]:
    return _rewritten(
        _argv(record, StageId.H3),
        {
            "--data": next((f.path for f in record.data if f.role == "dataset" and not f.is_sample), REAL_DATASET),
            "--output": PRODUCTION_EVALUATION,
            "--samples": str(_questions(record)),
            "--hf-model-name": PRODUCTION_MODEL,
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


def _time(record: Record, target: TrainSettings) -> TimeEstimate | None:
    """Scale measured tokens per second and seconds per question to the production model; None on the CPU."""
    choice, h2, h3 = summary.model_of(record), record.stages[StageId.H2], record.stages[StageId.H3]
    if record.context.environment.device is None or choice is None or not choice.parameters:
        return None
    ratio = PRODUCTION_PARAMETERS / choice.parameters
    training, evaluation = h2.last_attempt and h2.last_attempt.training, h3.last_attempt
    settings = _final_settings(h2)
    training_seconds = tokens_per_second = None
    if training and settings and training.tokens_per_second and training.train_runtime_seconds and training.steps_done:
        tokens_per_second = training.tokens_per_second
        rows_done = training.steps_done * settings.batch_size * settings.gradient_accumulation_steps
        seconds_per_row = training.train_runtime_seconds / min(rows_done, _rows_seen(record, rows_done))
        training_seconds = seconds_per_row * _questions(record) * target.num_epochs * ratio
    evaluation_seconds = None
    if evaluation and evaluation.seconds and evaluation.evaluation and evaluation.evaluation.total:
        evaluation_seconds = evaluation.seconds / evaluation.evaluation.total * _questions(record) * ratio
    return TimeEstimate(training_seconds, evaluation_seconds, tokens_per_second, ratio)


def _rows_seen(record: Record, rows_done: int) -> int:
    """Give the rows that training went over: no more than its epochs hold."""
    attempt = record.stages[StageId.H2].last_attempt
    training = attempt.training if attempt else None
    if training and training.train_rows and training.epochs_done:
        return max(1, round(training.train_rows * training.epochs_done))
    return rows_done
