"""The table of all checks of training and evaluation: what each one reads, how hard it is, which trap it catches.

`python -m steph.judge.catalog` prints docs/checks.md; with a path it writes it there. Nothing here reads a pipeline's
files. A check is made by `finding`, so that no check exists outside the table.
"""

from __future__ import annotations

import sys
from pathlib import Path

from steph.judge.checks_model import MODEL
from steph.judge.checks_process import MACHINE, RANKS
from steph.judge.kinds import SHARED, CheckKind
from steph.judge.kinds_evaluation import ADAPTER, LINES, RESULTS, TEXT
from steph.judge.kinds_extended import EXTENDED
from steph.judge.kinds_training import DEEP, TRAINING
from steph.record import Check, Severity

CATALOG: dict[str, CheckKind] = {
    kind.id: kind
    for kind in (
        *(*MODEL, *SHARED, *RANKS, *MACHINE),
        *(*TRAINING, *DEEP, *LINES, *ADAPTER, *RESULTS, *TEXT, *EXTENDED),
    )
}


def finding(
    check_id: str, holds: bool | None, message: str, *, rehearsal: bool = False, severity: Severity | None = None
) -> Check:
    """Make the check `check_id` of the table, its severity lowered as the table says; KeyError for an unknown id."""
    return CATALOG[check_id].check(holds, message, rehearsal=rehearsal, severity=severity)


def markdown() -> str:
    """The table as docs/checks.md."""
    head = (
        "# 検査の一覧\n\n"
        "`PYTHONPATH=plugins python -m steph.judge.catalog docs/checks.md` が生成する。\n\n"
        "- **fail** が成り立たない段は緑にならない。測定できなかった fail も同じ\n"
        "  （「任意」の検査だけは、測定できなければ info に下がる）。\n"
        "- 「品質」の検査は予行では info になる。\n"
        "- 「罠」は公開パイプラインで見つかった罠の番号。\n\n"
        "| id | 段 | 重さ | 罠 | 内容 | 読むもの | 備考 |\n|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(_row(kind) for kind in CATALOG.values())


def _row(kind: CheckKind) -> str:
    notes = [kind.note, "品質" if kind.quality else "", "任意" if kind.optional else ""]
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
