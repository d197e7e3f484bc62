"""One reader of training rows: what it takes for a row, and that everyone who reads rows finds the same ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from steph.base.files import json_lines, json_rows
from steph.base.messages import speaking
from steph.contract.description import load_description
from steph.contract.questions import questions_in
from steph.contract.rows import row_tokens
from steph.run.inputs import InputError, needs_build, read_dataset, read_train_file
from suite_runs import make_bench, make_model

ODD = "第一条\u2028第二条\u0085第三条"


def content(*rows: dict[str, object], ending: str = "\n") -> bytes:
    """A file of rows as Windows programs may leave it: a byte order mark first."""
    lines = [json.dumps(row, ensure_ascii=False) + ending for row in rows]
    return "".join(lines).encode("utf-8-sig")


def row(number: int) -> dict[str, object]:
    """A direct row whose question has characters that other readers end a line at."""
    question = f"{ODD}{number}"
    return {"input": question, "output": "a", "meta": {"question": question, "choices": "a 一\nb 二"}}


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r", "\n\n"])
def test_every_reader_finds_the_same_rows(ending: str, tmp_path: Path) -> None:
    """Mark, line separators within a row, blank lines, any line break: counted, checked and judged alike."""
    (tmp_path / "rows.jsonl").write_bytes(content(row(1), row(2), row(3), ending=ending))
    tokenizer = make_model(tmp_path / "model") / "tokenizer.json"
    assert read_train_file(tmp_path, "rows.jsonl").rows == 3
    assert len(row_tokens(tmp_path / "rows.jsonl", tokenizer)) == 3
    assert len(questions_in(tmp_path / "rows.jsonl")) == 3
    assert [found["input"] for found in json_rows(tmp_path / "rows.jsonl")] == [row(n)["input"] for n in (1, 2, 3)]


def test_a_line_that_is_no_row_is_told_and_passed_over_by_who_judges(tmp_path: Path) -> None:
    """Broken JSON, nesting without end, a list and bytes that are no UTF-8 have their numbers and reasons."""
    deep = b"[" * 100_000
    lines = (b"", b'{"input": "a"', deep, b"[1]", b'{"input": "\xff"}', b'{"input": "b"}')
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    told = {line.number: line.trouble.text("en") for line in json_lines(b"\n".join(lines)) if line.row is None}
    assert [(number, text.partition(":")[0]) for number, text in told.items()] == [
        (2, "it is not valid JSON"), (3, "it is not valid JSON"), (4, "it holds no JSON object"),
        (5, "it is not UTF-8 (byte 11); save it as UTF-8"),
    ]  # fmt: skip
    assert [found["input"] for found in json_rows(tmp_path / "rows.jsonl")] == ["\ufffd", "b"]


@pytest.mark.parametrize(
    ("line", "said"), [(b"[" * 100_000, "line 1: it is not valid JSON"), (b"[1]", "line 1: it holds no JSON object")]
)
def test_a_file_with_such_a_line_is_refused_before_training(line: bytes, said: str, tmp_path: Path) -> None:
    """The line is named in one sentence with the remedy, also where nesting overflows the reader."""
    (tmp_path / "rows.jsonl").write_bytes(line)
    with speaking("en"), pytest.raises(InputError, match=said):
        read_train_file(tmp_path, "rows.jsonl")


def test_a_first_row_behind_a_mark_says_what_it_was_built_from(tmp_path: Path) -> None:
    """A file that the builder made from other data is built anew, whatever an editor put before its first row."""
    bench = make_bench(tmp_path)
    path = bench.root / "rows.jsonl"
    dataset = read_dataset(bench.root, load_description(bench.root))
    assert dataset is not None
    for source, is_old in ((dataset.sha256, False), ("0" * 64, True)):
        meta = {"meta": {"source_sha256": source, "holdout": 3}}
        path.write_bytes(content(row(1) | meta))
        assert needs_build(bench.root, "rows.jsonl", dataset, samples=3) is is_old
