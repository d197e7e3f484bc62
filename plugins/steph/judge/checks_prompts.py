"""Holds prompts against questions, by their text or by fingerprints alone."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from steph.base.files import UnreadableError
from steph.base.fingerprint import fingerprints, normal_form
from steph.base.messages import Message, say
from steph.contract.questions import Question, choices_of, frame_agrees, plain_label, question_key, samples_of
from steph.contract.results import Row
from steph.judge.evidence import EvalEvidence
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind, Needs
from steph.judge.reading import LETTERS, stated_labels
from steph.record.values import Check

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
