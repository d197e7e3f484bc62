"""Checks of what only the extended stages show: reasoning, retrieval, and what the adapter changes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from steph.base.terms import Severity
from steph.base.text import one_line
from steph.contract.lines import EvalLines
from steph.contract.questions import question_key
from steph.contract.results import Results, Row
from steph.judge.evidence import EvalEvidence
from steph.judge.kinds import FAIL, WARN, CheckKind
from steph.judge.reading import reasoning_of, strict_letter
from steph.record.values import AnswerComparison, Check

REASONING_CHARS = 10  # fewer are no reason: "Reasoning: なし" has two
PASSAGE_CHARS = 10

COT_ROWS_SOUND = CheckKind("cot_rows_sound", "H-2cot", WARN)
LINE_COT_ENABLED = CheckKind("line_cot_enabled", "H-3cot", FAIL)
COT_REASONED = CheckKind("cot_reasoned", "H-3cot", WARN, quality=True)
RAG_RETRIEVED = CheckKind("rag_retrieved", "H-3rag", FAIL)
RAG_IN_PROMPT = CheckKind("rag_in_prompt", "H-3rag", FAIL, optional=True)
BASE_SAME_QUESTIONS = CheckKind("base_same_questions", "H-3base", FAIL)
ADAPTER_CHANGES_RESPONSES = CheckKind("adapter_changes_responses", "H-3base", WARN, quality=True)
EXTENDED = (
    COT_ROWS_SOUND,
    LINE_COT_ENABLED,
    COT_REASONED,
    RAG_RETRIEVED,
    RAG_IN_PROMPT,
    BASE_SAME_QUESTIONS,
    ADAPTER_CHANGES_RESPONSES,
)


def extended_checks(evidence: EvalEvidence, lines: EvalLines, results: Results | None) -> tuple[Check, ...]:
    """The checks that the evaluation's own settings ask for; none for an evaluation as H-3 runs it."""
    rows = results.results if results else None
    checks: list[Check] = []
    if evidence.settings.use_cot:
        checks += [_cot_line_check(lines), _reasoned_check(rows, rehearsal=evidence.rehearsal)]
    if evidence.settings.use_rag:
        checks += [_retrieved_check(rows, evidence.settings.top_k), _prompt_check(rows, evidence.beside)]
    if evidence.lora_path is None:
        checks += _base_checks(rows, evidence.beside, rehearsal=evidence.rehearsal)
    return tuple(checks)


def compared(rows: tuple[Row, ...] | None, beside: tuple[Row, ...] | None) -> AnswerComparison | None:
    """What the adapter changes: `rows` were answered without it, `beside` with it; None for different questions."""
    if not rows or not beside or _keys(rows) != _keys(beside):
        return None
    pairs = list(zip(rows, beside, strict=True))
    return AnswerComparison(
        questions=len(pairs),
        same_responses=sum(without.response == adapted.response for without, adapted in pairs),
        changed_answers=sum(without.predicted_answer != adapted.predicted_answer for without, adapted in pairs),
        right_to_wrong=sum(without.is_correct and not adapted.is_correct for without, adapted in pairs),
        wrong_to_right=sum(adapted.is_correct and not without.is_correct for without, adapted in pairs),
    )


def cot_rows_check(rows: Iterable[Mapping[str, object]]) -> Check:
    """Whether training rows teach reasoning: text before a last line that gives the row's own letter."""
    kept = list(rows)
    bare = [_is_bare(str(row.get("output", ""))) for row in kept]
    astray = [_is_astray(row) for row in kept]
    unsound = sum(without_reason or elsewhere for without_reason, elsewhere in zip(bare, astray, strict=True))
    return COT_ROWS_SOUND.check(
        unsound == 0 if kept else None,
        f"{len(kept)} 行のうち、理由のない行 {sum(bare)}、答えの行がないか正解と違う行 {sum(astray)}。",
        severity=Severity.FAIL if 2 * unsound > len(kept) else None,
    )


def _is_bare(text: str) -> bool:
    return len(reasoning_of(text)) < REASONING_CHARS


def _is_astray(row: Mapping[str, object]) -> bool:
    """Whether the last line gives no letter, or another than `meta.correct` where the row has one."""
    meta = row.get("meta")
    correct = meta.get("correct") if isinstance(meta, Mapping) else None
    last = (str(row.get("output", "")).strip().splitlines() or [""])[-1]
    letter = strict_letter(last, cot=True)
    return letter is None or (isinstance(correct, str) and letter != correct.strip().lower())


def _cot_line_check(lines: EvalLines) -> Check:
    shown = one_line(lines.cot, 80) if lines.cot is not None else "なし"
    return LINE_COT_ENABLED.check((lines.cot or "").startswith("Enabled"), f"Chain-of-Thought の表示は {shown}。")


def _reasoned_check(rows: tuple[Row, ...] | None, *, rehearsal: bool) -> Check:
    if not rows:
        return COT_REASONED.check(None, "回答がないので測れない。", rehearsal=rehearsal)
    bare = sum(_is_bare(row.response or "") for row in rows)
    message = f"{len(rows)} 問のうち {bare} 問の応答に理由がない。"
    return COT_REASONED.check(bare == 0, message, rehearsal=rehearsal)


def _retrieved_check(rows: tuple[Row, ...] | None, top_k: int) -> Check:
    counts = [row.retrieved_docs_count for row in rows or () if type(row.retrieved_docs_count) is int]
    if not rows or len(counts) < len(rows):
        return RAG_RETRIEVED.check(None, f"{len(rows or ())} 問のうち {len(counts)} 問にしか検索件数の記録がない。")
    without = sum(count < 1 for count in counts)
    message = f"{len(rows)} 問のうち {without} 問で検索結果がない（最少 {min(counts)} 件、依頼した top-k は {top_k}）。"
    return RAG_RETRIEVED.check(without == 0, message)


def _prompt_check(rows: tuple[Row, ...] | None, beside: tuple[Row, ...] | None) -> Check:
    """Whether a prompt says more than the one without retrieval for the same question."""
    without = dict(zip(_keys(beside or ()), beside or (), strict=True))
    pairs = [
        (row.prompt, without[key].prompt)
        for row, key in zip(rows or (), _keys(rows or ()), strict=True)
        if key in without
    ]
    measured = [_added_chars(here, there) for here, there in pairs if isinstance(here, str) and isinstance(there, str)]
    if not measured:
        return RAG_IN_PROMPT.check(None, "JSON にプロンプトが見えない。")
    bare = sum(added < PASSAGE_CHARS for added in measured)
    message = (
        f"{len(measured)} 問のうち {bare} 問のプロンプトに、検索なしのときにない文がない（最少 {min(measured)} 文字）。"
    )
    return RAG_IN_PROMPT.check(bare == 0, message)


def _added_chars(prompt: str, without: str) -> int:
    known = {line.strip() for line in without.splitlines()}
    return sum(len(line.strip()) for line in prompt.splitlines() if line.strip() not in known)


def _base_checks(
    rows: tuple[Row, ...] | None, beside: tuple[Row, ...] | None, *, rehearsal: bool
) -> tuple[Check, Check]:
    if not rows or not beside:
        why = "比べる回答がない。"
        return (
            BASE_SAME_QUESTIONS.check(None, why),
            ADAPTER_CHANGES_RESPONSES.check(None, why, rehearsal=rehearsal),
        )
    found = compared(rows, beside)
    count = f"アダプタなし {len(rows)} 問、H-3 は {len(beside)} 問"
    if found is None:
        return (
            BASE_SAME_QUESTIONS.check(False, f"{count}で、問題か順序が違う。"),
            ADAPTER_CHANGES_RESPONSES.check(None, "問題が違うので比べられない。", rehearsal=rehearsal),
        )
    return (
        BASE_SAME_QUESTIONS.check(True, f"{count}で、同じ問題を同じ順に解いた。"),
        ADAPTER_CHANGES_RESPONSES.check(found.same_responses < found.questions, _effect(found), rehearsal=rehearsal),
    )


def _effect(found: AnswerComparison) -> str:
    effect = f"アダプタで正→誤 {found.right_to_wrong}、誤→正 {found.wrong_to_right}"
    same = f"{found.questions} 問のうち応答が一字一句同じ {found.same_responses} 問"
    counts = f"{same}、答えが変わった {found.changed_answers} 問（{effect}）。"
    if found.same_responses < found.questions:
        return counts
    return f"{counts}アダプタが適用されていないのかもしれない（答えが短いと、偶然同じになることもある）。"


def _keys(rows: tuple[Row, ...]) -> tuple[str, ...]:
    return tuple(question_key(row.question, row.choices) for row in rows)
