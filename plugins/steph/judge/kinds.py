"""What one row of the table of checks says, and how a check is made of it; the rows stand beside their checks."""

from __future__ import annotations

from dataclasses import dataclass

from steph.base.terms import Severity
from steph.base.text import one_line
from steph.record.values import Check

FAIL, WARN, INFO = Severity.FAIL, Severity.WARN, Severity.INFO


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
        return Check(id=self.id, severity=hardness, holds=holds, message=one_line(message), trap=self.trap)
