"""What letter a response names; strict, so that rambling text never counts as an answer."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

UNKNOWN, ERROR = "unknown", "error"
_LABEL = r"(?:(?:the\s+)?(?:answer|answer\s+is)|回答|解答|答え?|正解|正答)\s*(?:は|:|=)?\s*"
_LETTER = r"[「『(\[\"'*]*\s*(?:選択肢\s*)?([a-d])\s*[」』)\]\"'*]*"
_ANSWER = re.compile(rf"(?:{_LABEL})?{_LETTER}\s*(?:です|である|となります)?\s*[.。]?", re.IGNORECASE)


def parse_answer(response: str, *, reasoned: bool) -> str:
    """`a` to `d` if the whole response names one letter and nothing else, else `unknown`.

    Wrapping such as `Answer: b`, `回答：ｂ` or `正解は「b」です。` is no more than a letter; full-width forms count as
    ASCII. Of a `reasoned` response the last line counts, which must say that it is the answer.
    """
    text = unicodedata.normalize("NFKC", response).strip()
    if reasoned:
        text = text.splitlines()[-1].strip() if text else ""
        if not re.match(_LABEL, text, re.IGNORECASE):
            return UNKNOWN
    match = _ANSWER.fullmatch(text)
    return match[1].lower() if match else UNKNOWN


def majority(votes: Sequence[str]) -> str:
    """The most frequent letter, the earliest of several; `unknown` and `error` win only where no letter was voted."""
    letters = [vote for vote in votes if vote not in (UNKNOWN, ERROR)]
    counted = Counter(letters or votes)
    return max(counted, key=lambda vote: counted[vote])
