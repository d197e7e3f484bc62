"""The table of all checks: what each one reads, how hard it is, which trap it catches.

`python -m steph.judge.catalog ja docs/checks.md` writes the page in that language; without a path it is printed. The
rows stand beside their checks and are collected here in the page's order. Nothing here reads a pipeline's files.
"""

from __future__ import annotations

import sys
from pathlib import Path

from steph.base.messages import Language, speaking, text
from steph.judge.checks_adapter import ADAPTER_BASE, ADAPTER_FILES, ADAPTER_KEYS, TOKENIZER_KEPT
from steph.judge.checks_answers import WITNESSED_ANSWERS
from steph.judge.checks_evaluation import ADAPTER_IN_USE, LINES
from steph.judge.checks_extended import EXTENDED, HEART
from steph.judge.checks_figures import LOSS, STEPS
from steph.judge.checks_process import (
    BASE_WEIGHTS_LOADED,
    EXIT_ZERO,
    LIBRARY_WARNINGS,
    MACHINE,
    MODEL,
    NO_TRACEBACK,
    RANKS,
)
from steph.judge.checks_progress import ASKED, NO_MEMORY_SPILL, TIMES
from steph.judge.checks_prompts import PROMPTS
from steph.judge.checks_results import RESULTS
from steph.judge.checks_row_answers import ANSWERS_OF_DATASET
from steph.judge.checks_rows import ROW_IDENTITY
from steph.judge.checks_text import TEXT
from steph.judge.checks_training import ANSWERS_KEPT, LINE_TRAIN_RESULT, TRAINING_FILES
from steph.judge.checks_witness import WITNESSED_TRAINING
from steph.judge.kinds import CheckKind

CATALOG: dict[str, CheckKind] = {
    kind.id: kind
    for kind in (
        *(*MODEL, EXIT_ZERO, NO_TRACEBACK, BASE_WEIGHTS_LOADED, LIBRARY_WARNINGS, ADAPTER_BASE, *RANKS, *MACHINE),
        *(LINE_TRAIN_RESULT, *ADAPTER_FILES, *ADAPTER_KEYS, TOKENIZER_KEPT, *TRAINING_FILES, *ASKED, *LOSS),
        *(*STEPS, *TIMES, *WITNESSED_TRAINING, *ROW_IDENTITY, ANSWERS_OF_DATASET, NO_MEMORY_SPILL, ANSWERS_KEPT),
        *(*WITNESSED_ANSWERS, *LINES, *ADAPTER_IN_USE, *RESULTS, *PROMPTS, *TEXT, *EXTENDED, *HEART),
    )
}


def markdown(language: Language) -> str:
    """The table as docs/checks.md or docs/checks.en.md."""
    with speaking(language):
        return text("checks_page.head") + "".join(_row(kind) for kind in CATALOG.values())


def _row(kind: CheckKind) -> str:
    notes = [
        kind.note,
        text("checks_page.core") if kind.core else "",
        text("checks_page.quality") if kind.quality else "",
        text("checks_page.optional") if kind.optional else "",
    ]
    if kind.needs:
        needs = text("checks_page.and").join(text(f"check.needs.{need}") for need in kind.needs)
        notes.append(text("checks_page.needs", values={"needs": needs}))
    cells = (
        f"`{kind.id}`",
        text("checks_page.and").join(kind.stages.split("・")),
        kind.severity.value,
        kind.trap or "",
        kind.title,
        kind.reads,
        text("checks_page.separator").join(filter(None, notes)),
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |\n"


if __name__ == "__main__":
    page = markdown("en" if sys.argv[1:2] == ["en"] else "ja")
    if sys.argv[2:]:
        Path(sys.argv[2]).write_text(page, encoding="utf-8")
    else:
        sys.stdout.write(page)
