"""Checks of the answers that were read out of the responses: read as they say, and out of what they say. Pure."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from steph.base.text import one_line
from steph.contract.questions import choices_of
from steph.contract.results import Row
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind, Needs
from steph.judge.reading import (
    LETTERS,
    bare,
    is_blank,
    is_exception_text,
    named_labels,
    names_label,
    spoken,
    strict_letter,
)
from steph.record.values import Check

LETTERS_ROWS = 8  # with fewer questions one letter for all is no finding
LEAST_CREDITED = 2  # answers: one may be right by chance
_NUMBERS = tuple("123456789")
_PLACES = re.compile(
    r"[一二三四五]つ目|番目|最初|最後|前者|後者|すべて|全て|いずれも|はい|いいえ|正し|誤り|○|×"
    r"|(?i:\b(?:first|second|third|fourth|fifth|last|former|latter|all|none|both|yes|no|true|false|correct)\b)"
)

ANSWERS_PARSED = CheckKind("answers_parsed", "H-3", INFO, quality=True, needs=(Needs.LABELS,))
STRICT_PARSE_AGREES = CheckKind(
    "strict_parse_agrees", "H-3", WARN, trap=8, quality=True, needs=(Needs.LABELS, Needs.RESPONSES)
)
ANSWERS_AS_RESPONDED = CheckKind(
    "answers_as_responded", "H-3", FAIL, trap=8, optional=True, needs=(Needs.LABELS, Needs.RESPONSES)
)
ANSWERS_GROUNDED = CheckKind(
    "answers_grounded", "H-3", WARN, trap=28, optional=True, needs=(Needs.LABELS, Needs.RESPONSES)
)
LETTERS_VARY = CheckKind("letters_vary", "H-3", WARN, trap=17, quality=True, optional=True, needs=(Needs.LABELS,))
READINGS = (ANSWERS_PARSED, STRICT_PARSE_AGREES, ANSWERS_AS_RESPONDED, ANSWERS_GROUNDED, LETTERS_VARY)


def reading_checks(
    rows: tuple[Row, ...],
    labels: tuple[str, ...] = LETTERS,
    *,
    cot: bool,
    ensemble: int,
    rehearsal: bool,
    random_weights: bool,
) -> tuple[Check, ...]:
    """All checks of the recorded answers, which are some of these labels, against the responses."""
    reader = _Reader(labels, cot)
    return (
        _parsed_check(rows, rehearsal, random_weights),
        _strict_check(rows, reader, rehearsal),
        _contradiction_check(rows, reader, ensemble),
        _grounded_check(rows, reader, ensemble),
        _letters_check(rows, rehearsal),
    )


def _parsed_check(rows: tuple[Row, ...], rehearsal: bool, random_weights: bool) -> Check:
    """That not one answer can be read is about the programs, unless the weights are random."""
    unknown = sum(row.predicted_answer == "unknown" for row in rows)
    is_all = unknown == len(rows)
    return ANSWERS_PARSED.check(
        unknown == 0,
        "unreadable",
        rehearsal=rehearsal and (random_weights or not is_all),
        severity=WARN if is_all else None,
        questions=len(rows),
        unreadable=unknown,
    )


@dataclass(frozen=True)
class _Reader:
    """Reads answers, which are one of some labels; `cot`: with reasoning before them."""

    labels: tuple[str, ...]
    cot: bool

    def read(self, row: Row) -> str | None:
        """The answer that a response gives beyond doubt: by label, its choice's own label, or its choice's text."""
        response = row.response or ""
        if letter := strict_letter(response, cot=self.cot, labels=self.labels):
            return letter
        choices = choices_of(row.choices)
        own = choices.labels if len(choices.labels) == len(self.labels) else ()
        if own and own != self.labels and (label := strict_letter(response, cot=self.cot, labels=own)):
            return self.labels[own.index(label)]
        said = bare(spoken(response))
        held = [n for n, text in enumerate(choices.texts[: len(self.labels)]) if bare(text) == said]
        return self.labels[held[0]] if said and len(held) == 1 else None

    def read_number(self, row: Row) -> str | None:
        """The label of the choice whose number a response gives, where nothing numbers the choices otherwise."""
        numbers = _NUMBERS[: len(self.labels)]
        number = strict_letter(row.response or "", cot=self.cot, labels=numbers)
        return self.labels[numbers.index(number)] if number else None

    def is_hedged(self, row: Row) -> bool:
        """Whether a response without reasoning names several labels, and says of none that it is the answer."""
        return not self.cot and len(named_labels(row.response or "", self.labels)) > 1

    def is_grounded(self, row: Row) -> bool:
        """Whether a response has a recorded answer's label, its choice's number, or most of its text."""
        said, choices = spoken(row.response or ""), choices_of(row.choices)
        place = self.labels.index(row.predicted_answer) if row.predicted_answer in self.labels else len(self.labels)
        own = choices.labels[place] if place < len(choices.labels) else None
        numbered = own if own and own.isdigit() else str(place + 1)
        if any(names_label(said, label) for label in {row.predicted_answer, numbered, own} if label):
            return True
        shared = [len(_pieces(said) & _pieces(text)) for text in choices.texts]
        return place < len(shared) and shared[place] > max((n for at, n in enumerate(shared) if at != place), default=0)


def _strict_check(rows: tuple[Row, ...], reader: _Reader, rehearsal: bool) -> Check:
    answered = [row for row in rows if row.predicted_answer != "error"]
    said = [reader.read(row) or reader.read_number(row) or "unknown" for row in answered]
    apart = sum(letter != row.predicted_answer for letter, row in zip(said, answered, strict=True))
    return STRICT_PARSE_AGREES.check(
        apart == 0, "read_again", rehearsal=rehearsal, questions=len(answered), different=apart
    )


def _contradiction_check(rows: tuple[Row, ...], reader: _Reader, ensemble: int) -> Check:
    """Of several runs the response is one and the answer the majority's; of one run they must say the same letter."""
    if ensemble > 1:
        return ANSWERS_AS_RESPONDED.check(None, "majority", runs=ensemble)
    said = [(reader.read(row), row.predicted_answer) for row in rows if row.is_answered]
    apart = [pair for pair in said if pair[0] is not None and pair[0] != pair[1]]
    if not apart:
        return ANSWERS_AS_RESPONDED.check(True, "as_responded", questions=len(rows))
    said_label, recorded = apart[0]
    return ANSWERS_AS_RESPONDED.check(
        False, "otherwise", questions=len(rows), different=len(apart), response=said_label, answer=recorded
    )


def _grounded_check(rows: tuple[Row, ...], reader: _Reader, ensemble: int) -> Check:
    """A default letter, a letter out of unfinished thoughts, a digit counted from zero: nothing said leads to them.

    A response that plainly gives another letter is the check above's, and an exception's text is another's.
    """
    if ensemble > 1:
        return ANSWERS_GROUNDED.check(None, "majority", runs=ensemble)
    told = [row for row in rows if row.is_answered and not is_blank(row.response)]
    told = [row for row in told if reader.read(row) is None and not is_exception_text(row.response or "")]
    baseless = [row for row in told if not reader.is_grounded(row)]
    hedged = [row for row in told if row.is_correct and reader.is_hedged(row)]
    if not baseless and len(hedged) >= LEAST_CREDITED and 2 * len(hedged) > sum(row.is_correct for row in rows):
        return ANSWERS_GROUNDED.check(
            False, "hedged", questions=len(rows), hedged=len(hedged), answer=hedged[0].predicted_answer,
            response=one_line(hedged[0].response, 60),
        )  # fmt: skip
    if not baseless:
        return ANSWERS_GROUNDED.check(True, "grounded", questions=len(rows))
    is_credited = _is_credited(baseless, rows)
    return ANSWERS_GROUNDED.check(
        False,
        "most_of_the_right" if is_credited else "baseless",
        severity=FAIL if is_credited else None,
        questions=len(rows),
        baseless=len(baseless),
        answer=baseless[0].predicted_answer,
        response=one_line(baseless[0].response, 60),
    )


def _is_credited(baseless: list[Row], rows: tuple[Row, ...]) -> bool:
    """Whether most answers without a base are called right, and most that are called right are without one.

    A word may name a choice by its place, and a response that was cut for the file ends where all do: then others read
    more than is left here.
    """
    named = [row for row in baseless if _PLACES.search(row.response or "")]
    lengths = {len(row.response or "") for row in baseless}
    right = [row for row in baseless if row.is_correct and row not in named]
    return (
        len(right) >= LEAST_CREDITED
        and len(lengths) > 1
        and 2 * len(right) > len(baseless)
        and 2 * len(right) > sum(row.is_correct for row in rows)
    )


def _pieces(text: str) -> set[str]:
    plain = bare(text)
    return {plain[at : at + 3] for at in range(len(plain) - 2)} or {plain} - {""}


def _letters_check(rows: tuple[Row, ...], rehearsal: bool) -> Check:
    counts = Counter(row.predicted_answer for row in rows)
    shown = [f"{letter} {count}" for letter, count in sorted(counts.items())]
    if len(rows) < LETTERS_ROWS:
        return LETTERS_VARY.check(None, "too_few", questions=len(rows), answers=shown)
    only = len(counts) == 1 and rows[0].is_answered
    return LETTERS_VARY.check(not only, "answers", rehearsal=rehearsal, questions=len(rows), answers=shown)
