"""What one row of the table of checks says, and how a check is made of it; the rows stand beside their checks."""

from __future__ import annotations

import re
from dataclasses import dataclass

from steph.base.terms import Severity
from steph.record.values import Check

FAIL, WARN, INFO = Severity.FAIL, Severity.WARN, Severity.INFO
MESSAGE_CHARS = 300
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


def bounded(text: object, limit: int = MESSAGE_CHARS) -> str:
    """Give text from a child as one line of at most `limit` characters without control or bidi characters."""
    line = _CONTROL.sub(" ", str(text)[: 4 * limit]).strip().encode("utf-8", "replace").decode()
    return line if len(line) <= limit else line[: limit - 1] + "…"


@dataclass(frozen=True)
class CheckKind:
    """One row of the table; `quality` rows are INFO in rehearsals, `optional` rows are INFO where unmeasured."""

    id: str
    stages: str
    severity: Severity
    title: str
    reads: str
    trap: int | None = None
    quality: bool = False
    optional: bool = False
    note: str = ""

    def check(
        self, holds: bool | None, message: str, *, rehearsal: bool = False, severity: Severity | None = None
    ) -> Check:
        """Make this row's check, its severity lowered as the table says; `holds` None: it could not be measured."""
        hardness = severity or self.severity
        if (self.quality and rehearsal) or (self.optional and holds is None):
            hardness = INFO
        return Check(id=self.id, severity=hardness, holds=holds, message=bounded(message), trap=self.trap)
