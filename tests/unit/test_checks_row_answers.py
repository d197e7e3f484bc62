"""Answers of a training file against the data set's, over the ways in which rows are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from planted import DATASET, ROOT, TRAIN_FILE
from steph.base.terms import Severity
from steph.contract.questions import Question, question_key, questions_of
from steph.contract.results import Row as ResultsRow
from steph.contract.rows import RowFormat
from steph.judge.checks_prompts import given_away
from steph.judge.checks_row_answers import file_checks
from steph.judge.evidence import TrainEvidence
from steph.record.settings import TrainSettings
from steph.record.values import Check

LETTERS = "abcd"
QUESTIONS = tuple(
    {
        "question": f"次のうち、第{n}条が定める期間について正しいものはどれですか。",
        "choices": tuple(f"第{n}条の期間は{n}と{k}日である" for k in (3, 5, 7, 9)),
        "gold": LETTERS[n % 4],
    }
    for n in range(11, 23)
)
Row = dict[str, object]


def known(golds: Callable[[str], str] = lambda letter: letter) -> tuple[Question, ...]:
    """The data set's questions."""
    return tuple(
        Question(question_key(str(one["question"]), list(one["choices"])), golds(str(one["gold"]))) for one in QUESTIONS
    )


def checked(
    folder: Path,
    rows: Sequence[Mapping[str, object]],
    questions: tuple[Question, ...] | None,
    row_format: RowFormat = "input_output",
) -> Check:
    """The check of a training file with these rows."""
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    evidence = TrainEvidence(
        output_dir=folder / "out", output_dir_name="out", settings=TrainSettings(max_seq_length=512), model_name="m",
        stdout="", output="", returncode=0, attempt_started_unix=0.0,
    )  # fmt: skip
    return file_checks(replace(evidence, train_file=path, row_format=row_format, questions=questions))[1]


def prompt_of(one: Mapping[str, object], labels: Sequence[str] = LETTERS, order: Sequence[int] = (0, 1, 2, 3)) -> str:
    """A question with its choices in this order."""
    choices = [str(text) for text in one["choices"]]  # type: ignore[attr-defined]
    lines = [f"{label}. {choices[place]}" for label, place in zip(labels, order, strict=True)]
    return "\n".join([str(one["question"]), *lines, "回答:"])


def plain(one: Mapping[str, object], answer: str) -> Row:
    """The letter alone."""
    return {"input": prompt_of(one), "output": answer}


def behind_an_example(one: Mapping[str, object], answer: str) -> Row:
    """Another question of the data set stands before it, answered as its row would be."""
    example = QUESTIONS[0] if one is not QUESTIONS[0] else QUESTIONS[1]
    return {"input": f"{prompt_of(example)} {example['gold']}\n\n{prompt_of(one)}", "output": answer}


def numbered(one: Mapping[str, object], answer: str) -> Row:
    """Numbers in place of letters."""
    return {"input": prompt_of(one, "1234"), "output": str(LETTERS.index(answer) + 1)}


def mixed(one: Mapping[str, object], answer: str) -> Row:
    """The choices in another order, and the letter that the answer has then."""
    order = (2, 0, 3, 1)
    return {"input": prompt_of(one, "ABCD", order), "output": "ABCD"[order.index(LETTERS.index(answer))]}


def spelled_out(one: Mapping[str, object], answer: str) -> Row:
    """The text of the choice in place of its letter."""
    return {"input": prompt_of(one), "output": list(one["choices"])[LETTERS.index(answer)]}  # type: ignore[call-overload]


@pytest.mark.parametrize("write", [plain, behind_an_example, numbered, mixed, spelled_out])
def test_wrong_answers_are_found_however_rows_ask(write: Callable[..., Row], tmp_path: Path) -> None:
    """Right letters hold, the letter before each is red, in whatever order and with whatever labels choices stand."""
    right = [write(one, one["gold"]) for one in QUESTIONS]
    wrong = [write(one, LETTERS[LETTERS.index(str(one["gold"])) - 1]) for one in QUESTIONS]
    assert checked(tmp_path, right, known()).holds is True
    found = checked(tmp_path, wrong, known())
    assert found.holds is False, found.message
    assert found.severity is Severity.FAIL
    assert f"{len(QUESTIONS)} 行のうち、答えがその正解でないのは {len(QUESTIONS)} 行" in str(found.message)


@pytest.mark.parametrize(("mark", "elsewhere"), [(" ", ""), ("。", ""), ("", "。")])
def test_a_space_or_full_stop_that_the_right_choice_alone_has_gives_it_away(mark: str, elsewhere: str) -> None:
    """In all of many rows; where some right choices have it, or in a few rows, it says nothing."""
    rows = [
        ResultsRow(
            question=str(one["question"]), choices=list(one["choices"]), correct_answer=str(one["gold"]),
            is_correct=True, prompt=_ended(one, mark, elsewhere),
        )
        for one in QUESTIONS
    ]  # fmt: skip
    assert [str(reason.id) for reason in given_away(rows)] == ["prompt.answer_marked"]
    assert given_away(rows[:4]) == []
    mended = rows[0].model_copy(update={"prompt": prompt_of(QUESTIONS[0])})
    assert given_away([mended, *rows[1:]]) == []


def _ended(one: Mapping[str, object], mark: str, elsewhere: str) -> str:
    """The prompt with one ending behind the right choice and another behind the others."""
    prompt = prompt_of(one)
    for letter, choice in zip(LETTERS, one["choices"], strict=True):  # type: ignore[call-overload]
        prompt = prompt.replace(str(choice), f"{choice}{mark if letter == one['gold'] else elsewhere}")
    return prompt


def test_a_few_wrong_rows_are_a_warning(tmp_path: Path) -> None:
    """A third of the rows with another letter is said, and is not red."""
    rows = [plain(one, "abcd"[(n + (n % 3 == 0)) % 4]) for n, one in enumerate(QUESTIONS, 11)]
    found = checked(tmp_path, rows, known())
    assert (found.holds, found.severity) == (False, Severity.WARN), found.message


@pytest.mark.parametrize("row_format", ["messages", "text"])
def test_chat_rows_and_whole_texts_are_compared(row_format: RowFormat, tmp_path: Path) -> None:
    """A conversation's last answer, and what follows the choices in a row that is one text."""

    def row(one: Mapping[str, object], answer: str) -> Row:
        if row_format == "text":
            return {"text": f"{prompt_of(one)} {answer}<|im_end|>"}
        turns = (("system", "法律の問題です。"), ("user", prompt_of(one)), ("assistant", answer))
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    right = [row(one, str(one["gold"])) for one in QUESTIONS]
    wrong = [row(one, LETTERS[LETTERS.index(str(one["gold"])) - 1]) for one in QUESTIONS]
    assert checked(tmp_path, right, known(), row_format).holds is True
    found = checked(tmp_path, wrong, known(), row_format)
    assert found.holds is False
    assert found.severity is (Severity.FAIL if row_format == "messages" else Severity.WARN)


def test_reasoning_is_read_with_care(tmp_path: Path) -> None:
    """Reasoning that ends in the right answer holds; one that ends in a wrong one is a warning."""
    text = "aは期間が違う。bは条文と合わない。cも同じく誤りである。条文から、期間を確かめる。\n答え: {}"
    right = [plain(one, text.format(one["gold"])) for one in QUESTIONS]
    wrong = [plain(one, text.format(LETTERS[LETTERS.index(str(one["gold"])) - 1])) for one in QUESTIONS]
    assert checked(tmp_path, right, known()).holds is True
    found = checked(tmp_path, wrong, known())
    assert (found.holds, found.severity) == (False, Severity.WARN)


def test_the_stand_in_s_own_files_hold() -> None:
    """Real questions: rows of the hold-out, direct and with reasoning, are right, and most of them are compared."""
    questions = questions_of(ROOT / DATASET)
    for name in (TRAIN_FILE, TRAIN_FILE.replace("direct", "cot")):
        evidence = TrainEvidence(
            output_dir=ROOT, output_dir_name=".", settings=TrainSettings(max_seq_length=512), model_name="m", stdout="",
            output="", returncode=0, attempt_started_unix=0.0, train_file=ROOT / name, questions=questions,
        )  # fmt: skip
        found = file_checks(evidence)[1]
        assert found.holds is True, found.message
        assert int(str(found.message).split(" 行のうち")[0].split()[-1]) > 30


@pytest.mark.parametrize(
    "rows",
    [
        [{"input": f"別の試験の第{n}問です。第{n}条の罰則はどれですか。", "output": "a"} for n in range(20)],
        [{"input": str(one["question"]), "output": "a"} for one in QUESTIONS],
        [{"input": prompt_of(one), "output": "条文のとおりである。"} for one in QUESTIONS],
        [plain(one, "a") for one in QUESTIONS[:3]],
    ],
    ids=["another data set", "without choices", "no letter", "too few"],
)
def test_rows_that_can_t_be_compared_say_nothing(rows: list[Row], tmp_path: Path) -> None:
    """Rows of unknown origin are unmeasured, never accused."""
    found = checked(tmp_path, rows, known())
    assert (found.holds, found.severity) == (None, Severity.INFO)


FIVE = tuple(
    {**one, "choices": (*one["choices"], f"第{n}条に期間の定めはない"), "gold": "abcde"[n % 5]}
    for n, one in enumerate(QUESTIONS, 11)
)


def of_five(golds: str = "") -> tuple[Question, ...]:
    """The data set with a fifth choice in each question."""
    return tuple(
        Question(question_key(str(one["question"]), list(one["choices"])), golds or str(one["gold"])) for one in FIVE
    )


def asks(one: Mapping[str, object], *lines: str, numbers: bool = True) -> str:
    """A question with its first four choices, and with further lines."""
    texts = list(one["choices"])[:4]  # type: ignore[call-overload]
    shown = [f"{label}. {text}" if numbers else text for label, text in zip(LETTERS, texts, strict=True)]
    return "\n".join([str(one["question"]), *shown, *lines, "回答:"])


@pytest.mark.parametrize("answer", ["e", "E", "(e)", "g"])
def test_a_label_that_no_choice_of_the_row_has_is_wrong(answer: str, tmp_path: Path) -> None:
    """Whether the data set has four choices or five of which the row lost one; numbers are labels as well."""
    short = [{"input": asks(one), "output": answer} for one in QUESTIONS]
    assert checked(tmp_path, short, known()).severity is Severity.FAIL
    assert checked(tmp_path, [{"input": asks(one), "output": answer} for one in FIVE], of_five("e")).holds is False
    from_zero = [{"input": prompt_of(one, "1234"), "output": str(LETTERS.index(str(one["gold"])))} for one in QUESTIONS]
    assert "12 行のうち、答えがその正解でないのは 12 行" in str(checked(tmp_path, from_zero, known()).message)


def test_a_label_that_some_other_question_has_is_wrong_here(tmp_path: Path) -> None:
    """Choices without labels are numbered as the data set's answers are, as far as a question has choices."""
    dataset = (*of_five("e")[:2], *known()[2:])
    rows = [{"input": asks(one, numbers=False), "output": "e"} for one in QUESTIONS[2:]]
    found = checked(tmp_path, rows, dataset)
    assert (found.holds, found.severity) == (False, Severity.FAIL), found.message


def test_a_label_beyond_the_choices_is_read_out_of_a_sentence(tmp_path: Path) -> None:
    """As any other label is, and then it is a warning."""
    rows = [{"input": asks(one), "output": "条文の期間と比べると、どれとも違う。\n答え: e"} for one in QUESTIONS]
    found = checked(tmp_path, rows, known())
    assert (found.holds, found.severity) == (False, Severity.WARN), found.message


@pytest.mark.parametrize("added", ["e. わからない", "(e) none of these", "e わからない"])
def test_a_choice_that_the_rows_add_may_be_meant_in_some(added: str, tmp_path: Path) -> None:
    """Rows that say that they don't know, beside right ones, are not compared; most of the rows so, and it is said."""
    few = [{"input": asks(one, added), "output": str(one["gold"]) if n % 3 else "e"} for n, one in enumerate(QUESTIONS)]
    found = checked(tmp_path, few, known())
    assert found.holds is True, found.message
    assert "尋ねる 8 行" in str(found.message)
    every = [{"input": asks(one, added), "output": "e"} for one in QUESTIONS]
    found = checked(tmp_path, every, known())
    assert (found.holds, found.severity) == (False, Severity.WARN), found.message


def test_choices_in_other_words_are_not_lost(tmp_path: Path) -> None:
    """A fifth choice that the row words otherwise may be right; five choices as they are, are compared."""
    reworded = [{"input": asks(one, "e. 期間についての定めが置かれていない"), "output": "e"} for one in FIVE]
    assert checked(tmp_path, reworded, of_five("e")).holds is None
    lost = [{"input": asks(one), "output": "a"} for one in FIVE]
    assert checked(tmp_path, lost, of_five("e")).holds is None
    whole = [{"input": asks(one, f"e. {list(one['choices'])[4]}"), "output": one["gold"]} for one in FIVE]
    found = checked(tmp_path, whole, of_five())
    assert found.holds is True, found.message


def test_questions_that_disagree_or_count_unclearly_say_nothing(tmp_path: Path) -> None:
    """A question with two right answers, and digits that may count from 0 or from 1, tell no row from another."""
    rows = [plain(one, "d") for one in QUESTIONS]
    twice = (*known(), *known(lambda letter: LETTERS[LETTERS.index(letter) - 1]))
    assert checked(tmp_path, rows, twice).holds is None
    digits = known(lambda letter: {"a": "1", "b": "2", "c": "3", "d": "2"}[letter])
    assert checked(tmp_path, rows, digits).holds is None


def test_free_answers_are_wrong_only_where_they_are_another_question_s(tmp_path: Path) -> None:
    """Without choices an answer of its own wording says nothing; another question's right answer does."""
    questions = tuple(
        Question(question_key(f"第{n}条に定める期間の長さを答えてください。", None), f"{n}日間") for n in range(30, 40)
    )
    asked = [f"問い: 第{n}条に定める期間の長さを答えてください。" for n in range(30, 40)]
    right = [{"input": text, "output": f"{n}日間"} for n, text in enumerate(asked, 30)]
    moved = [{"input": text, "output": f"{30 + (n - 29) % 10}日間"} for n, text in enumerate(asked, 30)]
    reworded = [{"input": text, "output": f"期間は{n}日です"} for n, text in enumerate(asked, 30)]
    assert checked(tmp_path, right, questions).holds is True
    assert checked(tmp_path, moved, questions).holds is False
    assert checked(tmp_path, reworded, questions).holds is None
