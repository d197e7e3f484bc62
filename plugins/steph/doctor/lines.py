"""What the doctor says: a line of one check, and the table's rows that lines are made from. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from steph.base.text import one_line

MESSAGE_CHARS = 300


class Level(StrEnum):
    """How bad a line is; only FAIL makes the doctor's exit status 1."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    NOT_APPLICABLE = "n/a"


@dataclass(frozen=True)
class Line:
    """One check's outcome; `is_certain` where a run is certain to fail as well."""

    check: str
    level: Level
    message: str
    remedy: str = ""
    is_certain: bool = False


@dataclass(frozen=True)
class Trouble:
    """One way in which a check does not hold: its name, when that is so, and what to do about it."""

    key: str
    level: Level
    when: str
    remedy: str
    is_certain: bool = False


@dataclass(frozen=True)
class DoctorCheck:
    """One row of the table; `gpu_only` rows do not apply to a profile with device = "cpu"."""

    id: str
    looks_at: str
    troubles: tuple[Trouble, ...] = ()
    gpu_only: bool = False

    def ok(self, message: str) -> Line:
        """The line of a check that holds."""
        return Line(self.id, Level.OK, one_line(message))

    def not_applicable(self, why: str) -> Line:
        """The line of a check that has nothing to look at here."""
        return Line(self.id, Level.NOT_APPLICABLE, one_line(why))

    def trouble(self, key: str, message: str) -> Line:
        """The line of a check that does not hold; KeyError for a trouble that is not in the table."""
        found = {trouble.key: trouble for trouble in self.troubles}[key]
        return Line(self.id, found.level, one_line(message), found.remedy, found.is_certain)
