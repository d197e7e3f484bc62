"""What single sections of the report show: the stage table, the model, training and evaluation facts.

Takes a record, gives Markdown rows and tables; the words around them are in `templates/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from steph.base import units
from steph.base.terms import AnyStage, ExtendedId, RecordKind, StageId
from steph.base.units import MISSING
from steph.judge import verdict
from steph.record.values import Attempt, EvalOutcome, ModelChoice, Record, StageResult, TrainOutcome
from steph.tell import summary, wording
from steph.tell.commands import pasteable
from steph.tell.markdown import Markdown, code, fence, inline, joined, prose, table
from steph.tell.pieces import facts, measured


def about(record: Record) -> Markdown:
    """Say in one line what the verdict is about: card, model and profile."""
    choice = record.model
    model = f"{code(short_name(choice.name))}({wording.size_class(choice.parameters)})" if choice else "未決定"
    return Markdown(
        f"カード: **{inline(summary.card_words(record))}**、モデル: **{model}**、"
        f"プロファイル: {code(record.context.profile)}"
    )


def short_name(model: str) -> str:
    """Give a model's id on the Hub as it is, and of a folder the last part alone."""
    return model.rstrip("/").rpartition("/")[2] if model.startswith(("/", "~", ".")) else model


def stage_table(record: Record) -> Markdown:
    """Give the first screen's table of the three stages, and of the extended ones that have run."""
    extended = [stage for stage in ExtendedId if stage in record.extended]
    rows = [_stage_row(record, stage) for stage in (*StageId, *extended)]
    header = ("ステージ", "判定", "所要時間", "VRAM ピーク", "試行", "開始(UTC)")
    return table(header, rows, align="llrrrl")


def _stage_row(record: Record, stage: AnyStage) -> Sequence[str]:
    result = record.results.get(stage)
    name = f"{'' if isinstance(stage, StageId) else '(追加)'}{stage} {wording.STAGE_TITLES[stage]}"
    if result is None:
        return name, summary.stage_word(record, stage), "", "", "0", ""
    peak = measured(summary.peak_bytes(result), record) if result.attempts else MISSING
    attempts = str(len(result.attempts)) if result.attempts or stage is not StageId.H1 else MISSING
    seconds = units.duration(result.seconds)
    return name, summary.stage_word(record, stage), seconds, peak, attempts, units.moment(result.started_at)


def model_facts(choice: ModelChoice) -> Markdown:
    """Give what H-1 records of the chosen model."""
    predicted = choice.predicted_peak_bytes
    disk = f"{units.gib(choice.download_bytes)} / {units.gib(choice.free_disk_bytes)}"
    return facts(
        [
            ("選んだモデル名", code(choice.name)),
            ("パラメータサイズ（おおよそ）", wording.parameters(choice.parameters)),
            ("代わりに使ったモデル名", code(choice.name) if choice.automatic_substitute else "なし"),
            ("選定理由", prose(str(choice.reason))),
            ("取得元", wording.source_word(choice.source)),
            ("revision", code(choice.revision or "")),
            ("ライセンス", choice.licence or "不明(記録なし)"),
            ("取得量 / 空きディスク", disk),
            ("予測 VRAM ピーク", units.gib(predicted) if predicted is not None else "未予測"),
            ("保存先", code(choice.snapshot_path or "")),
        ]
    )


def rejected_table(choice: ModelChoice) -> Markdown:
    """Give the candidates that were passed over; empty where there are none."""
    if not choice.rejected:
        return Markdown()
    rows = [(code(r.name), wording.cause_name(r.cause), inline(str(r.message))) for r in choice.rejected]
    return table(("見送った候補", "原因", "メッセージ"), rows)


def training_facts(record: Record, attempt: Attempt | None) -> Markdown:
    """Give what the spec asks to be recorded of the training run."""
    if attempt is None:
        return Markdown()
    outcome = attempt.training
    rows = [
        ("学習完了の有無", _completion(record, attempt)),
        ("実行時間のおおよその目安", _time_words(record.results[attempt.stage], attempt)),
        ("VRAM ピーク(カード全体 / このプロセス分)",
         f"{measured(attempt.peak_device_bytes, record)} / {measured(attempt.peak_own_bytes, record)}"),
        ("カードのメモリ(上限)", units.gib(summary.capacity_bytes(record))),
    ]  # fmt: skip
    return facts(rows + (_training_rows(outcome) if outcome else []) + [("ログの置き場", log_folder(record, attempt))])


def _time_words(result: StageResult, attempt: Attempt) -> str:
    last = f"最後の試行 {units.duration(attempt.seconds)}"
    return f"{last}、ステージ全体 {units.duration(result.seconds)}" if result.seconds is not None else last


def _completion(record: Record, attempt: Attempt) -> str:
    stage = attempt.stage
    if verdict.in_flight(record, stage):
        return "実行中"
    if attempt.ended_well and not record.verdict_of(stage).is_green:
        return f"プロセスは正常終了したが、判定は {record.verdict_of(stage).value}"
    return wording.outcome_words(attempt)


def _training_rows(outcome: TrainOutcome) -> list[tuple[str, str]]:
    steps = f"{_or_missing(outcome.steps_done)} / {_or_missing(outcome.steps_due)}"
    epochs = f"{outcome.epochs_done:g}" if outcome.epochs_done is not None else MISSING
    rate = f"{outcome.tokens_per_second:,.0f} tokens/s" if outcome.tokens_per_second is not None else "未測定"
    return [
        ("ステップ(実行 / 予定)", steps),
        ("エポック", epochs),
        ("学習した行数", _or_missing(outcome.train_rows)),
        ("損失", loss_words(outcome)),
        ("速さ", rate),
        ("学習そのものの時間", units.duration(outcome.train_runtime_seconds)),
        ("生成されたディレクトリ", code(outcome.output_dir)),
        ("LoRA 重みの sha256", code(outcome.adapter_sha256 or "")),
        ("チェックポイント", code(_inside(outcome.output_dir, outcome.checkpoint))),
    ]


def _inside(folder: str, name: str | None) -> str:
    return "" if name is None else name if "/" in name else f"{folder.rstrip('/')}/{name}"


def log_folder(record: Record, attempt: Attempt) -> Markdown:
    """Give an attempt's folder, below the folder of runs where the record has its name alone."""
    return code(_inside(f"runs/{record.id}", attempt.folder) if attempt.folder else "")


def loss_words(outcome: TrainOutcome | None) -> str:
    """Say the loss: first and last logged value, and the Trainer's mean."""
    if outcome is None or (not outcome.losses and outcome.train_loss is None):
        return "記録なし"
    mean = f"平均 {outcome.train_loss:.3f}" if outcome.train_loss is not None else ""
    course = f"{outcome.losses[0]:.3f} → {outcome.losses[-1]:.3f}" if outcome.losses else ""
    return "、".join(part for part in (course, mean) if part)


def _or_missing(count: int | None) -> str:
    return MISSING if count is None else f"{count:,}"


def evaluation_facts(record: Record, attempt: Attempt | None) -> Markdown:
    """Give what the spec asks to be recorded of the evaluation run."""
    if attempt is None:
        return Markdown()
    outcome = attempt.evaluation
    rows = [
        ("完走したか", _completion(record, attempt)),
        ("実行時間", units.duration(attempt.seconds)),
        ("VRAM ピーク(カード全体)", measured(attempt.peak_device_bytes, record)),
    ]
    return facts(
        rows + (_evaluation_rows(outcome) if outcome else []) + [("ログの置き場", log_folder(record, attempt))]
    )


def _evaluation_rows(outcome: EvalOutcome) -> list[tuple[str, str]]:
    return [
        ("精度", Markdown(f"**{inline(wording.score_words(outcome))}**")),
        ("backend", code(outcome.backend or "")),
        ("model_name", code(outcome.model_name or "")),
        ("lora_path", code(outcome.lora_path or "")),
        ("結果の JSON", code(outcome.output_path)),
        ("答え", code(" ".join(outcome.answers[:40])) if outcome.answers else ""),
    ]


def key_lines(attempt: Attempt | None) -> Markdown:
    """Give the lines of the evaluation's log that the spec asks for; empty where there are none."""
    lines = attempt.evaluation.key_lines if attempt and attempt.evaluation else ()
    return joined((Markdown("ログの要点:"), fence("\n".join(lines)))) if lines else Markdown()


def reasons(items: Iterable[str]) -> Markdown:
    """Give reasons as a list."""
    return Markdown("\n".join(f"- {prose(item)}" for item in items))


def listed(items: Sequence[str]) -> Markdown:
    """Give reasons in one line, or that there are none on record."""
    return joined((prose(item) for item in items), "、") or Markdown("記録なし")


def kind_is_rehearsal(record: Record) -> bool:
    """Whether the record is a rehearsal."""
    return record.context.kind is RecordKind.REHEARSAL


def shell(argv: Sequence[str]) -> Markdown:
    """Give a command to paste."""
    return fence(pasteable(argv), "bash")
