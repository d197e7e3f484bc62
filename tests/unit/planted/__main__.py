"""Writes docs/planted-traps.md from the table of defects: `PYTHONPATH=plugins:tests/unit python -m planted [path]`."""

from __future__ import annotations

import sys
from pathlib import Path

from planted.defects import DEFECTS, SOUND, Variant


def markdown() -> str:
    """The table as docs/planted-traps.md."""
    traps = sorted({variant.trap for variant in DEFECTS if variant.trap})
    return (
        "# 植え込んだ欠陥\n\n"
        "`make docs` が生成する。\n\n"
        f"にせのパイプラインに {len(DEFECTS)} 通りの欠陥を一つずつ植え、下の検査だけが成り立たないことを\n"
        f"`tests/unit/test_checks_planted.py` が確かめる。欠陥のない {len(SOUND)} 通りでは、どの検査も鳴らない。\n"
        f"ここで植えた罠の番号: {'、'.join(map(str, traps))}。\n\n"
        "| # | 段 | 罠 | 欠陥 | 成り立たない検査 | 測れなくなる fail の検査 |\n|---|---|---|---|---|---|\n"
        + "".join(_row(number, variant) for number, variant in enumerate(DEFECTS, 1))
        + "\n## 欠陥のない変種\n\n"
        + "".join(f"- {variant.title}\n" for variant in SOUND)
    )


def _row(number: int, variant: Variant) -> str:
    caught = "、".join(f"`{name}`（{variant.hardness_of(name).value}）" for name in sorted(variant.caught))
    unmeasured = f"{len(variant.unmeasured)} 件" if variant.unmeasured else ""
    return f"| {number} | {variant.stage} | {variant.trap or ''} | {variant.title} | {caught} | {unmeasured} |\n"


if __name__ == "__main__":
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(markdown(), encoding="utf-8")
    else:
        sys.stdout.write(markdown())
