"""Checks of the lines that an evaluation prints: mode, model, backend, adapter, results, and their order. Pure."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

from steph.judge.evidence import EvalEvidence
from steph.judge.kinds import FAIL, WARN, CheckKind, bounded
from steph.judge.lines import EvalLines, KeyLine
from steph.judge.names import names_model, same_path
from steph.judge.results import Results
from steph.record import Check

LINE_INITIALIZING = CheckKind("line_initializing", "H-3", FAIL, "初期化の行がある", "Initializing RAG pipeline...")
LINE_RAG_DISABLED = CheckKind(
    "line_rag_disabled",
    "H-3",
    FAIL,
    "RAG が無効と表示された",
    "RAG Mode: Disabled (LLM only)",
    note="--no-rag のとき",
)
LINE_RAG_ENABLED = CheckKind(
    "line_rag_enabled", "H-3", FAIL, "RAG が有効と表示された", "RAG Mode: Enabled", note="RAG を使うとき"
)
MODEL_NAMED = CheckKind(
    "model_named", "H-3", FAIL, "対象モデルの名前が表示された", "HF Model: または LLM Model:", trap=4
)
MODEL_NAMES_AGREE = CheckKind(
    "model_names_agree",
    "H-3",
    WARN,
    "別のモデル名が表示・記録されていない",
    "HF Model:、LLM Model:、JSON の llm_model・hf_model_name",
    trap=4,
)
LINE_BACKEND = CheckKind(
    "line_backend",
    "H-3",
    FAIL,
    "バックエンドが hf",
    "LLM Backend: または Backend:（表示されていれば）",
    optional=True,
)
LORA_PATH_NAMED = CheckKind(
    "lora_path_named", "H-3", FAIL, "評価に使った LoRA が H-2 のもの", "LoRA Path: と JSON の lora_path"
)
LINE_RESULTS = CheckKind("line_results", "H-3", FAIL, "評価結果が表示された", "EVALUATION RESULTS")
TOTAL_SAMPLES = CheckKind("total_samples", "H-3", FAIL, "依頼した問題数を評価した", "Total Samples: と JSON の件数")
LINE_ACCURACY = CheckKind("line_accuracy", "H-3", FAIL, "正解率が表示された", "Accuracy:")
LINES_IN_ORDER = CheckKind("lines_in_order", "H-3", FAIL, "必要な行が決まった順に並ぶ", "上の各行の位置", optional=True)
NO_INVOCATION_ERROR = CheckKind(
    "no_invocation_error", "H-3", FAIL, "推論の例外が表示されていない", "Error during LLM invocation", trap=2
)
LINES = (
    LINE_INITIALIZING,
    LINE_RAG_DISABLED,
    LINE_RAG_ENABLED,
    MODEL_NAMED,
    MODEL_NAMES_AGREE,
    LINE_BACKEND,
    LORA_PATH_NAMED,
    LINE_RESULTS,
    TOTAL_SAMPLES,
    LINE_ACCURACY,
    LINES_IN_ORDER,
    NO_INVOCATION_ERROR,
)


def line_checks(evidence: EvalEvidence, lines: EvalLines, results: Results | None) -> tuple[Check, ...]:
    """All checks of the printed lines; the JSON is asked where it names the same thing."""
    return (
        _presence(LINE_INITIALIZING, KeyLine.INITIALIZING, "Initializing RAG pipeline...", lines),
        _rag_check(evidence, lines),
        *_model_checks(evidence, lines, results),
        _backend_check(lines, results),
        *_lora_checks(evidence, lines, results),
        _presence(LINE_RESULTS, KeyLine.RESULTS, "EVALUATION RESULTS", lines),
        _total_check(evidence, lines, results),
        _accuracy_check(lines),
        _order_check(lines),
        _invocation_check(lines),
    )


def _presence(kind: CheckKind, key: KeyLine, text: str, lines: EvalLines) -> Check:
    there = key in lines.order
    return kind.check(there, f"「{text}」の行が{'ある' if there else 'ない'}。")


def _rag_check(evidence: EvalEvidence, lines: EvalLines) -> Check:
    use_rag = evidence.settings.use_rag
    mode = lines.rag_mode
    shown = f"RAG Mode の表示は {bounded(mode, 80) if mode is not None else 'なし'}。"
    if use_rag:
        return LINE_RAG_ENABLED.check((mode or "").startswith("Enabled"), shown)
    return LINE_RAG_DISABLED.check(mode == "Disabled (LLM only)", shown)


def _model_checks(evidence: EvalEvidence, lines: EvalLines, results: Results | None) -> tuple[Check, Check]:
    asked = evidence.model_name
    printed = {"HF Model": lines.hf_model, "LLM Model": lines.llm_model}
    written = (
        {"JSON llm_model": results.config.llm_model, "JSON hf_model_name": results.config.hf_model_name}
        if results
        else {}
    )
    shown = {label: str(value) for label, value in (printed | written).items() if value}
    named = any(value and names_model(value, asked) for value in printed.values())
    others = [f"{label} が {bounded(value, 60)}" for label, value in shown.items() if not names_model(value, asked)]
    listing = "、".join(f"{label} {bounded(value, 60)}" for label, value in shown.items()) or "なし"
    return (
        MODEL_NAMED.check(named, f"対象は {bounded(asked, 80)}、表示は {listing}。"),
        MODEL_NAMES_AGREE.check(not others, f"別のモデル名: {'、'.join(others) or 'なし'}。"),
    )


def _backend_check(lines: EvalLines, results: Results | None) -> Check:
    written = results.config.backend if results else None
    shown = [str(value).strip().lower() for value in (lines.backend, written) if value]
    if not shown:
        return LINE_BACKEND.check(None, "バックエンドは表示も記録もされていない。")
    return LINE_BACKEND.check(set(shown) == {"hf"}, f"バックエンドは {bounded('、'.join(dict.fromkeys(shown)), 80)}。")


def _lora_checks(evidence: EvalEvidence, lines: EvalLines, results: Results | None) -> tuple[Check, ...]:
    asked = evidence.lora_path
    written = results.config.lora_path if results else None
    shown = [str(value).strip() for value in (lines.lora_path, written) if value is not None]
    if asked is None:
        used = [value for value in shown if value not in ("", "None")]
        return (LORA_PATH_NAMED.check(not used, f"LoRA なしの評価で、表示は {bounded(used or 'なし', 120)}。"),)
    if not shown:
        return (LORA_PATH_NAMED.check(None, "LoRA Path は表示も記録もされていない。"),)
    holds = all(_is_asked(evidence.root, asked, value) for value in shown)
    listing = bounded("、".join(dict.fromkeys(shown)), 120)
    return (LORA_PATH_NAMED.check(holds, f"指定した LoRA は {bounded(asked, 120)}、表示は {listing}。"),)


def _is_asked(root: Path, asked: str, shown: str) -> bool:
    """Whether a shown path is the asked one; a whole path that is there must lie in this root and no other."""
    if not same_path(asked, shown):
        return False
    path = Path(shown)
    return not path.is_absolute() or not path.exists() or path.resolve() == (root / asked).resolve()


def _total_check(evidence: EvalEvidence, lines: EvalLines, results: Results | None) -> Check:
    asked = evidence.settings.samples
    counts = {"表示": lines.total}
    if results:
        counts |= {"JSON の total_count": results.summary.total_count, "JSON の件数": len(results.results)}
    shown = "、".join(f"{label} {count if count is not None else 'なし'}" for label, count in counts.items())
    return TOTAL_SAMPLES.check(set(counts.values()) == {asked}, f"依頼した {asked} 問に対して {shown}。")


def _accuracy_check(lines: EvalLines) -> Check:
    if lines.accuracy is None:
        return LINE_ACCURACY.check(False, "「Accuracy:」の行がない。")
    holds = math.isfinite(lines.accuracy) and 0 <= lines.accuracy <= 1
    return LINE_ACCURACY.check(holds, f"表示された正解率は {100 * lines.accuracy:.2f} %。")


def _order_check(lines: EvalLines) -> Check:
    # the published script prints its wrong model line before the backend and the right one after: any order will do
    groups = [
        (KeyLine.INITIALIZING,),
        (KeyLine.RAG_MODE,),
        (KeyLine.LLM_MODEL, KeyLine.HF_MODEL, KeyLine.BACKEND),
        (KeyLine.RESULTS,),
        (KeyLine.TOTAL,),
        (KeyLine.ACCURACY,),
    ]
    places = [[lines.order[key] for key in group if key in lines.order] for group in groups]
    there = [place for place in places if place]
    if len(there) < 2:
        return LINES_IN_ORDER.check(None, "並びを比べられる行がない。")
    holds = all(max(earlier) < min(later) for earlier, later in pairwise(there))
    return LINES_IN_ORDER.check(holds, f"必要な行は決まった順に{'並ぶ' if holds else '並んでいない'}。")


def _invocation_check(lines: EvalLines) -> Check:
    errors = lines.invocation_errors
    example = f"（最初は {bounded(errors[0], 160)}）" if errors else ""
    return NO_INVOCATION_ERROR.check(not errors, f"推論中の例外の表示は {len(errors)} 件{example}。")
