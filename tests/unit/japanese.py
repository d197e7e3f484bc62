"""Whether a text is told in Japanese."""

from __future__ import annotations

import re
from collections.abc import Iterable

from steph.base.messages import Message

JAPANESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")


def is_told_in_japanese(message: Message) -> bool:
    """Whether a Japanese report has words of its own for it; what a library said stays as it was said."""
    return JAPANESE.search(message.text("ja")) is not None


def english_in(text: str, verbatim: Iterable[str] = ()) -> list[str]:
    """The runs of two and more English words in a text, without the names, commands and words of others in it."""
    for one in sorted(verbatim, key=len, reverse=True):
        text = text.replace(one, "・")
    return re.findall(r"\b[A-Za-z][a-z']+(?: [a-z][a-z']*)+\b", text)
