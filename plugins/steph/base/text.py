"""Japanese on a terminal whose locale can't spell it."""

from __future__ import annotations

import codecs
import io

ASCII = "ascii"


def speak(*streams: object) -> None:
    """Let these streams write what the suite says: UTF-8 instead of ASCII, else a mark for what can't be spelled.

    Under `LC_ALL=C` Python itself does so unless it is told not to, and pytest would write escapes, of line ends too.
    """
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            if codecs.lookup(stream.encoding).name == ASCII:
                stream.reconfigure(encoding="utf-8", errors="replace")
            elif stream.errors == "strict":
                stream.reconfigure(errors="replace")
