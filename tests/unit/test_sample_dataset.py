"""The sample question set that ships with the reference pipeline is well formed and gives no answer away."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

SAMPLE_PATH = Path(__file__).parents[2] / "pipeline" / "datasets" / "sample" / "selection.json"
ROW_KEYS = ["ファイル名", "コンテキスト", "問題文", "指示", "選択肢", "output", "references"]
LETTERS = "abcd"
HELD_OUT_ROWS = 8
LAW_URL = re.compile(r"https://laws\.e-gov\.go\.jp/law/(?:\d{3}AC0{7}\d{3}|321CONSTITUTION)")


@dataclass(frozen=True)
class Row:
    """One question as read from the file; `choices` are in the order a to d, without their letters."""

    file_name: str
    context: str
    question: str
    choices: tuple[str, ...]
    answer: str
    references: tuple[str, ...]

    @property
    def law(self) -> str:
        return self.context.splitlines()[0].removeprefix("## ")

    @property
    def articles(self) -> set[str]:
        return set(re.findall(r"^### (第\d+条)$", self.context, re.MULTILINE))


def _raw_rows(path: Path) -> list[dict[str, object]]:
    samples = json.loads(path.read_text(encoding="utf-8"))["samples"]
    assert isinstance(samples, list)
    return samples


def _row(raw: dict[str, object]) -> Row:
    references = raw["references"]
    assert isinstance(references, list)
    return Row(
        file_name=str(raw["ファイル名"]),
        context=str(raw["コンテキスト"]),
        question=str(raw["問題文"]),
        choices=tuple(line[2:] for line in str(raw["選択肢"]).split("\n")),
        answer=str(raw["output"]),
        references=tuple(map(str, references)),
    )


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """The questions that come with the reference pipeline."""
    return [_row(raw) for raw in _raw_rows(SAMPLE_PATH)]


def _right_choice(row: Row) -> str:
    return row.choices[LETTERS.index(row.answer)]


def test_file_has_the_root_and_row_keys_of_lawqa_jp() -> None:
    """The root holds `samples` alone, and each row has lawqa_jp's seven keys: six texts and a list of texts."""
    assert list(json.loads(SAMPLE_PATH.read_text(encoding="utf-8"))) == ["samples"]
    for raw in _raw_rows(SAMPLE_PATH):
        assert list(raw) == ROW_KEYS
        assert all(isinstance(raw[key], str) and raw[key] for key in ROW_KEYS[:-1])
        assert isinstance(raw["references"], list)


def test_there_are_enough_rows_to_train_on(rows: list[Row]) -> None:
    """At least 40 questions from at least 10 statutes."""
    assert len(rows) >= 40
    assert len({row.law for row in rows}) >= 10


def test_every_row_offers_four_different_choices_a_to_d() -> None:
    """The choices are four lines that begin with a, b, c and d, with four different texts."""
    for raw in _raw_rows(SAMPLE_PATH):
        lines = str(raw["選択肢"]).split("\n")
        assert [line[:2] for line in lines] == ["a ", "b ", "c ", "d "], raw["ファイル名"]
        assert len({line[2:].strip() for line in lines} - {""}) == 4, raw["ファイル名"]


def test_every_row_gives_the_same_instruction() -> None:
    """One instruction for all rows, with the marker in front that lawqa_jp puts there."""
    (instruction,) = {str(raw["指示"]) for raw in _raw_rows(SAMPLE_PATH)}
    assert instruction.startswith("<following_context>")


@pytest.mark.parametrize("field", ["file_name", "question"])
def test_ids_and_questions_are_unique(rows: list[Row], field: str) -> None:
    """No two rows share an id or a question."""
    assert [text for text, count in Counter(getattr(row, field) for row in rows).items() if count > 1] == []


def test_context_quotes_every_article_that_the_row_names(rows: list[Row]) -> None:
    """The article of the id, and each one that the question names, stands in the context under its own heading."""
    for row in rows:
        named = set(re.findall(r"第\d+条", row.question)) | {row.file_name.split("_")[1]}
        assert row.context.startswith("## "), row.file_name
        assert named <= row.articles, row.file_name


def test_each_law_has_one_reference_of_its_own(rows: list[Row]) -> None:
    """Law names and e-Gov addresses belong to each other one to one."""
    pairs = {(row.law, reference) for row in rows for reference in row.references}
    assert all(LAW_URL.fullmatch(reference) for _, reference in pairs)
    assert len(pairs) == len({law for law, _ in pairs}) == len({reference for _, reference in pairs})
    assert {row.law for row in rows} == {law for law, _ in pairs}


def test_answers_are_balanced_over_the_four_letters(rows: list[Row]) -> None:
    """Each letter is right in 20 to 30 % of the rows, so a model that always says one letter scores about a quarter."""
    counts = Counter(row.answer for row in rows)
    assert set(counts) == set(LETTERS)
    assert all(0.20 <= count / len(rows) <= 0.30 for count in counts.values())


def test_answers_follow_no_short_cycle(rows: list[Row]) -> None:
    """Repeating the answer of any of the eight rows before is right in at most 40 % of the rows."""
    answers = [row.answer for row in rows]
    for lag in range(1, 9):
        same = sum(now == before for before, now in zip(answers, answers[lag:], strict=False))
        assert same / (len(answers) - lag) <= 0.40, lag


@pytest.mark.parametrize("extreme", [max, min])
def test_length_does_not_give_the_answer_away(rows: list[Row], extreme: Callable[[Iterable[int]], int]) -> None:
    """The right choice is the longest (or shortest) one, ties counted, in at most 40 % of the rows."""
    prose = [row for row in rows if len(set(map(len, row.choices))) > 1]
    hits = sum(len(_right_choice(row)) == extreme(map(len, row.choices)) for row in prose)
    assert hits / len(prose) <= 0.40


def test_held_out_rows_cover_different_statutes_and_all_letters(rows: list[Row]) -> None:
    """The first eight rows, which a short evaluation takes, come from eight statutes and use all four letters."""
    held_out = rows[:HELD_OUT_ROWS]
    assert len({row.law for row in held_out}) == HELD_OUT_ROWS
    assert {row.answer for row in held_out} == set(LETTERS)


def test_nothing_is_taken_from_lawqa_jp(rows: list[Row]) -> None:
    """No id, context, question or choice of the published lawqa_jp set appears here."""
    root = os.environ.get("STEPH_TEST_DATA")
    if not root:
        pytest.skip("STEPH_TEST_DATA is not set: no copy of lawqa_jp to compare with")
    published = [_row(raw) for raw in _raw_rows(Path(root) / "lawqa_jp" / "data" / "selection.json")]
    assert _texts(rows).isdisjoint(_texts(published))


def _texts(rows: list[Row]) -> set[str]:
    whole = {text for row in rows for text in (row.file_name, row.context, row.question)}
    return whole | {choice for row in rows for choice in row.choices}
