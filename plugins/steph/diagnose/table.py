"""Reads the tables of causes, cases, steps and signs from the TOML files beside this module.

`causes.toml` has a row for each cause: the wordings that speak for it. `cases.toml` has a row for each form whose fix
is known. `steps.toml` has next steps that several rows share, `settings.toml` how programs spell their settings,
`signs.toml` what else is read off a log: how far the run had come, facts of it, sizes.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

from steph.base.terms import Cause, Phase

FOLDER = Path(__file__).parent
Where = Literal["raised", "printed"]


class Weight(IntEnum):
    """How much one piece of text says about why a run failed."""

    ECHO = 1  # reports that another process failed: never a cause where anything else speaks
    HINT = 2  # a warning that often comes before the failure
    SIGNAL = 3  # how the process ended
    UNKNOWN = 4  # an exception that no row knows
    LIKELY = 5  # an exception whose type fits the cause
    SYMPTOM = 6  # a number or a launcher's line that only this cause leaves
    CERTAIN = 7  # wording that only this cause has
    HARDWARE = 8  # the driver or the card is broken; whatever else was printed came of it


# the order in which rows are tried: what only one cause leaves, then who merely noticed, then the wordings
_ORDER = (Weight.HARDWARE, Weight.SYMPTOM, Weight.ECHO, Weight.CERTAIN, Weight.LIKELY, Weight.HINT, Weight.SIGNAL)


@dataclass(frozen=True)
class Clue:
    """A cause that some text speaks for, and the case whose wording it has."""

    cause: Cause
    weight: Weight
    case: str | None = None


@dataclass(frozen=True)
class Wording:
    """One group of wordings of a cause: `pattern` is searched in the text, `frames` in the frames above it.

    `outside` may be in no frame of the whole chain: an inner exception does not show who called.
    """

    cause: Cause
    weight: Weight
    pattern: re.Pattern[str]
    frames: re.Pattern[str] | None = None
    outside: re.Pattern[str] | None = None
    case: str | None = None

    def fits(self, text: str, frames: str, around: str) -> bool:
        """Whether it is in the text of an exception with those frames, in a chain with the frames `around`."""
        return bool(
            self.pattern.search(text)
            and (self.frames is None or self.frames.search(frames))
            and (self.outside is None or not self.outside.search(around))
        )


@dataclass(frozen=True)
class Case:
    """A form of a cause whose fix is known; the comment at the head of cases.toml says what each key means."""

    id: str
    cause: Cause
    raised: tuple[re.Pattern[str], ...]
    printed: tuple[re.Pattern[str], ...]
    frames: re.Pattern[str] | None
    packages: frozenset[str]  # it was raised in the code of one of them
    log: re.Pattern[str] | None
    phases: tuple[Phase, ...]
    facts: tuple[str, ...]
    steps: tuple[str, ...]
    decides: bool  # whether its wordings also speak for the cause
    sure: Literal["certain", "likely"]
    shows_line: bool  # whether one's own last line in the traceback is told
    in_phase: Phase | None
    quote: tuple[re.Pattern[str], ...]  # other lines of the log that belong to the evidence
    values: Mapping[str, str]
    samples: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """A next step that several causes and cases share."""

    id: str
    when: tuple[str, ...]
    unless: tuple[str, ...]
    known: str | None


@dataclass(frozen=True)
class Program:
    """A trainer or an evaluation, how a log shows it, and how it spells settings."""

    name: str
    seen: re.Pattern[str]
    settings: Mapping[str, str]


# one atom of a pattern (an escape, a class, any character), and the sign behind it of a repeat that has no end
_ATOM = re.compile(r"(\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\.)([*+])?", re.S)
_REACH = 300  # characters between two parts of a wording


def compiled(*alternatives: str) -> re.Pattern[str]:
    """One pattern from alternatives that are tried without regard to case.

    `.*` and its like reach 300 characters, except in an alternative that begins with `^`: where a wording may begin
    anywhere in a line, each beginning would otherwise read the rest of the line anew.
    """

    def bounded(repeat: re.Match[str]) -> str:
        atom, sign = repeat[1], repeat[2]
        return repeat[0] if sign is None else f"{atom}{{{'0' if sign == '*' else '1'},{_REACH}}}"

    return re.compile("|".join(one if one.startswith("^") else _ATOM.sub(bounded, one) for one in alternatives), re.I)


@functools.cache
def rows_in(name: str) -> dict[str, Any]:
    """A file's tables with `<<NAME>>` replaced by the part of that name in its `[words]` or in those of causes.toml."""
    table, causes = (tomllib.loads((FOLDER / f"{one}.toml").read_text(encoding="utf-8")) for one in (name, "causes"))
    shared = {**causes["words"], **table.get("words", {})}

    def filled(value: Any) -> Any:  # noqa: ANN401 - what TOML may hold
        if isinstance(value, str):
            return re.sub(r"<<(\w+)>>", lambda match: shared[match[1]], value)
        if isinstance(value, list):
            return [filled(one) for one in value]
        return {key: filled(one) for key, one in value.items()} if isinstance(value, dict) else value

    return {key: filled(value) for key, value in table.items() if key != "words"}


def signs(section: str, flags: int = 0) -> dict[str, re.Pattern[str]]:
    """The patterns of one section of signs.toml, by name and in their order."""
    return {name: re.compile("|".join(alternatives), flags) for name, alternatives in rows_in("signs")[section].items()}


@functools.cache
def cases() -> tuple[Case, ...]:
    """Every case, the more special ones first."""
    return tuple(
        Case(
            id=row["id"],
            cause=Cause(row["cause"]),
            raised=tuple(map(compiled, row.get("raised", ()))),
            printed=tuple(map(compiled, row.get("printed", ()))),
            frames=compiled(row["frames"]) if "frames" in row else None,
            packages=frozenset(row.get("packages", ())),
            log=compiled(*row["log"]) if "log" in row else None,
            phases=tuple(map(Phase, row.get("phases", ()))),
            facts=tuple(row.get("facts", ())),
            steps=tuple(row.get("steps", ())),
            decides=row.get("decides", not row.keys() & {"log", "phases", "facts", "packages"}),
            sure=row.get("sure", "certain"),
            shows_line=row.get("shows_line", False),
            in_phase=Phase(row["in_phase"]) if "in_phase" in row else None,
            quote=tuple(map(compiled, row.get("quote", ()))),
            values=row.get("values", {}),
            samples=tuple(row["samples"]),
        )
        for row in rows_in("cases")["case"]
    )


@functools.cache
def wordings(where: Where) -> tuple[Wording, ...]:
    """Every wording for exceptions or for single lines, in the order in which they are tried."""
    found = [
        Wording(case.cause, Weight.CERTAIN, pattern, case.frames, None, case.id)
        for case in cases()
        if case.decides
        for pattern in (case.raised if where == "raised" else case.printed)
    ]
    for row in rows_in("causes")["cause"]:
        cause = Cause(row["name"])
        for weight, alternatives in row.get(where, {}).items():
            found.append(Wording(cause, Weight[weight.upper()], compiled(*alternatives)))
        for framed in row.get("framed", ()) if where == "raised" else ():
            frames, outside = (re.compile(framed[one]) if one in framed else None for one in ("frames", "outside"))
            weight = Weight[framed["weight"].upper()]
            found.append(Wording(cause, weight, compiled(*framed["raised"]), frames, outside))
    # of a single line that tells of an exit code, whatever else it says counts
    is_last = Weight.ECHO if where == "printed" else None
    return tuple(sorted(found, key=lambda one: (one.weight is is_last, _ORDER.index(one.weight))))


def first_match(
    where: Where,
    text: str,
    frames: str = "",
    weights: frozenset[Weight] | None = None,
    causes: frozenset[Cause] | None = None,
    around: str = "",
) -> Clue | None:
    """The clue of the first wording that fits, of those with one of `weights` and `causes` where given.

    `frames` are the exception's own, `around` those of its whole chain.
    """
    for one in wordings(where):
        is_wanted = (weights is None or one.weight in weights) and (causes is None or one.cause in causes)
        if is_wanted and one.fits(text, frames, around):
            return Clue(one.cause, one.weight, one.case)
    return None


@functools.cache
def triggers() -> tuple[str, ...]:
    """Words of which a line that any wording fits has at least one; finding them is a hundred times faster."""
    return tuple(rows_in("causes")["triggers"])


@functools.cache
def row_of(cause: Cause) -> Mapping[str, Any]:
    """A cause's row in causes.toml."""
    return next(row for row in rows_in("causes")["cause"] if row["name"] == cause)


@functools.cache
def steps() -> Mapping[str, Step]:
    """The shared steps by id."""
    rows = rows_in("steps")["step"]
    return {
        row["id"]: Step(row["id"], tuple(row.get("when", ())), tuple(row.get("unless", ())), row.get("known"))
        for row in rows
    }


@functools.cache
def programs() -> tuple[Program, ...]:
    """The programs that are known, in the order in which they are looked for."""
    return tuple(
        Program(row["name"], re.compile(row["seen"]), row["settings"]) for row in rows_in("settings")["program"]
    )


@functools.cache
def common_settings() -> Mapping[str, str]:
    """The names of settings where no program is known."""
    settings: Mapping[str, str] = rows_in("settings")["settings"]
    return settings


def package_of(module: str) -> str:
    """The package on PyPI that has a module, by its first name where none is known."""
    names: Mapping[str, str] = rows_in("settings")["packages"]
    top = module.partition(".")[0]
    return names.get(top, top)
