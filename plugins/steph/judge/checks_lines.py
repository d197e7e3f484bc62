"""Checks of the lines that an evaluation prints: mode, model, backend, adapter, results, and their order. Pure."""

from __future__ import annotations

import math
from itertools import pairwise

from steph.judge.catalog import finding
from steph.judge.evidence import EvalEvidence
from steph.judge.kinds import bounded
from steph.judge.lines import EvalLines
from steph.judge.names import names_model, same_path
from steph.judge.results import Results
from steph.record import Check


def line_checks(evidence: EvalEvidence, lines: EvalLines, results: Results | None) -> tuple[Check, ...]:
    """All checks of the printed lines; the JSON is asked where it names the same thing."""
    return (
        _presence("line_initializing", "initializing", "Initializing RAG pipeline...", lines),
        _rag_check(evidence, lines),
        *_model_checks(evidence, lines, results),
        _backend_check(lines, results),
        *_lora_checks(evidence, lines, results),
        _presence("line_results", "results", "EVALUATION RESULTS", lines),
        _total_check(evidence, lines, results),
        _accuracy_check(lines),
        _order_check(lines),
        _invocation_check(lines),
    )


def _presence(check_id: str, key: str, text: str, lines: EvalLines) -> Check:
    there = key in lines.order
    return finding(check_id, there, f"「{text}」の行が{'ある' if there else 'ない'}。")


def _rag_check(evidence: EvalEvidence, lines: EvalLines) -> Check:
    use_rag = evidence.settings.use_rag
    mode = lines.rag_mode
    shown = f"RAG Mode の表示は {bounded(mode, 80) if mode is not None else 'なし'}。"
    if use_rag:
        return finding("line_rag_enabled", (mode or "").startswith("Enabled"), shown)
    return finding("line_rag_disabled", mode == "Disabled (LLM only)", shown)


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
        finding("model_named", named, f"対象は {bounded(asked, 80)}、表示は {listing}。"),
        finding("model_names_agree", not others, f"別のモデル名: {'、'.join(others) or 'なし'}。"),
    )


def _backend_check(lines: EvalLines, results: Results | None) -> Check:
    written = results.config.backend if results else None
    shown = [str(value).strip().lower() for value in (lines.backend, written) if value]
    if not shown:
        return finding("line_backend", None, "バックエンドは表示も記録もされていない。")
    return finding(
        "line_backend", set(shown) == {"hf"}, f"バックエンドは {bounded('、'.join(dict.fromkeys(shown)), 80)}。"
    )


def _lora_checks(evidence: EvalEvidence, lines: EvalLines, results: Results | None) -> tuple[Check, ...]:
    asked = evidence.lora_path
    written = results.config.lora_path if results else None
    shown = [str(value).strip() for value in (lines.lora_path, written) if value is not None]
    if asked is None:
        used = [value for value in shown if value not in ("", "None")]
        return (finding("lora_path_named", not used, f"LoRA なしの評価で、表示は {bounded(used or 'なし', 120)}。"),)
    if not shown:
        return (finding("lora_path_named", None, "LoRA Path は表示も記録もされていない。"),)
    holds = all(same_path(asked, value) for value in shown)
    listing = bounded("、".join(dict.fromkeys(shown)), 120)
    return (finding("lora_path_named", holds, f"指定した LoRA は {bounded(asked, 120)}、表示は {listing}。"),)


def _total_check(evidence: EvalEvidence, lines: EvalLines, results: Results | None) -> Check:
    asked = evidence.settings.samples
    counts = {"表示": lines.total}
    if results:
        counts |= {"JSON の total_count": results.summary.total_count, "JSON の件数": len(results.results)}
    shown = "、".join(f"{label} {count if count is not None else 'なし'}" for label, count in counts.items())
    return finding("total_samples", set(counts.values()) == {asked}, f"依頼した {asked} 問に対して {shown}。")


def _accuracy_check(lines: EvalLines) -> Check:
    if lines.accuracy is None:
        return finding("line_accuracy", False, "「Accuracy:」の行がない。")
    holds = math.isfinite(lines.accuracy) and 0 <= lines.accuracy <= 1
    return finding("line_accuracy", holds, f"表示された正解率は {100 * lines.accuracy:.2f} %。")


def _order_check(lines: EvalLines) -> Check:
    # the published script prints its wrong model line before the backend and the right one after: any order will do
    groups = [
        ("initializing",),
        ("rag_mode",),
        ("llm_model", "hf_model", "backend"),
        ("results",),
        ("total",),
        ("accuracy",),
    ]
    places = [[lines.order[key] for key in group if key in lines.order] for group in groups]
    there = [place for place in places if place]
    if len(there) < 2:
        return finding("lines_in_order", None, "並びを比べられる行がない。")
    holds = all(max(earlier) < min(later) for earlier, later in pairwise(there))
    return finding("lines_in_order", holds, f"必要な行は決まった順に{'並ぶ' if holds else '並んでいない'}。")


def _invocation_check(lines: EvalLines) -> Check:
    errors = lines.invocation_errors
    example = f"（最初は {bounded(errors[0], 160)}）" if errors else ""
    return finding("no_invocation_error", not errors, f"推論中の例外の表示は {len(errors)} 件{example}。")
