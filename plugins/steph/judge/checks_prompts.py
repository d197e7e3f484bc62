"""Checks of the prompts that the results carry: whose question they ask, and whether they give its answer away. Pure.

A prompt is compared by its letters and digits alone: a template's spacing, width, case and punctuation say nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from steph.base.messages import Message, say
from steph.contract.questions import Question, choices_of, frame_agrees, plain_label, question_key
from steph.contract.results import Row
from steph.judge.evidence import EvalEvidence
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind, Needs
from steph.judge.reading import LETTERS, stated_labels
from steph.record.values import Check

EDITED_SHARE = 0.5  # of a text's pieces: below it is not the same text any more
PIECE_CHARS, CONTEXT_PIECE_CHARS = 4, 8
CONTEXT_SHARE, CONTEXT_PIECES = 0.3, 5  # of the law text, beyond what question and choices have of it
LEAST_TOLD = 3  # rows: one example each names the right letter by chance in one of 64 runs
EXAMPLE_CHARS = 80  # behind a worked example's choices stands its answer
_AFTER_A_LETTER = " \t\r\n\u3000.。．)）」』"
_NUMBERS = tuple("123456789")
_HINT = re.compile(r"(?i)ヒント|hint|gold|ground[ _]truth|正解|正答|correct")

PROMPTS_ASK_QUESTIONS = CheckKind("prompts_ask_questions", "H-3", FAIL, trap=27, optional=True, needs=(Needs.PROMPTS,))
PROMPTS_WITHOUT_CONTEXT = CheckKind("prompts_without_context", "H-3", WARN, optional=True, needs=(Needs.PROMPTS,))
PROMPTS_AGREE = CheckKind("prompts_agree", "H-3", INFO, trap=6, optional=True, needs=(Needs.PROMPTS,))
PROMPTS_HIDE_ANSWERS = CheckKind("prompts_hide_answers", "H-3", FAIL, optional=True, needs=(Needs.PROMPTS,))
PROMPTS = (PROMPTS_ASK_QUESTIONS, PROMPTS_WITHOUT_CONTEXT, PROMPTS_AGREE, PROMPTS_HIDE_ANSWERS)


def prompt_checks(
    evidence: EvalEvidence, rows: tuple[Row, ...], dataset: tuple[Question, ...] | None
) -> tuple[Check, ...]:
    """All checks of the prompts; rows without one are left out, and `dataset` None means that it can't be read."""
    asked = [_Asked.of(row, prompt) for row in rows if (prompt := row.asked)]
    return (
        _question_check(asked, rows),
        _context_check(evidence, asked, dataset or ()),
        _frame_check(evidence, asked),
        _leak_check(asked, rows),
    )


@dataclass(frozen=True)
class _Text:
    """A text's letters and digits, and where each of them stands in the text itself."""

    raw: str
    plain: str
    places: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> _Text:
        raw = unicodedata.normalize("NFKC", text).replace("\\n", "\n ")
        kept = [(character, at) for at, character in enumerate(raw) if character.isalnum()]
        folded = [(letter, at) for character, at in kept for letter in character.casefold()]
        return cls(raw, "".join(letter for letter, _ in folded), tuple(at for _, at in folded))

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
        question, choices = (
            _Text.of(row.question).plain,
            tuple(_Text.of(one).plain for one in choices_of(row.choices).texts),
        )
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


def _in_order(text: str, parts: tuple[str, ...], start: int = 0) -> tuple[tuple[int, int], ...]:
    """Where the parts stand, each behind the one before; nothing where one of them does not."""
    spans = []
    for part in parts:
        found = text.find(part, start)
        if found < 0:
            return ()
        spans.append((found, found + len(part)))
        start = found + len(part)
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
    return PROMPTS_ASK_QUESTIONS.check(
        False,
        "otherwise",
        severity=None if hard else WARN,
        questions=len(asked),
        different=len(troubles),
        example=hard[0] if hard else troubles[0][0],
    )


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
        other = next((n for n, row in enumerate(rows, 1) if row is not one.row and _asks(held, row)), None)
        return say("prompt.asks_other", number=other) if other else say("prompt.no_question"), True
    if any(len(_pieces(choice) & pieces) < EDITED_SHARE * len(_pieces(choice)) for choice in lacking):
        return say("prompt.no_choices", choices=len(one.choices), missing=len(lacking)), True
    if not lacking and not choices_stand:
        return say("prompt.choices_in_other_order"), True
    return say("prompt.partly_different"), False


def _asks(held: str, row: Row) -> bool:
    question, choices = (
        _Text.of(row.question).plain,
        tuple(_Text.of(one).plain for one in choices_of(row.choices).texts),
    )
    return question in held and bool(_in_order(held, choices))


def _context_check(evidence: EvalEvidence, asked: list[_Asked], dataset: tuple[Question, ...]) -> Check:
    if evidence.settings.use_rag:
        return PROMPTS_WITHOUT_CONTEXT.check(None, "with_rag")
    contexts = {question.key: question.context for question in dataset if question.context}
    shares = [
        share
        for one in asked
        if (share := _context_share(one, contexts.get(question_key(one.row.question, one.row.choices), ""))) is not None
    ]
    if not shares:
        return PROMPTS_WITHOUT_CONTEXT.check(None, "nothing_to_compare")
    given = sum(share >= CONTEXT_SHARE for share in shares)
    return PROMPTS_WITHOUT_CONTEXT.check(given == 0, "compared", questions=len(shares), given=given)


def _context_share(one: _Asked, context: str) -> float | None:
    """How much of the law text stands in the prompt, beyond what the question quotes; None where it is too short."""
    length = CONTEXT_PIECE_CHARS
    own = _pieces(_Text.of(context).plain, length) - _pieces(one.question, length)
    own -= {piece for choice in one.choices for piece in _pieces(choice, length)}
    if len(own) < CONTEXT_PIECES:
        return None
    return len(own & _pieces(one.prompt.plain, length)) / len(own)


def _frame_check(evidence: EvalEvidence, asked: list[_Asked]) -> Check:
    frame = evidence.train_frame
    verdicts = [frame_agrees(frame, one.prompt.raw) for one in asked] if frame else []
    measured = [verdict for verdict in verdicts if verdict is not None]
    if not measured:
        return PROMPTS_AGREE.check(None, "no_prompts")
    apart = measured.count(False)
    return PROMPTS_AGREE.check(apart == 0, "compared", questions=len(measured), different=apart)


def _leak_check(asked: list[_Asked], rows: tuple[Row, ...]) -> Check:
    """The answer behind the prompt, around the question, in an example that is the question itself, or as a mark."""
    golds = {one.gold for one in asked}
    varied = len(golds) > 1
    common = _common_lines(asked) if varied else frozenset()
    reasons = Counter({
        "prompt.ends_with_answer": _told_at_the_end(asked) if varied and len(asked) == len(rows) else 0,
        "prompt.answer_beside": sum(_told_beside(one, common, varied) for one in asked),
        "prompt.answer_before": _told_before(asked, common) if varied else 0,
        "prompt.question_as_example": sum(_told_as_example(one) for one in asked),
        "prompt.answer_marked": _told_by_marks(asked) if varied else 0,
    })  # fmt: skip
    told = [say(reason, questions=count) for reason, count in reasons.items() if count]
    if told:
        return PROMPTS_HIDE_ANSWERS.check(False, "given_away", questions=len(asked), ways=told)
    if not varied or len(asked) < len(rows):
        return PROMPTS_HIDE_ANSWERS.check(None, "unseen")
    return PROMPTS_HIDE_ANSWERS.check(True, "hidden", questions=len(asked))


def _told_at_the_end(asked: list[_Asked]) -> int:
    """A prompt that was made as training texts are ends with the answer: the letter changes, the frame does not."""
    told = sum(one.prompt.raw.rstrip(_AFTER_A_LETTER).lower().endswith(one.gold) for one in asked)
    return told if told == len(asked) else 0


def _common_lines(asked: list[_Asked]) -> frozenset[str]:
    lines = [{line.strip() for line in one.prompt.raw.splitlines()} for one in asked]
    return frozenset.intersection(*map(frozenset, lines))


def _told_beside(one: _Asked, common: frozenset[str], varied: bool) -> bool:
    """Whether the gold is named between or behind the question's own parts, or as a hint before it.

    What all prompts have in common is their frame; where all golds are the same letter, only a hint is told from it.
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
    if stated_labels(hints) == {one.gold} and (varied or "ヒント" in hints or "hint" in hints.lower()):
        return True
    return _gold_text_alone(one, _Text.of(inside).plain)


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
        gaps = [text.raw[left:right] for (_, left), (right, _) in pairwise(edges)]
        inside, before = "\n".join([*map(_without_label, gaps), text.raw[edges[-1][1] :]]), text.raw[: edges[0][0]]
    else:
        inside, before = "", text.raw
    kept = ["\n".join(line for line in part.splitlines() if line.strip() not in common) for part in (inside, before)]
    return kept[0], kept[1]


def _without_label(gap: str) -> str:
    """A gap before a choice without that choice's own label, which stands at its end."""
    return re.sub(r"[\s(\[【「]*[A-Za-z0-9ア-コ]{1,2}[\s.、,:)\]】」]*\Z", "", gap)


def _gold_text_alone(one: _Asked, inside: str) -> bool:
    """Whether the right choice's text, and no other's, stands again behind the question."""
    place = one.gold_place
    if place is None or len(one.choices[place]) < PIECE_CHARS:
        return False
    return [n for n, choice in enumerate(one.choices) if choice and choice in inside] == [place]


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


def _told_by_marks(asked: list[_Asked]) -> int:
    """Rows whose right choice alone is dressed differently, where the right choices stand at different places."""
    told = [one for one in asked if one.spans and _is_marked(one)]
    return len(told) if len(told) == len(asked) and len({one.gold_place for one in told}) > 1 else 0


def _is_marked(one: _Asked) -> bool:
    text, place = one.prompt, one.gold_place
    dresses = []
    for start, end in one.spans[1:]:
        left, right = text.places[start], text.after(end)
        before = text.raw[text.raw.rfind("\n", 0, left) + 1 : left]
        dresses.append((re.sub(r"[\w\s.、,:()\[\]]", "", before), text.raw[right:].partition("\n")[0].strip(" 。.")))
    if place is None or place >= len(dresses):
        return False
    others = {dress for n, dress in enumerate(dresses) if n != place}
    return len(others) == 1 and dresses[place] not in others
