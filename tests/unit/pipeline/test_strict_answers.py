"""The parser of responses: a letter or nothing."""

import pytest
from app.evaluation.answers import majority, parse_answer


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("b", "b"),
        (" B\n", "b"),
        ("ｃ", "c"),
        ("d.", "d"),
        ("選択肢a", "a"),
        ("「b」", "b"),
        ("回答：ｂ", "b"),
        ("正解は「c」です。", "c"),
        ("答えはdです", "d"),
        ("Answer: a", "a"),
        ("The answer is (b).", "b"),
    ],
)
def test_a_letter_in_the_usual_wrapping_counts(response: str, letter: str) -> None:
    """A bare letter, and a letter said to be the answer, are read."""
    assert parse_answer(response, reasoned=False) == letter


@pytest.mark.parametrize(
    "response",
    [
        "",
        "e",
        "ab",
        "a b",
        "a または b",
        "bank",
        "b 第5条第1項の届出書",
        "Reasoning: よって\nAnswer: b",
        "aaaaaaaa",
        "条文によれば a が正しい",
    ],
)
def test_rambling_text_is_unknown(response: str) -> None:
    """A letter inside other text is not an answer, however it got there."""
    assert parse_answer(response, reasoned=False) == "unknown"


def test_of_a_reasoned_response_the_last_line_counts() -> None:
    """Letters in the reasoning are not answers; a bare letter is not a reasoned one."""
    assert parse_answer("Reasoning: aではない。\nAnswer: c\n", reasoned=True) == "c"
    assert parse_answer("Reasoning: Answer: a\nつまり", reasoned=True) == "unknown"
    assert parse_answer("b", reasoned=True) == "unknown"
    assert parse_answer("", reasoned=True) == "unknown"


def test_votes_for_letters_beat_failures_and_the_first_of_equals_wins() -> None:
    """An ensemble answers with its most frequent letter."""
    assert majority(["unknown", "unknown", "b"]) == "b"
    assert majority(["a", "b", "b"]) == "b"
    assert majority(["c", "b"]) == "c"
    assert majority(["unknown"]) == "unknown"
