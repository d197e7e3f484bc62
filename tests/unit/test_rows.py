"""One reader of training rows: what it takes for a row, and that everyone who reads rows finds the same ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from steph.base.files import json_lines, json_rows
from steph.base.messages import speaking
from steph.contract.description import load_description
from steph.contract.questions import questions_in
from steph.contract.rows import row_tokens
from steph.run.inputs import InputError, count_rows, needs_build, read_dataset, read_train_file, write_subset
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


ROWS_OF_TABLE = [[f"第{n}問、\n数は「{n * 37}」か", "はい" if n % 2 else 'いいえ, "違う"'] for n in range(5)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp932"])
@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ","), ("t.csv", ";"), ("t.tsv", "\t"), ("t.CSV", ",")])
def test_a_table_is_read_by_its_columns_names(name: str, delimiter: str, encoding: str, tmp_path: Path) -> None:
    """Cells with line breaks and quotation marks, as spreadsheets write them; its first rows are a table, too."""
    path = tmp_path / name
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([["問い", "答え"], *ROWS_OF_TABLE])
    assert [[row["問い"], row["答え"]] for row in json_rows(path)] == ROWS_OF_TABLE
    assert read_train_file(tmp_path, name, row_format="問い -> 答え").rows == count_rows(path) == 5
    first = tmp_path / f"first{path.suffix}"
    write_subset(tmp_path, name, 2, first)
    assert [row["答え"] for row in json_rows(first)] == [answer for _, answer in ROWS_OF_TABLE[:2]]
    assert path.read_bytes().startswith(first.read_bytes())


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    """A line with more cells than there are columns, and bytes that are no text, have their places."""
    (tmp_path / "more.csv").write_text("a,b\n1,2\n1,2,3\n", encoding="utf-8")
    (tmp_path / "bytes.csv").write_bytes(b"a,b\n\x85,2\n")
    for name, said in (("more.csv", "line 3"), ("bytes.csv", "not UTF-8")):
        with speaking("en"), pytest.raises(InputError, match=said):
            read_train_file(tmp_path, name, row_format="a -> b")


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
