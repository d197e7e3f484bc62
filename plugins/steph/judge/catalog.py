"""The table of all checks: what each one reads, how hard it is, which trap it catches.

`python -m steph.judge.catalog` prints docs/checks.md; with a path it writes it there. The rows stand beside their
checks and are collected here in the page's order. Nothing here reads a pipeline's files.
"""

from __future__ import annotations

import sys
from pathlib import Path

from steph.judge.checks_adapter import ADAPTER_BASE, ADAPTER_FILES
from steph.judge.checks_adapter_keys import ADAPTER_KEYS
from steph.judge.checks_adapter_use import ADAPTER_IN_USE
from steph.judge.checks_answers import WITNESSED_ANSWERS
from steph.judge.checks_asked import ASKED
from steph.judge.checks_extended import EXTENDED
from steph.judge.checks_heart import HEART
from steph.judge.checks_lines import LINES
from steph.judge.checks_loss import LOSS
from steph.judge.checks_model import MODEL
from steph.judge.checks_process import BASE_WEIGHTS_LOADED, EXIT_ZERO, LIBRARY_WARNINGS, MACHINE, NO_TRACEBACK, RANKS
from steph.judge.checks_prompts import PROMPTS
from steph.judge.checks_results import RESULTS
from steph.judge.checks_row_answers import ANSWERS_OF_DATASET
from steph.judge.checks_rows import ROW_IDENTITY
from steph.judge.checks_spill import NO_MEMORY_SPILL
from steph.judge.checks_steps import STEPS
from steph.judge.checks_text import TEXT
from steph.judge.checks_times import TIMES
from steph.judge.checks_tokenizer import TOKENIZER_KEPT
from steph.judge.checks_training import ANSWERS_KEPT, LINE_TRAIN_RESULT, TRAINING_FILES
from steph.judge.checks_witness import WITNESSED_TRAINING
from steph.judge.kinds import CheckKind, Needs

NEEDED = {
    Needs.KEY_LINES: "lawqa の決まった表示と設定",
    Needs.WORDS: "evaluate.lines",
    Needs.ROWS: "問題ごとの結果",
    Needs.QUESTIONS: "結果の問題文",
    Needs.LABELS: "記号の回答",
    Needs.GOLD: "結果の正解と回答",
    Needs.RESPONSES: "応答の文",
    Needs.PROMPTS: "結果のプロンプト",
    Needs.DATASET: "データセット",
    Needs.MODEL_NAME: "表示か結果のモデル名",
    Needs.ADAPTER_NAME: "表示か結果のアダプター",
    Needs.FINAL_LINE: "Trainer の最終行",
    Needs.TRAINER_STATE: "trainer_state.json",
    Needs.TRAIN_ROWS: "ファイルの学習データ",
    Needs.ANSWER_LABELS: "train.rows.labels",
}
CATALOG: dict[str, CheckKind] = {
    kind.id: kind
    for kind in (
        *(*MODEL, EXIT_ZERO, NO_TRACEBACK, BASE_WEIGHTS_LOADED, LIBRARY_WARNINGS, ADAPTER_BASE, *RANKS, *MACHINE),
        *(LINE_TRAIN_RESULT, *ADAPTER_FILES, *ADAPTER_KEYS, TOKENIZER_KEPT, *TRAINING_FILES, *ASKED, *LOSS),
        *(*STEPS, *TIMES, *WITNESSED_TRAINING, *ROW_IDENTITY, ANSWERS_OF_DATASET, NO_MEMORY_SPILL, ANSWERS_KEPT),
        *(*WITNESSED_ANSWERS, *LINES, *ADAPTER_IN_USE, *RESULTS, *PROMPTS, *TEXT, *EXTENDED, *HEART),
    )
}


def markdown() -> str:
    """The table as docs/checks.md."""
    head = (
        "# 検査の一覧\n\n"
        "`make docs` が生成する。\n\n"
        "- **fail** が成り立たない段は緑にならない。測定できなかった fail も同じ\n"
        "  （「任意」の検査だけは、測定できなければ info に下がる）。\n"
        "- 「品質」の検査は予行では info になる。\n"
        "- 「罠」は公開パイプラインで見つかった罠の番号。\n"
        "- 「中核」の検査は、`steph.toml` に何が書いてあっても行う。\n"
        "- 「要」のものを持たないと `steph.toml` が言うパイプラインでは、その検査は対象外になり、報告に理由が出る。\n\n"
        "| id | 段 | 重さ | 罠 | 内容 | 読むもの | 備考 |\n|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(_row(kind) for kind in CATALOG.values())


def _row(kind: CheckKind) -> str:
    notes = [
        kind.note,
        "中核" if kind.core else "",
        "品質" if kind.quality else "",
        "任意" if kind.optional else "",
        f"要: {'・'.join(NEEDED[need] for need in kind.needs)}" if kind.needs else "",
    ]
    cells = (
        f"`{kind.id}`",
        kind.stages,
        kind.severity.value,
        kind.trap or "",
        kind.title,
        kind.reads,
        "、".join(filter(None, notes)),
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |\n"


if __name__ == "__main__":
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(markdown(), encoding="utf-8")
    else:
        sys.stdout.write(markdown())
