"""`steph report --html`: one page that needs nothing else, runs nothing, and shows what logs hold as text."""

from __future__ import annotations

import base64
import getpass
import re
import socket
from html.parser import HTMLParser
from pathlib import Path

import pytest
import record_factory as factory
from hypothesis import given
from hypothesis import strategies as st
from steph.base.messages import LANGUAGES, text
from steph.conduct.session import tell
from steph.record.values import Record
from steph.tell.markdown import details, fence, inline, table
from steph.tell.page import as_page
from steph.tell.report import parts
from test_cli import keep, steph

VOID = {"meta", "br", "img", "hr"}
HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</details></main><iframe src=https://evil.example>",
    "![x](https://evil.example/x.png)",
    "[x](javascript:alert(1))",
    "<details ontoggle=alert(1)>",
    "--> <b>",
)


class Page(HTMLParser):
    """What is markup in a page; refuses tags that are not closed in their order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it with its attributes."""
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close the tag that was opened last."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note what is shown."""
        self.words.append(data)


OWN_TAGS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "footer",
        "h1",
        "h2",
        "h3",
        "h4",
        "p",
        "ul",
        "ol",
        "li",
    ),
    *("strong", "em", "code", "pre", "blockquote", "details", "summary", "div", "span", "img", "br", "hr", "a"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
OWN_ATTRIBUTES = {
    "lang",
    "charset",
    "name",
    "content",
    "http-equiv",
    "class",
    "tabindex",
    "style",
    "src",
    "alt",
    "start",
}


def assert_harmless(page: str) -> Page:
    """Nothing but the report's own tags, nothing that runs, nothing that is fetched."""
    found = Page(page)
    assert set(found.tags) <= OWN_TAGS
    assert {name for _, name, _ in found.attributes} <= OWN_ATTRIBUTES
    assert all(value.startswith("data:image/svg+xml;base64,") for _, name, value in found.attributes if name == "src")
    assert "url(" not in page
    return found


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("made", factory.ALL_SAMPLES, ids=lambda made: made.__name__)
def test_every_report_is_one_page_that_fetches_and_runs_nothing(made: object, language: str, tmp_path: Path) -> None:
    """In both languages: each fold of the Markdown is one, each table scrolls by itself, pictures are inside."""
    record = made()  # type: ignore[operator]
    keep(tmp_path, record)
    ended = steph("report", "--html", "--reports", tmp_path, "--language", language)
    assert ended.exit_code == 0, ended.output
    path = Path(ended.output.strip())
    page = path.read_text(encoding="utf-8")
    found = assert_harmless(page)
    assert f'<html lang="{language}">' in page
    markdown = Path(steph("report", "--reports", tmp_path, "--language", language).output.strip())
    told = markdown.read_text(encoding="utf-8")
    assert path == markdown.with_suffix(".html")
    assert found.tags.count("details") == told.count("<details>") > 0
    assert found.tags.count("table") == page.count('<div class="scroll" tabindex="0"><table>') > 0
    assert found.tags.count("img") == told.count("](figures/")
    assert "".join(found.words).count(record.id) == told.count(record.id) - told.count(f"figures/{record.id}") + 1


def test_a_picture_is_inside_with_its_words() -> None:
    """As a data URI; one that is not the report's is its words alone, and nothing is asked of its server."""
    page = as_page("t", "![loss of 3](loss)\n\n![elsewhere](https://evil.example/x.png)\n", {"loss": "<svg>損失</svg>"})
    found = assert_harmless(page)
    (source,) = [value for _, name, value in found.attributes if name == "src"]
    assert base64.b64decode(source.partition(",")[2]).decode() == "<svg>損失</svg>"
    assert ("img", "alt", "loss of 3") in found.attributes
    assert "elsewhere" in "".join(found.words)
    assert "evil.example" not in page


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_a_log_says_is_shown_and_never_markup(hostile: str) -> None:
    """In a sentence, a cell, a fold's title, a block, and in raw HTML that a person pasted below a section."""
    made = (inline(hostile), table((hostile,), [(hostile,)]), details(hostile, fence(hostile)), fence(hostile))
    shown = "".join(assert_harmless(as_page(hostile, "\n\n".join(made), {})).words)
    assert shown.count(hostile) == 7
    pasted = f"a {hostile} b\n\n{hostile}\n\n<div>\n{hostile}\n</div>\n".replace("</details>", "")
    assert_harmless(as_page("t", pasted, {}))


@given(st.text(st.sampled_from("<>&\"'`*_[]()!-\\\n ab/|"), max_size=60))
def test_no_text_is_markup_by_chance(words: str) -> None:
    """Whatever order its characters have."""
    made = (inline(words), table(("x",), [(words,)]), details(words, fence(words)))
    assert_harmless(as_page(words, "\n\n".join(made), {}))


def noted(folder: Path, record: Record, words: str) -> Path:
    """The kept record's Markdown report with a person's words in the notes of H-1."""
    keep(folder, record)
    markdown = tell(folder / "runs", record)
    heading = f"#### {text('report.notes.h1')}\n\n"
    written = markdown.read_text(encoding="utf-8")
    markdown.write_text(written.replace(heading, f"{heading}{words}\n\n"), encoding="utf-8")
    return markdown


def test_marks_and_comments_are_not_shown_and_notes_are(tmp_path: Path) -> None:
    """The page is the report as it stands, with people's notes, without the headings of notes that nobody wrote."""
    markdown = noted(tmp_path, factory.green_acceptance(), "the **fan** was loud")
    before = markdown.read_bytes()
    ended = steph("report", "--html", "--output", tmp_path / "sent.html", "--reports", tmp_path)
    page = (tmp_path / "sent.html").read_text(encoding="utf-8")
    assert (ended.exit_code, ended.output) == (0, f"{tmp_path / 'sent.html'}\n")
    assert "the <strong>fan</strong> was loud" in page
    assert text("report.notes.h1") in page
    assert text("report.notes.h2") not in page
    assert "<!--" not in page
    assert "steph:begin" not in page
    assert markdown.read_bytes() == before


def test_a_heading_that_a_person_wrote_is_in_the_page_wherever_it_stands(tmp_path: Path) -> None:
    """Also the last line of their notes; a heading of the report's own is never taken for an empty note."""
    record = factory.out_of_memory_everywhere()
    noted(tmp_path, record, "#### fan replaced, all well")
    page = Path(steph("report", "--html", "--reports", tmp_path).output.strip()).read_text(encoding="utf-8")
    assert "<h4>fan replaced, all well</h4>" in page
    assert f"<h4>{text('report.notes.h1')}</h4>" in page
    assert f"<h4>{text('report.notes.h2')}</h4>" not in page
    own = re.findall(r"^#### (\S+)", parts(record)[2].text, re.M)
    assert page.count(f"<h4>{own[0]} ") == len(own) == 4


def test_every_attribute_that_a_note_fills_is_masked_and_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link's title, a picture's words, a fence's language, a heading."""
    monkeypatch.setattr(getpass, "getuser", lambda: "sato")
    monkeypatch.setattr(socket, "gethostname", lambda: "box")
    note = (
        '[a](https://x.example "sato \'>\\"<b>") ![`sato` *sato* "><b>](p)\n\n```sato"><b>\nx\n```\n\n#### sato <b>\n'
    )
    page = as_page('sato "><b>', note, {"p": "<svg></svg>"})
    found = Page(page)
    assert "b" not in found.tags
    assert "sato" not in page
    masked = {(tag, name): value for tag, name, value in found.attributes if name in ("title", "alt", "class")}
    assert masked["a", "title"] == "*** '>\"<b>"
    assert masked["img", "alt"] == '*** *** "><b>'
    assert masked["code", "class"] == 'language-***"><b>'


def test_it_names_neither_user_nor_host_nor_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In text, code, links, the title and the pictures; nor a token that a person pasted into the notes."""
    monkeypatch.setattr(getpass, "getuser", lambda: "sato")
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-box7")
    token = "hf_" + "Q7x" * 8
    secrets = ("sato", "gpu-box7", "tanaka", token)
    fenced = f"```\n/home/sato/y {token}\n```"
    said = f"sato on gpu-box7: `/home/tanaka/x` {token} [log](https://x.example/sato)\n\n{fenced}\n\n"
    picture = f"<svg><!-- sato --><text>sato {token}</text></svg>"
    page = as_page(
        "sato", f"{said}<details><summary>sato</summary>\n\n<b>sato</b> ![sato](p)\n\n</details>\n", {"p": picture}
    )
    (source,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    for secret in secrets:
        assert secret not in page
        assert secret not in base64.b64decode(source).decode()
    assert "<code>~/x</code>" in page


def test_a_file_that_is_no_page_stays(tmp_path: Path) -> None:
    """Someone's own file is never replaced; a page of before is."""
    keep(tmp_path, factory.green_acceptance())
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine", encoding="utf-8")
    ended = steph("report", "--html", "--output", mine, "--reports", tmp_path)
    assert (ended.exit_code, mine.read_text(encoding="utf-8")) == (2, "<p>mine")
    assert ended.stderr == f"steph: {mine}: StepH のページではないので、そのまま残す。別のファイル名にする\n"
    for _ in range(2):  # a file called .html is a page, too
        assert steph("report", "--output", tmp_path / "page.html", "--reports", tmp_path).exit_code == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("name", ["x.md", "x"])
def test_a_page_is_not_written_under_another_kinds_name(tmp_path: Path, name: str) -> None:
    """HTML in a file that is opened as Markdown helps nobody."""
    keep(tmp_path, factory.green_acceptance())
    ended = steph("report", "--html", "--output", tmp_path / name, "--reports", tmp_path)
    assert ended.exit_code == 2
    assert ended.stderr.startswith(f"steph: --output {tmp_path / name}: --html はページを書く")
    assert not (tmp_path / name).exists()


def test_markdown_goes_to_another_file_as_well(tmp_path: Path) -> None:
    """With its pictures beside it; the record's own report and the summary are not touched."""
    record: Record = factory.walked_down()
    keep(tmp_path / "reports", record)
    target = tmp_path / "out" / "for-tanaka.md"
    ended = steph("report", "--output", target, "--reports", tmp_path / "reports")
    assert (ended.exit_code, ended.output) == (0, f"{target}\n")
    told = target.read_text(encoding="utf-8")
    assert parts(record)[0].text.strip().splitlines()[0] in told
    assert [path.name for path in target.parent.glob("figures/*")] == [f"{record.id}-loss.svg"]
    assert f"](figures/{record.id}-loss.svg)" in told
    assert [path.name for path in (tmp_path / "reports").iterdir()] == ["runs"]
