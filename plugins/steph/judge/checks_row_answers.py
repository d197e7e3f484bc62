"""Whether a training file is what its builder meant. Reads that file.

Its answers are held against the data set's right answers to the same questions: a builder that writes the wrong letters
makes a file that all later checks take as the truth. A row is compared only where its prompt has a question of the data
set word for word, with all of its choices in any order; other rows, such as those of another data set, say nothing
here. A label that no choice of the row has is wrong, also where choices of the data set were lost. A choice that the
row adds ("e. I don't know") is no right answer of the data set's, but may be meant in some rows: it is wrong only where
most of them answer so.

Its texts are looked at for themselves, too: one question in all rows, fields of a template that nothing was put into,
an answer that is a missing value, text that was decoded wrongly, encoded twice or cut, labels that are all one or
contradict each other, questions and answers exchanged, and the answer given away beside the question.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from itertools import chain, islice, pairwise

from steph.base.fingerprint import cached_fingerprints as fingerprints
from steph.base.fingerprint import normal_form
from steph.base.messages import say
from steph.contract.questions import (
    LEAST_QUESTION_CHARS,
    NUMBERINGS,
    Choices,
    Question,
    answer_labels,
    choices_of,
    key_texts,
    label_places,
    next_labels,
    plain_label,
)
from steph.contract.results import Row
from steph.contract.rows import TrainingRow, training_rows_in
from steph.judge.checks_prompts import given_away
from steph.judge.checks_trained_use import TELLING
from steph.judge.evidence import TrainEvidence
from steph.judge.kinds import FAIL, WARN, CheckKind, Needs
from steph.judge.reading import bare, strict_letter
from steph.record.values import Check

MOST_ROWS, MOST_QUESTIONS = 2000, 20_000
LEAST_COMPARED = 4
LEAST_KEPT = 2  # choices of a question that lost the others
MOST_READ_BEYOND = 2  # labels behind a row's own that are looked for in longer answers: `i` is an English word
SHORT_CHARS = 40  # a longer answer weighs one choice after the other before it says one
MOST_GAP_CHARS = 8  # between two choices: a label and what stands around it
LEAST_READ = 8  # rows; of fewer nothing is said of what most have
MOST_ALIKE, LEAST_DISTINCT = 0.5, 0.25  # of the rows: with one prompt, with different prompts
FREE_SHARE = 0.9  # of the answers that differ: one prompt may be answered in many ways
FEW, MANY = 0.1, 0.5  # of the rows: with a fault that no text has by chance, and with one that some texts have
LEAST_FOREIGN_CHARS, LEAST_ESCAPES = 4, 3
KEPT_FOR_LOST = 4  # characters that are read, for each that was lost on the way
MOST_TOLD = 400  # rows whose answer may be given away
_FIELD = re.compile(
    r"(?<![\w\\{'\"])\{\{?[^\S\n]?[^\W\d]\w{2,30}[^\S\n]?\}?\}(?![}'\"])|[$]\{\w{3,30}\}|%\(\w{3,30}\)s"
)
_ESCAPE = re.compile(r"\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|&(?:#\d{2,6}|#x[0-9a-fA-F]{2,6}|lt|gt|amp|quot|nbsp);")
_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*(?:\s[^<>]*)?/?>")  # of HTML, in which characters are rightly escaped
# a line break that is two characters; LaTeX has \nu and \nLeftarrow, a pattern \n?, and code has them in quotes
_BREAK = re.compile(r"(?<!\\)\\n(?![a-z?+{]|(?:Left|Right)\w*arrow|V[Dd]ash)")
_QUOTED = re.compile(
    r"(?<!\w)(?:\"(?:\\.|[^\"\\]){0,400}\"|'(?:\\.|[^'\\]){0,400}'|`[^`]{0,400}`)(?!\w)|\b[A-Z]:\\\S*|[(「『/<]\\n[)」』/>]"
)
_MISSING = {"nan", "<na>", "nat", "undefined", "[objectobject]"}  # of a table or a script: no text is that by chance
_EMPTY = {"", "none", "null", "n/a"}  # some rows may mean that
_MISREAD_AS = (
    "cp932",
    "euc_jp",
    "gb18030",
    "cp949",
    "cp1251",
    "cp850",
)  # of UTF-8, beside Latin-1 and its Windows form
LEAST_WIDTH, LEAST_END_CHARS, LEAST_CUT = 60, 6, 4  # characters of a text and its end; texts
MOST_SHORTEST = 0.75  # of a width, what the shortest has where lengths vary: numbers vary a template's by less
_CODE_END = re.compile(r"[!-~]{24}$")  # no words: a digest, a sequence, a board
_ENDS = tuple("….。!！?？:：)）」』]】\"'`>")
LONGEST_LABEL = 12  # characters of an answer that is a class, and no sentence that is meant to be said to everything
MOST_CLASSES = 8  # different answers; where there are more, they may be taken from the text
_NAMES_OF_FIELDS = {"gold", "expected", "solution", "label", "target", "key", "reference", "truth", "hint"}
_TOLD, _TOLD_OPENLY = (
    re.compile(
        rf"^[^\w\n]{{0,9}}(?:{'|'.join(map(re.escape, sorted(words, key=len, reverse=True)))})[^\w\n]{{0,2}}"
        rf"(?:[:=：は]|is\b)[^\S\n]{{0,9}}(\S[^\n]{{0,80}})",
        re.IGNORECASE | re.MULTILINE,
    )
    for words in ({*TELLING}, {*TELLING} - _NAMES_OF_FIELDS)
)
_LABELS = {label for labels in NUMBERINGS for label in labels[:5]}
_AROUND_LABELS = "()[]{}<>【】「」.、,:：;-*・。"

ANSWERS_OF_DATASET = CheckKind("answers_of_dataset", "H-2", FAIL, trap=22, optional=True, needs=(Needs.TRAIN_ROWS,))

ROWS_PLAUSIBLE = CheckKind("rows_plausible", "H-2", WARN, trap=22, optional=True, needs=(Needs.TRAIN_ROWS,))


@dataclass(frozen=True)
class _Known:
    """A question of the data set in normal form, and the place of its right choice; None where that is not clear."""

    question: str
    choices: tuple[str, ...]
    gold: str
    place: int | None


@dataclass(frozen=True)
class _Asked:
    """A question where it stands in a row; `order` are its choices as the row has them, `places` what numbers them."""

    known: _Known
    end: int
    order: tuple[int, ...] = ()
    places: Mapping[str, int] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all of its choices are there."""
        return len(self.order) == len(self.known.choices)


def file_checks(evidence: TrainEvidence) -> tuple[Check, ...]:
    """Whether the rows of the training file are plausible, and give the data set's right answers to its questions."""
    if evidence.train_file is None or evidence.row_format == "none":
        return ROWS_PLAUSIBLE.check(None, "unreadable"), ANSWERS_OF_DATASET.check(None, "no_questions")
    try:
        rows = [*islice(training_rows_in(evidence.train_file, evidence.row_format), MOST_ROWS)]
    except OSError:
        return ROWS_PLAUSIBLE.check(None, "unreadable"), ANSWERS_OF_DATASET.check(None, "unreadable")
    finder = _Finder(evidence.questions or ())
    texts = [normal_form(row.prompt or row.text) for row in rows]
    asked = [*map(finder.asked_last, texts)]
    return _plausible_check(rows, texts, asked), _answers_check(evidence, rows, texts, asked, finder)


def _plausible_check(rows: Sequence[TrainingRow], texts: Sequence[str], asked: Sequence[_Asked | None]) -> Check:
    if len(rows) < LEAST_READ:
        return ROWS_PLAUSIBLE.check(None, "too_few", least=LEAST_READ)
    prompts = Counter(texts)
    given = [normal_form(row.answer) for row in rows]
    answers = {*given}
    is_free = len(answers) >= FREE_SHARE * len(rows) and any(row.prompt for row in rows)
    most = max(prompts.values())
    # rows that are repeated some times, as the rare ones are to weigh more, have their answer again
    pairs = {*zip(texts, given, strict=True)}
    is_repeated = len(pairs) == len(prompts) >= max(LEAST_READ, FEW * len(rows))
    is_few = len(prompts) <= LEAST_DISTINCT * len(rows) and not is_repeated
    is_one = most > MOST_ALIKE * len(rows) or is_few
    words = [answer.lower() for answer in given]
    spelled = [*zip(words, (row.answer.strip() for row in rows), strict=True)]
    others = [word for word in words if word not in _EMPTY]
    is_class = 2 * len({*others}) <= len(others)  # as the others are, `none` may be one; Python writes a None otherwise
    # to a question with choices "None" is no answer, unless it is one of them
    empty = [
        word in _EMPTY
        and (word not in one.known.choices if one and one.known.choices else not word and not row.is_chat)
        for word, row, one in zip(words, rows, asked, strict=True)
    ]
    # of code each row has names of its own in braces
    fields = Counter(field for row in rows for field in {one.strip() for one in _FIELD.findall(row.last_prompt)})
    counts = {
        "rows.one_prompt": (most if is_one and not is_free else 0, 0.0),
        "rows.fields": (max(fields.values(), default=0), MANY),
        "rows.no_answers": (sum(word in _MISSING for word in words) + sum(empty), FEW),
        "rows.empty_answers": (sum(word in _EMPTY and not (is_class and own == "none") for word, own in spelled), MANY),
        "rows.misread": (sum(_is_misread(row.text) for row in rows), FEW),
        "rows.escaped": (
            sum(len(_ESCAPE.findall(row.text)) >= LEAST_ESCAPES and not _TAG.search(row.text) for row in rows),
            MANY,
        ),
        "rows.line_breaks": (sum(_has_no_line_break(row.last_prompt) for row in rows), MANY),
        "rows.encoded_twice": (sum(map(_is_encoded_twice, rows)), MANY),
        "rows.cut": (max(_cut(rows, [row.last_prompt for row in rows]), _cut(rows, [row.answer for row in rows])), FEW),
        "rows.one_answer": (0 if is_one or any(map(_has_turns, rows)) else _rows_alike(words), 0.0),
        "rows.contradicting": (0 if is_one else _contradicting(texts, words), MANY),
        "rows.labels_asked": (
            sum(plain_label(row.last_prompt) in _LABELS for row in rows if row.prompt and not _has_turns(row)),
            MANY,
        ),
        "rows.told": (_told_in_a_line(rows) if len(answers) > 1 else 0, MANY),
    }
    troubles = [say(what, rows=count) for what, (count, share) in counts.items() if count > share * len(rows)]
    troubles += given_away([*islice(_told_rows(rows, asked), MOST_TOLD)])
    if troubles:
        return ROWS_PLAUSIBLE.check(False, "troubled", rows=len(rows), troubles=troubles)
    return ROWS_PLAUSIBLE.check(True, "plausible", rows=len(rows))


def _has_no_line_break(text: str) -> bool:
    """Whether a text has none but such as are two characters."""
    return "\n" not in text and _BREAK.search(_QUOTED.sub("", text)) is not None


def _cut(rows: Sequence[TrainingRow], texts: Sequence[str]) -> int:
    """How many of the rows' texts are as long as the longest, each with another end: a column of limited width.

    All of one length may be meant, as a code's digits are; and so may texts of a few characters, or such as differ by
    some numbers.
    """
    lengths = Counter(map(len, texts))
    longest = max(lengths)
    cut = [text for text in texts if len(text) == longest]
    ends = {text[-LEAST_END_CHARS:] for text in cut}
    is_cut = longest >= LEAST_WIDTH and LEAST_CUT <= len(cut) < len(texts) and len(ends) > MANY * len(cut)
    is_cut = is_cut and len(lengths) > LEAST_CUT and min(lengths) <= MOST_SHORTEST * longest
    if 2 * len(cut) > len(texts) and not any(row.prompt for row in rows):
        return 0  # pieces of long texts, to be read on
    broken = sum(not text.rstrip().endswith(_ENDS) and not _CODE_END.search(text) for text in cut)
    return len(cut) if is_cut and broken > MANY * len(cut) else 0


def _rows_alike(words: Sequence[str]) -> int:
    """All rows, where they have one short answer: a column that was read wrongly."""
    is_class = len({*words}) == 1 and words[0] not in _EMPTY | _MISSING and len(words[0]) <= LONGEST_LABEL
    return len(words) if is_class and words[0][-1].isalnum() else 0


def _has_turns(row: TrainingRow) -> bool:
    """Whether several answers were given: a choice may be a user's, and the last answer a farewell."""
    return sum(turn.role == "assistant" for turn in row.turns) > 1


def _contradicting(texts: Sequence[str], words: Sequence[str]) -> int:
    """Rows whose very prompt has another label elsewhere, none of which most people gave.

    In their own words many answers may be right.
    """
    given: dict[str, Counter[str]] = {}
    for text, word in zip(texts, words, strict=True):
        given.setdefault(text, Counter())[plain_label(word)] += 1
    return sum(own.total() for own in given.values() if {*own} <= _LABELS and 2 * max(own.values()) <= own.total())


def _is_encoded_twice(row: TrainingRow) -> bool:
    """Whether prompt and answer, a single word, both are texts as JSON writes them, or one is, with escapes in it.

    What people say stands in quotation marks, too.
    """
    texts = [text.strip() for text in (row.prompt, row.answer) if text.strip()]
    quoted = [text for text in texts if len(text) > 1 and text[0] == text[-1] == '"' and _is_json_text(text)]
    is_label = len(quoted) == len(texts) > 1 and quoted[-1][1:-1].isalnum()
    return is_label or any(re.search(r"\\[nu\"]", text) for text in quoted)


def _is_json_text(text: str) -> bool:
    try:
        return isinstance(json.loads(text), str)
    except ValueError:
        return False


def _told_in_a_line(rows: Sequence[TrainingRow]) -> int:
    """Rows whose prompt has a line that says their answer is the right one; none where such lines say others, too.

    Nor where all say the same, as an example does. A form has lines like "Target: ..." that are asked for.
    """
    answers = {plain_label(row.answer) for row in rows}
    is_told = _TOLD if len(answers) <= MOST_CLASSES else _TOLD_OPENLY
    lines = (
        [line.strip(_AROUND_LABELS) for line in is_told.findall(row.prompt if not _has_turns(row) else "")]
        for row in rows
    )
    said = [({*map(plain_label, own)} & answers, plain_label(row.answer)) for own, row in zip(lines, rows, strict=True)]
    told = [answer for own, answer in said if own == {answer}]
    others = sum(bool(own) for own, _ in said) - len(told)
    return len(told) if others <= FEW * len(told) and len({*told}) > 1 else 0


def _told_rows(rows: Sequence[TrainingRow], asked: Sequence[_Asked | None]) -> Iterator[Row]:
    """The rows that ask for one of some choices, as an evaluation's rows are read."""
    for row, one in zip(rows, asked, strict=True):
        question = (one.known.question, list(one.known.choices)) if one else (row.question, row.choices)
        label = plain_label(row.answer)
        label = label if len(label) == 1 else strict_letter(row.answer, cot=True) or ""
        if row.prompt and question[0] and label and choices_of(question[1]).texts:
            yield Row(
                question=question[0], choices=question[1], correct_answer=label, is_correct=True, prompt=row.prompt
            )


def _is_misread(text: str) -> bool:
    """Whether a text, or a line of it, was UTF-8 that was decoded as something else."""
    return "\ufffd" in text or any(map(_is_mojibake, text.splitlines()))


@lru_cache(maxsize=1024)  # the frame of a prompt stands in every row
def _is_mojibake(line: str) -> bool:
    """Whether what stands for it in another table of characters is, but for some lost ones, UTF-8."""
    if sum(not letter.isascii() for letter in line) < LEAST_FOREIGN_CHARS:
        return False
    # Windows' own table leaves some out, which stay as they are
    latin = b"".join(bytes([ord(one)]) if ord(one) < 256 else one.encode("cp1252", "ignore") for one in line)
    for raw in (latin, *(line.encode(codec, "ignore") for codec in _MISREAD_AS)):
        read = raw.decode("utf-8", "replace")
        lost, foreign = read.count("\ufffd"), sum(not one.isascii() for one in read)
        if foreign - lost >= LEAST_FOREIGN_CHARS and foreign - lost >= KEPT_FOR_LOST * lost and read != line:
            return True
    return False


def _answers_check(
    evidence: TrainEvidence,
    rows: Sequence[TrainingRow],
    texts: Sequence[str],
    asked: Sequence[_Asked | None],
    finder: _Finder,
) -> Check:
    if not evidence.questions:
        return ANSWERS_OF_DATASET.check(None, "no_questions")
    answers = (
        _answer(row, one, text, finder) for row, text, one in zip(rows, texts, asked, strict=True) if one is not None
    )
    found = Counter(answer for answer in answers if answer is not None)
    added, wrong = found.pop(_Answer.ADDED, 0), found[_Answer.WRONG] + found[_Answer.READ_AS_WRONG]
    if 2 * added > added + found.total():
        wrong += added
        found[_Answer.ADDED] = added
    compared = found.total()
    if compared < LEAST_COMPARED:
        return ANSWERS_OF_DATASET.check(None, "too_few", least=LEAST_COMPARED)
    severity = None if not wrong or 2 * found[_Answer.WRONG] > compared else WARN
    return ANSWERS_OF_DATASET.check(not wrong, "compared", severity=severity, compared=compared, wrong=wrong)


class _Answer(Enum):
    """What a row's answer is: wrong as it stands, or read out of longer text; or a choice that the row alone has."""

    RIGHT = auto()
    WRONG = auto()
    READ_AS_WRONG = auto()
    ADDED = auto()


class _Finder:
    """The questions of a data set, each found in a text by one of its rarest pieces."""

    def __init__(self, questions: Sequence[Question]) -> None:
        keys: dict[str, set[str]] = {}
        for question in questions[:MOST_QUESTIONS]:
            keys.setdefault(question.key, set()).add(question.answer)
        texts = {key: key_texts(key) for key in keys}
        golds = {key: next(iter(own)) for key, own in keys.items() if len(own) == 1 and "" not in own}
        self.labels = answer_labels([*golds.values()], [Choices(choices) for _, choices in texts.values()])
        self.known = [
            _Known(*texts[key], gold, _gold_place(gold, texts[key][1], self.labels, {*golds.values()}))
            for key, gold in golds.items()
            if len(texts[key][0]) >= LEAST_QUESTION_CHARS
        ]
        self.free_golds = {one.gold for one in self.known if not one.choices}
        pieces = [[*chain.from_iterable(map(fingerprints, (one.question, *one.choices)))] for one in self.known]
        counts: dict[str, int] = {}
        for own in pieces:
            for piece in set(own):
                counts[piece] = counts.get(piece, 0) + 1
        self._by_piece: dict[str, list[_Known]] = {}
        for one, own in zip(self.known, pieces, strict=True):
            if own:
                self._by_piece.setdefault(min(own, key=counts.__getitem__), []).append(one)

    def asked_last(self, text: str) -> _Asked | None:
        """The question that stands last in a text in normal form: those before it are examples."""
        pieces = fingerprints(text) if self._by_piece else ()
        candidates = [one for piece in pieces for one in self._by_piece.get(piece, ())]
        found = [asked for one in candidates if (asked := _asked(one, text)) is not None]
        return max(found, key=lambda one: (one.end, one.is_whole, len(one.known.question)), default=None)


def _gold_place(gold: str, choices: Sequence[str], labels: Sequence[str], golds: set[str]) -> int | None:
    """Which choice is right, by its label or by its text; digits that may count from 0 or from 1 say nothing."""
    same = [place for place, text in enumerate(choices) if plain_label(text) == gold]
    if len(same) == 1:
        return same[0]
    if gold.isdigit() and not golds & {"0", str(len(choices))}:
        return None
    places = label_places(labels) or {}
    place = places.get(gold)
    return place if place is not None and place < len(choices) else None


def _asked(known: _Known, text: str) -> _Asked | None:
    """Where a question stands in a text with its choices close behind each other; the last place of several.

    Choices that are lost may be the last ones.
    """
    at = text.rfind(known.question)
    while at >= 0:
        end = at + len(known.question)
        if not known.choices:
            return _Asked(known, end)
        spans = _spans(known.choices, text, end)
        if spans:
            order = tuple(sorted(range(len(spans)), key=lambda n: spans[n]))
            starts = (spans[n][0] for n in order)  # what stands before each choice, where it numbers them
            labels = [text[max(0, start - 4) : start].rstrip(_AROUND_LABELS)[-1:].lower() for start in starts]
            return _Asked(known, max(last for _, last in spans), order, label_places(labels))
        at = text.rfind(known.question, 0, end - 1)
    return None


def _in_order(choices: Sequence[str], text: str, start: int) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for choice in choices:
        found = text.find(choice, start)
        if found < 0 or (spans and found - start > MOST_GAP_CHARS):
            return []
        start = found + len(choice)
        spans.append((found, start))
    return spans


def _spans(choices: Sequence[str], text: str, start: int) -> list[tuple[int, int]]:
    """Where choices stand close behind each other: all in order, all in any order, or the first ones and no other."""
    if spans := _in_order(choices, text, start):
        return spans
    spans = [(found, found + len(choice)) for choice in choices if (found := text.find(choice, start)) >= 0]
    gaps = [after[0] - before[1] for before, after in pairwise(sorted(spans))]
    if len(spans) == len(choices) and all(0 <= gap <= MOST_GAP_CHARS for gap in gaps):
        return spans
    for count in range(len(choices) - 1, LEAST_KEPT - 1, -1):
        if spans := _in_order(choices[:count], text, start):
            return spans if not any(choice in text[start:] for choice in choices[count:]) else []
    return []


def _answer(row: TrainingRow, asked: _Asked, text: str, finder: _Finder) -> _Answer | None:
    """The verdict on a row's answer; None where that can't be told."""
    known = asked.known
    answer = row.answer if row.prompt else text[asked.end :]
    own = plain_label(answer)
    if not known.choices:
        others = finder.free_golds - {known.gold}
        return _said(own == known.gold, is_exact=True) if own == known.gold or own in others else None
    if known.place is None:
        return None
    same = [place for place, choice in enumerate(known.choices) if bare(choice) == bare(answer)]
    if len(same) == 1:
        return _said(same[0] == known.place, is_exact=bool(row.prompt))
    is_as_given = asked.order == tuple(range(len(asked.order)))
    numbered = asked.places or (label_places(finder.labels) if is_as_given and asked.is_whole else None) or {}
    labels = [label for label, place in numbered.items() if place < len(asked.order)]
    further = next_labels(labels)
    is_exact = own in (*labels, *further)
    read = (*labels, *further[:MOST_READ_BEYOND])
    label = own if is_exact else strict_letter(answer, cot=len(answer) > SHORT_CHARS, labels=read) if read else None
    if label in labels:
        is_right = asked.order[numbered[label]] == known.place
        return _said(is_right, is_exact=is_exact) if asked.is_whole else None
    if label is None:
        return None
    if _numbers_a_choice(label, row.prompt or row.text, text[asked.end :]):
        return _Answer.ADDED if asked.is_whole else None
    return _said(False, is_exact=is_exact)


def _said(is_right: bool, *, is_exact: bool) -> _Answer:
    return _Answer.RIGHT if is_right else _Answer.WRONG if is_exact else _Answer.READ_AS_WRONG


def _numbers_a_choice(label: str, prompt: str, behind: str) -> bool:
    """Whether a row numbers something by this label: at a line's beginning, or right behind the choices."""
    next_to = behind[:4].lower().lstrip(_AROUND_LABELS)
    if next_to.startswith(label) and not re.match("[a-z0-9]", next_to[len(label) :]):
        return True
    begins = rf"^\W{{0,4}}{re.escape(label)}(?:[.、,:)\]】」>]|[^\S\n])[^\S\n]*\S"
    return re.search(begins, unicodedata.normalize("NFKC", prompt), re.MULTILINE | re.IGNORECASE) is not None
