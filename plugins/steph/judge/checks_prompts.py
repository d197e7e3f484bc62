"""Holds prompts against questions, a data set's fields and trained rows: by their text, or by fingerprints alone.

A piece of a text that stands in a prompt leaves all its fingerprints there, whatever template is around it. Where two
pieces meet, those that span both are neither's: what is compared are pieces, one by one and in the usual joins. A
recorded prompt is compared by its letters and digits: a template's spacing, width, case and punctuation say nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path

from steph.base.files import UnreadableError
from steph.base.fingerprint import cached_fingerprints as fingerprints
from steph.base.fingerprint import normal_form, text_hash
from steph.base.messages import Message, say
from steph.contract.questions import (
    NUMBERINGS,
    Question,
    choices_of,
    plain_label,
    prompt_template_agrees,
    question_key,
    samples_of,
)
from steph.contract.results import Row
from steph.judge.evidence import EvalEvidence
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind, Figures, Needs
from steph.judge.reading import LETTERS, stated_labels
from steph.record.values import Check

COMMON_SHARE = 0.5  # of the prompts; what more of them have is the template or the few-shot examples
FOREIGN_RUN = 12  # fingerprints in a row that nothing of the data set has: 100 characters, more than short choices
LEAST_FIELD, FIELD_SHARE = 8, 0.5  # fingerprints of a field that no question has, and how many of them are in a prompt
FRAME_SHARE = 0.9  # of the trained rows: a template
LEAST_ROWS, LEAST_FRAME = 4, 5
LEAST_LOST = 3  # fingerprints of a frame, about 24 characters
LEAST_PROMPTS, LEAST_ADDED = 2, 5  # of what prompts alone have in common, about 40 characters
MOST_SAMPLES, MOST_EXAMPLES, MOST_FIELD_CHARS = 32, 400, 4000
EDITED_SHARE = 0.5  # of a text's pieces: below it is not the same text any more
PIECE_CHARS, CONTEXT_PIECE_CHARS = 4, 8
CONTEXT_SHARE, CONTEXT_PIECES = 0.3, 5  # of the law text, beyond what question and choices have of it
LEAST_TOLD = 3  # rows: one example each names the right letter by chance in one of 64 runs
LEAST_EXACT = 8  # rows: in a few the right choice alone may have a full stop by chance
MOST_WRONG = 0.1  # of the answers that are told, where they are the right ones
MOST_QUOTED = 3  # times the right choice's length: a line that says it
EXAMPLE_CHARS = 80  # behind a worked example's choices stands its answer
_CONTEXT = re.compile(  # by their names these fields are what an answer is looked up in, however short
    r"コンテキスト|条文|本文|根拠|解説|context|passage|article|document|evidence|explanation|rationale", re.IGNORECASE
)
_LABEL = re.compile(r"^\s*(?:[(\[【「]?[a-zA-Z0-9①-⑳ア-オア-オ][)\]】」.、．:：\s]+)")
_STYLES = ("{text}", "{l} {text}", "{l}.{text}", "{l}){text}", "({l}){text}", "{l}:{text}", "{L}.{text}", "{L}){text}",
           "({L}){text}", "{L}:{text}", "{L}{text}", "{n}.{text}", "{n}){text}", "({n}){text}", "{n}:{text}",
           "-{text}", "-{l}.{text}", "[{L}]{text}", "[{l}]{text}", "{l}、{text}", "{n}{text}")  # fmt: skip
_QUESTION_FIELDS = ("問題文", "選択肢", "指示", "question", "choices", "options", "instruction", "output", "answer")
_AFTER_A_LETTER = " \t\r\n\u3000.。．)）」』"
_LABEL_AT_END = re.compile(r"(?<![\s(\[【「])[\s(\[【「]*[A-Za-z0-9ア-コ]{1,2}[\s.、,:)\]】」]*\Z")
_NUMBERS = tuple("123456789")
_HINT = re.compile(r"(?i)ヒント|hint|gold|ground[ _]truth|正解|正答|correct")

PROMPTS_ASK_QUESTIONS = CheckKind("prompts_ask_questions", "H-3", FAIL, trap=27, optional=True, needs=(Needs.PROMPTS,))
PROMPTS_WITHOUT_CONTEXT = CheckKind("prompts_without_context", "H-3", WARN, optional=True, needs=(Needs.PROMPTS,))
PROMPTS_AGREE = CheckKind("prompts_agree", "H-3", INFO, trap=6, optional=True, needs=(Needs.PROMPTS,))
PROMPTS_HIDE_ANSWERS = CheckKind("prompts_hide_answers", "H-3", FAIL, optional=True, needs=(Needs.PROMPTS,))
PROMPTS = (PROMPTS_ASK_QUESTIONS, PROMPTS_WITHOUT_CONTEXT, PROMPTS_AGREE, PROMPTS_HIDE_ANSWERS)


@dataclass(frozen=True)
class OtherText:
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
    bare = [_LABEL.sub("", text, count=1) for text in choices]
    alone = [share for text in bare if (share := _share(there, text)) is not None]
    question = _share(there, row.question.strip().rstrip("。．.?？!！"))  # a template may end it otherwise
    shares = alone if question is None else [question, *alone]
    if not alone:
        joined = max(_joined_share(there, meetings) for meetings in _ways_to_join(tuple(choices)))
        shares = [*shares, joined] if joined else shares
    return min(shares) if shares else None


def _share(there: set[str], text: str) -> float | None:
    prints = _fingerprints(text)
    return sum(one in there for one in prints) / len(prints) if prints else None


@lru_cache(maxsize=8192)
def _fingerprints(text: str) -> tuple[str, ...]:
    return fingerprints(text)


def _choices(choices: object) -> list[str]:
    parts = choices.values() if isinstance(choices, Mapping) else choices if isinstance(choices, list | tuple) else ()
    if any(isinstance(part, Mapping | list) for part in parts):  # texts beside labels, as ARC has them
        return [*choices_of(choices).texts]
    if isinstance(choices, Mapping):
        return [str(value) for _, value in sorted(choices.items(), key=lambda item: str(item[0]))]
    if isinstance(choices, list | tuple):
        return [str(value) for value in choices]
    return str(choices or "").splitlines()


@lru_cache(maxsize=1024)  # each question is held against each prompt
def _ways_to_join(choices: tuple[str, ...]) -> tuple[tuple[frozenset[str], ...], ...]:
    """What tells the places where one choice meets the next: with the labels that they have, and in each style."""
    bare = [_LABEL.sub("", text, count=1) for text in choices]
    labels = [(chr(ord("a") + n), chr(ord("A") + n), n + 1, text) for n, text in enumerate(bare[:26])]
    styled = (
        [style.format(l=small, L=large, n=number, text=text) for small, large, number, text in labels]
        for style in _STYLES
    )
    return tuple(_meetings(texts) for texts in (choices, *styled))


def _meetings(texts: Sequence[str]) -> tuple[frozenset[str], ...]:
    pairs = ((one, next_one, one + next_one) for one, next_one in pairwise(texts))
    return tuple(
        frozenset({*_fingerprints(both)} - {*_fingerprints(one)} - {*_fingerprints(next_one)})
        for one, next_one, both in pairs
    )


def _joined_share(there: set[str], meetings: Sequence[frozenset[str]]) -> float:
    """Of the places where one choice meets the next, the share that a prompt has; 0 where none is there to see."""
    held = [prints <= there for prints in meetings if prints]
    return sum(held) / len(held) if held else 0.0


def asked_order(prompt: Sequence[str], choices: Sequence[str]) -> tuple[int, ...] | None:
    """The order in which a prompt has a question's choices, numbered anew in that order.

    None where one of them is too short to tell, or where choices that moved took their labels along.
    """
    places = {one: n for n, one in enumerate(prompt)}
    prints = [{*_fingerprints(text)} for text in choices]
    counts = Counter(one for own in prints for one in own)
    alone = [{one for one in own if counts[one] == 1} for own in prints]
    if len(choices) < 2 or not all(own and own <= places.keys() for own in alone):
        return None
    order = sorted(range(len(choices)), key=lambda n: min(map(places.__getitem__, alone[n])))

    def held(labels: Iterable[int]) -> float:
        numbered = [(chr(ord("a") + label), label + 1, choices[n]) for label, n in zip(labels, order, strict=True)]
        texts = (
            "".join(style.format(l=letter, L=letter.upper(), n=number, text=text) for letter, number, text in numbered)
            for style in _STYLES
        )
        return max((share for text in texts if (share := _share({*places}, text)) is not None), default=0.0)

    return tuple(order) if order == sorted(order) or held(range(len(order))) > held(order) else None


def order_by_lines(lines: Collection[str], choices: Sequence[str]) -> tuple[int, ...] | None:
    """The same by a prompt's lines, where each choice has one to itself: which choice stands behind each label."""
    for style in _STYLES:
        stands = [
            [
                n
                for n, text in enumerate(choices)
                if text_hash(style.format(l=letter, L=letter.upper(), n=label + 1, text=text))[:8] in lines
            ]
            for label, letter in enumerate(NUMBERINGS[0][: len(choices)])
        ]
        found = tuple(own[0] for own in stands if len(own) == 1)
        if len({*found}) == len(choices) > 1:
            return found
    return None


def text_beside(prompts: Sequence[Sequence[str]], rows: Sequence[Row], dataset: Path | None) -> OtherText | None:
    """Text that is in single prompts and is no question: a field of the data set, or of nothing that was given."""
    if dataset is None:
        return None
    try:
        read = samples_of(dataset)
    except UnreadableError:
        return None
    every = [{key: text[:MOST_FIELD_CHARS] for key, text in row.items() if isinstance(text, str)} for row in read]
    questions = {normal_form(row.question) for row in rows}
    samples = [one for one in every if any(normal_form(text) in questions for text in one.values())][:MOST_SAMPLES]
    if len(prompts) < 2 or not samples:
        return None
    counts = Counter(one for prompt in prompts for one in set(prompt))
    template = {one for one, count in counts.items() if count > COMMON_SHARE * len(prompts)}
    asks = {key for sample in samples for key, text in sample.items() if normal_form(text) in questions}
    own_names = {*_QUESTION_FIELDS, *asks}
    asked, examples = (_question_prints(some, own_names) for some in (samples, every[:MOST_EXAMPLES]))  # any may be one
    names = dict.fromkeys(key for sample in samples for key in sample if key not in own_names)
    fields = {name: [{*fingerprints(sample[name])} for sample in samples if name in sample] for name in names}
    known = template | asked | examples | {one for texts in fields.values() for text in texts for one in text}
    found: Counter[str] = Counter()
    foreign = 0
    for prompt in prompts:
        rest = {one for one in prompt if one not in template and one not in asked}
        held = []
        for name, texts in fields.items():
            least, own = 1 if _CONTEXT.search(name) else LEAST_FIELD, [text - asked - template for text in texts]
            if any(len(text) >= least and len(text & rest) >= FIELD_SHARE * len(text) for text in own):
                held.append(name)
        found.update(held)
        foreign += bool(held) or _longest_foreign(prompt, known) >= FOREIGN_RUN
    return OtherText(foreign, found.most_common(1)[0][0] if found else "")


def _question_prints(samples: Sequence[Mapping[str, str]], names: Collection[str]) -> set[str]:
    """The fingerprints of what samples have in a question's fields, one by one and joined."""
    own = [[text for key, text in sample.items() if key in names] for sample in samples]
    return {one for texts in own for text in (*texts, "".join(texts)) for one in fingerprints(text)}


def _longest_foreign(prompt: Sequence[str], known: Collection[str]) -> int:
    longest = run = 0
    for one in prompt:
        run = 0 if one in known else run + 1
        longest = max(longest, run)
    return longest


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
    prompts: Sequence[Sequence[str]],
    rows: Sequence[Sequence[str]],
    asked: Sequence[Row],
    *,
    are_cut: bool = False,
    are_full: bool = False,
) -> int | None:
    """The longest piece of the prompts' common text that no trained row has, in fingerprints, in the nearest row.

    None where too little is common, or where rows may have lost their beginning (`are_cut`) and none has it. Where no
    padding fills them either (`are_full`), they may have lost anything in front of the question: only what stands
    behind it counts. What the questions in `asked` have in common is theirs.
    """
    prompts = list(dict.fromkeys(map(tuple, prompts)))
    if len(prompts) < LEAST_PROMPTS or len(rows) < LEAST_ROWS:
        return None
    counts = Counter(one for prompt in prompts for one in set(prompt))
    # choices with their labels may stand there as they are written in the results
    told = [
        (row.question, *_choices(row.choices), *map(str, row.choices if isinstance(row.choices, list) else ()))
        for row in asked
    ]
    own = {one for texts in told for text in texts for one in _fingerprints(text)}
    asked_until = max((n for n, one in enumerate(prompts[0], 1) if one in own), default=len(prompts[0]))
    text = prompts[0][asked_until:] if are_full else prompts[0]
    frame = [one for one in text if counts[one] >= FRAME_SHARE * len(prompts) and one not in own]
    if len(frame) < LEAST_ADDED:
        return None
    if are_cut and not are_full and not any(frame[0] in row for row in rows):
        return None
    return min(_longest_foreign(frame, set(row)) for row in rows)


def prompt_checks(
    evidence: EvalEvidence, rows: tuple[Row, ...], dataset: tuple[Question, ...] | None
) -> tuple[Check, ...]:
    """All checks of the prompts; rows without one are left out, and `dataset` None means that it can't be read."""
    asked = [_Asked.of(row, prompt) for row in rows if (prompt := row.asked)]
    return (
        _question_check(asked, rows),
        _context_check(evidence, asked, dataset or ()),
        _template_check(evidence, asked),
        _leak_check(asked, rows),
    )


@dataclass(frozen=True)
class _Text:
    """A text's letters and digits, and where each of them stands in the text itself."""

    raw: str
    plain: str

    @classmethod
    def of(cls, text: str) -> _Text:
        raw = unicodedata.normalize("NFKC", text).replace("\\n", "\n ")
        return cls(raw, "".join(filter(str.isalnum, raw)).casefold())

    @cached_property
    def places(self) -> tuple[int, ...]:
        return tuple(at for at, one in enumerate(self.raw) if one.isalnum() for _ in one.casefold())

    def after(self, end: int) -> int:
        """Where the raw text goes on behind `end` plain characters."""
        return self.places[end - 1] + 1 if end else 0


@dataclass(frozen=True)
class _Asked:
    """One row and its prompt; `spans` are where question and choices stand in order, the last time that they do."""

    row: Row
    prompt: _Text
    question: str
    choices: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, row: Row, prompt: str) -> _Asked:
        text = _Text.of(prompt)
        question, choices = _plain_parts(row)
        places = [text.plain.rfind(question)] if question else []
        while places and places[-1] >= 0 and not _in_order(text.plain, choices, places[-1] + len(question)):
            places.append(text.plain.rfind(question, 0, places[-1] + len(question) - 1))
        start = next((at for at in reversed(places) if at >= 0), -1)
        spans = _in_order(text.plain, choices, start + len(question)) if start >= 0 else ()
        return cls(row, text, question, choices, ((start, start + len(question)), *spans) if spans else ())

    @property
    def gold(self) -> str:
        return plain_label(self.row.correct_answer)

    @property
    def gold_place(self) -> int | None:
        place = LETTERS.index(self.gold) if self.gold in LETTERS else len(self.choices)
        return place if place < len(self.choices) else None


def _plain_parts(row: Row) -> tuple[str, tuple[str, ...]]:
    return _Text.of(row.question).plain, tuple(_Text.of(one).plain for one in choices_of(row.choices).texts)


def _in_order(text: str, parts: tuple[str, ...], start: int = 0) -> tuple[tuple[int, int], ...]:
    """Where the parts stand, each behind the one before; nothing where one of them does not."""
    spans = []
    for part in parts:
        found = text.find(part, start)
        if found < 0:
            return ()
        start = found + len(part)
        spans.append((found, start))
    return tuple(spans)


def _pieces(text: str, length: int = PIECE_CHARS) -> set[str]:
    return {text[at : at + length] for at in range(max(1, len(text) - length + 1))} - {""}


def _question_check(asked: list[_Asked], rows: tuple[Row, ...]) -> Check:
    if not asked:
        return PROMPTS_ASK_QUESTIONS.check(None, "no_prompts")
    troubles = [trouble for one in asked if (trouble := _trouble(one, rows))]
    if not troubles:
        return PROMPTS_ASK_QUESTIONS.check(True, "as_recorded", questions=len(asked))
    hard = [trouble for trouble, is_hard in troubles if is_hard]
    counts: Figures = {"questions": len(asked), "different": len(troubles)}
    example = hard[0] if hard else troubles[0][0]
    return PROMPTS_ASK_QUESTIONS.check(False, "otherwise", severity=None if hard else WARN, example=example, **counts)


def _trouble(one: _Asked, rows: tuple[Row, ...]) -> tuple[Message, bool] | None:
    """What of a row's question its prompt lacks, and whether the question can't be answered any more by that."""
    held = one.prompt.plain
    choices_stand = bool(_in_order(held, one.choices)) or not one.choices
    if one.question in held and choices_stand:
        return None
    pieces = _pieces(held)
    kept = _pieces(one.question)
    share = 1.0 if one.question in held else len(kept & pieces) / max(1, len(kept))
    lacking = [choice for choice in one.choices if choice not in held]
    if share < EDITED_SHARE:
        others = [(n, *_plain_parts(row)) for n, row in enumerate(rows, 1) if row is not one.row]
        other = next((n for n, text, choices in others if text in held and _in_order(held, choices)), None)
        return say("prompt.asks_other", number=other) if other else say("prompt.no_question"), True
    if any(len(_pieces(choice) & pieces) < EDITED_SHARE * len(_pieces(choice)) for choice in lacking):
        return say("prompt.no_choices", choices=len(one.choices), missing=len(lacking)), True
    if not lacking and not choices_stand:
        return say("prompt.choices_in_other_order"), True
    return say("prompt.partly_different"), False


def _context_check(evidence: EvalEvidence, asked: list[_Asked], dataset: tuple[Question, ...]) -> Check:
    if evidence.settings.use_rag:
        return PROMPTS_WITHOUT_CONTEXT.check(None, "with_rag")
    contexts = {question.key: question.context for question in dataset if question.context}
    length, shares = CONTEXT_PIECE_CHARS, list[float]()
    for one in asked:  # how much of the law text stands in the prompt, beyond what the question quotes
        context = contexts.get(question_key(one.row.question, one.row.choices), "")
        own = _pieces(_Text.of(context).plain, length) - _pieces(one.question, length)
        own -= {piece for choice in one.choices for piece in _pieces(choice, length)}
        if len(own) >= CONTEXT_PIECES:
            shares.append(len(own & _pieces(one.prompt.plain, length)) / len(own))
    if not shares:
        return PROMPTS_WITHOUT_CONTEXT.check(None, "nothing_to_compare")
    given = sum(share >= CONTEXT_SHARE for share in shares)
    return PROMPTS_WITHOUT_CONTEXT.check(given == 0, "compared", questions=len(shares), given=given)


def _template_check(evidence: EvalEvidence, asked: list[_Asked]) -> Check:
    template = evidence.train_template
    verdicts = [prompt_template_agrees(template, one.prompt.raw) for one in asked] if template else []
    measured = [verdict for verdict in verdicts if verdict is not None]
    if not measured:
        return PROMPTS_AGREE.check(None, "no_prompts")
    apart = measured.count(False)
    return PROMPTS_AGREE.check(apart == 0, "compared", questions=len(measured), different=apart)


def _leak_check(asked: list[_Asked], rows: tuple[Row, ...]) -> Check:
    told = _given_away(asked, every=len(asked) == len(rows))
    if told:
        return PROMPTS_HIDE_ANSWERS.check(False, "given_away", questions=len(asked), ways=told)
    if len({one.gold for one in asked}) < 2 or len(asked) < len(rows):
        return PROMPTS_HIDE_ANSWERS.check(None, "unseen")
    return PROMPTS_HIDE_ANSWERS.check(True, "hidden", questions=len(asked))


def given_away(rows: Sequence[Row]) -> list[Message]:
    """How prompts tell the right answers to their own questions; rows without a prompt are left out."""
    return _given_away([_Asked.of(row, prompt) for row in rows if (prompt := row.asked)], every=True)


def _given_away(asked: list[_Asked], *, every: bool) -> list[Message]:
    """The answer behind the prompt, around the question, in an example that is the question itself, or as a mark."""
    varied = len({one.gold for one in asked}) > 1
    lines = [frozenset(line.strip() for line in one.prompt.raw.splitlines()) for one in asked]
    common = frozenset[str].intersection(*lines) if varied else frozenset()  # what all prompts have is their frame
    # a prompt that was made as training texts are ends with the answer: the letter changes, the frame does not
    at_end = sum(one.prompt.raw.rstrip(_AFTER_A_LETTER).lower().endswith(one.gold) for one in asked)
    # the right choice alone is dressed differently, where the right choices stand at different places
    is_exact, places = len(asked) >= LEAST_EXACT, {one.gold_place for one in asked}
    is_marked = all(one.spans and _is_marked(one, is_exact=is_exact) for one in asked) and len(places) > 1
    reasons = {
        "prompt.ends_with_answer": at_end if varied and every and at_end == len(asked) else 0,
        "prompt.answer_beside": _count_told_beside(asked, common, varied),
        "prompt.answer_before": _told_before(asked, common) if varied else 0,
        "prompt.question_as_example": sum(_told_as_example(one) for one in asked),
        "prompt.answer_marked": len(asked) if varied and is_marked else 0,
    }
    return [say(reason, questions=count) for reason, count in reasons.items() if count]


def _count_told_beside(asked: list[_Asked], common: frozenset[str], varied: bool) -> int:
    """How many are told; none where as often another answer stands there, as that of somebody whose work is judged."""
    told = sum(_told_beside(one, common, varied) for one in asked)
    again = sum(_told_again(one, common) for one in asked)  # a passage says it of some questions
    told = max(told, again if 2 * again > len(asked) else 0)
    golds = {one.gold for one in asked}
    others = [
        [replace(one, row=one.row.model_copy(update={"correct_answer": gold})) for gold in golds - {one.gold}]
        for one in (asked if told else ())
    ]
    wrong = sum(any(_told_beside(one, common, varied) or _told_again(one, common) for one in own) for own in others)
    return told if wrong <= MOST_WRONG * told else 0


def _told_beside(one: _Asked, common: frozenset[str], varied: bool) -> bool:
    """Whether the gold is named between or behind the question's own parts, or as a hint before it.

    Where all golds are the same letter, only a hint is told from the frame.
    """
    inner = _apart_from(one, common)
    if inner is None:
        return False
    inside, before = inner
    hints = "\n".join(line for line in f"{before}\n{inside}".splitlines() if _HINT.search(line))
    if varied and stated_labels(inside) == {one.gold}:
        return True
    if varied and one.gold_place is not None and stated_labels(inside, _NUMBERS) == {_NUMBERS[one.gold_place]}:
        return True
    return stated_labels(hints) == {one.gold} and (varied or "ヒント" in hints or "hint" in hints.lower())


def _told_again(one: _Asked, common: frozenset[str]) -> bool:
    """Whether the right choice's text stands again behind the question, and no other's, not in a longer passage."""
    inner, place = _apart_from(one, common), one.gold_place
    if inner is None or place is None or len(one.choices[place]) < PIECE_CHARS:
        return False
    lines = [_Text.of(line).plain for line in inner[0].splitlines()]
    again = [n for n, choice in enumerate(one.choices) if choice and any(choice in line for line in lines)]
    own = one.choices[place]
    return again == [place] and any(own in line and len(line) <= MOST_QUOTED * len(own) for line in lines)


def _told_before(asked: list[_Asked], common: frozenset[str]) -> int:
    """Rows before whose question the gold and no other letter is named: examples do that by chance, but not for all."""
    befores = [inner[1] for one in asked if (inner := _apart_from(one, common))]
    told = sum(stated_labels(before) == {one.gold} for one, before in zip(asked, befores, strict=False))
    return told if told == len(asked) >= LEAST_TOLD else 0


def _apart_from(one: _Asked, common: frozenset[str]) -> tuple[str, str] | None:
    """What stands between and behind question and choices, and what before them, without the frame's lines.

    Where the choices do not stand whole, all of it counts as behind the question.
    """
    text = one.prompt
    if one.spans:
        edges = [(text.places[start], text.after(end)) for start, end in one.spans]
        # a gap before a choice ends with that choice's own label
        gaps = [_LABEL_AT_END.sub("", text.raw[left:right]) for (_, left), (right, _) in pairwise(edges)]
        inside, before = "\n".join([*gaps, text.raw[edges[-1][1] :]]), text.raw[: edges[0][0]]
    else:
        inside, before = "", text.raw
    kept = ["\n".join(line for line in part.splitlines() if line.strip() not in common) for part in (inside, before)]
    return kept[0], kept[1]


def _told_as_example(one: _Asked) -> bool:
    """Whether the very question stands in the prompt once more before it is asked, with its answer behind it."""
    if not one.spans or not one.question:
        return False
    text, at = one.prompt, 0
    asked_at = one.spans[0][0]
    while 0 <= (found := text.plain.find(one.question, at)) < asked_at:
        at = found + len(one.question)
        spans = _in_order(text.plain[:asked_at], one.choices, at)
        if not spans or (following := text.plain.find(one.question, at)) < 0 or spans[0][0] > following:
            continue
        behind = text.raw[text.after(spans[-1][1]) : text.places[asked_at]][:EXAMPLE_CHARS]
        if one.gold in stated_labels(behind) or plain_label(behind.strip().split("\n")[0]) == one.gold:
            return True
    return False


def _is_marked(one: _Asked, *, is_exact: bool) -> bool:
    """Whether the right choice alone has something around it; a space or full stop behind it where `is_exact`."""
    text, place = one.prompt, one.gold_place
    dresses = []
    for start, end in one.spans[1:]:
        left, right = text.places[start], text.after(end)
        before = text.raw[text.raw.rfind("\n", 0, left) + 1 : left]
        behind = text.raw[right:].partition("\n")[0]
        dresses.append((re.sub(r"[\w\s.、,:()\[\]]", "", before), behind if is_exact else behind.strip(" 。.")))
    if place is None or place >= len(dresses):
        return False
    others = {dress for n, dress in enumerate(dresses) if n != place}
    return len(others) == 1 and dresses[place] not in others
