"""A run's input files: what is wrong with one is a line with its path and remedy, before anything is started."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from steph.base.files import UnreadableError, sha256_or_none
from steph.base.fingerprint import fingerprints
from steph.base.messages import speaking
from steph.contract.description import Description, Paths, load_description
from steph.contract.questions import questions_of, samples_of
from steph.contract.results import Row
from steph.judge.checks_prompts import text_beside
from steph.record.settings import DataFile
from steph.run.inputs import InputError, needs_build, put_back, read_dataset, read_train_file, require_script, set_aside

DATASET = DataFile(role="dataset", path="q.json", sha256="a" * 64, rows=140)
ROW = {"input": "問", "output": "a"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"samples": []}', "key 'samples' holds no questions"),
        ('{"samples": {}}', "key 'samples' holds no questions"),
        ("[1]", "has no key 'samples'"),
        ("{", "is not valid JSON"),
    ],
)
def test_a_data_set_without_questions_is_refused(tmp_path: Path, content: str, said: str) -> None:
    """Whatever stands there instead of a list is one line with the file and the remedy."""
    path = tmp_path / Description().paths.dataset
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="utf-8")
    with speaking("en"), pytest.raises(InputError, match=f"{said}.*remedy: restore the file"):
        read_dataset(tmp_path, Description())


ASKED = [{"question": f"Which answer has the number {n}?", "answer": "a", "note": "x" * n} for n in range(3)]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"samples": ASKED}),
        '{"samples": [\n' + ",\n".join(map(json.dumps, ASKED)) + "\n]}",
        json.dumps(ASKED, indent=1),
        "".join(json.dumps(row) + "\n" for row in ASKED),
    ],
)
def test_a_data_set_is_the_same_to_all_who_read_it(tmp_path: Path, content: str) -> None:
    """A list `samples`, a JSON list or JSON Lines, whatever the file is called."""
    text = '[paths]\ndataset = "d.json"\n[train]\npreset = "lawqa"\n[evaluate]\ncommand = ["x"]\nresults.score = "s"\n'
    (tmp_path / "steph.toml").write_text(text, encoding="utf-8")
    path = tmp_path / "d.json"
    path.write_text(content, encoding="utf-8")
    found = read_dataset(tmp_path, load_description(tmp_path))
    assert found is not None
    assert (found.rows, samples_of(path)) == (3, ASKED)
    assert [question.answer for question in questions_of(path)] == ["a"] * 3
    rows = [Row(question=str(row["question"]), is_correct=True) for row in ASKED]
    prompts = [fingerprints(str(row["question"])) for row in ASKED]
    assert text_beside(prompts, rows, path) is not None


@pytest.mark.parametrize("content", ['{\n"data": []\n}', '{"samples": [\n{"question": "x"}\n', ""])
def test_what_is_no_data_set_has_no_rows(tmp_path: Path, content: str) -> None:
    """An object over several lines, and one that was cut off, are not taken for JSON Lines."""
    (tmp_path / "d.json").write_text(content, encoding="utf-8")
    with pytest.raises(UnreadableError):
        samples_of(tmp_path / "d.json")


def test_the_real_questions_go_before_the_sample_that_comes_with_the_root(tmp_path: Path) -> None:
    """Where both are there the real ones are read; else the sample, and the record says that it was one."""
    paths = Paths(dataset="real.json", dataset_fallback="sample.json")
    description = Description(paths=paths)
    for name, rows in (("sample.json", 2), ("real.json", 3)):
        (tmp_path / name).write_text(json.dumps({"samples": [{}] * rows}))
        found = read_dataset(tmp_path, description)
        assert found is not None
        assert (found.path, found.rows, found.is_sample) == (name, rows, name == "sample.json")
        assert (found.role, found.sha256) == ("dataset", sha256_or_none(tmp_path / name))
    (tmp_path / "real.json").unlink()
    without = Description(paths=Paths(dataset="real.json"))
    with speaking("en"), pytest.raises(InputError, match=r"real\.json: no such file"):
        read_dataset(tmp_path, without)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no rows"),
        ("\n\n", "holds no rows"),
        (json.dumps(ROW) + "\n[1]\n", "line 2: it holds no JSON object"),
        (json.dumps({"input": "問", "output": 1}), "line 1 has no text 'output'"),
        (json.dumps(ROW) + "\n\n{\n", "line 3: it is not valid JSON"),
        ('{"input": "\\ud83d", "output": "a"}', "line 1: 'input' holds half a character"),
    ],
)
def test_a_training_file_with_a_broken_row_is_refused(tmp_path: Path, content: str, said: str) -> None:
    """The line's number counts empty lines, as an editor does."""
    (tmp_path / "rows.jsonl").write_text(content, encoding="utf-8")
    with speaking("en"), pytest.raises(InputError, match=f"rows.jsonl: {said}.*build"):
        read_train_file(tmp_path, "rows.jsonl")


def test_empty_lines_are_no_rows(tmp_path: Path) -> None:
    """Only what is trained on is counted, and the digest is that of the file's bytes."""
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\n{json.dumps(ROW)}\n\n{json.dumps(ROW)}\n", encoding="utf-8")
    found = read_train_file(tmp_path, "rows.jsonl", "cot")
    assert (found.rows, found.role, found.sha256) == (2, "train_file_cot", sha256_or_none(path))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A folder in its place: the reason, the path and the key of the description."""
    (tmp_path / "rows.jsonl").mkdir()
    with (
        speaking("en"),
        pytest.raises(InputError, match=r"rows\.jsonl: cannot be read: Is a directory \(paths\.train_file\)"),
    ):
        read_train_file(tmp_path, "rows.jsonl")
    assert sha256_or_none(tmp_path / "rows.jsonl") is None


def test_a_root_that_is_not_there_is_told_before_its_scripts(tmp_path: Path) -> None:
    """Not the script is missing but the folder."""
    with speaking("en"), pytest.raises(InputError, match="nowhere: no such folder"):
        require_script(tmp_path / "nowhere", "scripts/x.py", "train_script")


@pytest.mark.parametrize(
    ("first_line", "is_due"),
    [
        ({"meta": {"source_sha256": "a" * 64, "holdout": 3}}, False),
        ({"meta": {"source_sha256": "a" * 64, "holdout": 2}}, True),
        ({"meta": {"source_sha256": "b" * 64, "holdout": 3}}, True),
        ({"meta": {"source_sha256": None, "holdout": 3}}, False),
        ({"meta": {"source_sha256": "b" * 64}}, False),
        ({"meta": {"source_sha256": "b" * 64, "holdout": "3"}}, False),
        ({"meta": None}, False),
        ({"meta": "mine"}, False),
        ({}, False),
        ([1], False),
    ],
)
def test_only_a_file_that_says_what_it_was_built_from_is_built_again(
    tmp_path: Path, first_line: object, is_due: bool
) -> None:
    """Built of other data, or with fewer questions held out than are asked now; a person's own file is left alone."""
    (tmp_path / "rows.jsonl").write_text(json.dumps(first_line) + "\n{", encoding="utf-8")
    assert needs_build(tmp_path, "rows.jsonl", DATASET, samples=3) is is_due


@pytest.mark.parametrize("content", [None, ""])
def test_a_missing_file_is_built_and_an_empty_one_is_not(tmp_path: Path, content: str | None) -> None:
    """An empty file says nothing of where it comes from."""
    if content is not None:
        (tmp_path / "rows.jsonl").write_text(content)
    assert needs_build(tmp_path, "rows.jsonl", DATASET, samples=3) is (content is None)


def _file(path: Path) -> None:
    path.write_text("old")


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "file").write_text("old")


@pytest.mark.parametrize("make", [_file, _folder])
def test_what_was_set_aside_comes_back_unless_something_new_is_there(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """Undone where the place is empty; a new output is never overwritten by an old one."""
    path, aside = tmp_path / "out", tmp_path / "aside"
    make(path)
    place = set_aside(path, aside)
    assert not path.exists()
    put_back(path, place)
    assert path.exists()
    assert not (aside / "out").exists()
    place = set_aside(path, aside)
    path.write_text("new")
    put_back(path, place)
    assert path.read_text() == "new"
    put_back(tmp_path / "never", set_aside(tmp_path / "never", aside))
    assert not (tmp_path / "never").exists()
