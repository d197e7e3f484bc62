"""What the doctor says: a line of one check, and the kind of row that lines are made from. Values only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum

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


class Weight(Enum):
    """How much a trouble weighs."""

    WARN = (Level.WARN, False)
    FAIL = (Level.FAIL, False)
    CERTAIN = (Level.FAIL, True)  # a run is certain to fail as well: what the gate stops


WARN, FAIL, CERTAIN = Weight


@dataclass(frozen=True)
class DoctorCheck:
    """One row of the table, with the ways in which it may not hold; the catalogs have when that is, and what to do.

    `gpu_only` rows do not apply to a profile with device = "cpu".
    """

    id: str
    troubles: Mapping[str, Weight]
    gpu_only: bool = False

    def words(self, key: str, language: Language | None = None) -> str:
        """The catalog's text of `looks_at`, `TROUBLE.when` or `TROUBLE.remedy`."""
        return text(f"doctor.{self.id}.{key}", language)

    def ok(self, *said: Message | str) -> Line:
        """The line of a check that holds; what is said in parts is told in one line, in the language in use."""
        return Line(self.id, Level.OK, _one_line(said))

    def not_applicable(self, why: Message) -> Line:
        """The line of a check that has nothing to look at here."""
        return Line(self.id, Level.NOT_APPLICABLE, _one_line((why,)))

    def trouble(self, key: str, *said: Message | str) -> Line:
        """The line of a check that does not hold; KeyError for a trouble that is not in the table."""
        level, is_certain = self.troubles[key].value
        return Line(self.id, level, _one_line(said), self.words(f"{key}.remedy"), is_certain)


def _one_line(said: Iterable[Message | str]) -> str:
    return one_line("; ".join(str(part) for part in said if part))
