"""No text of a child process changes the shape of the report."""

from __future__ import annotations

from typing import Any

import pytest
import record_factory as factory
from hypothesis import given, settings
from hypothesis import strategies as st
from record_factory import render
from steph.record.values import Record
from steph.tell import keep
from steph.tell.report import parts

markdown_it = pytest.importorskip("markdown_it")

CHILD_TEXTS = frozenset(
    {
        "traceback",
        "exception_type",
        "exception_message",
        "message",
        "explanation",
        "reason",
        "text",
        "cwd",
        "folder",
        "backend",
        "model_name",
        "lora_path",
        "output_path",
        "output_dir",
        "checkpoint",
        "adapter_sha256",
        "path",
        "name",
        "licence",
        "revision",
        "snapshot_path",
        "branch",
        "commit",
        "os",
        "cpu",
        "python",
        "driver_version",
        "profile",
        "pipeline_root",
        "pipeline_python",
        "sha256",
    }
)
CHILD_LISTS = frozenset(
    {"evidence", "advice", "last_lines", "key_lines", "answers", "argv", "given_up", "command", "rehearsal_reasons"}
)
ATTACKS = st.sampled_from(
    [
        "```\n# heading\n```",
        "</details>\n\n# heading",
        "<!-- steph:end h2 1 -->",
        "\n<!-- steph:end h2 1 -->\n# heading",
        "| a | b |\n|---|---|",
        "# heading",
        "\n\n- item",
        "``````````\n# heading",
        "<details>",
        "<script>alert(1)</script>",
        "text\n===",
        "text\n---",
        "\r# heading",
        "\u2028# heading",
        "\x1b[2K# heading",
        "> quote",
        "    code",
        "~~~\n# heading",
    ]
) | st.text(alphabet=st.sampled_from("#`~-=*_<>!|[]()\\&:.1a \n\r"), min_size=1, max_size=40)


def planted(value: Any, text: str) -> Any:  # noqa: ANN401 - any JSON value
    """Give dumped data with the text in every field that a child or a file can fill."""
    if isinstance(value, dict):
        return {
            key: text
            if key in CHILD_TEXTS and isinstance(item, str)
            else [text for _ in item]
            if key in CHILD_LISTS and item
            else planted(item, text)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [planted(item, text) for item in value]
    return value


def shape(text: str) -> list[tuple[str, str, int]]:
    """Give headings, tables, lists, fences and HTML of a page, in order and with their nesting."""
    parser = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table")
    kinds = (
        "heading_open",
        "fence",
        "html_block",
        "table_open",
        "tr_open",
        "td_open",
        "bullet_list_open",
        "code_block",
        "ordered_list_open",
        "blockquote_open",
        "hr",
        "list_item_open",
    )
    return [(token.type, token.tag, token.level) for token in parser.parse(text) if token.type in kinds]


@pytest.mark.parametrize(
    "sample", [factory.walked_down, factory.crashed, factory.rehearsal, factory.with_rejected_candidates]
)
@settings(max_examples=20, deadline=None)
@given(text=ATTACKS)
def test_hostile_text_leaves_the_pages_shape_alone(sample: Any, text: str) -> None:  # noqa: ANN401 - a factory
    """With hostile text in every field, the page has the headings, tables, folds and fences of plain words."""
    dumped = sample().model_dump(mode="json")
    plain = Record.model_validate(planted(dumped, "plain word"))
    hostile = Record.model_validate(planted(dumped, f"plain{text}word"))
    assert shape(render(hostile)) == shape(render(plain))


@settings(max_examples=20, deadline=None)
@given(text=ATTACKS)
def test_hostile_text_forges_no_mark(text: str) -> None:
    """The file has exactly its own parts, whatever a child printed, and settles after one writing."""
    record = Record.model_validate(planted(factory.walked_down().model_dump(mode="json"), text))
    made = parts(record)
    first = keep.merge(None, made)
    assert [block.id for block in keep.blocks_in(first)] == [part.id for part in made]
    assert keep.merge(first, made) == first
