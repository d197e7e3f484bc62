"""docs/causes.md: why an attempt can end badly, and what to do next, as the tables of diagnosis and advice have it.

`PYTHONPATH=plugins python tools/causes_page.py docs/causes.md` writes it; without a path it is printed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from steph.base.terms import Cause, Phase
from steph.diagnose.advice import advice_for
from steph.tell.wording import CAUSES, PHASES

_HEAD = """# 原因と対処

`make docs` が生成する。

試行が失敗すると、ログ、トレースバック、終了のしかたから原因を一つ選ぶ。根拠の行はレポートに載る。手元のログは
`steph diagnose LOGFILE` で同じように調べられる。

"""


def markdown() -> str:
    """A section for each cause, the phases with steps of their own below it."""
    return _HEAD + "\n".join(_section(cause) for cause in Cause if cause is not Cause.NONE)


def _section(cause: Cause) -> str:
    general = advice_for(cause, None)
    lines = [f"## `{cause.value}` {CAUSES[cause]}", "", *(f"- {step}" for step in general)]
    for phase in Phase:
        steps = advice_for(cause, phase)
        if steps != general:
            lines += ["", f"{PHASES[phase]}の場合:", "", *(f"- {step}" for step in steps)]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(markdown(), encoding="utf-8")
    else:
        sys.stdout.write(markdown())
