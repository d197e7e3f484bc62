"""The shape of a table of causes: ordered rows, the first that matches counts, each with how much it says.

In: `type: message` and the frames above it. Out: a `Clue`. The rows themselves are in `diagnose_machine` and
`diagnose_software`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

from steph.base.terms import Cause


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


@dataclass(frozen=True)
class Clue:
    """A cause that some text speaks for."""

    cause: Cause
    weight: Weight


@dataclass(frozen=True)
class Rule:
    """One row: `pattern` is searched in the text, `frames` (where given) in the frames above it."""

    cause: Cause
    weight: Weight
    pattern: re.Pattern[str]
    frames: re.Pattern[str] | None = None


# one atom of a pattern (an escape, a class, any character), and the sign behind it of a repeat that has no end
_ATOM = re.compile(r"(\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\.)([*+])?", re.S)
_REACH = 300  # characters between two parts of a wording


def rule(cause: Cause, weight: Weight, *alternatives: str, frames: str | None = None) -> Rule:
    """A row from alternatives that are tried without regard to case.

    `.*` and its like reach 300 characters, except in an alternative that begins with `^`: where a wording may begin
    anywhere in a line, each beginning would otherwise read the rest of the line anew.
    """
    compiled = re.compile("|".join(map(_within_reach, alternatives)), re.I)
    return Rule(cause, weight, compiled, re.compile(frames) if frames else None)


def _within_reach(alternative: str) -> str:
    return alternative if alternative.startswith("^") else _ATOM.sub(_bounded, alternative)


def _bounded(repeat: re.Match[str]) -> str:
    atom, sign = repeat[1], repeat[2]
    return repeat[0] if sign is None else f"{atom}{{{'0' if sign == '*' else '1'},{_REACH}}}"


def first_match(rules: tuple[Rule, ...], text: str, frames: str = "") -> Clue | None:
    """The clue of the first row whose pattern is in the text and whose `frames`, if any, are in the frames."""
    for row in rules:
        if row.pattern.search(text) and (row.frames is None or row.frames.search(frames)):
            return Clue(row.cause, row.weight)
    return None
