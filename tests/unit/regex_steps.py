"""How many characters a regular expression looks at, by a matcher that backtracks as `re` does and counts.

It reads the tree that `re` compiles, so that no clock is needed to see whether a pattern's work grows with a text or
with its square. Repeats with an end count as short ones: their end is a factor, whatever the text's length.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Any

parser: Any = importlib.import_module("re._parser")
Token = tuple[Any, Any]  # what `re` calls it, and what it is made of
SHORT = 4  # a repeat with an end
MOST = 200_000  # steps in a short text
UNITS = 6  # of different kinds are tried for each repeat
LENGTH = 12  # how often a text repeats what slows a search down; then twice and three times as often
GROWTH = 1.1  # of the work for as many characters more
SINGLE = ("LITERAL", "NOT_LITERAL", "ANY", "IN")
REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")
CATEGORIES = {
    "DIGIT": r"\d", "NOT_DIGIT": r"\D", "SPACE": r"\s", "NOT_SPACE": r"\S", "WORD": r"\w", "NOT_WORD": r"\W",
}  # fmt: skip
CANDIDATES = " a0語-_=.:/\\'\"*#[{(<,|%A\n\x1b~〜は。"  # for a character of a class
NEVER = "\x00"


class EndlessError(Exception):
    """A match took more steps than it may."""


@cache
def tree(pattern: re.Pattern[Any]) -> Sequence[Token]:
    """The pattern's tokens as `re` parses them, in plain tuples and names that can be compared and kept."""
    tokens: Sequence[Token] = _plain(parser.parse(pattern.pattern, pattern.flags))
    return tokens


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever `re` makes a tree of
    if isinstance(value, tuple | list | parser.SubPattern):
        return tuple(map(_plain, value))
    return value if type(value) in (int, str, type(None)) or value == parser.MAXREPEAT else str(value)


@cache
def fits(token: Token, character: str) -> bool:
    """Whether a token of one character, as parsed, takes this one, whatever its case."""
    kind, value = token
    cases = {ord(one) for one in (character, character.lower(), character.upper()) if len(one) == 1}
    if kind == "LITERAL":
        return bool(value in cases)
    if kind == "NOT_LITERAL":
        return bool(value not in cases)
    if kind == "ANY":
        return character != "\n"
    is_in = any(_has(item, character, cases) for item in value)
    return is_in is not bool(value[0][0] == "NEGATE")


def _has(item: Token, character: str, cases: set[int]) -> bool:
    kind, value = item
    if kind == "LITERAL":
        return bool(value in cases)
    if kind == "RANGE":
        return any(value[0] <= one <= value[1] for one in cases)
    if kind == "CATEGORY":
        return re.match(CATEGORIES[value.removeprefix("CATEGORY_")], character) is not None
    return False


@cache
def is_of_a_word(character: str) -> bool:
    """Whether it stands on the inner side of a word's boundary; none, at a text's end, does not."""
    return re.match(r"\w", character) is not None


class Steps:
    """One search in one text, or a match at its beginning; `count` is the number of characters that were looked at."""

    def __init__(self, pattern: re.Pattern[Any], text: str, *, limit: int, at_beginning: bool = False) -> None:
        self.count = 0
        self._text = text
        self._limit = limit
        self._is_multiline = bool(pattern.flags & re.M)
        self._groups: dict[int, str] = {}
        tokens = tree(pattern)
        for start in range(1 if at_beginning else len(text) + 1):
            if next(self._all(tokens, 0, start), None) is not None:
                break

    def _all(self, tokens: Sequence[Token], at: int, pos: int) -> Iterator[int]:
        """Where the tokens from `at` on can end, what `re` would try first coming first."""
        if at == len(tokens):
            yield pos
            return
        for end in self._one(tokens[at], pos):
            yield from self._all(tokens, at + 1, end)

    def _takes(self, token: Token, pos: int) -> bool:
        self.count += 1
        if self.count > self._limit:
            raise EndlessError
        return pos < len(self._text) and fits(token, self._text[pos])

    def _one(self, token: Token, pos: int) -> Iterator[int]:
        kind, value = token
        if kind in SINGLE:
            yield from [pos + 1] if self._takes(token, pos) else []
        elif kind == "BRANCH":
            for branch in value[1]:
                is_begun = not branch or branch[0][0] not in SINGLE or self._takes(branch[0], pos)
                yield from self._all(branch, 0, pos) if is_begun else ()
        elif kind == "SUBPATTERN":
            for end in self._all(value[-1], 0, pos):
                self._groups[value[0] or 0] = self._text[pos:end]
                yield end
        elif kind == "ATOMIC_GROUP":
            yield from islice(self._all(value, 0, pos), 1)
        elif kind in REPEATS:
            ends = self._repeat(kind, pos, *value)
            yield from islice(ends, 1) if kind == "POSSESSIVE_REPEAT" else ends
        elif kind in ("ASSERT", "ASSERT_NOT"):
            direction, inner = value
            start = pos if direction > 0 else pos - len(sample(inner))
            found = start >= 0 and any(direction > 0 or end == pos for end in self._all(inner, 0, start))
            yield from [pos] if found == (kind == "ASSERT") else []
        elif kind == "GROUPREF":
            again = self._groups[value]
            yield from [pos + len(again)] if self._text.startswith(again, pos) else []
        elif kind == "AT":
            yield from [pos] if self._is_at(value, pos) else []
        else:
            raise NotImplementedError(kind)

    def _repeat(self, kind: str, pos: int, least: int, most: int, inner: Sequence[Token]) -> Iterator[int]:
        most = most if most == parser.MAXREPEAT else min(most, max(least, SHORT))
        if not is_single(inner):
            yield from self._turns(inner, least, most, pos)
            return
        end = pos
        is_lazy = kind == "MIN_REPEAT"
        while end - pos < most:
            if is_lazy and end - pos >= least:
                yield end
            if not self._takes(inner[0], end):
                break
            end += 1
        else:
            yield from [end] if is_lazy else []
        yield from [] if is_lazy else range(end, pos + least - 1, -1)

    def _turns(self, inner: Sequence[Token], least: int, most: int, pos: int) -> Iterator[int]:
        """Ends of `least` to `most` turns, the longest first; a turn that takes nothing is the last."""
        for end in self._all(inner, 0, pos) if most else ():
            if end > pos:
                yield from self._turns(inner, max(0, least - 1), most - 1, end)
        if not least:
            yield pos

    def _is_at(self, place: str, pos: int) -> bool:
        text = self._text
        if place in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return pos == 0 or (place == "AT_BEGINNING" and self._is_multiline and text[pos - 1] == "\n")
        if place in ("AT_END", "AT_END_STRING"):
            return pos == len(text) or (place == "AT_END" and self._is_multiline and text[pos] == "\n")
        before, after = is_of_a_word(text[max(pos - 1, 0) : max(pos, 1)]), is_of_a_word(text[pos : pos + 1])
        return ((pos > 0 and before) != after) == (place == "AT_BOUNDARY")


@cache
def sample(tokens: Sequence[Token]) -> str:
    """A text that the tokens take: first branches, and repeats as short as they may be."""
    return "".join(map(_sample_of, tokens))


def _sample_of(token: Token) -> str:
    kind, value = token
    if kind == "LITERAL":
        return chr(value)
    if kind in SINGLE:
        return next(iter(samples_of_one(token)), "")
    if kind == "BRANCH":
        return sample(value[1][0])
    if kind == "SUBPATTERN":
        return sample(value[-1])
    if kind == "ATOMIC_GROUP":
        return sample(value)
    if kind in REPEATS:
        return sample(value[2]) * int(value[0])
    return ""


def samples_of_one(token: Token) -> list[str]:
    """Characters of different kinds that a token of one character takes."""
    if token[0] == "LITERAL":
        return [chr(token[1])]
    own = [chr(item[1]) for item in token[1] if item[0] == "LITERAL"] if token[0] == "IN" else []
    return [one for one in dict.fromkeys([*own, *CANDIDATES]) if fits(token, one)]


def pumps(tokens: Sequence[Token], before: str = "") -> Iterator[tuple[str, str]]:
    """What leads to each repeat without an end, and what it takes again and again."""
    for token in tokens:
        kind, value = token
        parts = _parts(token)
        if kind in REPEATS and value[1] == parser.MAXREPEAT:
            units = (
                samples_of_one(value[2][0]) if is_single(value[2]) else map(sample, (value[2], *_branches(value[2])))
            )
            yield from ((before, unit) for unit in islice(filter(None, units), UNITS))
        for part in parts:
            yield from pumps(part, before)
        before += _sample_of(token)


def is_single(tokens: Sequence[Token]) -> bool:
    """Whether a repeat takes one character a turn."""
    return len(tokens) == 1 and tokens[0][0] in SINGLE


def _parts(token: Token) -> Sequence[Token]:
    """The sequences of tokens inside a token."""
    kind, value = token
    if kind == "BRANCH":
        return [*value[1]]
    if kind == "ATOMIC_GROUP":
        return [value]
    return [value[-1]] if kind in (*REPEATS, "SUBPATTERN", "ASSERT", "ASSERT_NOT") else []


def _branches(tokens: Sequence[Token]) -> Iterator[Any]:
    for token in tokens:
        if token[0] == "BRANCH":
            yield from token[1][1]
        elif token[0] == "SUBPATTERN":
            yield from _branches(token[1][-1])


def hostile_text(pattern: re.Pattern[Any], *, at_beginning: bool = False) -> str | None:
    """The beginning of a text of which each further piece takes more work than the last; None where none is known.

    Tried are what each endless repeat takes, behind what leads to it: once, and again and again.
    """
    for before, unit in dict.fromkeys(pumps(tree(pattern))):
        for text, more in ((before + unit * LENGTH, unit * LENGTH), ((before + unit) * LENGTH,) * 2):
            try:
                once = Steps(pattern, text + NEVER, limit=MOST, at_beginning=at_beginning).count
                twice = Steps(pattern, text + more + NEVER, limit=MOST, at_beginning=at_beginning).count
                most = twice + int(GROWTH * (twice - once))
                Steps(pattern, text + 2 * more + NEVER, limit=most, at_beginning=at_beginning)
            except EndlessError:
                return text[:20]
    return None
