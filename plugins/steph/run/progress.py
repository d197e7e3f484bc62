"""How far a running child has come, by the progress bars in its output: text in, numbers out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# tqdm's default bar_format: `{desc}: {percentage}%|{bar}| {n}/{total} [{elapsed}<{remaining}, {rate}]`
_BAR = re.compile(
    r"(?:^|[\r\n])(?:(?P<label>[^\r\n|]{1,80}?):)?[ \t]{0,9}\d{1,3}%\|[^|\r\n]{0,400}\|"
    r"[ \t]{0,9}(?P<step>\d{1,18})/(?P<total>\d{1,18})[ \t]{0,9}\["
)


@dataclass(frozen=True)
class Progress:
    """Where a running child is; `step` of `total_steps` is its last progress bar, `label` that bar's name if any."""

    elapsed_seconds: float
    step: int | None = None
    total_steps: int | None = None
    label: str = ""
    used_bytes: int | None = None
    peak_bytes: int | None = None


def last_bar(lines: Sequence[str]) -> tuple[int, int, str] | None:
    """The last bar in these lines: its step, its total and its label, which is empty for the Trainer's own."""
    for line in reversed(lines):
        for match in reversed(list(_BAR.finditer(line))):
            return int(match["step"]), int(match["total"]), (match["label"] or "").strip()
    return None
