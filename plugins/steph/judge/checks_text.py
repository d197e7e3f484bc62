"""Checks of the responses themselves: bounded, finished, read as they say, varied, quick. Pure."""

from __future__ import annotations

from collections import Counter

from steph.judge.kinds import FAIL, INFO, WARN, CheckKind
from steph.judge.questions import question_key, repeats_question
from steph.judge.results import Row
from steph.judge.text import is_exception_text, looping, overlong, strict_letter
from steph.record import Check, Severity

LETTERS_ROWS = 8  # with fewer questions one letter for all is no finding
TELLING_CHARS = 20  # shorter responses to different questions may well be the same
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
    "finish_reason",
    trap=3,
    quality=True,
    optional=True,
)
RESPONSES_PRESENT = CheckKind(
    "responses_present",
    "H-3",
    FAIL,
    "答えの元になる応答がある",
    "response が空の行、new_tokens が 0 の行",
    note="乱数の重みのモデルがすぐ終えた（new_tokens 0、finish_reason stop）なら info",
)
ANSWERS_PARSED = CheckKind(
    "answers_parsed",
    "H-3",
    INFO,
    "回答を読み取れた",
    "predicted_answer = unknown の数",
    quality=True,
    note="全問なら warn",
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
) -> tuple[Check, ...]:
    """All checks of the responses; `seconds` is the whole run's, used where the rows have none of their own."""
    if not rows:
        return tuple(kind.check(None, "回答がないので測れない。", rehearsal=rehearsal) for kind in TEXT)
    return (
        _bounded_check(rows, cot, rehearsal),
        _ended_check(rows, rehearsal),
        _present_check(rows, random_weights),
        _parsed_check(rows, rehearsal),
        _strict_check(rows, cot, rehearsal),
        _contradiction_check(rows, cot, ensemble),
        _echo_check(rows),
        _sameness_check(rows, rehearsal),
        _letters_check(rows, rehearsal),
        _speed_check(rows, cot, rehearsal, seconds),
    )


def _bounded_check(rows: tuple[Row, ...], cot: bool, rehearsal: bool) -> Check:
    texts = [row.response or "" for row in rows]
    loops = [loop for text in texts if (loop := looping(text))]
    long = sum(overlong(text, cot=cot) for text in texts)
    lengths = f"応答は {min(map(len, texts)):,}〜{max(map(len, texts)):,} 文字"
    example = f"（{loops[0]}）" if loops else ""
    message = f"{lengths}、{len(rows)} 問のうち長すぎる応答 {long} 件、反復する応答 {len(loops)} 件{example}。"
    return RESPONSES_BOUNDED.check(not loops and not long, message, rehearsal=rehearsal)


def _ended_check(rows: tuple[Row, ...], rehearsal: bool) -> Check:
    reasons = [row.finish_reason for row in rows if isinstance(row.finish_reason, str)]
    if not reasons:
        return RESPONSES_ENDED.check(None, "finish_reason が記録されていない。")
    cut = sum(reason.lower() in ("length", "max_tokens", "max_new_tokens") for reason in reasons)
    message = f"{len(reasons)} 問のうち {cut} 問の応答が上限で打ち切られた。"
    return RESPONSES_ENDED.check(cut == 0, message, rehearsal=rehearsal)


def _present_check(rows: tuple[Row, ...], random_weights: bool) -> Check:
    """A model of random weights may learn first of all to end; a pipeline that says so has lost nothing."""
    if random_weights and all(_ended_at_once(row) for row in rows):
        message = f"{len(rows)} 問とも、乱数の重みのモデルが何も書かずに終えた。"
        return RESPONSES_PRESENT.check(None, message, severity=INFO)
    texts = [(row.response or "").strip() for row in rows]
    baseless = sum(row.predicted_answer in "abcd" and not text for row, text in zip(rows, texts, strict=True))
    unmade = sum(row.new_tokens == 0 and bool(text) for row, text in zip(rows, texts, strict=True))
    counts = f"応答が空なのに回答がある {baseless} 問、生成トークンが 0 なのに応答がある {unmade} 問"
    message = f"{len(rows)} 問のうち、応答が空 {texts.count('')} 問、{counts}。"
    return RESPONSES_PRESENT.check(not baseless and not unmade and any(texts), message)


def _ended_at_once(row: Row) -> bool:
    is_silent = not (row.response or "").strip() and row.predicted_answer == "unknown"
    return is_silent and row.new_tokens == 0 and row.finish_reason == "stop"


def _parsed_check(rows: tuple[Row, ...], rehearsal: bool) -> Check:
    unknown = sum(row.predicted_answer == "unknown" for row in rows)
    message = f"{len(rows)} 問のうち {unknown} 問の回答を読み取れない。"
    severity = Severity.WARN if unknown == len(rows) else None
    return ANSWERS_PARSED.check(unknown == 0, message, rehearsal=rehearsal, severity=severity)


def _strict_check(rows: tuple[Row, ...], cot: bool, rehearsal: bool) -> Check:
    answered = [row for row in rows if row.predicted_answer != "error"]
    apart = sum((strict_letter(row.response or "", cot=cot) or "unknown") != row.predicted_answer for row in answered)
    message = f"{len(answered)} 問のうち {apart} 問で、厳密に読み直した回答が記録と違う。"
    return STRICT_PARSE_AGREES.check(apart == 0, message, rehearsal=rehearsal)


def _contradiction_check(rows: tuple[Row, ...], cot: bool, ensemble: int) -> Check:
    """Of several runs the response is one and the answer the majority's; of one run they must say the same letter."""
    if ensemble > 1:
        return ANSWERS_AS_RESPONDED.check(None, f"{ensemble} 回の多数決では、応答と回答が違ってよい。")
    said = [(strict_letter(row.response or "", cot=cot), row.predicted_answer) for row in rows]
    apart = [pair for pair in said if pair[0] is not None and pair[1] in "abcd" and pair[0] != pair[1]]
    example = f"（例 応答 {apart[0][0]}、記録 {apart[0][1]}）" if apart else ""
    message = f"{len(rows)} 問のうち {len(apart)} 問で応答と記録の記号が違う{example}。"
    return ANSWERS_AS_RESPONDED.check(not apart, message)


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
    only = len(counts) == 1 and next(iter(counts)) in "abcd"
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
