"""Prompts, training rows and the questions they come from."""

import json
from pathlib import Path

import pytest
from app.core.errors import PipelineError
from app.core.lawqa import Question, load_questions
from app.core.prompts import EXAMPLES, build_prompt
from app.finetune.rows import dataset_name, finetune_rows, reasoning

SAMPLE = {
    "ファイル名": "f",
    "コンテキスト": "## 民法\n### 第4条\n年齢十八歳をもって、成年とする。",
    "指示": "<following_context>選択肢 ａ、b、c、d の中から １ つ選んでください。",
    "問題文": "成年は何歳ですか。",
    "選択肢": "ａ　十六歳\nｂ　十八歳\nＣ　二十歳\nd 二十二歳",
    "output": "Ｂ",
    "references": ["r"],
}


def write(path: Path, content: object) -> Path:
    """`content` as a JSON file."""
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def load(tmp_path: Path, **changes: object) -> Question:
    """The sample as the pipeline reads it, with some of its fields changed."""
    return load_questions(write(tmp_path / "q.json", {"samples": [{**SAMPLE, **changes}]}), "--data")[0]


def test_full_width_letters_become_ascii(tmp_path: Path) -> None:
    """Letters, digits and spaces of choices, instruction and answer may be full-width; the texts stay as they are."""
    question = load(tmp_path)
    assert question.choices_text == "a 十六歳\nb 十八歳\nc 二十歳\nd 二十二歳"
    assert question.instruction == "選択肢a、b、c、dの中から1つ選んでください。"
    assert question.answer == "b"


def test_a_choice_may_run_over_several_lines(tmp_path: Path) -> None:
    """A line that does not begin with the next letter belongs to the choice above it."""
    question = load(tmp_path, 選択肢="a 一\n続き\nb a 二\nc 三\nd 四")
    assert question.choices == ("一 続き", "a 二", "三", "四")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"選択肢": "a 一\nb 二\nd 四"}, "選択肢"),
        ({"output": "e"}, "output"),
        ({"問題文": ""}, "問題文"),
        ({"問題文": None}, "問題文"),
    ],
)
def test_a_broken_question_is_named_with_file_row_and_key(
    tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    """What is wrong in a question set can be found from the message alone."""
    with pytest.raises(PipelineError, match=rf"q\.json samples\[0\].*{named}"):
        load(tmp_path, **changes)


def test_the_prompt_ends_with_the_question_and_its_choices(tmp_path: Path) -> None:
    """Shortening from the left can only take what comes before the question."""
    question = load(tmp_path)
    prompt = build_prompt(question, "direct", few_shot=True, passages=("条文",))
    assert prompt.endswith(f"{question.text}\n{question.choices_text}\n回答:")


def test_the_examples_are_in_no_question_set(tmp_path: Path) -> None:
    """A worked example that is also evaluated would give its answer away."""
    sample = Path(__file__).parents[3] / "pipeline/datasets/sample/selection.json"
    asked = {question.text for question in load_questions(sample, "--data")}
    assert asked.isdisjoint(example.question for example in EXAMPLES)


def test_held_out_questions_are_not_trained_on(questions_file: Path) -> None:
    """With a holdout of three the first three questions appear in no row, and the rows say so."""
    questions = load_questions(questions_file, "--data")
    rows = finetune_rows(questions, "direct", few_shot=False, holdout=3, source=questions_file, source_sha256="0")
    assert [row["meta"]["question"] for row in rows] == [question.text for question in questions[3:]]
    assert all(row["meta"]["holdout"] == 3 for row in rows)


def test_reasoned_answers_quote_the_article_and_end_on_the_letter(tmp_path: Path) -> None:
    """A reasoned row says where the answer comes from, in a fixed form, and is deterministic."""
    question = load(tmp_path)
    (row,) = finetune_rows([question], "cot", few_shot=False, holdout=0, source=tmp_path, source_sha256="0")
    assert row["output"] == f"Reasoning: {reasoning(question)}\nAnswer: b"
    assert "民法第4条は「年齢十八歳をもって、成年とする」と定める。" in row["output"]


def test_the_data_sets_name_comes_from_its_folder() -> None:
    """Both layouts, with and without a data folder, give the set's name."""
    assert dataset_name(Path("datasets/lawqa_jp/data/selection.json")) == "lawqa_jp"
    assert dataset_name(Path("datasets/sample/selection.json")) == "sample"
