"""What a model's response looks like: loops, length, a strict reading of the answer. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

DIRECT_CHARS = 1000  # a direct answer is one letter; a chatty one explains itself in some hundred characters
COT_CHARS = 4000
LOOPED_LINES, LOOPED_SHARE = 5, 0.3
ONE_CHARACTER_CHARS = 5  # "!!!!!": what a model whose figures became NaN says
LOOP_MIN_CHARS, LOOP_TURNS = 48, 4
NGRAM_CHARS, NGRAM_MIN_TEXT, NGRAM_DISTINCT = 8, 300, 0.4
_LOOKED_AT_CHARS = 20_000
_TAIL_CHARS = 4000

_LETTER = r"[「『(（\[【*]*+([a-d])[」』)）\]】*]*+"
_LEAD = (
    r"(?:(?:the )?(?:correct )?(?:answer|option)(?: is)?|最終回答|回答|解答|答え|答|正解|選択肢|正しい(?:もの|選択肢))"
)
_END = r"[\s。．.、,:：]*+(?:です|である|だ|となります|になります)?[\s。．.]*+"
_ALONE = re.compile(rf"\s*+{_LETTER}{_END}")
_LEADING_WORDS = rf"[#*\s]*+{_LEAD}[\s*]*+(?:は|が)?[\s:：]*+(?:選択肢)?\s*+"
_LED = re.compile(rf"{_LEADING_WORDS}{_LETTER}{_END}[*\s]*+")
_LED_TEXT = re.compile(
    rf"{_LEADING_WORDS}[「『(（\[【*]*+([a-d])[」』)）\]】*]{{0,9}}[\s.、,:)]{{1,40}}(?=[^\sa-z])[^\n]*+"
)
_REASONING_LABEL = re.compile(r"[#*\s]{0,40}(?:reasoning|理由|根拠)[\s*]{0,40}:")
_LEADING = re.compile(r"\s*+([a-d])[\s.．、,:：)）。]{1,40}(?=[^\sa-z])")
_OTHER_LETTER = re.compile(r"(?<![a-z0-9])[a-d](?![a-z0-9])")
_DIGITS = re.compile(r"\d+")
_EXCEPTION = re.compile(
    r"\s*(?:Error\b|エラー|Traceback \(most recent|CUDA out of memory"
    r"|(?:\w{1,60}\.){0,6}[A-Z]\w{0,60}(?:Error|Exception)\b[:(])"
)


def looping(text: str) -> str | None:
    """How the text repeats itself, in Japanese; None where it does not."""
    bare = "".join(text.split())
    if len(bare) >= ONE_CHARACTER_CHARS and len(set(bare)) == 1:
        return f"「{bare[0]}」だけが {len(bare)} 文字"
    text = _DIGITS.sub("0", text)  # a loop that counts its turns is a loop
    looked_at = text[:_LOOKED_AT_CHARS]
    if repeats := _repeated_lines(looked_at):
        return f"同じ行が {repeats} 回"
    if turns := _tail_turns(text[-_TAIL_CHARS:].rstrip()):
        return f"末尾で同じ文字列が {turns} 回"
    distinct = _distinct_ngrams(looked_at)
    if distinct < NGRAM_DISTINCT:
        return f"文字列の {100 * (1 - distinct):.0f} % が繰り返し"
    return None


def _repeated_lines(text: str) -> int:
    """How often the commonest line comes, where it is much of the text; else 0 (statutes repeat headings)."""
    lines = Counter(line.strip() for line in text.splitlines() if any(map(str.isalnum, line)))
    if not lines:
        return 0
    line, count = lines.most_common(1)[0]
    share = count * len(line) / sum(len(other) * n for other, n in lines.items())
    return count if count >= LOOPED_LINES and share >= LOOPED_SHARE else 0


def _tail_turns(text: str) -> int:
    """How often the end of the text repeats one string (0 below the limits), by the reversed text's prefix function."""
    reverse = text[::-1]
    borders, turns, longest = [0] * len(reverse), 0, 0
    for n in range(1, len(reverse)):
        k = borders[n - 1]
        while k and reverse[n] != reverse[k]:
            k = borders[k - 1]
        borders[n] = k + (reverse[n] == reverse[k])
        length = n + 1
        period = length - borders[n]
        if length >= LOOP_MIN_CHARS and length >= LOOP_TURNS * period and length > longest:
            longest, turns = length, length // period
    return turns


def _distinct_ngrams(text: str) -> float:
    squeezed = "".join(text.split())
    count = len(squeezed) - NGRAM_CHARS + 1
    if len(squeezed) < NGRAM_MIN_TEXT:
        return 1.0
    return len({squeezed[n : n + NGRAM_CHARS] for n in range(count)}) / count


def overlong(text: str, *, cot: bool) -> bool:
    """Whether a response is longer than any honest one: a direct answer needs one letter, CoT one reasoning."""
    return len(text) > (COT_CHARS if cot else DIRECT_CHARS)


def strict_letter(response: str, *, cot: bool) -> str | None:
    """The letter that a response gives as its answer beyond doubt; None where it gives none or several."""
    text = unicodedata.normalize("NFKC", _without_thought(response[:_LOOKED_AT_CHARS])).strip().lower()
    if whole := _ALONE.fullmatch(text) or _LED.fullmatch(text):
        return whole[1]
    sentences = [part for part in re.split(r"[\n。]", text) if part.strip()]
    led = {letter for sentence in sentences if (letter := _led_letter(sentence))}
    if led or cot:
        return led.pop() if len(led) == 1 else None
    return _leading_letter(text)


def _without_thought(text: str) -> str:
    """The text without what stands between `<think>` and `</think>`; an unclosed one stays."""
    opening, closing = "<think>", "</think>"
    kept, at = [], 0
    while (start := text.find(opening, at)) >= 0 and (end := text.find(closing, start)) >= 0:
        kept.append(text[at:start])
        at = end + len(closing)
    return "".join([*kept, text[at:]])


def reasoning_of(response: str) -> str:
    """What a response says beside its answer: its lines without those that only give a letter, without their label."""
    text = unicodedata.normalize("NFKC", response[:_LOOKED_AT_CHARS]).lower()
    lines = [line for line in text.splitlines() if line.strip() and strict_letter(line, cot=True) is None]
    return "\n".join(_REASONING_LABEL.sub("", line, count=1).strip() for line in lines).strip()


def _led_letter(sentence: str) -> str | None:
    match = _LED.fullmatch(sentence) or _LED_TEXT.fullmatch(sentence)
    return match[1] if match and set(_OTHER_LETTER.findall(sentence)) == {match[1]} else None


def _leading_letter(text: str) -> str | None:
    leading = _LEADING.match(text)
    if not leading or looping(text) or len(text) > DIRECT_CHARS:
        return None
    others = set(_OTHER_LETTER.findall(text)) - {leading[1]}
    return None if others else leading[1]


def is_exception_text(response: str) -> bool:
    """Whether a response is an exception's message instead of a model's words."""
    return _EXCEPTION.match(response) is not None
