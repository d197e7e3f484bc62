"""Text from elsewhere: any encoding, any terminal's codes, and one line that can be shown."""

from __future__ import annotations

import pytest
from steph.base.text import encoding_of, one_line, printable, without_ansi

JAPANESE = "学習に失敗しました: メモリ不足\n"


def decoded(data: bytes) -> str:
    """Text of unknown encoding, without its mark."""
    return data.decode(encoding_of(data), "replace").removeprefix("\ufeff")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp932"])
def test_a_log_of_any_usual_encoding_is_read(encoding: str) -> None:
    """By its mark, else as UTF-8, else as Japanese Windows writes."""
    assert decoded(JAPANESE.encode(encoding)) == JAPANESE


def test_utf_16_is_known_by_its_mark_or_its_zeros() -> None:
    """Either byte order with its mark; ASCII in UTF-16 without one is half zeros."""
    assert decoded(b"\xfe\xff" + JAPANESE.encode("utf-16-be")) == JAPANESE
    for encoding in ("utf-16-le", "utf-16-be"):
        assert decoded("Traceback (most recent call last)".encode(encoding)) == "Traceback (most recent call last)"
    assert decoded(b"\0" * 100) == "\0" * 100


def test_utf_8_that_is_cut_or_damaged_stays_utf_8() -> None:
    """A piece of a log begins within a character, and one bad byte does not turn the rest into another language."""
    assert "失敗しました" in decoded(JAPANESE.encode()[1:-2])
    assert decoded(JAPANESE.encode() + b"\xff" + JAPANESE.encode()) == f"{JAPANESE}\ufffd{JAPANESE}"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\x1b[1;31mError\x1b[0m", "Error"),
        ("\x1b[2K\rdone", "\rdone"),
        ("\x1b[?25lbar\x1b[?25h", "bar"),
        ("\x1b[38;5;196mred\x1b[m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;https://a.b\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]0;never ended\nnext line", "\nnext line"),
        ("\x9b31mred", "red"),
        ("[1;31m is text", "[1;31m is text"),
    ],
)
def test_a_terminals_codes_are_taken_off(text: str, plain: str) -> None:
    """Colours, cursor moves, titles and links go; a code without an end takes no other line with it."""
    assert without_ansi(text) == plain


def test_what_can_not_be_seen_is_taken_off() -> None:
    """Control and direction-changing characters go, every line end is one, half a character is marked."""
    assert printable("a\x00b\u202ec\u2028d\r\ne\ud800") == "abc\nd\ne\ufffd"


def test_one_line_is_short_and_holds_no_secret() -> None:
    """Line ends become spaces, a token is masked, the end of a long text is an ellipsis."""
    assert one_line("a\n\n  b\tc") == "a b c"
    assert "abcdefghijklmnop1" not in one_line("token=abcdefghijklmnop1 used")
    assert one_line("x" * 10_000, 5) == "xxxx…"
