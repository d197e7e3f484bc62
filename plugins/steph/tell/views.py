"""What single sections of the report show: the stage table, the model, training and evaluation facts, the history.

Takes a record, gives Markdown rows and tables; the words around them are in `templates/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from steph.judge import verdict
from steph.record import (
    Attempt,
    EvalOutcome,
    GitState,
    ModelChoice,
    Record,
    RecordKind,
    Session,
    StageId,
    TrainOutcome,
)
from steph.tell import keep, summary, wording
from steph.tell.commands import pasteable
from steph.tell.markdown import Markdown, code, details, fence, inline, joined, prose, table
from steph.tell.pieces import facts, measured
from steph.tell.wording import MISSING

_HISTORY_HEADER = ("開始(UTC)", "記録", "実行したステージと判定", "所要時間", "終了コード", "コマンド")
_ROW = re.compile(r"^\| (?P<start>[^|]+) \| (?P<record>[^|]+) \| .*\|$")


def stage_table(record: Record) -> Markdown:
    """Give the first screen's table of the three stages."""
    rows = [_stage_row(record, stage) for stage in StageId]
    header = ("ステージ", "判定", "所要時間", "VRAM ピーク(カード全体)", "試行数", "日時(UTC)")
    return table(header, rows, align="llrrrl")


def _stage_row(record: Record, stage: StageId) -> Sequence[str]:
    result = record.stages.get(stage)
    name = f"{stage} {wording.STAGE_TITLES[stage]}"
    if result is None:
        return name, summary.stage_word(record, stage), "", "", "0", ""
    peak = measured(summary.peak_bytes(result), record) if result.attempts else MISSING
    attempts = str(len(result.attempts)) if result.attempts or stage is not StageId.H1 else MISSING
    seconds = wording.duration(result.seconds)
    return name, summary.stage_word(record, stage), seconds, peak, attempts, wording.moment(result.started_at)


def model_facts(choice: ModelChoice) -> Markdown:
    """Give what H-1 records of the chosen model."""
    predicted = choice.predicted_peak_bytes
    disk = f"{wording.gib(choice.download_bytes)} / {wording.gib(choice.free_disk_bytes)}"
    return facts(
        [
            ("選んだモデル名", code(choice.name)),
            ("パラメータサイズ(おおよそ)", wording.parameters(choice.parameters)),
            ("選定理由", prose(choice.reason)),
            ("取得元", wording.source_word(choice.source)),
            ("代わりのモデルか", "はい(仕様の候補ではない)" if choice.automatic_substitute else "いいえ"),
            ("revision", code(choice.revision or "")),
            ("ライセンス", choice.licence or "不明(記録なし)"),
            ("取得量 / 空きディスク", disk),
            ("予測 VRAM ピーク", wording.gib(predicted) if predicted is not None else "未予測"),
            ("保存先", code(choice.snapshot_path or "")),
        ]
    )


def rejected_table(choice: ModelChoice) -> Markdown:
    """Give the candidates that were passed over; empty where there are none."""
    if not choice.rejected:
        return Markdown()
    rows = [(code(r.name), wording.CAUSES[r.cause], inline(r.message)) for r in choice.rejected]
    return table(("見送った候補", "原因", "メッセージ"), rows)


def training_facts(record: Record, attempt: Attempt | None) -> Markdown:
    """Give what the spec asks to be recorded of the training run."""
    if attempt is None:
        return Markdown()
    outcome = attempt.training
    rows = [
        ("学習完了の有無", _completion(record, StageId.H2, attempt)),
        ("実行時間(この試行)", wording.duration(attempt.seconds)),
        ("VRAM ピーク(カード全体 / このプロセス分)",
         f"{measured(attempt.peak_device_bytes, record)} / {measured(attempt.peak_own_bytes, record)}"),
        ("カードのメモリ(上限)", wording.gib(summary.capacity_bytes(record))),
    ]  # fmt: skip
    return facts(rows + (_training_rows(outcome) if outcome else []) + [("ログの置き場", log_folder(record, attempt))])


def _completion(record: Record, stage: StageId, attempt: Attempt) -> str:
    if verdict.in_flight(record, stage):
        return "実行中"
    words = wording.outcome_words(attempt)
    if words == "成功" and not record.verdict_of(stage).is_green:
        return f"プロセスは正常終了したが、判定は {record.verdict_of(stage).value}"
    return words


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
        ("学習そのものの時間", wording.duration(outcome.train_runtime_seconds)),
        ("出力先", code(outcome.output_dir)),
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
        ("完走したか", _completion(record, StageId.H3, attempt)),
        ("実行時間", wording.duration(attempt.seconds)),
        ("VRAM ピーク(カード全体)", measured(attempt.peak_device_bytes, record)),
    ]
    return facts(
        rows + (_evaluation_rows(outcome) if outcome else []) + [("ログの置き場", log_folder(record, attempt))]
    )


def _evaluation_rows(outcome: EvalOutcome) -> list[tuple[str, str]]:
    return [
        ("精度", Markdown(f"**{inline(wording.accuracy_words(outcome.correct, outcome.total))}**")),
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


def picture(path: str | None, text: str) -> Markdown:
    """Give a picture with its words; empty where there is no picture."""
    if not path:
        return Markdown()
    return Markdown(f"![{inline(text)}]({quote(path, safe='/._-~')})\n\n{inline(text)}")


def loss_alternative(record: Record) -> str:
    """Say in words what the loss picture shows."""
    result = record.stages.get(StageId.H2)
    outcome = result.last_attempt.training if result and result.last_attempt else None
    count = len(outcome.losses) if outcome else 0
    return f"図: ステップごとの損失({count} 点)。{loss_words(outcome)}"


def vram_alternative(record: Record) -> str:
    """Say in words what the memory picture shows."""
    attempts = [a for result in record.stages.values() for a in result.attempts if a.peak_device_bytes is not None]
    peaks = "、".join(f"{a.stage} 試行 {a.number}({a.label}) {wording.gib(a.peak_device_bytes)}" for a in attempts[:8])
    return (
        f"図: カード全体の VRAM の推移(上限 {wording.gib(summary.ceiling_bytes(record))})。ピーク: {peaks or '未測定'}"
    )


def machine_facts(record: Record) -> Markdown:
    """Give machine, card, driver and interpreter."""
    machine, card = record.context.environment, record.context.environment.device
    cap = record.context.vram_cap_bytes
    rows = [
        ("OS", f"{machine.os}{'(WSL)' if machine.is_wsl else ''}"),
        ("CPU / メモリ", f"{machine.cpu}({machine.cpu_count} スレッド)/ {wording.gib(machine.ram_bytes)}"),
        ("Python(スイート)", machine.python),
        ("パイプラインの Python", code(record.context.pipeline_python)),
        (
            "プロファイル",
            Markdown(f"{code(record.context.profile)}(sha256 {code(record.context.profile_sha256[:12])})"),
        ),
    ]
    if card is None:
        return facts([*rows, ("GPU", f"なし({machine.device_error})" if machine.device_error else "なし")])
    capability = f"、compute capability {card.compute_capability}" if card.compute_capability else ""
    return facts(
        [
            *rows,
            ("GPU", f"{card.name}{'(MIG)' if card.is_mig else ''} {wording.gib(card.total_bytes)}{capability}"),
            ("GPU UUID", code(card.uuid)),
            ("開始前の使用量", wording.gib(card.used_bytes)),
            ("VRAM の上限(模擬)", wording.gib(cap) if cap else ""),
            ("ドライバ / CUDA", f"{card.driver_version} / CUDA {card.cuda_driver_version}"),
        ]
    )


def packages_table(record: Record) -> Markdown:
    """Give the package versions: those that the pipeline's processes loaded, and the suite's."""
    loaded: dict[str, str] = {}
    for result in record.stages.values():
        for attempt in result.attempts:
            for probe in attempt.probes:
                loaded.update(probe.packages)
    own = record.context.environment.packages
    rows = [(code(name), loaded.get(name, ""), own.get(name, "")) for name in sorted(loaded.keys() | own.keys())]
    if not rows:
        return Markdown("パッケージの版は記録されていません。")
    return details(
        f"パッケージの版({len(rows)} 件)", table(("パッケージ", "パイプラインで読まれた版", "スイートの版"), rows)
    )


def git_table(record: Record) -> Markdown:
    """Give branch, commit and cleanliness of suite and pipeline."""
    states = (("パイプライン", record.context.pipeline_git), ("スイート", record.context.suite_git))
    rows = [(name, code(s.branch or ""), code((s.commit or "")[:12]), _dirty(s)) for name, s in states]
    return table(("対象", "ブランチ", "コミット", "未コミットの変更"), rows)


def _dirty(state: GitState) -> str:
    if state.dirty is None:
        return "git の管理外" if state.commit is None else "不明"
    return "あり" if state.dirty else "なし"


def data_table(record: Record) -> Markdown:
    """Give the data files with rows, sha256 and whether they are the bundled sample."""
    roles = {"dataset": "評価の問題", "train_file": "学習データ"}
    rows = [
        (roles[f.role], code(f.path), f"{f.rows:,}", "付属の見本" if f.is_sample else "実データ", code(f.sha256))
        for f in record.data
    ]
    return table(("役割", "パス", "行数", "種類", "sha256"), rows, align="llrll") if rows else Markdown("記録なし。")


def history_rows(record: Record, history: Sequence[Record], old_rows: Sequence[str]) -> Markdown:
    """Give 実行履歴, newest first: every session of this kind of record, and rows that only the old file still has."""
    known = {item.id: item for item in (*history, record) if item.context.kind is record.context.kind}
    rows = {
        _row_key(line): line
        for item in known.values()
        for line in (_history_row(item, session) for session in item.sessions)
    }
    kept = {_row_key(line): line for line in old_rows if _row_key(line) not in rows}
    ordered = sorted({**kept, **rows}.items(), reverse=True)
    head = table(_HISTORY_HEADER, (), align="lllrrl")
    return Markdown("\n".join([head, *(line for _, line in ordered)]))


def rows_in(existing: bytes) -> tuple[str, ...]:
    """Give the history rows of a report on disk as they stand there."""
    return tuple(
        line.rstrip()
        for block in keep.blocks_in(existing)
        if block.id == "history"
        for line in block.text.split("\n")
        if _ROW.match(line.rstrip()) and not line.startswith(f"| {_HISTORY_HEADER[0]} |")
    )


def _row_key(line: str) -> tuple[str, str]:
    match = _ROW.match(line)
    return (match["start"].strip(), match["record"].strip()) if match else (line, "")


def _history_row(record: Record, session: Session) -> str:
    verdicts = "、".join(f"{stage} {session.verdicts[stage].value}" for stage in sorted(session.verdicts))
    cells = (
        wording.moment_to_second(session.started_at),
        code(record.id),
        verdicts or ("実行中" if record.live else "判定なし(途絶)"),
        wording.duration(wording.seconds_between(session.started_at, session.ended_at)),
        "" if session.exit_status is None else str(session.exit_status),
        code(" ".join(session.command)) if session.command else "",
    )
    return table(_HISTORY_HEADER, [cells]).split("\n")[-1]


def reasons(items: Iterable[str]) -> Markdown:
    """Give reasons as a list."""
    return Markdown("\n".join(f"- {prose(item)}" for item in items))


def kind_is_rehearsal(record: Record) -> bool:
    """Whether the record is a rehearsal."""
    return record.context.kind is RecordKind.REHEARSAL


def shell(argv: Sequence[str]) -> Markdown:
    """Give a command to paste."""
    return fence(pasteable(argv), "bash")
