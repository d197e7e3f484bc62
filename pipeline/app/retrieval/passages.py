"""Statute text as passages: one for each article, paragraph or like section that has text of its own."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from app.core.lawqa import Question

_HEADING = re.compile(r"(#+)\s*(.+)")
_ITEM = re.compile(r"第\d+号")
_DEEPEST_LEVEL = 4  # law, article, paragraph; what lies deeper are items of a sentence


@dataclass(frozen=True)
class Passage:
    """One text to retrieve; `source` is its headings from the law down, which `text` begins with."""

    source: str
    text: str


def corpus_of(questions: Iterable[Question]) -> list[Passage]:
    """The distinct passages of all contexts, in the order in which they come first."""
    return list(dict.fromkeys(passage for question in questions for passage in passages_of(question.context)))


def passages_of(context: str) -> list[Passage]:
    """Split a context in Markdown (`## law`, `### article`, `#### paragraph`) at these headings.

    Items (`第1号`, whatever their level) stay with the sentence that they belong to.
    """
    passages: list[Passage] = []
    headings: dict[int, str] = {}
    body: list[str] = []
    for line in filter(None, map(str.strip, context.splitlines())):
        heading = _HEADING.fullmatch(line)
        if heading and _begins_passage(level := len(heading[1]), heading[2]):
            passages += _passage(headings, body)
            headings = {upper: title for upper, title in headings.items() if upper < level} | {level: heading[2]}
            body = []
        else:
            body.append(heading[2] if heading else line)
    return passages + _passage(headings, body)


def _begins_passage(level: int, title: str) -> bool:
    return level <= _DEEPEST_LEVEL and not _ITEM.match(unicodedata.normalize("NFKC", title))


def _passage(headings: dict[int, str], body: list[str]) -> list[Passage]:
    if not body:
        return []
    source = " ".join(headings.values())
    return [Passage(source, "\n".join([source, *body]).strip())]
