"""Every row format is read into one value, and whoever reads rows finds question and answer in all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from japanese import is_told_in_japanese
from steph.base.messages import speaking, words_of
from steph.child.twin import texts_of
from steph.contract.questions import is_in_training, prompt_template_in, question_key, questions_in, without_choices
from steph.contract.rows import RowFormat, format_of, row_lengths, training_row, training_rows_in
from steph.run.inputs import InputError, read_train_file
from suite_runs import make_model

QUESTIONS = ("日本の首都はどこにありますか。", "富士山の高さは何メートルですか。", "水は何度で沸騰しますか。")
ANSWERS = ("東京", "3776 メートル", "100 度")
SYSTEM = "短く答える。"


def spelled(row_format: RowFormat, question: str, answer: str) -> dict[str, Any]:
    """One question and its answer as each format writes them."""
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    told = {"role": "assistant", "content": answer}
    rows: dict[str, dict[str, Any]] = {
        "input_output": {"input": question, "output": answer},
        "prompt_completion": {"prompt": question, "completion": answer},
        "messages": {"messages": [*turns, told]},
        "alpaca": {"instruction": question, "input": "", "output": answer, "system": SYSTEM},
        "sharegpt": {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]},
        "text": {"text": f"問: {question}\n答: {answer}"},
    }
    return rows[row_format]


FORMATS: tuple[RowFormat, ...] = ("input_output", "prompt_completion", "messages", "alpaca", "sharegpt", "text")


def write_rows(path: Path, row_format: RowFormat, *, as_array: bool = False) -> Path:
    """A file of the three rows, one a line or as one JSON array."""
    rows = [spelled(row_format, *pair) for pair in zip(QUESTIONS, ANSWERS, strict=True)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1) if as_array else lines, encoding="utf-8")
    return path


@pytest.mark.parametrize("as_array", [False, True], ids=["lines", "array"])
@pytest.mark.parametrize("row_format", FORMATS)
def test_every_reader_finds_question_and_answer(row_format: RowFormat, as_array: bool, tmp_path: Path) -> None:
    """Counted, checked for overlap, taken for a twin's tokenizer: the same three rows in whatever format."""
    file = write_rows(tmp_path / ("rows.json" if as_array else "rows.jsonl"), row_format, as_array=as_array)
    read = list(training_rows_in(file, row_format))
    assert [row.answer.endswith(answer) for row, answer in zip(read, ANSWERS, strict=True)] == [True] * 3
    assert all(question in row.text for row, question in zip(read, QUESTIONS, strict=True))
    assert read_train_file(tmp_path, file.name, row_format=row_format).rows == 3
    known = questions_in(file, row_format)
    assert all(is_in_training(question_key(question, None), known) for question in QUESTIONS)
    assert not is_in_training(question_key("月の直径は何キロメートルですか。", None), known)
    assert any(QUESTIONS[0] in text for text in texts_of(file))
    lengths = row_lengths(file, make_model(tmp_path / "model") / "tokenizer.json", "right", row_format=row_format)
    assert len(lengths.whole) == 3
    assert lengths.truncated_at(max(lengths.whole)).lost_rows == 0
    assert lengths.truncated_at(max(lengths.whole) - 1).lost_rows >= 1
    assert format_of(json.loads(line) for line in _lines(file)) == row_format


def _lines(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8")
    return [json.dumps(row) for row in json.loads(text)] if text.startswith("[") else text.splitlines()


OWN = "system + ask.question -> answer"


def test_rows_with_keys_of_their_own_are_read_by_them(tmp_path: Path) -> None:
    """Whatever a person calls them: parts of a prompt in order, dotted paths, an empty part, a number for an answer."""
    rows = [
        {"system": SYSTEM if n else "", "ask": {"question": question}, "answer": answer, "level": n}
        for n, (question, answer) in enumerate(zip(QUESTIONS, (*ANSWERS[:2], 100), strict=True))
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    read = list(training_rows_in(file, OWN))
    assert [row.answer for row in read] == ["東京", "3776 メートル", "100"]
    assert [row.prompt for row in read] == [QUESTIONS[0], *(f"{SYSTEM}\n{text}" for text in QUESTIONS[1:])]
    assert read_train_file(tmp_path, file.name, row_format=OWN).rows == 3
    known = questions_in(file, OWN)
    assert all(is_in_training(question_key(question, None), known) for question in QUESTIONS)


@pytest.mark.parametrize(
    ("rows", "row_format"),
    [
        ([{"question": "問", "answer": "答", "level": 1}], "question -> answer"),
        ([{"問題": "問", "回答": "答"}], "問題 -> 回答"),
        ([{"instruction": "問", "response": "答", "context": ""}], "instruction -> response"),
        ([{"question": "問", "answer": "答"}, {"question": "問"}], None),
        ([{"title": "問", "body": "答"}], None),
        ([{"problem": "問", "solution": "答"}], "problem -> solution"),
        ([{"input": "問", "output": 4.5}, {"input": "問", "output": 3}], "input -> output"),
        ([{"text": "文", "label": 0}, {"text": "文", "label": 1}], "text -> label"),
        ([{"text": "文", "label": None}], "text"),
        ([{"question": "問", "answers": ["答", "こたえ"]}], "question -> answers"),
        ([{"input": "問", "output": "答", "question": "問", "answer": "答"}], "input_output"),
    ],
)
def test_the_usual_keys_are_known(rows: list[dict[str, Any]], row_format: str | None) -> None:
    """For a draft: where a format that has a name fits, it is taken."""
    assert format_of(rows) == row_format


def test_a_list_is_read_by_its_places_or_a_line_each() -> None:
    """Choices of a question, and the first of several answers."""
    row = {"question": "問", "choices": ["東京", "京都"], "answers": {"text": ["東京", "東京都"], "start": [4]}}
    read = training_row(row, "question + choices -> answers.text.0")
    assert (read.prompt, read.answer) == ("問\n東京\n京都", "東京")
    for nothing in ([], [""]):  # as SQuAD 2 has it
        assert training_row({**row, "answers": {"text": nothing}}, "question -> answers.text.0").answer == ""
    with pytest.raises(ValueError, match=r"answers\.words"):
        training_row(row, "question -> answers.words.0")


def test_a_conversation_teaches_its_last_answer() -> None:
    """Earlier turns are its prompt; what is said after the last answer is not learnt; parts of a content are joined."""
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "一つ"}, {"type": "text", "text": "目"}]},
        {"role": "assistant", "content": "はい"},
        {"role": "user", "content": "二つ目"},
        {"role": "assistant", "content": "いいえ"},
        {"role": "user", "content": "ありがとう"},
    ]
    row = training_row({"messages": turns}, "messages")
    assert (row.answer, row.last_prompt, row.prompt) == ("いいえ", "二つ目", "一つ目\nはい\n二つ目")


def test_a_prompt_of_messages_is_a_conversation() -> None:
    """TRL takes lists of messages as prompt and completion, too; plain ones are joined by nothing."""
    chat = {"prompt": [{"role": "user", "content": "問"}], "completion": [{"role": "assistant", "content": "答"}]}
    assert training_row(chat, "prompt_completion").is_chat
    plain = training_row({"prompt": "問: ", "completion": "答"}, "prompt_completion")
    assert (plain.text, plain.is_chat) == ("問: 答", False)


def test_alpaca_joins_instruction_and_input_and_keeps_the_history() -> None:
    """As LLaMA-Factory documents it: the input follows the instruction, earlier pairs come first."""
    row = training_row({"instruction": "訳せ", "input": "水", "output": "water", "history": [["火", "fire"]]}, "alpaca")
    assert [turn.text for turn in row.turns] == ["火", "fire", "訳せ\n水", "water"]


@pytest.mark.parametrize(
    ("row_format", "row", "said"),
    [
        ("messages", {"messages": [{"role": "user", "content": "問"}]}, "has no turn of the assistant"),
        ("messages", {"text": "問"}, "has no list 'messages'"),
        ("messages", {"messages": ["問"]}, "has no object as turn 1 of 'messages'"),
        ("sharegpt", {"conversations": [{"value": "問"}]}, "has no role in turn 1 of 'conversations'"),
        ("sharegpt", {"conversations": [{"from": "gpt", "value": 3}]}, "has no text in turn 1 of 'conversations'"),
        ("prompt_completion", {"prompt": "問"}, "has no text 'completion'"),
        ("alpaca", {"instruction": "問", "input": "水"}, "has no text 'output'"),
        ("text", {"content": "問"}, "has no text 'text'"),
        ("q -> a", {"q": "問", "b": "答"}, "has no text 'a'"),
        ("q + p -> a", {"a": "答"}, "has no text 'q'"),
    ],
)
def test_a_row_of_another_format_is_refused_with_what_it_lacks(
    row_format: RowFormat, row: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """File, line and key are named before anything is trained; who judges passes over such a row."""
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    with speaking("en"), pytest.raises(InputError, match=f"line 1 {said}"):
        read_train_file(tmp_path, file.name, row_format=row_format)
    with pytest.raises(ValueError, match="ない") as caught:
        training_row(row, row_format)
    assert is_told_in_japanese(words_of(caught.value))
    assert list(training_rows_in(file, row_format)) == []


def test_a_question_alone_is_found_in_a_training_that_has_choices(tmp_path: Path) -> None:
    """By question alone where one side has no choices; a question with its own choices is another question."""
    meta = {"question": QUESTIONS[0], "choices": "a 東京\nb 大阪"}
    (tmp_path / "rows.jsonl").write_text(json.dumps({"input": "…", "output": "a", "meta": meta}), encoding="utf-8")
    known = questions_in(tmp_path / "rows.jsonl")
    assert is_in_training(question_key(QUESTIONS[0], None), known)
    assert not is_in_training(question_key(QUESTIONS[0], ["京都", "奈良"]), known)
    assert is_in_training(without_choices(question_key(QUESTIONS[0], ["京都", "奈良"])), known)


def test_a_question_is_found_in_a_training_that_asks_it_without_choices(tmp_path: Path) -> None:
    """The answer was learnt, whatever choices the evaluation puts beside it."""
    known = questions_in(write_rows(tmp_path / "rows.jsonl", "messages"), "messages")
    assert is_in_training(question_key(QUESTIONS[0], ["東京", "大阪"]), known)
    assert not is_in_training(question_key("月の直径は何キロメートルですか。", ["東京", "大阪"]), known)


def test_a_question_within_a_template_is_found(tmp_path: Path) -> None:
    """What an evaluation asks may hold the training's question whole, with a template around it."""
    known = questions_in(write_rows(tmp_path / "rows.jsonl", "messages"), "messages")
    assert is_in_training(question_key(f"Question: {QUESTIONS[1]}\nAnswer:", None), known)
    assert not is_in_training(question_key("水は", None), known)


def test_the_frame_of_conversations_is_their_common_text(tmp_path: Path) -> None:
    """The system's words stand before every question."""
    assert prompt_template_in(write_rows(tmp_path / "rows.jsonl", "messages"), "messages") == (SYSTEM, "")
