"""Checks of the responses themselves: bounded, finished, read as they say, varied, quick. Pure."""

from __future__ import annotations

import unicodedata
from collections import Counter

from steph.judge.kinds import FAIL, INFO, WARN, CheckKind, bounded
from steph.judge.questions import choices_of, question_key, repeats_question
from steph.judge.reading import (
    LETTERS,
    is_blank,
    is_exception_text,
    names_label,
    spoken,
    strict_letter,
    thought_is_open,
    without_special,
)
from steph.judge.results import Row
from steph.judge.text import COT_CHARS, looping, overlong
from steph.record import Check

LETTERS_ROWS = 8  # with fewer questions one letter for all is no finding
TELLING_CHARS = 20  # shorter responses to different questions may well be the same
TOKEN_CHARS, TOKEN_SLACK_CHARS = 16, 16  # no tokenizer has words that long in a row
_NUMBERS = ("1", "2", "3", "4")
SECONDS_SLACK, SECONDS_SLACK_SHARE = 1.0, 0.05
DIRECT_SECONDS, COT_SECONDS = 30.0, 90.0  # per question, generation alone
LOADING_SECONDS = 120.0  # what starting Python and loading a model may take of a whole run

RESPONSES_BOUNDED = CheckKind(
    "responses_bounded",
    "H-3",
    FAIL,
    "応答が暴走・反復していない",
    "response の長さ、行と文字列の反復",
    trap=3,
    quality=True,
)
RESPONSES_ENDED = CheckKind(
    "responses_ended",
    "H-3",
    WARN,
    "応答が上限で打ち切られていない",
    "finish_reason、new_tokens、閉じていない <think>",
    trap=3,
    quality=True,
    optional=True,
    note="どの応答も 1 トークンで上限なら、予行でも warn",
)
RESPONSES_PRESENT = CheckKind(
    "responses_present",
    "H-3",
    FAIL,
    "答えの元になる応答がある",
    "response が空の行、new_tokens が 0 の行",
    note="空の応答が半数までなら warn、乱数の重みのモデルがすぐ終えた（new_tokens 0、finish_reason stop）なら info",
)
ANSWERS_PARSED = CheckKind(
    "answers_parsed",
    "H-3",
    INFO,
    "回答を読み取れた",
    "predicted_answer = unknown の数",
    quality=True,
    note="全問なら、重みが乱数でないかぎり予行でも warn",
)
STRICT_PARSE_AGREES = CheckKind(
    "strict_parse_agrees",
    "H-3",
    WARN,
    "厳密に読み直した回答と一致する",
    "response と predicted_answer",
    trap=8,
    quality=True,
)
LETTERS_VARY = CheckKind(
    "letters_vary",
    "H-3",
    WARN,
    "回答が一つの記号に偏っていない",
    "predicted_answer（8 問から）",
    trap=17,
    quality=True,
    optional=True,
)
ANSWERS_FAST = CheckKind(
    "answers_fast",
    "H-3",
    WARN,
    "1 問あたりの時間が長すぎない",
    "JSON の seconds、なければ実行時間を問題数で割った値",
    trap=3,
    quality=True,
    optional=True,
)
ANSWERS_AS_RESPONDED = CheckKind(
    "answers_as_responded",
    "H-3",
    FAIL,
    "記録された回答が応答の記号と食い違わない",
    "response を厳密に読んだ記号と predicted_answer（多数決なしのとき）",
    trap=8,
    optional=True,
)
ANSWERS_GROUNDED = CheckKind(
    "answers_grounded",
    "H-3",
    WARN,
    "記録された回答のもとが応答にある",
    "response（思考の外）にある記号・番号・選択肢の文と predicted_answer（多数決なしのとき）",
    trap=28,
    optional=True,
)
ROW_FIGURES_FIT = CheckKind(
    "row_figures_fit",
    "H-3",
    WARN,
    "行の秒数とトークン数が、実行時間と応答に合う",
    "JSON の seconds・new_tokens、応答の長さ、プロセスの実行時間",
    optional=True,
)
PROMPT_NOT_ECHOED = CheckKind(
    "prompt_not_echoed",
    "H-3",
    WARN,
    "応答がプロンプトの写しでない",
    "response と question・choices（過半数の問題で）",
    trap=8,
    optional=True,
)
RESPONSES_DIFFER = CheckKind(
    "responses_differ",
    "H-3",
    WARN,
    "違う問題に違う応答がある",
    "response（20 文字から）",
    quality=True,
    optional=True,
)
TEXT = (
    RESPONSES_BOUNDED,
    RESPONSES_ENDED,
    RESPONSES_PRESENT,
    ANSWERS_PARSED,
    STRICT_PARSE_AGREES,
    ANSWERS_AS_RESPONDED,
    ANSWERS_GROUNDED,
    ROW_FIGURES_FIT,
    PROMPT_NOT_ECHOED,
    RESPONSES_DIFFER,
    LETTERS_VARY,
    ANSWERS_FAST,
)


def response_checks(
    rows: tuple[Row, ...] | None,
    *,
    cot: bool,
    ensemble: int,
    rehearsal: bool,
    seconds: float | None,
    random_weights: bool = False,
    ranks: int = 1,
) -> tuple[Check, ...]:
    """All checks of the responses; `seconds` is the whole run's, `ranks` how many processes answered at a time."""
    if not rows:
        return tuple(kind.check(None, "回答がないので測れない。", rehearsal=rehearsal) for kind in TEXT)
    return (
        _bounded_check(rows, cot, rehearsal),
        _ended_check(rows, rehearsal),
        _present_check(rows, random_weights),
        _parsed_check(rows, rehearsal, random_weights),
        _strict_check(rows, cot, rehearsal),
        _contradiction_check(rows, cot, ensemble),
        _grounded_check(rows, cot, ensemble),
        _figures_check(rows, seconds, ranks),
        _echo_check(rows),
        _sameness_check(rows, rehearsal),
        _letters_check(rows, rehearsal),
        _speed_check(rows, cot, rehearsal, seconds),
    )


def _bounded_check(rows: tuple[Row, ...], cot: bool, rehearsal: bool) -> Check:
    texts = [without_special(row.response or "") for row in rows]
    loops = [loop for text in texts if (loop := looping(text))]
    long = sum(_is_overlong(text, cot) for text in texts)
    lengths = f"応答は {min(map(len, texts)):,}〜{max(map(len, texts)):,} 文字"
    example = f"（{loops[0]}）" if loops else ""
    message = f"{lengths}、{len(rows)} 問のうち長すぎる応答 {long} 件、反復する応答 {len(loops)} 件{example}。"
    return RESPONSES_BOUNDED.check(not loops and not long, message, rehearsal=rehearsal)


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
        return RESPONSES_ENDED.check(None, "finish_reason が記録されていない。")
    at_limit = [reason in ("length", "max_tokens", "max_new_tokens") for reason in reasons]
    counts = f"{sum(at_limit)} 問の応答が上限で打ち切られ、{sum(open_thoughts)} 問の思考が閉じていない"
    message = f"{len(rows)} 問のうち {counts}。"
    if len(reasons) == len(rows) and all(at_limit) and all(row.new_tokens == 1 for row in rows):
        # not a matter of the model's words: with one token nothing can end
        return RESPONSES_ENDED.check(False, f"{len(rows)} 問とも 1 トークンで上限に達した。")
    return RESPONSES_ENDED.check(not any(at_limit) and not any(open_thoughts), message, rehearsal=rehearsal)


def _present_check(rows: tuple[Row, ...], random_weights: bool) -> Check:
    """A model of random weights may learn first of all to end; a pipeline that says so has lost nothing."""
    at_once = [random_weights and _ended_at_once(row) for row in rows]
    if all(at_once):
        message = f"{len(rows)} 問とも、乱数の重みのモデルが何も書かずに終えた。"
        return RESPONSES_PRESENT.check(None, message, severity=INFO)
    blank = [is_blank(row.response) for row in rows]
    baseless = sum(row.is_answered and empty for row, empty in zip(rows, blank, strict=True))
    unmade = sum(row.new_tokens == 0 and not empty for row, empty in zip(rows, blank, strict=True))
    lost = sum(empty and not silent for empty, silent in zip(blank, at_once, strict=True))
    counts = f"応答が空なのに回答がある {baseless} 問、生成トークンが 0 なのに応答がある {unmade} 問"
    message = f"{len(rows)} 問のうち、応答が空 {sum(blank)} 問、{counts}。"
    is_hard = baseless or unmade or 2 * lost > len(rows)
    return RESPONSES_PRESENT.check(not is_hard and not lost, message, severity=FAIL if is_hard or not lost else WARN)


def _ended_at_once(row: Row) -> bool:
    is_silent = is_blank(row.response) and row.predicted_answer == "unknown"
    return is_silent and row.new_tokens == 0 and row.finish_reason == "stop"


def _parsed_check(rows: tuple[Row, ...], rehearsal: bool, random_weights: bool) -> Check:
    """That not one answer can be read is about the programs, unless the weights are random."""
    unknown = sum(row.predicted_answer == "unknown" for row in rows)
    message = f"{len(rows)} 問のうち {unknown} 問の回答を読み取れない。"
    if unknown == len(rows):
        return ANSWERS_PARSED.check(False, message, rehearsal=rehearsal and random_weights, severity=WARN)
    return ANSWERS_PARSED.check(unknown == 0, message, rehearsal=rehearsal)


def _read(row: Row, cot: bool) -> str | None:
    """The answer that a response gives beyond doubt: by letter, by its choice's own label, or as its choice's text."""
    response = row.response or ""
    if letter := strict_letter(response, cot=cot):
        return letter
    choices = choices_of(row.choices)
    labels = choices.labels if len(choices.labels) == len(LETTERS) else ()
    if labels and labels != LETTERS and (label := strict_letter(response, cot=cot, labels=labels)):
        return LETTERS[labels.index(label)]
    said = _bare(spoken(response))
    held = [n for n, text in enumerate(choices.texts[: len(LETTERS)]) if _bare(text) == said]
    return LETTERS[held[0]] if said and len(held) == 1 else None


def _read_number(row: Row, cot: bool) -> str | None:
    """The letter of the choice whose number a response gives, where nothing numbers the choices otherwise."""
    number = strict_letter(row.response or "", cot=cot, labels=_NUMBERS)
    return LETTERS[_NUMBERS.index(number)] if number else None


def _strict_check(rows: tuple[Row, ...], cot: bool, rehearsal: bool) -> Check:
    answered = [row for row in rows if row.predicted_answer != "error"]
    said = [_read(row, cot) or _read_number(row, cot) or "unknown" for row in answered]
    apart = sum(letter != row.predicted_answer for letter, row in zip(said, answered, strict=True))
    message = f"{len(answered)} 問のうち {apart} 問で、厳密に読み直した回答が記録と違う。"
    return STRICT_PARSE_AGREES.check(apart == 0, message, rehearsal=rehearsal)


def _contradiction_check(rows: tuple[Row, ...], cot: bool, ensemble: int) -> Check:
    """Of several runs the response is one and the answer the majority's; of one run they must say the same letter."""
    if ensemble > 1:
        return ANSWERS_AS_RESPONDED.check(None, f"{ensemble} 回の多数決では、応答と回答が違ってよい。")
    said = [(_read(row, cot), row.predicted_answer) for row in rows if row.is_answered]
    apart = [pair for pair in said if pair[0] is not None and pair[0] != pair[1]]
    example = f"（例 応答 {apart[0][0]}、記録 {apart[0][1]}）" if apart else ""
    message = f"{len(rows)} 問のうち {len(apart)} 問で応答と記録の記号が違う{example}。"
    return ANSWERS_AS_RESPONDED.check(not apart, message)


def _grounded_check(rows: tuple[Row, ...], cot: bool, ensemble: int) -> Check:
    """A default letter, a letter out of unfinished thoughts, a digit counted from zero: nothing said leads to them.

    A response that plainly gives another letter is the check above's, and an exception's text is another's.
    """
    if ensemble > 1:
        return ANSWERS_GROUNDED.check(None, f"{ensemble} 回の多数決では、記録された応答は一つだけ。")
    told = [row for row in rows if row.is_answered and not is_blank(row.response)]
    told = [row for row in told if _read(row, cot) is None and not is_exception_text(row.response or "")]
    baseless = [row for row in told if not _is_grounded(row)]
    example = (
        f"（例 記録 {baseless[0].predicted_answer}、応答 {bounded(baseless[0].response, 60)}）" if baseless else ""
    )
    message = f"{len(rows)} 問のうち {len(baseless)} 問で、記録された回答が応答のどこにもない{example}。"
    return ANSWERS_GROUNDED.check(not baseless, message)


def _is_grounded(row: Row) -> bool:
    said, place, choices = spoken(row.response or ""), LETTERS.index(row.predicted_answer), choices_of(row.choices)
    own = choices.labels[place] if place < len(choices.labels) else None
    numbered = own if own and own.isdigit() else str(place + 1)
    if any(names_label(said, label) for label in {row.predicted_answer, numbered, own} if label):
        return True
    shared = [len(_pieces(said) & _pieces(text)) for text in choices.texts]
    return place < len(shared) and shared[place] > max((n for at, n in enumerate(shared) if at != place), default=0)


def _pieces(text: str) -> set[str]:
    bare = _bare(text)
    return {bare[at : at + 3] for at in range(len(bare) - 2)} or {bare} - {""}


def _bare(text: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text))).casefold()


def _figures_check(rows: tuple[Row, ...], seconds: float | None, ranks: int) -> Check:
    """What a row says of itself must have fitted into the process: answers of an earlier run bring their own figures.

    Rows that were answered as a batch may each have the whole batch's time, so that equal times count once.
    """
    tokens = [(row.new_tokens, len(_bare(spoken(row.response or "")))) for row in rows if type(row.new_tokens) is int]
    short = [pair for pair in tokens if pair[0] > 0 and pair[1] > TOKEN_CHARS * pair[0] + TOKEN_SLACK_CHARS]
    own = {row.own_seconds for row in rows if row.own_seconds is not None}
    if not tokens and not (own and seconds is not None):
        return ROW_FIGURES_FIT.check(None, "JSON に秒数もトークン数もない。")
    spent = max(max(own, default=0.0), sum(own) / ranks)
    late = seconds is not None and spent > seconds * (1 + SECONDS_SLACK_SHARE) + SECONDS_SLACK
    message = f"{len(rows)} 問のうち、トークン数に対して長すぎる応答 {len(short)} 件"
    times = (
        f"行の秒数は合わせて {spent:.1f} 秒、実行は {seconds:.1f} 秒"
        if own and seconds is not None
        else "秒数は測れない"
    )
    return ROW_FIGURES_FIT.check(not short and not late, f"{message}、{times}。")


def _echo_check(rows: tuple[Row, ...]) -> Check:
    """Generated tokens that were not cut from the prompt's bring the whole prompt, and a parser its letters."""
    echoes = sum(repeats_question(row.response or "", row.question, row.choices) for row in rows)
    message = f"{len(rows)} 問のうち {echoes} 問の応答に問題文と選択肢がそのまま入っている。"
    return PROMPT_NOT_ECHOED.check(2 * echoes <= len(rows), message)


def _sameness_check(rows: tuple[Row, ...], rehearsal: bool) -> Check:
    """One long text for every question comes from a loop that asks one of them; exceptions are another check's."""
    told = [row for row in rows if row.response and not is_exception_text(row.response)]
    asked = {question_key(row.question, row.choices) for row in told if row.predicted_answer != "error"}
    texts = {row.response or "" for row in told}
    if len(asked) < 2 or max(map(len, texts)) < TELLING_CHARS:
        return RESPONSES_DIFFER.check(None, "応答が短いか 1 問だけなので、同じでも何も言えない。")
    return RESPONSES_DIFFER.check(len(texts) > 1, f"{len(told)} 問の応答は {len(texts)} 通り。", rehearsal=rehearsal)


def _letters_check(rows: tuple[Row, ...], rehearsal: bool) -> Check:
    counts = Counter(row.predicted_answer for row in rows)
    shown = "、".join(f"{letter} {count}" for letter, count in sorted(counts.items()))
    if len(rows) < LETTERS_ROWS:
        return LETTERS_VARY.check(None, f"{len(rows)} 問では偏りを測れない（{shown}）。")
    only = len(counts) == 1 and rows[0].is_answered
    return LETTERS_VARY.check(not only, f"{len(rows)} 問の回答は {shown}。", rehearsal=rehearsal)


def _speed_check(rows: tuple[Row, ...], cot: bool, rehearsal: bool, seconds: float | None) -> Check:
    limit = COT_SECONDS if cot else DIRECT_SECONDS
    own = [row.own_seconds for row in rows if row.own_seconds is not None]
    if len(own) == len(rows):
        message = f"1 問あたり最長 {max(own):.1f} 秒（目安 {limit:.0f} 秒）。"
        return ANSWERS_FAST.check(max(own) <= limit, message, rehearsal=rehearsal)
    if seconds is None:
        return ANSWERS_FAST.check(None, "時間が記録されていない。")
    each = seconds / len(rows)
    holds = seconds <= LOADING_SECONDS + limit * len(rows)
    message = f"読み込みを含めて 1 問あたり {each:.1f} 秒（全体 {seconds:.0f} 秒、{len(rows)} 問）。"
    return ANSWERS_FAST.check(holds, message, rehearsal=rehearsal)
