"""Checks of the responses themselves: bounded, finished, there, varied, quick. Pure."""

from __future__ import annotations

from steph.base.messages import NOTHING, say
from steph.contract.questions import question_key, repeats_question
from steph.contract.results import EvaluationKind, Row
from steph.judge.checks_reading import READINGS, reading_checks
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind, Needs
from steph.judge.reading import (
    LETTERS,
    bare,
    is_blank,
    is_exception_text,
    spoken,
    thought_is_open,
    without_special,
)
from steph.judge.text import COT_CHARS, looping, overlong
from steph.record.values import Check

TELLING_CHARS = 20  # shorter responses to different questions may well be the same
TOKEN_CHARS, TOKEN_SLACK_CHARS = 16, 16  # no tokenizer has words that long in a row
SECONDS_SLACK, SECONDS_SLACK_SHARE = 1.0, 0.05
DIRECT_SECONDS, COT_SECONDS = 30.0, 90.0  # per question, generation alone
LOADING_SECONDS = 120.0  # what starting Python and loading a model may take of a whole run

RESPONSES_BOUNDED = CheckKind("responses_bounded", "H-3", FAIL, trap=3, quality=True, needs=(Needs.RESPONSES,))
RESPONSES_ENDED = CheckKind(
    "responses_ended", "H-3", WARN, trap=3, quality=True, optional=True, needs=(Needs.RESPONSES,)
)
RESPONSES_PRESENT = CheckKind("responses_present", "H-3", FAIL, needs=(Needs.RESPONSES,))
ANSWERS_FAST = CheckKind("answers_fast", "H-3", WARN, trap=3, quality=True, optional=True)
ROW_FIGURES_FIT = CheckKind("row_figures_fit", "H-3", WARN, optional=True, needs=(Needs.RESPONSES,))
PROMPT_NOT_ECHOED = CheckKind("prompt_not_echoed", "H-3", WARN, trap=8, optional=True, needs=(Needs.RESPONSES,))
RESPONSES_DIFFER = CheckKind("responses_differ", "H-3", WARN, quality=True, optional=True, needs=(Needs.RESPONSES,))
TEXT = (
    RESPONSES_BOUNDED,
    RESPONSES_ENDED,
    RESPONSES_PRESENT,
    *READINGS,
    ROW_FIGURES_FIT,
    PROMPT_NOT_ECHOED,
    RESPONSES_DIFFER,
    ANSWERS_FAST,
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
) -> tuple[Check, ...]:
    """All checks of the responses; `seconds` is the whole run's, `ranks` how many processes answered at a time."""
    if not rows:
        return tuple(one.check(None, say("evaluation.no_answers"), rehearsal=rehearsal) for one in TEXT)
    return (
        _bounded_check(rows, cot, rehearsal, is_free=kind == "generate"),
        _ended_check(rows, rehearsal),
        _present_check(rows, random_weights, is_free=kind == "generate"),
        *reading_checks(rows, labels, cot=cot, ensemble=ensemble, rehearsal=rehearsal, random_weights=random_weights),
        _figures_check(rows, seconds, ranks),
        _echo_check(rows),
        _sameness_check(rows, rehearsal),
        _speed_check(rows, cot, rehearsal, seconds),
    )


def _bounded_check(rows: tuple[Row, ...], cot: bool, rehearsal: bool, *, is_free: bool) -> Check:
    """Loops, and answers that are longer than a choice needs; a free text (`is_free`) may be as long as it likes."""
    texts = [without_special(row.response or "") for row in rows]
    loops = [loop for text in texts if (loop := looping(text))]
    long = 0 if is_free else sum(_is_overlong(text, cot) for text in texts)
    return RESPONSES_BOUNDED.check(
        not loops and not long,
        "looping" if loops else "lengths",
        rehearsal=rehearsal,
        shortest=min(map(len, texts)),
        longest=max(map(len, texts)),
        questions=len(rows),
        too_long=long,
        loops=len(loops),
        example=loops[0] if loops else NOTHING,
    )


def _is_overlong(text: str, cot: bool) -> bool:
    """Thoughts that were closed may be as long as a reasoning; what is said after them may not."""
    said = spoken(text)
    return overlong(said, cot=cot) or (
        len(text) > COT_CHARS if said and said != text.strip() else overlong(text, cot=cot)
    )


def _ended_check(rows: tuple[Row, ...], rehearsal: bool) -> Check:
    open_thoughts = [thought_is_open(row.response or "") for row in rows]
    reasons = [row.finish_reason.lower() for row in rows if isinstance(row.finish_reason, str)]
    if not reasons and not any(open_thoughts):
        return RESPONSES_ENDED.check(None, "no_reason")
    at_limit = [reason in ("length", "max_tokens", "max_new_tokens") for reason in reasons]
    if len(reasons) == len(rows) and all(at_limit) and all(row.new_tokens == 1 for row in rows):
        # not a matter of the model's words: with one token nothing can end
        return RESPONSES_ENDED.check(False, "one_token", questions=len(rows))
    return RESPONSES_ENDED.check(
        not any(at_limit) and not any(open_thoughts),
        "ends",
        rehearsal=rehearsal,
        questions=len(rows),
        cut=sum(at_limit),
        thinking=sum(open_thoughts),
    )


def _present_check(rows: tuple[Row, ...], random_weights: bool, *, is_free: bool) -> Check:
    """A model of random weights may learn first of all to end; a pipeline that says so has lost nothing.

    A free text (`is_free`) may be cut at a first word that ends it, which random weights say as well as any other.
    """
    at_once = [random_weights and _ended_at_once(row) for row in rows]
    if all(at_once):
        return RESPONSES_PRESENT.check(None, "random_weights", severity=INFO, questions=len(rows))
    blank = [is_blank(row.response) for row in rows]
    answered = [bool(row.predicted_answer) and row.is_answered for row in rows]
    baseless = sum(one and empty for one, empty in zip(answered, blank, strict=True))
    unmade = sum(row.new_tokens == 0 and not empty for row, empty in zip(rows, blank, strict=True))
    lost = sum(empty and not silent for empty, silent in zip(blank, at_once, strict=True))
    is_hard = baseless or unmade or (2 * lost > len(rows) and not (random_weights and is_free))
    return RESPONSES_PRESENT.check(
        not is_hard and not lost,
        "counts",
        severity=FAIL if is_hard or not lost else WARN,
        questions=len(rows),
        empty=sum(blank),
        baseless=baseless,
        unmade=unmade,
    )


def _ended_at_once(row: Row) -> bool:
    is_silent = is_blank(row.response) and row.predicted_answer in ("", "unknown")
    return is_silent and row.new_tokens == 0 and row.finish_reason == "stop"


def _figures_check(rows: tuple[Row, ...], seconds: float | None, ranks: int) -> Check:
    """What a row says of itself must have fitted into the process: answers of an earlier run bring their own figures.

    Rows that were answered as a batch may each have the whole batch's time, so that equal times count once.
    """
    tokens = [(row.new_tokens, len(bare(spoken(row.response or "")))) for row in rows if type(row.new_tokens) is int]
    short = [pair for pair in tokens if pair[0] > 0 and pair[1] > TOKEN_CHARS * pair[0] + TOKEN_SLACK_CHARS]
    own = {row.own_seconds for row in rows if row.own_seconds is not None}
    if not tokens and not (own and seconds is not None):
        return ROW_FIGURES_FIT.check(None, "no_figures")
    spent = max(max(own, default=0.0), sum(own) / ranks)
    late = seconds is not None and spent > seconds * (1 + SECONDS_SLACK_SHARE) + SECONDS_SLACK
    return ROW_FIGURES_FIT.check(
        not short and not late,
        "tokens" if seconds is None or not own else "tokens_and_seconds",
        questions=len(rows),
        too_long=len(short),
        of_rows=spent,
        of_run=seconds,
    )


def _echo_check(rows: tuple[Row, ...]) -> Check:
    """Generated tokens that were not cut from the prompt's bring the whole prompt, and a parser its letters."""
    echoes = sum(repeats_question(row.response or "", row.question, row.choices) for row in rows)
    return PROMPT_NOT_ECHOED.check(2 * echoes <= len(rows), "echoes", questions=len(rows), echoes=echoes)


def _sameness_check(rows: tuple[Row, ...], rehearsal: bool) -> Check:
    """One long text for every question comes from a loop that asks one of them; exceptions are another check's."""
    told = [row for row in rows if row.response and not is_exception_text(row.response)]
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
    return ANSWERS_FAST.check(
        seconds <= LOADING_SECONDS + limit * len(rows),
        "with_loading",
        rehearsal=rehearsal,
        each=seconds / len(rows),
        total=seconds,
        questions=len(rows),
    )
