"""Reading what other programs wrote: whole, or refused with a reason in both languages."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from steph.base.files import (
    MAX_JSON_DEPTH,
    UnreadableError,
    json_lines,
    parse_json,
    read_json,
    read_json_object,
    read_source,
    sha256_or_none,
)
from steph.base.messages import words_of


def test_a_byte_order_mark_makes_no_difference() -> None:
    """Windows editors put one before the text."""
    data = json.dumps({"問": ["a"]}, ensure_ascii=False).encode()
    assert parse_json(b"\xef\xbb\xbf" + data) == parse_json(data) == {"問": ["a"]}


def nested(depth: int) -> bytes:
    """A list in a list, and so on; every second level is an object."""
    content: object = 1
    for level in range(depth):
        content = {"a": content} if level % 2 else [content]
    return json.dumps(content).encode()


def test_json_is_read_to_a_depth_that_does_not_depend_on_the_stack() -> None:
    """The deepest that is allowed is read, one level more is refused, and brackets in text are no levels."""
    parse_json(nested(MAX_JSON_DEPTH))
    with pytest.raises(UnreadableError) as refused:
        parse_json(nested(MAX_JSON_DEPTH + 1))
    assert words_of(refused.value).text("en") == "it is not valid JSON: nested more than 100 deep"
    assert parse_json(json.dumps("[" * 1000).encode()) == "[" * 1000
    assert len(parse_json(b"[" + b",".join([b"[]"] * 1000) + b"]")) == 1000


@pytest.mark.parametrize(
    ("data", "japanese", "english"),
    [
        (b"{", "JSON でない(", "it is not valid JSON: "),
        (b"\xff", "UTF-8 でない(0 バイト目)", "it is not UTF-8 (byte 0); save it as UTF-8"),
        (b"[NaN]", "JSON に NaN がある", "it is not valid JSON: it holds NaN"),
        (b"[-Infinity]", "JSON に -Infinity がある", "it is not valid JSON: it holds -Infinity"),
        (b"[1]", "JSON のオブジェクトでない", "it holds no JSON object"),
        (b"[" * 100_000, "JSON の入れ子が 100 段を超える", "it is not valid JSON: nested more than 100 deep"),
        (None, "ファイルがない", "the file is missing"),
        (b" " * 33, "33 バイトは大きすぎる", "it is too large: 33 bytes"),
    ],
)
def test_what_is_no_object_says_why_in_both_languages(
    tmp_path: Path, data: bytes | None, japanese: str, english: str
) -> None:
    """The reason is a clause in both."""
    path = tmp_path / "a.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UnreadableError) as refused:
        read_json_object(path, 32 if data and len(data) < 100 else 1 << 20)
    assert str(refused.value).startswith(japanese)
    assert words_of(refused.value).text("en").startswith(english)


def test_infinity_is_read_where_a_format_has_it() -> None:
    """The Trainer writes NaN into its state, and some models' configurations hold Infinity."""
    assert parse_json(b"[Infinity]", finite=False) == [float("inf")]
    assert [line.row for line in json_lines(b'{"a": Infinity}')] == [{"a": float("inf")}]


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    """Opening it would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableError, match="ファイルがない"):
        read_json(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("# -*- coding: cp932 -*-\nx = '問'".encode("cp932"), "# -*- coding: cp932 -*-\nx = '問'"),
        (b"\xef\xbb\xbfx = 1", "x = 1"),
        (b"# coding: nonsense\nx = 1", "# coding: nonsense\nx = 1"),
        (b"x = '\xff'", "x = '\ufffd'"),
        (None, ""),
    ],
)
def test_a_script_is_read_as_python_reads_it(tmp_path: Path, data: bytes | None, text: str) -> None:
    """By its coding line or mark; what can't be decoded is replaced, what is not there is empty."""
    if data is not None:
        (tmp_path / "a.py").write_bytes(data)
    assert read_source(tmp_path / "a.py") == text


def test_a_file_that_can_not_be_read_has_no_hash(tmp_path: Path) -> None:
    """A folder, or nothing at all."""
    assert sha256_or_none(tmp_path) is None
    assert sha256_or_none(tmp_path / "a") is None
