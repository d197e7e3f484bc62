"""What a model's response looks like: loops and length. Pure."""

from __future__ import annotations

import re
from collections import Counter

from steph.base.messages import Message, say

DIRECT_CHARS = 1000  # a direct answer is one letter; a chatty one explains itself in some hundred characters
COT_CHARS = 4000
LOOPED_LINES, LOOPED_SHARE = 5, 0.3
ONE_CHARACTER_CHARS = 5  # "!!!!!": what a model whose figures became NaN says
LOOP_MIN_CHARS, LOOP_TURNS = 48, 4
NGRAM_CHARS, NGRAM_MIN_TEXT, NGRAM_DISTINCT = 8, 300, 0.4
LOOKED_AT_CHARS = 20_000
_TAIL_CHARS = 4000

_DIGITS = re.compile(r"\d+")


def looping(text: str) -> Message | None:
    """How the text repeats itself; None where it does not."""
    bare = "".join(text.split())
    if len(bare) >= ONE_CHARACTER_CHARS and len(set(bare)) == 1:
        return say("loop.character", character=bare[0], characters=len(bare))
    text = _DIGITS.sub("0", text)  # a loop that counts its turns is a loop
    looked_at = text[:LOOKED_AT_CHARS]
    if repeats := _repeated_lines(looked_at):
        return say("loop.line", times=repeats)
    if turns := _tail_turns(text[-_TAIL_CHARS:].rstrip()):
        return say("loop.end", times=turns)
    distinct = _distinct_ngrams(looked_at)
    if distinct < NGRAM_DISTINCT:
        return say("loop.share", percent=100 * (1 - distinct))
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
