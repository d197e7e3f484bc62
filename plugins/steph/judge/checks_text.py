"""Checks of the responses: bounded, finished, there, varied, quick, and read as a human would read them. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from steph.base.messages import NOTHING, say
from steph.base.text import one_line
from steph.contract.questions import Choices, choices_of, label_places, plain_label, question_key, repeats_question
from steph.contract.results import MOST_LABEL_CHARS, EvaluationKind, Row
from steph.judge import reading
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind, Figures, Needs
from steph.judge.reading import LETTERS
from steph.record.values import Check

LETTERS_OF_CHOICES = tuple("abcdefghij")
MOST_LONGER = 2  # times the right answer
LETTERS_ROWS = 8  # with fewer questions one letter for all is no finding
LEAST_CREDITED = 2  # answers: one may be right by chance
LEAST_GOLDS = 3  # answers without a basis that are all right: a guess among four is, once in 64 times
TELLING_CHARS = 20  # shorter responses to different questions may well be the same
TOKEN_CHARS, TOKEN_SLACK_CHARS = 16, 16  # no tokenizer has words that long in a row
SECONDS_SLACK, SECONDS_SLACK_SHARE = 1.0, 0.05
SHORT_SHARE, SHORT_SECONDS = 0.25, 0.02  # of a row's share of a call of `generate`, and by how much it is longer
DIRECT_SECONDS, COT_SECONDS = 30.0, 90.0  # per question, generation alone
LOADING_SECONDS = 120.0  # what starting Python and loading a model may take of a whole run
_LIMIT_REASONS = ("length", "max_tokens", "max_new_tokens")
_NUMBERS = tuple("123456789")
_PLACES = re.compile(
    r"[一二三四五]つ目|番目|最初|最後|前者|後者|すべて|全て|いずれも|はい|いいえ|正し|誤り|○|×"
    r"|(?i:\b(?:first|second|third|fourth|fifth|last|former|latter|all|none|both|yes|no|true|false|correct)\b)"
)
_READ = (Needs.LABELS, Needs.RESPONSES)
_TOLD = (Needs.RESPONSES,)

RESPONSES_BOUNDED = CheckKind("responses_bounded", "H-3", FAIL, trap=3, quality=True, needs=_TOLD)
RESPONSES_ENDED = CheckKind("responses_ended", "H-3", WARN, trap=3, quality=True, optional=True, needs=_TOLD)
RESPONSES_PRESENT = CheckKind("responses_present", "H-3", FAIL, needs=_TOLD)
ANSWERS_PARSED = CheckKind("answers_parsed", "H-3", INFO, quality=True)
STRICT_PARSE_AGREES = CheckKind("strict_parse_agrees", "H-3", WARN, trap=8, quality=True, needs=_READ)
ANSWERS_AS_RESPONDED = CheckKind("answers_as_responded", "H-3", FAIL, trap=8, optional=True, needs=_READ)
ANSWERS_GROUNDED = CheckKind("answers_grounded", "H-3", WARN, trap=28, optional=True, needs=_READ)
LETTERS_VARY = CheckKind("letters_vary", "H-3", WARN, trap=17, quality=True, optional=True, needs=(Needs.LABELS,))
ROW_FIGURES_FIT = CheckKind("row_figures_fit", "H-3", WARN, optional=True, needs=_TOLD)
PROMPT_NOT_ECHOED = CheckKind("prompt_not_echoed", "H-3", WARN, trap=8, optional=True, needs=_TOLD)
RESPONSES_DIFFER = CheckKind("responses_differ", "H-3", WARN, quality=True, optional=True, needs=_TOLD)
ANSWERS_FAST = CheckKind("answers_fast", "H-3", WARN, trap=3, quality=True, optional=True)
_ALL = (
    *(RESPONSES_BOUNDED, RESPONSES_ENDED, RESPONSES_PRESENT, ANSWERS_PARSED, STRICT_PARSE_AGREES),
    *(ANSWERS_AS_RESPONDED, ANSWERS_GROUNDED, LETTERS_VARY, ROW_FIGURES_FIT, PROMPT_NOT_ECHOED),
    *(RESPONSES_DIFFER, ANSWERS_FAST),
)


def response_checks(
    rows: tuple[Row, ...] | None,
    *,
    labels: tuple[str, ...] = LETTERS,
    kind: EvaluationKind = "choice",
    cot: bool,
    ensemble: int,
    rehearsal: bool,
    seconds: float | None,
    random_weights: bool = False,
    ranks: int = 1,
    row_seconds: float | None = None,
) -> tuple[Check, ...]:
    """All checks of the responses; `seconds` is the whole run's, `ranks` how many processes answered at a time.

    `row_seconds` is what generating took for a row, as it was seen.

    Recorded answers are some of the `labels`; of several runs (`ensemble`) the response is one and the answer the
    majority's. A free text may be as long as it likes, and be cut at a first word that ends it.
    """
    if not rows:
        return tuple(one.check(None, say("evaluation.no_answers"), rehearsal=rehearsal) for one in _ALL)
    words = _words_for(rows, _Reader(labels, cot)) or _numbers_for(rows, cot)
    reader, is_free = _Reader(labels, cot, words), kind == "generate"
    responded = _vote_check(rows, reader, ensemble)
    grounded = ANSWERS_GROUNDED.check(None, "majority", runs=ensemble)
    has_runs = any(row.runs for row in rows)
    each = tuple(row.model_copy(update={"response": run}) for row in rows for run in row.runs or (row.response,))
    rows = tuple(reader.voted(row) for row in rows)
    if ensemble <= 1 and not has_runs:
        responded, grounded = _contradiction_check(rows, reader), _grounded_check(rows, reader)
    # generated tokens that were not cut from the prompt's bring the whole prompt, and a parser its letters
    echoes = sum(repeats_question(row.response or "", row.question, row.choices) for row in rows)
    return (
        _bounded_check(each, cot, rehearsal, is_free=is_free),
        _ended_check(rows, rehearsal),
        _present_check(rows, random_weights, is_free=is_free, reader=None if has_runs or ensemble > 1 else reader),
        *_parsed_checks(rows, reader, rehearsal, random_weights),
        responded,
        grounded,
        _letters_check(rows, rehearsal),
        _figures_check(rows, seconds, ranks, row_seconds),
        PROMPT_NOT_ECHOED.check(2 * echoes <= len(rows), "echoes", questions=len(rows), echoes=echoes),
        _sameness_check(rows, rehearsal),
        _speed_check(rows, cot, rehearsal, seconds),
    )


def _bounded_check(rows: tuple[Row, ...], cot: bool, rehearsal: bool, *, is_free: bool) -> Check:
    """Loops, and answers that are longer than a choice needs.

    Thoughts that were closed may be as long as a reasoning; what is said after them may not.
    """
    texts = [reading.without_special(row.response or "") for row in rows]
    loops = [
        loop
        for text, row in zip(texts, rows, strict=True)
        if (loop := reading.looping(text)) and not _is_meant_to_loop(text, row.correct_answer)
    ]
    long = 0
    for text in texts if not is_free else ():
        said = reading.spoken(text)
        has_thoughts = bool(said) and said != text.strip()
        long += reading.overlong(said, cot=cot) or (
            len(text) > reading.COT_CHARS if has_thoughts else reading.overlong(text, cot=cot)
        )
    lengths: Figures = {"shortest": min(map(len, texts)), "longest": max(map(len, texts)), "too_long": long}
    return RESPONSES_BOUNDED.check(
        not loops and not long,
        "looping" if loops else "lengths",
        rehearsal=rehearsal,
        questions=len(rows),
        loops=len(loops),
        example=loops[0] if loops else NOTHING,
        **lengths,
    )


def _is_meant_to_loop(text: str, gold: str) -> bool:
    """Whether the right answer repeats itself, as tags of words or a table of zeros do, and a text is hardly longer."""
    return len(text) <= MOST_LONGER * len(gold) and reading.looping(gold) is not None


def _ended_check(rows: tuple[Row, ...], rehearsal: bool) -> Check:
    thinking = sum(reading.thought_is_open(row.response or "") for row in rows)
    reasons = [row.finish_reason.lower() for row in rows if isinstance(row.finish_reason, str)]
    if not reasons and not thinking:
        return RESPONSES_ENDED.check(None, "no_reason")
    cut = sum(reason in _LIMIT_REASONS for reason in reasons)
    if cut == len(reasons) == len(rows) and all(row.new_tokens == 1 for row in rows):
        # not a matter of the model's words: with one token nothing can end
        return RESPONSES_ENDED.check(False, "one_token", questions=len(rows))
    figures: Figures = {"questions": len(rows), "cut": cut, "thinking": thinking}
    return RESPONSES_ENDED.check(not cut and not thinking, "ends", rehearsal=rehearsal, **figures)


def _present_check(
    rows: tuple[Row, ...], random_weights: bool, *, is_free: bool, reader: _Reader | None = None
) -> Check:
    """A model of random weights may learn first of all to end; a pipeline that says so has lost nothing.

    `reader`: of answers that one response each stands for.
    """
    blank = [reading.is_blank(row.response) for row in rows]
    at_once = [
        random_weights
        and is_empty
        and row.predicted_answer in ("", "unknown")
        and row.new_tokens == 0
        and row.finish_reason == "stop"
        for row, is_empty in zip(rows, blank, strict=True)
    ]
    if all(at_once):
        return RESPONSES_PRESENT.check(None, "random_weights", severity=INFO, questions=len(rows))
    pairs = list(zip(rows, blank, strict=True))
    baseless = sum(bool(row.predicted_answer) and row.is_answered and is_empty for row, is_empty in pairs)
    unmade = sum(row.new_tokens == 0 and not is_empty for row, is_empty in pairs)
    lost = sum(blank) - sum(at_once)
    is_hard = baseless or unmade or (2 * lost > len(rows) and not (random_weights and is_free))
    severity = FAIL if is_hard or not lost else WARN
    counts: Figures = {"questions": len(rows), "empty": sum(blank), "baseless": baseless, "unmade": unmade}
    gold = _golds_for_nothing(rows, reader, is_free=is_free) if reader and not unmade else []
    if gold:
        return RESPONSES_PRESENT.check(
            False, "as_gold", **counts, gold=len(gold), example=one_line(gold[0].response, 60)
        )
    return RESPONSES_PRESENT.check(not is_hard and not lost, "counts", severity=severity, **counts)


def _golds_for_nothing(rows: tuple[Row, ...], reader: _Reader, *, is_free: bool) -> list[Row]:
    """The rows of one response, nothing or the same words, that is recorded as another answer each time: the right one.

    The response says none of them. A response that was cut for the file may have said it.
    """
    longest = max(len(row.response or "") for row in rows)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        text, answer = row.response or "", row.predicted_answer
        is_whole = len(text) <= TELLING_CHARS or len(text) < longest
        if not answer or not row.is_answered or not is_whole or reading.is_exception_text(text):
            continue
        is_blank = reading.is_blank(text)
        says = not is_blank and (reading.bare(answer) in reading.bare(text) if is_free else reader.says_any(row))
        if not says:
            groups.setdefault("" if is_blank else reading.bare(text), []).append(row)
    return [
        row
        for group in groups.values()
        if len({row.predicted_answer for row in group}) > 1
        and all(row.predicted_answer == plain_label(row.correct_answer) for row in group)
        for row in group
    ]


@dataclass(frozen=True)
class _Reader:
    """Reads answers, which are one of some labels; `cot`: with reasoning before them."""

    labels: tuple[str, ...]
    cot: bool
    words: Mapping[str, str] = field(default_factory=dict)  # what is said for a label, without choices that tell

    def read(self, row: Row) -> str | None:
        """The answer that a response gives beyond doubt: by label, its choice's own label, or its choice's text."""
        response = row.response or ""
        if letter := reading.strict_letter(response, cot=self.cot, labels=self.labels):
            return letter
        choices = choices_of(row.choices)
        own = choices.labels if len(choices.labels) == len(self.labels) else ()
        if own and own != self.labels and (label := reading.strict_letter(response, cot=self.cot, labels=own)):
            return self.labels[own.index(label)]
        texts = tuple(text.lower() for text in choices.texts)
        if len({*texts}) == len(texts) == len(self.labels) and all(0 < len(one) <= MOST_LABEL_CHARS for one in texts):
            stated = reading.stated_labels(response, texts)
            if len(stated) == 1 and label_places(self.labels):
                return self.labels[texts.index(stated.pop())]
        said = reading.bare(reading.spoken(response))
        held = [
            label
            for label in self.labels
            if said in (reading.bare(label), reading.bare(self.text_of(label, choices) or ""))
        ]
        return held[0] if said and len(held) == 1 else self.words.get(said)

    def voted(self, row: Row) -> Row:
        """The row with one of its runs for its response: the first that gives the recorded answer, else the first."""
        each = [row.model_copy(update={"response": run}) for run in row.runs]
        return next((one for one in each if self.read(one) == row.predicted_answer), each[0] if each else row)

    def text_of(self, label: str, choices: Choices) -> str | None:
        """A label's choice; None where labels are words, which stand in no order that tells."""
        names = choices.labels if label in choices.labels else self.labels if label_places(self.labels) else ()
        place = names.index(label) if label in names else len(choices.texts)
        return choices.texts[place] if place < len(choices.texts) else None

    def read_number(self, row: Row) -> str | None:
        """The label of the choice whose number a response gives, where nothing numbers the choices otherwise."""
        numbers = _NUMBERS[: len(self.labels)]
        number = reading.strict_letter(row.response or "", cot=self.cot, labels=numbers)
        return self.labels[numbers.index(number)] if number else None

    def is_hedged(self, row: Row) -> bool:
        """Whether a response without reasoning names several labels, and says of none that it is the answer."""
        return not self.cot and len(reading.named_labels(row.response or "", self.labels)) > 1

    def says_any(self, row: Row) -> bool:
        """Whether a response gives an answer beyond doubt, or has something of the one that is recorded."""
        return self.read(row) is not None or self.is_grounded(row) or bool(_PLACES.search(row.response or ""))

    def is_grounded(self, row: Row) -> bool:
        """Whether a response has a recorded answer's label, its choice's number, or most of its text."""
        said, choices = reading.spoken(row.response or ""), choices_of(row.choices)
        place = self.labels.index(row.predicted_answer) if row.predicted_answer in self.labels else len(self.labels)
        own = choices.labels[place] if place < len(choices.labels) else None
        numbered = own if own and own.isdigit() else str(place + 1)
        if any(reading.names_label(said, label) for label in {row.predicted_answer, numbered, own} if label):
            return True
        shared = [len(_pieces(said) & _pieces(text)) for text in choices.texts]
        return place < len(shared) and shared[place] > max((n for at, n in enumerate(shared) if at != place), default=0)


def _words_for(rows: Sequence[Row], reader: _Reader) -> dict[str, str]:
    """The one word that is said for each recorded label, as `positive` for 1, where all rows agree and some are alike.

    Not where choices have their own texts, nor where any response gives a label itself.
    """
    told = [(reading.bare(reading.spoken(row.response or "")), row) for row in rows if row.is_answered and not row.runs]
    pairs = {(said, row.predicted_answer) for said, row in told}
    words = dict(pairs)
    is_one_to_one = len(words) == len({label for _, label in pairs}) == len(pairs)
    if (
        not 1 < len(pairs) < len(told)
        or not is_one_to_one
        or any(not 0 < len(one) <= MOST_LABEL_CHARS for one in words)
    ):
        return {}
    has_own = any(choices_of(row.choices).texts or reader.read(row) or reader.is_grounded(row) for _, row in told)
    return {} if has_own else words


def _numbers_for(rows: Sequence[Row], cot: bool) -> dict[str, str]:
    """The responses that name the letter of a choice whose number is recorded, counted from 0 or from 1 in all rows."""
    found, firsts = dict[str, str](), set[int]()
    for row in rows:
        choices = choices_of(row.choices)
        letters = LETTERS_OF_CHOICES[: len(choices.texts)]
        letter = reading.strict_letter(row.response or "", cot=cot, labels=letters) if len(letters) > 1 else None
        if row.is_answered and (letter is None or choices.labels or not row.predicted_answer.isdecimal()):
            return {}
        if row.is_answered and letter is not None:
            firsts.add(int(row.predicted_answer) - letters.index(letter))
            found[reading.bare(reading.spoken(row.response or ""))] = row.predicted_answer
    return found if firsts in ({0}, {1}) else {}


def _parsed_checks(
    rows: tuple[Row, ...], reader: _Reader, rehearsal: bool, random_weights: bool
) -> tuple[Check, Check]:
    """That not one answer can be read is about the programs, unless the weights are random."""
    unknown = sum(row.predicted_answer == "unknown" for row in rows)
    is_all = unknown == len(rows)
    parsed = ANSWERS_PARSED.check(
        unknown == 0,
        "unreadable",
        rehearsal=rehearsal and (random_weights or not is_all),
        severity=WARN if is_all else None,
        questions=len(rows),
        unreadable=unknown,
    )
    answered = [row for row in rows if row.predicted_answer != "error"]
    apart = sum((reader.read(row) or reader.read_number(row) or "unknown") != row.predicted_answer for row in answered)
    counts: Figures = {"questions": len(answered), "different": apart}
    return parsed, STRICT_PARSE_AGREES.check(apart == 0, "read_again", rehearsal=rehearsal, **counts)


def _contradiction_check(rows: tuple[Row, ...], reader: _Reader) -> Check:
    """A response and its recorded answer must say the same letter."""
    said = [(reader.read(row), row.predicted_answer) for row in rows if row.is_answered]
    apart = [pair for pair in said if pair[0] is not None and pair[0] != pair[1]]
    if not apart:
        return ANSWERS_AS_RESPONDED.check(True, "as_responded", questions=len(rows))
    response, answer = apart[0]
    counts: Figures = {"questions": len(rows), "different": len(apart)}
    return ANSWERS_AS_RESPONDED.check(False, "otherwise", response=response, answer=answer, **counts)


def _vote_check(rows: tuple[Row, ...], reader: _Reader, ensemble: int) -> Check:
    """Of several runs the answer is the one that most of them give, where each of them is recorded and can be read."""
    told = [(row, [reader.read(row.model_copy(update={"response": run})) for run in row.runs]) for row in rows]
    read = [(row, Counter(said)) for row, said in told if len(said) > 1 and None not in said]
    if not read:
        return ANSWERS_AS_RESPONDED.check(None, "majority", runs=ensemble)
    apart = [row for row, votes in read if votes[row.predicted_answer] < max(votes.values())]
    # who weighs votes is not always right by it
    severity = FAIL if len(apart) >= LEAST_CREDITED and all(row.is_correct for row in apart) else WARN
    return ANSWERS_AS_RESPONDED.check(not apart, "voted", severity=severity, questions=len(read), different=len(apart))


def _grounded_check(rows: tuple[Row, ...], reader: _Reader) -> Check:
    """A default letter, a letter out of unfinished thoughts, a digit counted from zero: nothing said leads to them.

    A response that plainly gives another letter is the check above's, and an exception's text is another's.
    """
    told = [row for row in rows if row.is_answered and not reading.is_blank(row.response)]
    told = [row for row in told if reader.read(row) is None and not reading.is_exception_text(row.response or "")]
    baseless = [row for row in told if not reader.is_grounded(row)]
    hedged = [row for row in told if row.is_correct and reader.is_hedged(row)]
    all_right = sum(row.is_correct for row in rows)
    if not baseless and len(hedged) >= LEAST_CREDITED and 2 * len(hedged) > all_right:
        counts: Figures = {"questions": len(rows), "hedged": len(hedged), "answer": hedged[0].predicted_answer}
        return ANSWERS_GROUNDED.check(False, "hedged", response=one_line(hedged[0].response, 60), **counts)
    if not baseless:
        return ANSWERS_GROUNDED.check(True, "grounded", questions=len(rows))
    # credited: most of them are called right, and most that are called right are such. A word may name a choice by its
    # place or, where no file tells the choices, by its text; and a response that was cut for the file ends where all do
    told = [row for row in baseless if reader.text_of(row.predicted_answer, choices_of(row.choices))]
    right = sum(row.is_correct and not _PLACES.search(row.response or "") for row in told)
    are_cut = len({len(row.response or "") for row in baseless}) == 1
    is_credited = right >= LEAST_CREDITED and not are_cut and 2 * right > max(len(baseless), all_right)
    found, severity = ("most_of_the_right", FAIL) if is_credited else ("baseless", None)
    # chance is not right each time, and one letter for all is a default
    is_gold = right == len(baseless) >= LEAST_GOLDS and len({row.predicted_answer for row in baseless}) > 1
    if is_gold and not are_cut:
        found, severity = "as_gold", FAIL
    counts = {"questions": len(rows), "baseless": len(baseless), "answer": baseless[0].predicted_answer}
    return ANSWERS_GROUNDED.check(
        False, found, severity=severity, response=one_line(baseless[0].response, 60), **counts
    )


def _pieces(text: str) -> set[str]:
    plain = reading.bare(text)
    return {plain[at : at + 3] for at in range(len(plain) - 2)} or {plain} - {""}


def _letters_check(rows: tuple[Row, ...], rehearsal: bool) -> Check:
    counts = Counter(row.predicted_answer for row in rows)
    shown = [f"{letter} {count}" for letter, count in sorted(counts.items())]
    if len(rows) < LETTERS_ROWS:
        return LETTERS_VARY.check(None, "too_few", questions=len(rows), answers=shown)
    only = len(counts) == 1 and rows[0].is_answered
    return LETTERS_VARY.check(not only, "answers", rehearsal=rehearsal, questions=len(rows), answers=shown)


def _figures_check(rows: tuple[Row, ...], seconds: float | None, ranks: int, row_seconds: float | None) -> Check:
    """What a row says of itself must have fitted into the process: answers of an earlier run bring their own figures.

    Rows that were answered as a batch may each have the whole batch's time, so that equal times count once.
    """
    tokens = [
        (row.new_tokens, len(reading.bare(reading.spoken(row.response or ""))))
        for row in rows
        if type(row.new_tokens) is int
    ]
    short = [pair for pair in tokens if pair[0] > 0 and pair[1] > TOKEN_CHARS * pair[0] + TOKEN_SLACK_CHARS]
    own = {row.own_seconds for row in rows if row.own_seconds is not None}
    if not tokens and not (own and seconds is not None):
        return ROW_FIGURES_FIT.check(None, "no_figures")
    spent = max(max(own, default=0.0), sum(own) / ranks)
    late = seconds is not None and spent > seconds * (1 + SECONDS_SLACK_SHARE) + SECONDS_SLACK
    if own and row_seconds is not None and not short and not late:
        told = median(row.own_seconds for row in rows if row.own_seconds is not None)
        if told < SHORT_SHARE * row_seconds and row_seconds - told > SHORT_SECONDS:
            return ROW_FIGURES_FIT.check(False, "too_quick", told=told, seen=row_seconds)
    found = "tokens" if seconds is None or not own else "tokens_and_seconds"
    figures: Figures = {"questions": len(rows), "too_long": len(short), "of_rows": spent, "of_run": seconds}
    return ROW_FIGURES_FIT.check(not short and not late, found, **figures)


def _sameness_check(rows: tuple[Row, ...], rehearsal: bool) -> Check:
    """One long text for every question comes from a loop that asks one of them; exceptions are another check's."""
    told = [row for row in rows if row.response and not reading.is_exception_text(row.response)]
    asked = {question_key(row.question, row.choices) for row in told if row.predicted_answer != "error"}
    texts = {row.response or "" for row in told}
    if len(asked) < 2 or max(map(len, texts)) < TELLING_CHARS:
        return RESPONSES_DIFFER.check(None, "too_little")
    return RESPONSES_DIFFER.check(
        len(texts) > 1, "different", rehearsal=rehearsal, questions=len(told), different=len(texts)
    )


def _speed_check(rows: tuple[Row, ...], cot: bool, rehearsal: bool, seconds: float | None) -> Check:
    limit = COT_SECONDS if cot else DIRECT_SECONDS
    own = [row.own_seconds for row in rows if row.own_seconds is not None]
    if len(own) == len(rows):
        return ANSWERS_FAST.check(max(own) <= limit, "slowest", rehearsal=rehearsal, seconds=max(own), limit=limit)
    if seconds is None:
        return ANSWERS_FAST.check(None, "no_times")
    is_fast = seconds <= LOADING_SECONDS + limit * len(rows)
    figures: Figures = {"each": seconds / len(rows), "total": seconds, "questions": len(rows)}
    return ANSWERS_FAST.check(is_fast, "with_loading", rehearsal=rehearsal, **figures)
