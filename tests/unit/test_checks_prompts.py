"""Whose question a prompt asks, and whether it gives the answer away: on the real questions where they are there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from steph.base.terms import Severity
from steph.contract.questions import Question, question_key
from steph.contract.results import Row
from steph.judge.checks_prompts import prompt_checks
from steph.judge.evidence import EvalEvidence
from steph.record.settings import EvalSettings

HEAD = "四択問題です。記号（a、b、c、d）を1文字だけ答えてください。回答例: a\n"
SAMPLES = (
    {"問題文": "見本法第1条が定める期間はどれですか。",
     "選択肢": "a 期間は二日\nb 期間は五日\nc 期間は八日\nd 期間は九日", "output": "a",
     "コンテキスト": "第1条\n売買の期間は、引渡しの翌日から起算して二日とする。特約を妨げない。"},
    {"問題文": "次のうち、正しくないものはどれですか。", "output": "c", "コンテキスト": "",
     "選択肢": "a はい\nb いいえ\nc どちらでもない\nd 不明"},
    {"問題文": "Which of these is not void?", "選択肢": "a A sale\nb A gift\nc A lease\nd A loan", "output": "d",
     "コンテキスト": ""},
)  # fmt: skip


def sound(sample: dict[str, Any]) -> str:
    """A prompt as it should be."""
    return f"{HEAD}【問題】\n{sample['問題文']}\n{sample['選択肢']}\n回答:"


def checked(samples: tuple[dict[str, Any], ...], prompt: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The checks of results with these prompts, by id."""
    rows = tuple(
        Row.model_validate({
            "question": sample["問題文"], "choices": sample["選択肢"], "correct_answer": sample["output"],
            "predicted_answer": "a", "is_correct": sample["output"] == "a", "response": "a", "prompt": prompt(sample),
        })
        for sample in samples
    )  # fmt: skip
    evidence = EvalEvidence(
        root=Path(), dataset=Path("x"), output_path="r.json", settings=EvalSettings(), model_name="m", lora_path=None,
        stdout="", output="", returncode=0, attempt_started_unix=0.0,
    )  # fmt: skip
    dataset = tuple(
        Question(question_key(one["問題文"], one["選択肢"]), one["output"], one["コンテキスト"]) for one in samples
    )
    return {check.id: check for check in prompt_checks(evidence, rows, dataset)}


def holds(found: dict[str, Any]) -> dict[str, bool | None]:
    """What the three checks of a prompt's content say."""
    return {
        key: found[key].holds for key in ("prompts_ask_questions", "prompts_hide_answers", "prompts_without_context")
    }


SOUND = {"prompts_ask_questions": True, "prompts_hide_answers": True, "prompts_without_context": True}


@pytest.mark.parametrize(
    "prompt",
    [
        sound,
        lambda sample: [{"role": "user", "content": sound(sample)}],
        lambda sample: json.dumps([{"role": "user", "content": sound(sample)}], ensure_ascii=False),
        lambda sample: sound(sample).upper(),
        lambda sample: sound(sample).replace("\n", "　").replace("。", ""),
        lambda sample: f"<|im_start|>user\n{sound(sample)}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n",
        lambda sample: f"{HEAD}例1\n別の問い\na 甲\nb 乙\n答え: b\n\n{sound(sample)}",
        lambda sample: f"{sound(sample)}\n参考: {_answer_of(sample) if sample is SAMPLES[0] else '条文'}",  # a passage
        lambda sample: _with(lambda one: f"ある人の回答: {_other(one) if one is SAMPLES[1] else one['output']}")(
            sample
        ),
    ],
)
def test_a_prompt_that_asks_its_question_is_accused_of_nothing(prompt: Callable[[dict[str, Any]], object]) -> None:
    """Chats, templates, other spacing, case and punctuation, worked examples and a frame that names a letter."""
    assert holds(checked(SAMPLES, prompt)) == SOUND


def test_the_real_questions_are_accused_of_nothing() -> None:
    """All 140, with the law text left out and two other questions shown before each."""
    root = os.environ.get("STEPH_TEST_DATA")
    if not root:
        pytest.skip("STEPH_TEST_DATA is not set")
    samples = json.loads((Path(root) / "lawqa_jp/data/selection.json").read_text(encoding="utf-8"))["samples"]
    place = {id(sample): n for n, sample in enumerate(samples)}

    def with_examples(sample: dict[str, Any]) -> str:
        shown = (samples[(place[id(sample)] + step) % len(samples)] for step in (30, 61))
        told = "".join(f"{one['問題文']}\n{one['選択肢']}\n答え: {one['output']}\n\n" for one in shown)
        return f"{HEAD}{told}{sound(sample)}"

    assert holds(checked(tuple(samples), sound)) == SOUND
    assert holds(checked(tuple(samples), with_examples)) == SOUND
    given = checked(tuple(samples), lambda sample: sample["コンテキスト"] + sound(sample))["prompts_without_context"]
    assert given.holds is False


def _other(sample: dict[str, Any]) -> str:
    return "bcda"["abcd".index(sample["output"])]


def _edited(old: str, new: str) -> Callable[[dict[str, Any]], str]:
    return lambda sample: sound(sample).replace(old, new)


@pytest.mark.parametrize(
    ("prompt", "severity"),
    [
        (lambda sample: sound(SAMPLES[0]), Severity.FAIL),
        (lambda sample: sound(sample)[-12:], Severity.FAIL),
        (lambda sample: f"{HEAD}{sample['問題文']}\n回答:", Severity.FAIL),
        (lambda sample: f"{HEAD}{sample['選択肢']}\n回答:", Severity.FAIL),
        (_edited("d 不明", ""), Severity.FAIL),
        (_edited("a はい\nb いいえ", "a いいえ\nb はい"), Severity.FAIL),
        (_edited("正しくない", "正しい"), Severity.WARN),
        (_edited("is not void", "is void"), Severity.WARN),
    ],
)
def test_a_prompt_that_asks_something_else_is_a_finding(
    prompt: Callable[[dict[str, Any]], str], severity: Severity
) -> None:
    """Another question, a part of it, choices lost or exchanged fail; a word that changed is a warning."""
    found = checked(SAMPLES, prompt)["prompts_ask_questions"]
    assert (found.holds, found.severity) == (False, severity)


def _answer_of(sample: dict[str, Any]) -> str:
    return str(sample["選択肢"].splitlines()["abcd".index(sample["output"])][2:])


def _with(text: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], str]:
    return lambda sample: sound(sample).replace("回答:", f"{text(sample)}\n回答:")


@pytest.mark.parametrize(
    "prompt",
    [
        lambda sample: sound(sample) + sample["output"],
        _with(lambda sample: f"ヒント: 正解は {sample['output']} です"),
        _with(lambda sample: f"gold: {sample['output']}"),
        _with(lambda sample: f"The correct answer is ({sample['output']})."),
        _with(lambda sample: f"参考: {_answer_of(sample)}"),
        lambda sample: f"(hint: the answer is {sample['output']})\n{sound(sample)}",
        lambda sample: f"{sample['問題文']}\n{sample['選択肢']}\n答え: {sample['output']}\n\n{sound(sample)}",
        lambda sample: f"{sample['問題文']}\n{sample['選択肢']}\n{sample['output']}\n\n{sound(sample)}",
        lambda sample: sound(sample).replace(_answer_of(sample), f"{_answer_of(sample)}（正解）"),
        lambda sample: sound(sample).replace(_answer_of(sample), f"{_answer_of(sample)} *"),
    ],
)
def test_a_prompt_that_gives_the_answer_away_is_a_failure(prompt: Callable[[dict[str, Any]], str]) -> None:
    """At its end, beside the question, as its own example, as the choice's text, or as a mark at it."""
    found = checked(SAMPLES, prompt)["prompts_hide_answers"]
    assert (found.holds, found.severity) == (False, Severity.FAIL)


def test_without_prompts_nothing_is_measured() -> None:
    """Results need not have any."""
    assert set(holds(checked(SAMPLES, lambda sample: None)).values()) == {None}
