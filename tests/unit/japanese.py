"""Whether a text is told in Japanese."""

from __future__ import annotations

import re

from steph.base.messages import Message

JAPANESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")


def is_told_in_japanese(message: Message) -> bool:
    """Whether a Japanese report has words of its own for it; what a library said stays as it was said."""
    return JAPANESE.search(message.text("ja")) is not None
