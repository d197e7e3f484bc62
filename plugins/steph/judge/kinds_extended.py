"""The rows of the table of checks for the extended stages, beside those of H-2 and H-3. Values only."""

from __future__ import annotations

from steph.judge.kinds import FAIL, WARN, CheckKind

EXTENDED = (
    CheckKind(
        "cot_rows_sound",
        "H-2cot",
        WARN,
        "CoT の学習データに理由と答えの行がある",
        "学習データの output と meta.correct",
        note="半数を超える行で欠けると fail（学習しない）",
    ),
    CheckKind("line_cot_enabled", "H-3cot", FAIL, "CoT が有効と表示された", "Chain-of-Thought: Enabled"),
    CheckKind(
        "cot_reasoned", "H-3cot", WARN, "応答に答えの前の理由がある", "response の答えの行を除いた文字数", quality=True
    ),
    CheckKind("rag_retrieved", "H-3rag", FAIL, "すべての問題で文書が検索された", "JSON の retrieved_docs_count"),
    CheckKind(
        "rag_in_prompt",
        "H-3rag",
        FAIL,
        "検索した文がプロンプトに入った",
        "JSON の prompt を、同じ問題の H-3 の prompt と比べて",
        optional=True,
    ),
    CheckKind("base_same_questions", "H-3base", FAIL, "H-3 と同じ問題を同じ順に解いた", "results と H-3 の results"),
    CheckKind(
        "adapter_changes_responses",
        "H-3base",
        WARN,
        "アダプタの有無で応答が変わる",
        "response と H-3 の response",
        quality=True,
    ),
)
