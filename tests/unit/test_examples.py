"""The example reports are the ones of the records that lie beside them, and none of their pictures is missing."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from steph.run.journal import read_record, record_folders
from steph.tell.keep import blocks_in
from steph.tell.report import REHEARSAL_REPORT, parts

EXAMPLES = Path(__file__).parents[2] / "reports" / "examples"
FOLDERS = sorted(path.parent for path in EXAMPLES.glob("*/runs"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_an_example_is_its_records_report(folder: Path) -> None:
    """First screen and history are what the record renders to today, and each picture of the page is there."""
    page = (folder / REHEARSAL_REPORT).read_bytes()
    found = {block.id: block for block in blocks_in(page)}
    record = read_record(record_folders(folder / "runs")[0])
    today = {part.id: part.text.strip() for part in parts(record)}
    assert {name: found[name].text.strip() for name in ("summary", "history")} == {
        name: today[name] for name in ("summary", "history")
    }, "write the examples again: steph report --reports reports/examples/NAME"
    assert not any(block.is_edited for block in found.values())
    pictures = re.findall(r"\]\((figures/[^)]+)\)", page.decode())
    assert len(pictures) >= 2
    assert all((folder / unquote(picture)).is_file() for picture in pictures)


def test_there_are_examples() -> None:
    """A green run, one with an OOM walked down, and the production model on a small card."""
    assert [folder.name for folder in FOLDERS] == ["emulated-rtx3080", "oom-walked-down", "qwen3-8b-on-10gb"]
