"""Holds the answers of a training file against the data set's right answers to the same questions. Reads that file.

A builder that writes the wrong letters makes a file that all later checks take as the truth. A row is compared only
where its prompt has a question of the data set word for word, with all of its choices in any order; other rows, such
as those of another data set, say nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise

from steph.base.fingerprint import fingerprints, normal_form
from steph.contract.questions import (
    LEAST_QUESTION_CHARS,
    Choices,
    Question,
    answer_labels,
    key_texts,
    label_places,
    plain_label,
)
from steph.contract.rows import TrainingRow, training_rows_in
from steph.judge.evidence import TrainEvidence
from steph.judge.kinds import FAIL, WARN, CheckKind, Needs
from steph.judge.reading import bare, strict_letter
from steph.record.values import Check

MOST_ROWS, MOST_QUESTIONS = 2000, 20_000
LEAST_COMPARED = 4
SHORT_CHARS = 40  # a longer answer weighs one choice after the other before it says one
MOST_GAP_CHARS = 8  # between two choices: a label and what stands around it
_AROUND_LABELS = "()[]{}<>【】「」.、,:：;-*・。"

ANSWERS_OF_DATASET = CheckKind("answers_of_dataset", "H-2", FAIL, trap=22, optional=True, needs=(Needs.TRAIN_ROWS,))


@dataclass(frozen=True)
class _Known:
    """A question of the data set in normal form, and the place of its right choice; None where that is not clear."""

    question: str
    choices: tuple[str, ...]
    gold: str
    place: int | None


@dataclass(frozen=True)
class _Asked:
    """A question where it stands in a row; `order` are its choices as the row has them, `labels` what numbers them."""

    known: _Known
    end: int
    order: tuple[int, ...] = ()
    places: Mapping[str, int] | None = None


def row_answers_check(evidence: TrainEvidence) -> Check:
    """Whether the rows that ask questions of the data set give the right answers to them."""
    if evidence.train_file is None or not evidence.questions:
        return ANSWERS_OF_DATASET.check(None, "no_questions")
    finder = _Finder(evidence.questions)
    compared = wrong = exactly_wrong = 0
    try:
        for row in islice(training_rows_in(evidence.train_file, evidence.row_format), MOST_ROWS):
            text = normal_form(row.prompt or row.text)
            asked = finder.asked_last(text)
            verdict = None if asked is None else _is_right(row, asked, text, finder)
            if verdict is not None:
                is_right, is_exact = verdict
                compared, wrong = compared + 1, wrong + (not is_right)
                exactly_wrong += is_exact and not is_right
    except OSError:
        return ANSWERS_OF_DATASET.check(None, "unreadable")
    if compared < LEAST_COMPARED:
        return ANSWERS_OF_DATASET.check(None, "too_few", least=LEAST_COMPARED)
    is_hard = not wrong or 2 * exactly_wrong > compared
    severity = None if is_hard else WARN
    return ANSWERS_OF_DATASET.check(not wrong, "compared", severity=severity, compared=compared, wrong=wrong)


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
        candidates = [one for piece in fingerprints(text) for one in self._by_piece.get(piece, ())]
        found = [asked for one in candidates if (asked := _asked(one, text)) is not None]
        return max(found, key=lambda one: (one.end, len(one.known.question)), default=None)


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
    """Where a question stands in a text with its choices close behind each other; the last place of several."""
    at = text.rfind(known.question)
    while at >= 0:
        end = at + len(known.question)
        if not known.choices:
            return _Asked(known, end)
        spans = _in_order(known.choices, text, end) or _in_any_order(known.choices, text, end)
        if spans:
            order = tuple(sorted(range(len(spans)), key=lambda n: spans[n]))
            return _Asked(known, max(last for _, last in spans), order, _labels([spans[n][0] for n in order], text))
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


def _in_any_order(choices: Sequence[str], text: str, start: int) -> list[tuple[int, int]]:
    spans = [(found, found + len(choice)) for choice in choices if (found := text.find(choice, start)) >= 0]
    gaps = [after[0] - before[1] for before, after in pairwise(sorted(spans))]
    return spans if len(spans) == len(choices) and all(0 <= gap <= MOST_GAP_CHARS for gap in gaps) else []


def _labels(starts: Sequence[int], text: str) -> Mapping[str, int] | None:
    """What stands before each choice, where it numbers them."""
    before = [text[max(0, start - 4) : start].rstrip(_AROUND_LABELS)[-1:].lower() for start in starts]
    return label_places(before)


def _is_right(row: TrainingRow, asked: _Asked, text: str, finder: _Finder) -> tuple[bool, bool] | None:
    """Whether a row gives the right answer, and whether it gives nothing else; None where that can't be told."""
    known = asked.known
    answer = row.answer if row.prompt else text[asked.end :]
    own = plain_label(answer)
    if not known.choices:
        others = finder.free_golds - {known.gold}
        return (own == known.gold, True) if own == known.gold or own in others else None
    if known.place is None:
        return None
    is_as_given = asked.order == tuple(range(len(known.choices)))
    labels = asked.places or (label_places(finder.labels) if is_as_given else None) or {}
    same = [place for place, choice in enumerate(known.choices) if bare(choice) == bare(answer)]
    if len(same) == 1:
        return same[0] == known.place, bool(row.prompt)
    is_exact = own in labels
    label = own if is_exact else strict_letter(answer, cot=len(answer) > SHORT_CHARS, labels=tuple(labels))
    return (asked.order[labels[label]] == known.place, is_exact) if label is not None and label in labels else None
