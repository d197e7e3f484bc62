"""Writes the page of all checks: what each one reads, how hard it is, which trap it catches.

`PYTHONPATH=plugins python tools/checks_page.py ja docs/checks.md` writes it in that language; without a path it is
printed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from steph.base.messages import Language, speaking, text
from steph.judge.kinds import CheckKind, check_kinds


def markdown(language: Language) -> str:
    """The table as docs/checks.md or docs/checks.en.md."""
    with speaking(language):
        return text("checks_page.head") + "".join(_row(kind) for kind in check_kinds().values())


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
