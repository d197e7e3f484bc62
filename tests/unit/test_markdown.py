"""Text from elsewhere stays text in every place of a Markdown page."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steph.tell import markdown
from steph.tell.markdown import Markdown, cell, clean, code, details, fence, finalize, inline, prose, table

markdown_it = pytest.importorskip("markdown_it")

HOSTILE = st.text(
    alphabet=st.one_of(st.sampled_from("#`~-=*_<>!|[]()\\&$:.+1a \n\t\r\x1b\u202e\u2028\ufeff"), st.characters()),
    max_size=60,
) | st.sampled_from(
    [
        "```",
        "~~~~",
        "</details>",
        "<!-- steph:end h2 1 -->",
        "# x",
        "\n\n# x",
        "- x",
        "1. x",
        "> x",
        "---",
        "===",
        "<script>",
        "![a](b)",
        "[a]: b",
        "|--|--|",
        "a | b\n--|--",
        "    code",
        "<!--",
        "-->",
        "&lt;",
        "\\",
        "`",
        "``",
    ]
)


def tokens(text: str) -> list[tuple[str, str]]:
    """Parse as GitHub would: block and inline tokens by type and tag, adjacent texts as one."""
    parser = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    found: list[tuple[str, str]] = []
    for block in parser.parse(text):
        found.append((block.type, block.tag))
        inside = [(child.type, child.tag) for child in block.children or ()]
        found += [(kind, tag) for kind, tag in inside if kind not in ("text", "text_special")]
    return found


@settings(deadline=None)
@given(HOSTILE)
def test_inline_text_is_one_paragraph_without_any_markup(text: str) -> None:
    """Whatever the text, it parses as plain words of one paragraph, or as nothing."""
    parsed = tokens(inline(text))
    assert parsed in ([], [("paragraph_open", "p"), ("inline", ""), ("paragraph_close", "p")])


@settings(deadline=None)
@given(HOSTILE)
def test_inline_text_keeps_its_words(text: str) -> None:
    """What a reader sees is the cleaned text itself, blanks folded."""
    parser = markdown_it.MarkdownIt("commonmark")
    seen = "".join(t.content for block in parser.parse(inline(text)) for t in block.children or ())
    assert seen.split() == " ".join(clean(text).split()).split()


@settings(deadline=None)
@given(HOSTILE)
def test_a_fence_holds_all_its_text(text: str) -> None:
    """No text closes its fence: the page is one fenced block and the paragraph behind it."""
    parsed = tokens(f"{fence(text)}\n\nbehind")
    assert parsed == [("fence", "code"), ("paragraph_open", "p"), ("inline", ""), ("paragraph_close", "p")]


@settings(deadline=None)
@given(HOSTILE, HOSTILE)
def test_a_table_keeps_its_shape(first: str, second: str) -> None:
    """Hostile cells change neither the number of cells nor of rows, as code, as words or as a sentence."""
    page = table(("a", "b", "c"), [(first, code(second), prose(first))]) + "\n\nbehind"
    kinds = [kind for kind, _ in tokens(page)]
    assert kinds.count("td_open") == 3
    assert kinds.count("tr_open") == 2
    assert kinds[-3:] == ["paragraph_open", "inline", "paragraph_close"]


@settings(deadline=None)
@given(HOSTILE)
def test_a_fold_is_closed_by_its_own_end_alone(text: str) -> None:
    """Text inside a fold and in its title opens and closes no element of its own."""
    page = details(text, fence(text)) + "\n\nbehind"
    parser = markdown_it.MarkdownIt("commonmark", {"html": True})
    html = [token.content for token in parser.parse(page) if token.type == "html_block"]
    assert len(html) == 2
    assert html[0].count("<") == 3
    assert html[1].strip() == "</details>"


@settings(deadline=None)
@given(HOSTILE)
def test_no_line_of_escaped_text_is_a_mark_of_the_report(text: str) -> None:
    """A forged begin or end mark never stands as a line of its own in what was escaped."""
    for made in (inline(text), code(text), prose(text), fence(text), cell(text)):
        assert not re.search(r"<!--", made)


@settings(deadline=None)
@given(HOSTILE)
def test_a_code_span_is_code_and_nothing_else(text: str) -> None:
    """A code span never opens links, emphasis or foreign elements."""
    inner = {kind for kind, _ in tokens(f"x {code(text)}")} - {"paragraph_open", "paragraph_close", "inline"}
    assert inner <= {"code_inline", "html_inline"}


def test_terminal_codes_and_invisible_characters_are_dropped() -> None:
    """Colours, cursor moves, bells, bidi controls and zero-width characters go; line ends become one kind."""
    assert clean("\x1b[31mred\x1b[0m\x07 \u202eabc\u2066\u200b\x00 \x1b]0;title\x07x\r\ny\rz") == "red abc x\ny\nz"


def test_a_fence_is_longer_than_any_run_inside() -> None:
    """Five backticks in a log need a fence of six."""
    assert fence("a\n`````\nb").startswith("``````text\n")


def test_long_texts_keep_head_and_tail() -> None:
    """A long log says how much is left out between its first and last lines."""
    made = fence("\n".join(f"line {number}" for number in range(10_000)))
    assert "line 0\n" in made
    assert "line 9999\n" in made
    assert "9,840 行省略" in made
    assert len(inline("x" * 100_000)) < markdown.INLINE_LIMIT_CHARACTERS + 40


def test_credentials_never_reach_a_page() -> None:
    """Tokens and passwords in URLs are masked in words, code and fences alike."""
    secret = "HF_TOKEN=hf_abcdefghij0123456789 https://user:hunter22@example.org/x"
    for made in (inline(secret), code(secret), fence(secret)):
        assert "hf_abcdefghij" not in made
        assert "hunter22" not in made


def test_a_token_behind_invisible_characters_is_masked() -> None:
    """A credential that a zero-width character cuts is put together first and masked then."""
    assert "abcdefghij0123" not in clean("hf_abc\u200bdefghij0123456789")


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("9.02 GiB", "9.02 GiB"),
        ("PASS_DEGRADED", "PASS_DEGRADED"),
        ("max_seq_length", "max_seq_length"),
        ("1. x", "&#49;. x"),
        ("# x", "&#35; x"),
        ("_x_", "\\_x\\_"),
        ("a | b", "a &#124; b"),
    ],
)
def test_ordinary_words_stay_readable_in_the_source(text: str, made: str) -> None:
    """Only what Markdown would read otherwise is escaped."""
    assert inline(text) == made


def test_backticked_words_of_a_sentence_become_code() -> None:
    """The suite's own sentences may name commands; an odd backtick is just a character."""
    assert prose("`git switch` で枝を切る") == "`git switch` で枝を切る"
    assert prose("a ` b") == "a \\` b"


def test_what_is_already_markdown_passes() -> None:
    """Markdown is not escaped twice, anything else is escaped once."""
    assert finalize(Markdown("**a**")) == "**a**"
    assert finalize("**a**") == "\\*\\*a\\*\\*"
    assert finalize(None) == ""
