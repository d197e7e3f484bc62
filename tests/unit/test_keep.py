"""What a person wrote in a report survives every renewal, byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from steph.base.messages import text
from steph.tell.keep import Part, blocks_in, digest_of, merge

PARTS = (Part("summary", "# 結果\n", "\n#### 感想\n\n"), Part("h1", "## H-1\n\n本文\n", "\n#### メモ\n\n"))
NEWER = (Part("summary", "# 新しい結果\n", "\n#### 感想\n\n"), Part("h1", "## H-1\n\n新しい本文\n", "\n#### メモ\n\n"))
MARKS = st.sampled_from(
    [
        b"<!-- steph:begin h1 1 sha256=" + b"0" * 64 + b" -->",
        b"<!-- steph:end h1 1 -->",
        b"<!-- steph:begin h1 2 sha256=" + b"1" * 64 + b" -->",
        b"<!-- steph:end h1 2 -->",
        b"<!-- steph:begin summary 1 sha256=" + b"2" * 64 + b" -->",
        b"<!-- steph:end summary 1 -->",
        b"<!-- steph:begin h1 1 -->",
        b"<!-- steph:begin h1 999999 sha256=" + b"3" * 64 + b" -->",
        b"<!-- steph:end h1 999999 -->",
    ]
)
LINES = st.lists(st.one_of(MARKS, st.binary(max_size=12)), max_size=12)


def outside(raw: bytes) -> bytes:
    """Give the bytes that stand in no generated part."""
    lines = raw.decode("utf-8", "surrogateescape").split("\n")
    inside = {number for block in blocks_in(raw) for number in range(block.begin, block.end + 1)}
    kept = [line for number, line in enumerate(lines) if number not in inside]
    return "\n".join(kept).encode("utf-8", "surrogateescape")


def test_a_new_file_has_every_part_and_its_notes() -> None:
    """Without a file, each part stands between its marks with its place for notes below."""
    made = merge(None, PARTS)
    assert [block.id for block in blocks_in(made)] == ["summary", "h1"]
    assert made.decode().count("#### ") == 2


def test_notes_between_parts_stay_and_parts_are_renewed() -> None:
    """A person's words under a part outlive the part's next text."""
    first = merge(None, PARTS).replace("#### メモ\n".encode(), "#### メモ\n\nOOM は Chrome が原因だった。  \n".encode())
    second = merge(first, NEWER)
    assert outside(second) == outside(first)
    assert "新しい本文" in second.decode()
    assert "\n本文" not in second.decode()


@pytest.mark.parametrize(
    "own",
    [
        "\ufeff自分のメモ\r\n\r\n- 項目\r\n".encode(),
        b"no final newline",
        b"odd bytes \xff\xfe\x80 and \x00\n",
        b"\r\rold mac\r",
        "\u2028 separators \x85 \x0c stay\n".encode(),
        b"```\nan unclosed fence\n",
    ],
)
def test_a_persons_file_stays_byte_for_byte(own: bytes) -> None:
    """Parts are written below what is there; line ends, BOM, missing newline and odd bytes stay as they are."""
    first = merge(own, PARTS)
    second = merge(first, NEWER)
    assert first.startswith(own)
    assert second.startswith(own)
    assert outside(second) == outside(first)


def test_a_file_with_windows_line_ends_gets_them_everywhere() -> None:
    """In a CRLF file the generated parts have CRLF too, and are not taken for edited."""
    first = merge(b"# memo\r\n", PARTS)
    assert first.count(b"\n") == first.count(b"\r\n")
    assert text("report.evacuated") not in merge(first, NEWER).decode()


def test_changed_line_ends_and_trailing_blanks_are_no_edit() -> None:
    """An editor that converts line ends or strips blanks on saving has edited nothing."""
    first = merge(None, PARTS).replace(b"\n", b"\r\n")
    assert text("report.evacuated") not in merge(first, NEWER).decode()


def test_an_edit_inside_a_part_is_moved_out_before_it_is_renewed() -> None:
    """The edited text stands below the part under its own title, whole, and only once."""
    edited = merge(None, PARTS).replace("本文".encode(), "本文と私の追記".encode())
    renewed = merge(edited, NEWER).decode()
    assert renewed.count("本文と私の追記") == 1
    assert renewed.index("steph:end h1") < renewed.index(text("report.evacuated")) < renewed.index("本文と私の追記")
    assert merge(renewed.encode(), NEWER).decode() == renewed


@pytest.mark.parametrize("cut", [b"<!-- steph:end h1 1 -->\n", b"<!-- steph:end summary 1 -->\n"])
def test_a_lost_end_mark_destroys_nothing(cut: bytes) -> None:
    """With an end mark gone, all that was there stays and the part is written anew at the end."""
    broken = merge(None, PARTS).replace(cut, b"").replace("#### メモ".encode(), "#### メモ\n\n大事".encode())
    renewed = merge(broken, NEWER)
    assert outside(renewed).startswith(outside(broken))
    assert "大事" in renewed.decode()
    assert "新しい本文" in renewed.decode()
    assert merge(renewed, NEWER) == renewed


def test_a_copied_part_is_kept_and_a_new_one_written_below() -> None:
    """Where a part stands twice, both stay untouched; the new one at the end is renewed from then on."""
    first = merge(None, PARTS)
    doubled = first + first
    renewed = merge(doubled, NEWER)
    assert renewed.startswith(doubled)
    assert renewed.count("新しい本文".encode()) == 1
    assert merge(renewed, PARTS).startswith(doubled)


def test_a_part_never_contains_a_mark_of_its_own() -> None:
    """A generated text with a forged end mark does not end its part."""
    forged = (Part("h1", "a\n<!-- steph:end h1 1 -->\nb\n"),)
    first = merge(None, forged)
    assert [block.id for block in blocks_in(first)] == ["h1"]
    assert merge(first, (Part("h1", "c\n"),)).count(b"c\n") == 1
    assert b"\nb\n" not in merge(first, (Part("h1", "c\n"),))


@settings(deadline=None)
@given(LINES, st.sampled_from([b"\n", b"\r\n"]))
def test_any_file_settles_after_one_renewal(lines: list[bytes], newline: bytes) -> None:
    """Renewing with the same parts twice changes nothing the second time, whatever marks a person left."""
    own = newline.join(lines)
    once = merge(own, PARTS)
    assert merge(once, PARTS) == once


@settings(deadline=None)
@given(LINES)
def test_no_line_of_a_person_is_ever_lost(lines: list[bytes]) -> None:
    """Every line that is no mark of a part in force is still there after a renewal."""
    own = b"\n".join(lines)
    merged = merge(own, NEWER)
    for line in own.split(b"\n"):
        if b"steph:" not in line:
            assert line in merged


def owned(raw: bytes) -> list[bytes]:
    """Give what is a person's, in the file's order: the text between parts, and parts whose text was edited."""
    lines = raw.decode("utf-8", "surrogateescape").split("\n")
    pieces, begin = [], 0
    for block in blocks_in(raw):
        pieces.append("\n".join(lines[begin : block.begin]))
        pieces += [block.text] if digest_of(block.text) != block.digest else []
        begin = block.end + 1
    pieces.append("\n".join(lines[begin:]))
    return [piece.encode("utf-8", "surrogateescape") for piece in pieces if piece.strip()]


NOTES = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [
            "\r\nメモ\r\n".encode(),
            "\ufeff先頭".encode(),
            b"\xff\xfeu\x00t\x00f\x0016",
            b"\xed\xa0\x80 a lone surrogate",
            b"no newline at the end",
            b"<!-- steph:end h1 1 -->",
            b"\n<!-- steph:end h1 1 -->\n",
            b"\n<!-- steph:begin h1 1 sha256=" + b"0" * 64 + b" -->\n",
            b"\n<!-- steph:begin summary 2 sha256=" + b"0" * 64 + b" -->\nmine\n<!-- steph:end summary 2 -->\n",
            b"    <!-- steph:begin h1 1 --> quoted in a note",
            b"\n\n```\nan unclosed fence\n",
            b"x" * 10_000,
        ]
    ),
)
EDITS = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.2), NOTES), max_size=4)  # where, share cut away, put there


def edited(raw: bytes, edits: list[tuple[float, float, bytes]]) -> bytes:
    """Give the file after a person's edits anywhere in it: something cut away, something put there."""
    for where, share, note in edits:
        at = int(where * len(raw))
        raw = raw[:at] + note + raw[at + int(share * len(raw)) :]
    return raw


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=30), st.lists(EDITS, min_size=1, max_size=4))
@example(b"", [[(0.5, 0.0, b"<!-- steph:end h1 1 -->\nmine\n")]])
def test_a_persons_words_survive_every_renewal(own: bytes, rounds: list[list[tuple[float, float, bytes]]]) -> None:
    """Whatever is cut and pasted between renewals, marks included, nothing of it is lost, changed or reordered."""
    raw = merge(own, PARTS)
    for number, edits in enumerate(rounds):
        before = edited(raw, edits)
        raw = merge(before, (PARTS, NEWER)[number % 2])
        place = 0
        for piece in owned(before):
            found = raw.find(piece.rstrip(b"\n"), place)
            assert found >= 0, piece
            place = found + len(piece.rstrip(b"\n"))
        assert merge(raw, (PARTS, NEWER)[number % 2]) == raw
