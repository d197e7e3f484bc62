"""Holds prompts, known by their fingerprints alone, against questions, a data set's fields and trained rows.

A piece of a text that stands in a prompt leaves all its fingerprints there, whatever template is around it. Where two
pieces meet, those that span both are neither's: what is compared are pieces, one by one and in the usual joins.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from steph.base.files import UnreadableError
from steph.base.fingerprint import fingerprints, normal_form
from steph.contract.questions import samples_of
from steph.contract.results import Row

COMMON_SHARE = 0.5  # of the prompts; what more of them have is the template or the few-shot examples
FOREIGN_RUN = (
    12  # fingerprints in a row that nothing of the data set has: about 100 characters, more than short choices
)
LEAST_FIELD, FIELD_SHARE = 8, 0.5  # fingerprints of a field that no question has, and how many of them are in a prompt
_CONTEXT = re.compile(  # by their names these fields are what an answer is looked up in, however short
    r"コンテキスト|条文|本文|根拠|解説|context|passage|article|document|evidence|explanation|rationale", re.IGNORECASE
)
FRAME_SHARE = 0.9  # of the trained rows: a template
LEAST_ROWS, LEAST_FRAME = 4, 5
LEAST_LOST = 3  # fingerprints of a frame, about 24 characters
LEAST_PROMPTS, LEAST_ADDED = 2, 5  # of what prompts alone have in common, about 40 characters
MOST_SAMPLES, MOST_FIELD_CHARS = 32, 4000
MOST_EXAMPLES = 400
_LABEL = re.compile(r"^\s*(?:[(\[【「]?[a-zA-Z0-9①-⑳ア-オア-オ][)\]】」.、．:：\s]+)")
_STYLES = ("{text}", "{l} {text}", "{l}.{text}", "{l}){text}", "({l}){text}", "{l}:{text}", "{L}.{text}", "{L}){text}",
           "({L}){text}", "{L}:{text}", "{L}{text}", "{n}.{text}", "{n}){text}", "({n}){text}", "{n}:{text}",
           "-{text}", "-{l}.{text}", "[{L}]{text}", "[{l}]{text}", "{l}、{text}", "{n}{text}")  # fmt: skip
_QUESTION_FIELDS = ("問題文", "選択肢", "指示", "question", "choices", "options", "instruction", "output", "answer")


@dataclass(frozen=True)
class Beside:
    """How many prompts have text beside their question, and the data set's field that it is, if it is one."""

    prompts: int
    field: str = ""


def asked_share(prompt: Collection[str], row: Row) -> float | None:
    """The least share of a row's question and of its choices that a prompt has; None where they are too short.

    Choices too short to be told one by one are told by where they meet: in the style of labels that fits some of these
    places, it must fit all.
    """
    choices = [text for text in _choices(row.choices) if text.strip()]
    there = set(prompt)
    whole = _share(there, row.question + "".join(choices))
    if whole == 1:
        return 1.0
    alone = [share for text in map(_unlabelled, choices) if (share := _share(there, text)) is not None]
    question = _share(there, row.question.strip().rstrip("。．.?？!！"))  # a template may end it otherwise
    shares = alone if question is None else [question, *alone]
    if not alone and (joined := max((_joined_share(there, texts) for texts in _styled(choices)), default=0.0)):
        shares = [*shares, joined]
    return min(shares) if shares else None


def _share(there: set[str], text: str) -> float | None:
    prints = _fingerprints(text)
    return sum(one in there for one in prints) / len(prints) if prints else None


@lru_cache(maxsize=8192)
def _fingerprints(text: str) -> tuple[str, ...]:
    return fingerprints(text)


def _choices(choices: object) -> list[str]:
    if isinstance(choices, Mapping):
        return [str(value) for _, value in sorted(choices.items(), key=lambda item: str(item[0]))]
    if isinstance(choices, list | tuple):
        return [str(value) for value in choices]
    return str(choices or "").splitlines()


def _unlabelled(choice: str) -> str:
    return _LABEL.sub("", choice, count=1)


def _joined_share(there: set[str], texts: Sequence[str]) -> float:
    """Of the places where one choice meets the next, the share that a prompt has; 0 where none is there to see."""
    meetings = [
        {*_fingerprints(one + next_one)} - {*_fingerprints(one)} - {*_fingerprints(next_one)}
        for one, next_one in pairwise(texts)
    ]
    held = [prints <= there for prints in meetings if prints]
    return sum(held) / len(held) if held else 0.0


def _styled(choices: Sequence[str]) -> Iterator[list[str]]:
    """The choices with their labels, as they are and in the usual styles."""
    yield list(choices)
    texts = [(chr(ord("a") + n), chr(ord("A") + n), n + 1, _unlabelled(text)) for n, text in enumerate(choices[:26])]
    for style in _STYLES:
        yield [style.format(l=small, L=large, n=n, text=text) for small, large, n, text in texts]


def text_beside(prompts: Sequence[Sequence[str]], rows: Sequence[Row], dataset: Path | None) -> Beside | None:
    """Text that is in single prompts and is no question: a field of the data set, or of nothing that was given."""
    if dataset is None:
        return None
    every, samples = _samples(dataset, {normal_form(row.question) for row in rows})
    if len(prompts) < 2 or not samples:
        return None
    counts = Counter(one for prompt in prompts for one in set(prompt))
    template = {one for one, count in counts.items() if count > COMMON_SHARE * len(prompts)}
    asked = {one for sample in samples for text in _own_texts(sample) for one in fingerprints(text)}
    examples = {one for sample in every for text in _own_texts(sample) for one in fingerprints(text)}
    fields = _other_fields(samples)
    found: Counter[str] = Counter()
    foreign = 0
    for prompt in prompts:
        rest = [one for one in prompt if one not in template and one not in asked]
        held = {name for name, texts in fields if any(_is_held(name, text - asked - template, rest) for text in texts)}
        found.update(held)
        known = {one for name, texts in fields for text in texts for one in text} | asked | examples
        foreign += bool(held) or _longest_foreign(prompt, template | known) >= FOREIGN_RUN
    return Beside(foreign, found.most_common(1)[0][0] if found else "")


def _is_held(name: str, field: set[str], prompt: Sequence[str]) -> bool:
    least = 1 if _CONTEXT.search(name) else LEAST_FIELD
    return len(field) >= least and len(field.intersection(prompt)) >= FIELD_SHARE * len(field)


def _longest_foreign(prompt: Sequence[str], known: Collection[str]) -> int:
    longest = run = 0
    for one in prompt:
        run = 0 if one in known else run + 1
        longest = max(longest, run)
    return longest


def _samples(dataset: Path, asked: Collection[str]) -> tuple[list[Mapping[str, object]], list[Mapping[str, object]]]:
    """The data set's first samples, any of which may be an example, and those that were asked.

    A long text is looked at from its beginning only.
    """
    try:
        rows = samples_of(dataset)
    except UnreadableError:
        return [], []
    texts: list[Mapping[str, object]] = [
        {key: value[:MOST_FIELD_CHARS] for key, value in row.items() if isinstance(value, str)} for row in rows
    ]
    chosen = [text for text in texts if any(normal_form(str(value)) in asked for value in text.values())]
    return texts[:MOST_EXAMPLES], chosen[:MOST_SAMPLES]


def _own_texts(sample: Mapping[str, object]) -> Iterator[str]:
    texts = [str(value) for key, value in sample.items() if key in _QUESTION_FIELDS]
    yield from texts
    yield "".join(texts)


def _other_fields(samples: Sequence[Mapping[str, object]]) -> list[tuple[str, list[set[str]]]]:
    names = dict.fromkeys(key for sample in samples for key in sample if key not in _QUESTION_FIELDS)
    return [
        (str(name), [set(fingerprints(text)) for sample in samples if isinstance(text := sample.get(name), str)])
        for name in names
    ]


def frame_lost(rows: Sequence[Sequence[str]], prompts: Sequence[Sequence[str]]) -> int | None:
    """The longest piece of the trained rows' common text that a prompt has not, in fingerprints, the median.

    None where too little is common. What is lost after the last piece that is there belongs to the answer, which a
    prompt has not; where a prompt has more than the rows, the seams of that lose up to `LEAST_LOST`.
    """
    if len(rows) < LEAST_ROWS or not prompts:
        return None
    counts = Counter(one for row in rows for one in set(row))
    frame = [one for one in rows[0] if counts[one] >= FRAME_SHARE * len(rows)]
    if len(frame) < LEAST_FRAME:
        return None
    losses = []
    for prompt in map(set, prompts):
        last = max((n for n, one in enumerate(frame) if one in prompt), default=len(frame) - 1)
        losses.append(_longest_foreign(frame[: last + 1], prompt))
    return sorted(losses)[len(losses) // 2]


def frame_added(
    prompts: Sequence[Sequence[str]], rows: Sequence[Sequence[str]], asked: Sequence[Row], *, are_cut: bool = False
) -> int | None:
    """The longest piece of the prompts' common text that no trained row has, in fingerprints, in the nearest row.

    None where too little is common, or where rows may have lost their beginning (`are_cut`) and none has it. What the
    questions in `asked` have in common is theirs.
    """
    prompts = list(dict.fromkeys(map(tuple, prompts)))
    if len(prompts) < LEAST_PROMPTS or len(rows) < LEAST_ROWS:
        return None
    counts = Counter(one for prompt in prompts for one in set(prompt))
    own = {one for row in asked for text in (row.question, *_choices(row.choices)) for one in _fingerprints(text)}
    frame = [one for one in prompts[0] if counts[one] >= FRAME_SHARE * len(prompts) and one not in own]
    if len(frame) < LEAST_ADDED:
        return None
    if are_cut and not any(frame[0] in row for row in rows):
        return None
    return min(_longest_foreign(frame, set(row)) for row in rows)
