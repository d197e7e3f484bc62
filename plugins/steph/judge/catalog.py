"""The table of all checks of training and evaluation: what each one reads, how hard it is, which trap it catches.

`python -m steph.judge.catalog` prints docs/checks.md; with a path it writes it there. Nothing here reads a pipeline's
files. A check is made by `finding`, so that no check exists outside the table.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from steph.judge.kinds import INFO, RANKS, SHARED, CheckKind
from steph.judge.kinds_evaluation import ADAPTER, LINES, RESULTS, TEXT
from steph.judge.kinds_extended import EXTENDED
from steph.judge.kinds_training import DEEP, TRAINING
from steph.record import Check, Severity

MESSAGE_CHARS = 300
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


CATALOG: dict[str, CheckKind] = {
    kind.id: kind for kind in (*SHARED, *RANKS, *TRAINING, *DEEP, *LINES, *ADAPTER, *RESULTS, *TEXT, *EXTENDED)
}


def bounded(text: object, limit: int = MESSAGE_CHARS) -> str:
    """Give text from a child as one line of at most `limit` characters without control or bidi characters."""
    line = _CONTROL.sub(" ", str(text)[: 4 * limit]).strip().encode("utf-8", "replace").decode()
    return line if len(line) <= limit else line[: limit - 1] + "…"


def finding(
    check_id: str, holds: bool | None, message: str, *, rehearsal: bool = False, severity: Severity | None = None
) -> Check:
    """Make the check `check_id` of the table, its severity lowered as the table says; KeyError for an unknown id."""
    kind = CATALOG[check_id]
    hardness = severity or kind.severity
    if (kind.quality and rehearsal) or (kind.optional and holds is None):
        hardness = INFO
    return Check(id=check_id, severity=hardness, holds=holds, message=bounded(message), trap=kind.trap)


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
