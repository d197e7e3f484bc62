"""The Japanese words and figures of everything that people read: verdicts, causes, phases, sizes, times.

Pure functions from values to short strings, none of them Markdown.
"""

from __future__ import annotations

from datetime import datetime

from steph.base.messages import text
from steph.base.terms import (
    AnyStage,
    Cause,
    EndedBy,
    ExtendedId,
    FitVerdict,
    Phase,
    RecordKind,
    Severity,
    StageId,
    Verdict,
)
from steph.base.units import MISSING
from steph.record.values import Attempt, EvalOutcome

STAGE_TITLES: dict[AnyStage, str] = {
    StageId.H1: "モデル",
    StageId.H2: "学習",
    StageId.H3: "HF 評価",
    ExtendedId.COT_TRAINING: "CoT 行での学習",
    ExtendedId.COT: "CoT での評価",
    ExtendedId.RAG: "RAG つきの評価",
    ExtendedId.BASE: "アダプタなしの評価",
    ExtendedId.ONE_STEP: "4bit なしの 1 ステップ",
    ExtendedId.HEART: "暗記",
}

_ENDS = {
    EndedBy.DEADLINE: "時間切れ",
    EndedBy.INTERRUPTED: "中断",
    EndedBy.SUPERVISOR_LOST: "監視プロセスが失われた",
    EndedBy.SUITE_ERROR: "スイート側",
}

CANDIDATES = {"chosen": "選んだ", "rejected": "見送った", "not_tried": "試していない"}
FITS: dict[FitVerdict | None, str] = {
    FitVerdict.FITS: "✅ 載る",
    FitVerdict.DOES_NOT_FIT: "❌ 載らない",
    FitVerdict.TOO_CLOSE: "⚠️ きわどい",
    None: MISSING,
}
SEVERITIES = {Severity.FAIL: "❌ 重大", Severity.WARN: "⚠️ 警告", Severity.INFO: "ℹ️ 情報"}

_VERDICTS = {
    Verdict.PASS: "✅ 合格",
    Verdict.PASS_DEGRADED: "🟡 条件付き合格",
    Verdict.FAIL: "❌ 不合格",
    Verdict.TIMEOUT: "❌ 時間切れ",
    Verdict.CRASHED: "❌ 途絶",
    Verdict.BLOCKED: "⛔ 前段が通らず未実行",
    Verdict.NOT_RUN: "⬜ 未実行",
}
_REHEARSED = {Verdict.PASS: "✅ 予行通過", Verdict.PASS_DEGRADED: "🟡 下げて予行通過", Verdict.FAIL: "❌ 失敗"}

_SOURCES = {
    "hub": "Hugging Face Hub",
    "cache": "手元のキャッシュ(Hub 未確認)",
    "local": "手元のフォルダ",
    "twin": "乱数の重みの双子モデル(答えに意味はない)",
}


def cause_name(cause: Cause) -> str:
    """A cause in a few words."""
    return text(f"diagnose.cause.{cause.value}.name", "ja")


def phase_name(phase: Phase) -> str:
    """How far a program had come, in a few words."""
    return text(f"diagnose.phase.{phase.value}", "ja")


def verdict_word(verdict: Verdict, kind: RecordKind) -> str:
    """Name a stage's verdict with its code; a rehearsal's never says 合格."""
    words = _REHEARSED if kind is RecordKind.REHEARSAL else {}
    return f"{words.get(verdict, _VERDICTS[verdict])}({verdict.value})"


def source_word(source: str) -> str:
    """Name where a model came from."""
    return _SOURCES.get(source, source)


def seconds_between(start: str, end: str | None) -> float | None:
    """Give the seconds from one ISO 8601 time to another; None where one is missing or no time."""
    try:
        return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() if end else None
    except (ValueError, TypeError):
        return None


def parameters(count: int | None) -> str:
    """Give a parameter count as the size class that people name, the exact count behind it."""
    if count is None:
        return "不明(記録なし)"
    return f"約 {size_class(count)}({count:,})" if count >= 100_000 else f"{count:,}"


def size_class(count: int | None) -> str:
    """Give a parameter count as a size class alone, as in 1.8B."""
    if count is None:
        return "サイズ不明"
    return f"{count / 1e9:.1f}B" if count >= 50_000_000 else f"{count / 1e6:.2f}M"


def accuracy_words(correct: int | None, total: int | None) -> str:
    """Say an accuracy in words, as in 3問中2問正解."""
    if correct is None or total is None:
        return "未測定"
    share = f"({correct / total:.1%})" if total else ""
    return f"{total}問中{correct}問正解{share}"


def score_words(outcome: EvalOutcome) -> str:
    """Say what an evaluation came to: the right answers, or the score of a format that gives one."""
    if outcome.score is None:
        return accuracy_words(outcome.correct, outcome.total)
    count = f"({outcome.total}問)" if outcome.total else ""
    return f"{outcome.metric or 'スコア'} {outcome.score:.4g}{count}"


def outcome_words(attempt: Attempt) -> str:
    """Say how an attempt ended in the spec's words: 成功, OOM or その他エラー."""
    if attempt.ended_well:
        return "成功"
    if attempt.ran_out_of_memory:
        return "OOM"
    cause = attempt.diagnosis.cause if attempt.diagnosis else Cause.NONE
    if cause is not Cause.NONE:
        return "その他エラー" if cause is Cause.OTHER else f"その他エラー({cause_name(cause)})"
    if attempt.ended_by is None:
        return "終わりの記録なし"
    ended = _ENDS.get(attempt.ended_by, "ログの診断なし" if attempt.returncode == 0 else exit_words(attempt.returncode))
    return f"その他エラー({ended})"


def exit_words(returncode: int | None) -> str:
    """Say an exit status; a negative one is the signal that ended the process."""
    if returncode is None:
        return "終了コード不明"
    return f"シグナル {-returncode} で終了" if returncode < 0 else f"終了コード {returncode}"
