"""Reading of responses: which letter is beyond doubt, what is a loop, what is an exception's text."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steph.base.terms import Severity
from steph.contract.questions import repeats_question
from steph.contract.results import Row
from steph.judge.checks_text import response_checks
from steph.judge.reading import is_exception_text, looping, overlong, strict_letter


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("c", "c"), ("C。", "c"), ("（ｃ）", "c"), ("**b**", "b"), ("「d」", "d"), ("選択肢b", "b"),
        ("Answer: b", "b"), ("The correct answer is b.", "b"), ("答え: c 株主総会の決議", "c"),
        ("正解はcです。理由は条文にある。", "c"), ("c 株主総会の決議を要する", "c"), ("<think>aかbか</think>\nd", "d"),
        ("正解は「a」です", "a"), ("回答：Ａ", "a"), ("B。Aは誤り。", "b"), ("B. A is wrong, and so are c and d.", "b"),
        ("a. 甲\nb. 乙", None),
        ("", None), ("法律は難しい。", None), ("a model of law", None), ("aは誤り、bが正しい", None), ("b、d", None),
        ("c\nd\na\nb", None), ("正解は c です。\n正解は d です。", None), ("正解はaではなくbです", None),
        ("An attorney may answer this.", None), ("abcd", None), ("a\na\na\na\na\na", None), ("c" + "あ" * 2000, None),
    ],
)  # fmt: skip
def test_a_direct_answer_is_read_only_where_it_is_beyond_doubt(response: str, letter: str | None) -> None:
    """One letter, wrapped or led, counts; several letters, words and rambling do not."""
    assert strict_letter(response, cot=False) == letter


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("Reasoning: aは要件を欠き、bは例外に当たる。\nAnswer: c", "c"),
        ("理由を述べる。\n答え: d", "d"),
        ("A fails since B applies.\n#### C", "c"),
        ("Reasoning: aが正しいように見える。", None),
        ("Answer: a\nやはり違う。\nAnswer: b", None),
        ("c 株主総会の決議", None),
    ],
)
def test_a_reasoned_answer_needs_one_line_that_gives_it(response: str, letter: str | None) -> None:
    """Letters within the reasoning never count, and two different answers are none."""
    assert strict_letter(response, cot=True) == letter


@pytest.mark.parametrize(
    "text",
    [
        "c\n" * 6,
        "条文の要件を確認する。" * 8,
        "c 正しい理由を述べる。まず条文を読む。" + "次に例外を検討する。" * 10,
        "".join(f"{n}. 株主総会の決議が必要である。\n" for n in range(30)),
        "a" * 100,
        "!" * 16,
        "！\n！\n！\n！\n！",
        "\n".join(["株主総会の決議を要する", "取締役会の決議を要する", "監査役の同意を要する"] * 12),
    ],
)
def test_loops_are_found(text: str) -> None:
    """Repeated lines, a repeating end, numbered repeats and cycles of several lines are loops."""
    assert looping(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "c", "c\nc", "...", "!!!!", "c\n\n理由: 条文は書面による通知を求める。口頭の通知では足りない。",
        "a 甲は乙に通知する\nb 甲は丙に通知する\nc 乙は甲に通知する\nd 丙は甲に通知する",
        "Reasoning: 第1項は原則、第2項は例外を定める。\nAnswer: c",
    ],
)  # fmt: skip
def test_ordinary_answers_are_no_loops(text: str) -> None:
    """Short answers, choices and reasoning pass."""
    assert looping(text) is None


def test_no_text_of_the_real_data_set_is_a_loop() -> None:
    """Statutes, questions and choices of 140 real rows, dense with repeats as they are, are no loops."""
    root = os.environ.get("STEPH_TEST_DATA")
    if not root:
        pytest.skip("STEPH_TEST_DATA is not set")
    samples = json.loads((Path(root) / "lawqa_jp/data/selection.json").read_text(encoding="utf-8"))["samples"]
    texts = [str(sample[key]) for sample in samples for key in ("コンテキスト", "問題文", "選択肢")]
    assert [text[:80] for text in texts if looping(text)] == []


def test_length_limits_differ_for_direct_and_reasoned_answers() -> None:
    """A reasoning may be longer than a letter, neither without end."""
    assert [overlong("あ" * n, cot=cot) for n, cot in ((900, False), (2600, False), (2600, True), (9000, True))] == [
        False, True, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("RuntimeError: expected scalar type Float but found Half", True),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory.", True),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("Error: connection refused", True),
        ("Traceback (most recent call last):", True),
        ("c", False),
        ("錯誤（Error）による取消し", False),
        ("Errors of judgement are b", False),
    ],
)
def test_exception_texts_are_told_from_answers(response: str, expected: bool) -> None:
    """What a swallowed exception leaves as response is recognised; words about errors are not."""
    assert is_exception_text(response) is expected


@given(st.text(max_size=600))
def test_no_response_breaks_the_reading(text: str) -> None:
    """Any text gives a letter or none, a loop or none, without an exception."""
    assert strict_letter(text, cot=False) in (None, "a", "b", "c", "d")
    assert strict_letter(text, cot=True) in (None, "a", "b", "c", "d")
    looping(text)
    is_exception_text(text)


@given(st.text(alphabet="あいうえお。、abc", min_size=2, max_size=12), st.integers(40, 60))
def test_any_short_text_repeated_many_times_is_a_loop(unit: str, times: int) -> None:
    """Whatever is repeated, the loop is seen."""
    assert looping((unit.strip() and unit * times) or "あ" * 60)


QUESTION = "権利を行使しないことによる消滅時効について、正しいものはどれですか。"
CHOICES = "a 五年で消滅する\nb 十年で消滅する\nc 一年で消滅する\nd 消滅しない"


def row(response: str, answer: str = "b", question: str = QUESTION, **more: object) -> Row:
    """One answered question."""
    known = {"question": question, "choices": CHOICES, "correct_answer": "b", "is_correct": answer == "b"}
    return Row.model_validate({**known, "predicted_answer": answer, "response": response, **more})


def verdicts(*rows: Row, cot: bool = False, ensemble: int = 1) -> dict[str, bool | None]:
    """What each check of these responses says."""
    checks = response_checks(rows, cot=cot, ensemble=ensemble, rehearsal=False, seconds=1.0)
    return {check.id: check.holds for check in checks}


@pytest.mark.parametrize(
    ("response", "answer", "cot", "holds"),
    [
        ("b", "b", False, True),
        ("b", "a", False, False),
        ("正解はbです。理由は条文にある。", "c", False, False),
        ("Reasoning: aではない。\nAnswer: b", "a", True, False),
        ("aは誤り、bが正しい", "a", False, True),
        ("b", "unknown", False, True),
        ("", "a", False, True),
    ],
)
def test_an_answer_must_not_contradict_a_response_that_is_beyond_doubt(
    response: str, answer: str, cot: bool, holds: bool
) -> None:
    """An answer that was copied from the key, or read by a wrong parser, is a failure; rambling is another check's."""
    assert verdicts(row(response, answer), cot=cot)["answers_as_responded"] is holds


def test_a_majority_may_answer_otherwise_than_the_response_that_was_kept() -> None:
    """Of several runs one response is recorded; it contradicts nothing."""
    assert verdicts(row("a", "b"), ensemble=3)["answers_as_responded"] is None


@pytest.mark.parametrize(
    ("votes", "answer", "holds"),
    [
        ("bba", "b", True),
        ("aab", "b", False),
        ("ab", "b", True),  # as many
        ("aa?", "b", None),  # who wrote the reader knows what the third says
    ],
)
def test_the_answer_of_several_runs_is_the_majoritys(votes: str, answer: str, holds: bool | None) -> None:
    """Where the results have all responses; none of them is a loop of the others."""
    one = row("", answer).model_copy(update={"response": "\n".join(votes), "runs": tuple(votes)})
    for ensemble in (1, 3):
        found = verdicts(one, one, ensemble=ensemble)
        assert found["answers_as_responded"] is holds
        assert found["responses_bounded"] is True


TAGS = "O O O B-ORG I-ORG " + "O " * 40


@pytest.mark.parametrize(
    ("response", "gold", "holds"), [(TAGS, TAGS, True), (TAGS * 4, TAGS, False), (TAGS, "b", False)]
)
def test_an_answer_that_is_meant_to_repeat_itself_is_no_loop(response: str, gold: str, holds: bool) -> None:
    """As tags of words do, unless it goes on and on."""
    rows = (row(response, response, correct_answer=gold),)
    checks = response_checks(rows, kind="generate", cot=False, ensemble=1, rehearsal=False, seconds=1.0)
    assert {check.id: check.holds for check in checks}["responses_bounded"] is holds


def test_a_question_that_is_right_by_any_of_its_runs_fails() -> None:
    """Whatever most of them say: that is no accuracy, unless votes were weighed, which is not always right."""
    apart = [row("", "b").model_copy(update={"runs": tuple("aab"), "is_correct": right}) for right in (True, False)]
    hardness = [
        next(one.severity for one in response_checks(rows, cot=False, ensemble=3, rehearsal=False, seconds=1.0)
             if one.id == "answers_as_responded")
        for rows in ((apart[0], apart[0]), (apart[0], apart[1]))
    ]  # fmt: skip
    assert hardness == [Severity.FAIL, Severity.WARN]


def test_a_number_may_have_a_comma() -> None:
    """Which its label has not."""
    assert strict_letter("答えは3,200円です。", cot=False, labels=("3200", "320")) == "3200"
    assert strict_letter("1,2", cot=False, labels=("1", "2", "12")) is None


GARBAGE = ("庭園の石を積む", "鉄道の線路を測る人", "温泉の湯を引く管の太さ", "漁船")


def credited(*rows: Row) -> Severity | None:
    """How hard it is that answers stand in no response; None where they do."""
    checks = response_checks(rows, cot=False, ensemble=1, rehearsal=False, seconds=1.0)
    return next((one.severity for one in checks if one.id == "answers_grounded" and one.holds is False), None)


@pytest.mark.parametrize(
    ("rows", "hardness"),
    [
        ([row(GARBAGE[0]), row(GARBAGE[1]), row(GARBAGE[2], "unknown")], Severity.FAIL),
        ([row(GARBAGE[0]), row(GARBAGE[1]), row(GARBAGE[2], "a"), row(GARBAGE[3], "a")], Severity.WARN),  # half of them
        ([row(GARBAGE[0]), row(GARBAGE[1], "a")], Severity.WARN),  # one right by chance
        ([row(GARBAGE[0]), row(GARBAGE[1]), *[row("b")] * 9], Severity.WARN),  # the score is of the others
        ([row("二番目です"), row("上から二番目のもの")], Severity.WARN),  # named by its place
        ([row("条文によればこの問題の"), row("民法の定めを見ると次の")], Severity.WARN),  # all cut at one length
        ([row("b"), row("十年で消滅する")], None),
        ([row(text, choices=None) for text in GARBAGE], Severity.WARN),  # of which any may be the right choice's text
    ],
)
def test_answers_that_are_right_without_having_been_said_fail(rows: list[Row], hardness: Severity | None) -> None:
    """Most of what counts as right must not come out of nothing; what a reader may have known otherwise only warns."""
    assert credited(*rows) is hardness


def as_gold(response: str, gold: str, **more: object) -> Row:
    """A row whose recorded answer is the right one, whatever was said."""
    known = {"question": f"問 {gold}", "correct_answer": gold, "is_correct": True}
    return row(response, gold).model_copy(update=known | more)


READ = tuple(as_gold(f"答え: {letter}", letter) for letter in "abcdabcda")


@pytest.mark.parametrize(
    ("rows", "hardness"),
    [
        ([*READ, *map(as_gold, GARBAGE[:3], "abc")], Severity.FAIL),
        ([*READ, *map(as_gold, GARBAGE[:2], "ab")], Severity.WARN),  # a guess is right twice now and then
        ([*READ, *map(as_gold, GARBAGE[:3], "bbb")], Severity.WARN),  # a default letter
        ([*READ, *map(as_gold, GARBAGE[:3], "abc"), row(GARBAGE[3], "c")], Severity.WARN),  # which may be wrong too
        ([*READ, *map(as_gold, ("五年で消滅", "二番目", "一年で消滅する"), "abc")], Severity.WARN),
        ([*READ, *map(as_gold, ("五年で消滅する", "十年で消滅する", "一年で消滅する"), "abc")], None),
    ],
)
def test_what_cannot_be_read_must_not_be_the_right_answer_each_time(rows: list[Row], hardness: Severity | None) -> None:
    """Though most of what counts as right was said: a guess and a default are wrong, too."""
    assert credited(*rows) is hardness


@pytest.mark.parametrize(
    ("rows", "kind", "is_found"),
    [
        ([*READ, *map(as_gold, ("", ""), "ab")], "choice", True),
        ([*READ, *map(as_gold, ("わかりません。",) * 2, "ac")], "choice", True),
        ([*READ, *map(as_gold, ("わかりません。",) * 2, "aa")], "choice", False),  # a default letter
        ([*READ, *map(as_gold, ("わかりません。",) * 2, "ac"), row("わかりません。", "d")], "choice", False),  # a guess
        ([*READ, *map(as_gold, ("わかりません。", "不明"), "ac")], "choice", False),
        ([*READ, *map(as_gold, ("最初のもの。",) * 2, "ac")], "choice", False),
        ([*READ, as_gold("五年", "a", choices=["五年", "十年"]), as_gold("五年", "b", choices=["十年", "五年"])],
         "choice", False),
        ([as_gold("The sum is 42.", "42"), *map(as_gold, ("I do not know.",) * 2, ("17", "23"))], "generate", True),
        ([as_gold("The sum is 42.", "42"), *map(as_gold, ("17 and 23.",) * 2, ("17", "23"))], "generate", False),
        ([as_gold("I do not know.", "17"), as_gold("I do not know", "unknown")], "generate", False),
        ([*map(as_gold, ("まず条文の定める要件を順に確かめることから始めたい。",) * 2, "ac"), as_gold("b", "b")],
         "choice", False),
    ],
)  # fmt: skip
def test_one_response_is_not_another_right_answer_each_time(rows: list[Row], kind: str, is_found: bool) -> None:
    """Nothing, or the same words, recorded as the right answer of each question; cut ones may have said it."""
    checks = response_checks(
        tuple(rows), kind="generate" if kind == "generate" else "choice", cot=False, ensemble=1, rehearsal=False,
        seconds=1.0,
    )  # fmt: skip
    (check,) = [one for one in checks if one.id == "responses_present"]
    assert (check.message.id.endswith("as_gold"), check.holds is False) == (is_found, is_found)


def test_labels_that_are_words_stand_in_no_order() -> None:
    """The second of two choices may be the one that `no` stands for."""
    rows = [row(text, "no", choices=["承認する", "承認しない"]) for text in ("承認しない", "承認しない。")]
    checks = response_checks(tuple(rows), labels=("no", "yes"), cot=False, ensemble=1, rehearsal=False, seconds=1.0)
    assert not [one.id for one in checks if one.holds is False and one.severity is Severity.FAIL]


@pytest.mark.parametrize(
    ("rows", "cot", "holds"),
    [
        ([row("aかb"), row("a b c d"), row("cとdとb")], False, False),
        ([row("aかb"), row("a b c d"), row("cとdとb")], True, True),  # reasons weigh one label after the other
        ([row("aかb"), *[row("b")] * 2], False, True),  # one right by chance
        ([row("aかb"), row("a b c d"), *[row("b")] * 3], False, True),  # the score is of the others
        ([row("aかb", "a"), row("a b c d", "a"), row("b")], False, True),  # and counted as wrong
        ([row("正解はbです。aやcではない。")] * 3, False, True),
    ],
)
def test_right_answers_out_of_responses_that_name_every_label_are_said(rows: list[Row], cot: bool, holds: bool) -> None:
    """A parser that takes whichever label is right finds one in every such response."""
    assert verdicts(*rows, cot=cot)["answers_grounded"] is holds


@pytest.mark.parametrize(
    ("response", "holds"),
    [
        (f"user\n{QUESTION}\n{CHOICES}\nassistant\nb", False),
        (f"{QUESTION} {CHOICES}".replace(" ", "\u3000"), False),
        ("b 十年で消滅する", True),
        ("五年でも一年でもなく、十年で消滅する。正解はbです。", True),
        (CHOICES, True),
        (QUESTION, True),
    ],
)
def test_a_response_that_has_the_whole_prompt_is_an_echo(response: str, holds: bool) -> None:
    """Question and every choice in order, whatever spacing a template leaves; a quoted choice or question is none."""
    assert verdicts(row(response))["prompt_not_echoed"] is holds
    assert verdicts(row(response), row("b"))["prompt_not_echoed"] is True


@pytest.mark.parametrize(
    ("rows", "holds"),
    [
        ((row("b" * 19), row("b" * 19, question="別の問題")), None),
        ((row("理由は条文の第一項にあるからです。正解はbです。"),) * 2, None),
        (tuple(row("理由は条文の第一項にあるからです。正解はbです。", question=f"問{n}") for n in range(3)), False),
        ((row("理由は条文の第一項にあるからです。正解はbです。"), row("正解はcです。", question="別の問題")), True),
        (tuple(row("RuntimeError: CUDA error: device-side assert", "error", f"問{n}") for n in range(3)), None),
    ],
)
def test_one_long_response_to_different_questions_is_told(rows: tuple[Row, ...], holds: bool | None) -> None:
    """A loop that asks the same thing again and again; letters alone, one question and exceptions are left out."""
    assert verdicts(*rows)["responses_differ"] is holds


@pytest.mark.parametrize(
    ("rows", "holds"),
    [
        ((row("b"), row("")), False),
        ((row("b"), row("", "unknown")), False),
        ((row("b"), row("None", "unknown"), row("null", "unknown")), False),
        ((row("b"), row("<|im_end|>", "unknown")), False),
        ((row("", "unknown"), row(" \n", "unknown")), False),
        ((row("b", new_tokens=2),), True),
        ((row("b", new_tokens=0),), False),
        ((row("", "unknown", new_tokens=0), row("b", new_tokens=1)), False),
    ],
)
def test_an_answer_needs_a_response_that_was_generated(rows: tuple[Row, ...], holds: bool) -> None:
    """No answer without text, no text without tokens, and none of them empty; a program's word for nothing is empty."""
    assert verdicts(*rows)["responses_present"] is holds


@pytest.mark.parametrize(
    ("rows", "severity", "holds"),
    [
        ((row("", "unknown", new_tokens=0, finish_reason="stop"),), Severity.INFO, None),
        ((row("", "unknown", new_tokens=0, finish_reason="stop"), row("b", new_tokens=1)), Severity.FAIL, True),
        ((row("", "unknown", new_tokens=5, finish_reason="stop"),), Severity.FAIL, False),
        ((row("", "unknown", new_tokens=0, finish_reason="length"),), Severity.FAIL, False),
        ((row("", "b", new_tokens=0, finish_reason="stop"),), Severity.FAIL, False),
        ((row("", "unknown"),), Severity.FAIL, False),
    ],
)
def test_a_model_of_random_weights_may_end_at_once(
    rows: tuple[Row, ...], severity: Severity, holds: bool | None
) -> None:
    """Silence is the weights' own only where the pipeline says that nothing was generated and why; else it is lost."""
    made_up, real = (
        next(
            check
            for check in response_checks(
                rows, cot=False, ensemble=1, rehearsal=True, seconds=1.0, random_weights=random_weights
            )
            if check.id == "responses_present"
        )
        for random_weights in (True, False)
    )
    assert (made_up.severity, made_up.holds) == (severity, holds)
    assert real.holds is False
    assert real.severity is (
        Severity.WARN if len(rows) > 1 else Severity.FAIL
    )  # half of them empty is the most for a warning


@pytest.mark.parametrize(("told", "holds"), [(0.001, False), (0.9, True), (8.0, True)])
def test_rows_that_say_less_time_than_was_seen_are_a_warning(told: float, holds: bool) -> None:
    """The forecast takes the rows' word for it; a row that has its whole batch's time says more, which is sound."""
    rows = tuple(row("a", "a", seconds=told) for _ in range(3))
    checks = response_checks(rows, cot=False, ensemble=1, rehearsal=False, seconds=30.0, row_seconds=1.0)
    (found,) = (check for check in checks if check.id == "row_figures_fit")
    assert (found.holds, found.severity) == (holds, Severity.WARN)


def test_no_context_of_the_real_data_set_repeats_its_question() -> None:
    """A response that quotes the statute a question is about has not the question and its choices."""
    root = os.environ.get("STEPH_TEST_DATA")
    if not root:
        pytest.skip("STEPH_TEST_DATA is not set")
    samples = json.loads((Path(root) / "lawqa_jp/data/selection.json").read_text(encoding="utf-8"))["samples"]
    for sample in samples:
        question, choices = str(sample["問題文"]), sample["選択肢"]
        assert not repeats_question(str(sample["コンテキスト"]), question, choices)
        assert repeats_question(f"{question}\n{choices}\n回答:", question, choices)
