"""What the doctor says: a line of one check, and the table's rows that lines are made from. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from steph.base.messages import Language, Message, text
from steph.base.text import one_line


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
    """One way in which a check does not hold; the catalogs say when that is so, and what to do about it."""

    key: str
    level: Level
    is_certain: bool = False


@dataclass(frozen=True)
class DoctorCheck:
    """One row of the table; `gpu_only` rows do not apply to a profile with device = "cpu"."""

    id: str
    troubles: tuple[Trouble, ...] = ()
    gpu_only: bool = False

    def words(self, key: str, language: Language | None = None) -> str:
        """The catalog's text of `looks_at`, `ROW.when` or `ROW.remedy`, in the language in use where none is named."""
        return text(f"doctor.{self.id}.{key}", language)

    def ok(self, *said: Message | str) -> Line:
        """The line of a check that holds; what is said in parts is told in one line, in the language in use."""
        return Line(self.id, Level.OK, joined(*said))

    def not_applicable(self, why: Message) -> Line:
        """The line of a check that has nothing to look at here."""
        return Line(self.id, Level.NOT_APPLICABLE, joined(why))

    def trouble(self, key: str, *said: Message | str) -> Line:
        """The line of a check that does not hold; KeyError for a trouble that is not in the table."""
        found = {trouble.key: trouble for trouble in self.troubles}[key]
        return Line(self.id, found.level, joined(*said), self.words(f"{key}.remedy"), found.is_certain)


def joined(*said: Message | str) -> str:
    """The parts in the language in use, in one line; an empty one is left out."""
    return one_line("; ".join(str(part) for part in said if part))
