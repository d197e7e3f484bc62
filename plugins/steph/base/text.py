"""Text from elsewhere: decoded, freed of terminal codes, brought into one line; and streams that can write any text."""

from __future__ import annotations

import codecs
import io
import re
import unicodedata

from steph.base.redact import redact

LINE_CHARS = 300
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# ECMA-48: a CSI sequence with its parameters, an OSC string with or without its end, any other two characters
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\r\n]*(?:\x07|\x1b\\)?|[@-Z\\-_])|\x9b[0-?]*[ -/]*[@-~]")


def decoded(data: bytes) -> str:
    """Return text of unknown encoding, without a byte order mark; what can't be read is U+FFFD."""
    return data.decode(encoding_of(data), "replace").removeprefix("\ufeff")


def encoding_of(start: bytes) -> str:
    """Return the encoding of a text that begins so: by its byte order mark, else UTF-8, UTF-16 or cp932.

    PowerShell writes UTF-16, Japanese Windows cp932. UTF-8 that is cut within a character or damaged stays UTF-8.
    """
    for mark, encoding in _BOMS:
        if start.startswith(mark):
            return encoding
    sample = start[:4096]
    if sample.count(0) * 3 > len(sample) and sample.strip(b"\0"):
        return "utf-16-be" if sample[::2].count(0) > sample[1::2].count(0) else "utf-16-le"
    text = start.decode("utf-8", "replace")
    damaged = text.count("\ufffd")
    if damaged == 0 or sum(character > "\x7f" for character in text) > 2 * damaged:
        return "utf-8"
    try:
        codecs.getincrementaldecoder("cp932")().decode(start)  # which takes a last character that is cut
    except UnicodeDecodeError:
        return "utf-8"
    return "cp932"


def without_ansi(text: str) -> str:
    """Return the text without a terminal's escape sequences (colours, cursor, titles, links)."""
    return _ANSI.sub("", text) if "\x1b" in text or "\x9b" in text else text


def printable(text: str) -> str:
    """Return the text without terminal codes and without invisible or direction-changing characters.

    Line ends become `\\n`; what UTF-8 can't carry becomes U+FFFD.
    """
    text = without_ansi(text).replace("\r\n", "\n").replace("\r", "\n")
    text = text.replace("\u2028", "\n").replace("\u2029", "\n").replace("\x85", "\n")
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in "\n\t" or " " <= character <= "~":
        return character
    category = unicodedata.category(character)
    if category in ("Cc", "Cf"):
        return ""
    return "\ufffd" if category == "Cs" else character


def one_line(text: object, limit: int = LINE_CHARS) -> str:
    """Return printable text in one line of at most `limit` characters, without secrets and runs of whitespace."""
    line = redact(" ".join(printable(str(text)[: 4 * limit]).split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def make_printable(*streams: object) -> None:
    """Let these streams write Japanese: UTF-8 instead of ASCII, else a mark for what their encoding can't spell.

    Under `LC_ALL=C` Python itself does so unless it is told not to, and pytest would write escapes, of line ends too.
    """
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            if codecs.lookup(stream.encoding).name == "ascii":
                stream.reconfigure(encoding="utf-8", errors="replace")
            elif stream.errors == "strict":
                stream.reconfigure(errors="replace")
