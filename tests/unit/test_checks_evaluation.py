"""Judging an evaluation: where its JSON is looked for, what counts as the same question, and hostile content."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from planted import DATASET, TRAIN_FILE, plant
from planted.defects import Variant
from planted.scenario import OUTPUT, evaluation_evidence
from steph.base.messages import verbatim
from steph.base.terms import Severity
from steph.base.text import LINE_CHARS
from steph.contract.description import load_description
from steph.contract.questions import (
    is_in_training,
    prompt_template_agrees,
    prompt_template_in,
    question_key,
    questions_in,
    questions_of,
)
from steph.contract.results import ResultsForm
from steph.contract.results_files import find_results
from steph.judge.checks_evaluation import judge_evaluation
from steph.judge.checks_results import FIRST_ROWS
from steph.judge.evidence import EvalEvidence
from steph.judge.verdict import checks_verdict
from steph.record.settings import EvalSettings
from steph.record.values import Check


@pytest.fixture
def sound(tmp_path: Path) -> EvalEvidence:
    """The evidence of an evaluation without a defect."""
    return evaluation_evidence(plant(tmp_path / "root"), Variant("", "H-3", ""))


def broken(evidence: EvalEvidence) -> set[str]:
    """The checks that do not hold."""
    return {check.id for check in judge_evaluation(evidence)[1] if check.holds is False}


def rewritten(evidence: EvalEvidence, change: Callable[[dict[str, object]], object]) -> EvalEvidence:
    """The same run with another JSON file."""
    path = evidence.root / evidence.output_path
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    return evidence


def test_the_outcome_carries_what_was_printed_and_written(sound: EvalEvidence) -> None:
    """Counts, accuracy, backend, model, adapter, key lines, letters and the JSON's hash come out."""
    outcome, _, artifacts = judge_evaluation(sound)
    assert (outcome.total, outcome.correct, outcome.accuracy) == (3, 1, 1 / 3)
    assert (outcome.backend, outcome.model_name, outcome.lora_path) == ("hf", sound.model_name, sound.lora_path)
    assert "Total Samples: 3" in outcome.key_lines
    assert len(outcome.answers) == 3
    assert [artifact.path for artifact in artifacts] == [outcome.output_path] == [OUTPUT]


def test_a_further_check_is_ruled_out_as_the_others_are(sound: EvalEvidence) -> None:
    """Without a data set to read, a check that needs one does not apply, wherever it is put together."""
    text = '[evaluate]\ncommand = ["x"]\nresults.file = "out.json"\nresults.score = "score"\n'
    (sound.root / "steph.toml").write_text('[train]\npreset = "lawqa"\n' + text, encoding="utf-8")
    evidence = replace(sound, dataset=None, description=load_description(sound.root))
    added = FIRST_ROWS.check(False, verbatim("added"))
    checks = judge_evaluation(evidence, [added])[1]
    assert (checks[-1].id, checks[-1].applies, checks[-1].holds) == (added.id, False, None)


@pytest.mark.parametrize(
    ("seconds", "answering"),
    [((0.5, 1, 2.5), 4.0), ((0.5, None, 2.5), None), ((0.5, -1, 2.5), None), ((1, "2", 3), None)],
)
def test_the_time_of_answering_is_known_where_every_question_has_one(
    sound: EvalEvidence, seconds: tuple[object, ...], answering: float | None
) -> None:
    """The questions' own seconds add up; one without a time, or with garbage, and the sum would be of fewer."""

    def timed(content: dict[str, object]) -> object:
        rows = content["results"]
        assert isinstance(rows, list)
        return content | {"results": [row | {"seconds": one} for row, one in zip(rows, seconds, strict=True)]}

    assert judge_evaluation(rewritten(sound, timed))[0].answering_seconds == answering


def test_the_results_need_no_settings(sound: EvalEvidence) -> None:
    """Who writes answers and a summary alone is judged by these; what was asked for is then not held against a word."""
    _, checks, _ = judge_evaluation(rewritten(sound, lambda content: {k: content[k] for k in ("summary", "results")}))
    held = {check.id: check.holds for check in checks}
    assert (held["json_valid"], held["config_as_asked"]) == (True, None)
    assert not [check for check in checks if check.holds is False]


def test_without_a_named_file_the_newest_match_is_taken(tmp_path: Path) -> None:
    """A dated file of this attempt beats an old file at the asked path, and an old dated one."""
    started_unix = time.time() - 100
    for name, age in (("r.json", 500), ("20260101-0000_r.json", 900), ("20260102-0000_r.json", 10), ("x_r.json", 1)):
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    found = find_results(tmp_path, ResultsForm(), "r.json", None, started_unix)
    assert (found.name, found.fresh) == ("20260102-0000_r.json", True)


@pytest.mark.parametrize("named", ["/etc/hostname", "../r.json", "other/r.json", "x" * 5000, "r\0.json", "r.json.bak"])
def test_a_named_file_elsewhere_is_not_taken(tmp_path: Path, named: str) -> None:
    """Only the asked file or its dated form in the same folder may be the result."""
    assert find_results(tmp_path, ResultsForm(), "r.json", named, 0.0).path is None


def test_with_rag_asked_the_line_must_say_enabled(sound: EvalEvidence) -> None:
    """The check of the RAG line turns with the question: disabled where asked off, enabled where asked on."""
    asked_on = replace(sound, settings=EvalSettings(use_rag=True))
    assert broken(asked_on) == {"line_rag_enabled", "config_as_asked", "rag_retrieved"}
    shown_on = sound.stdout.replace("Disabled (LLM only)", "Enabled")
    assert broken(replace(asked_on, stdout=shown_on)) == {"config_as_asked", "rag_retrieved"}


def test_without_an_adapter_the_line_must_say_none(sound: EvalEvidence) -> None:
    """An evaluation of the base model must have no adapter: neither one that is printed nor one that was seen."""
    base = replace(sound, lora_path=None)
    assert broken(base) == {"lora_path_named", "adapter_active"}
    shown = base.stdout.replace(f"LoRA Path: {sound.lora_path}", "LoRA Path: None")
    assert broken(replace(base, stdout=shown)) == {"adapter_active"}
    assert broken(replace(base, stdout=shown, witness=None)) == set()


def test_a_rehearsal_lowers_the_quality_of_answers_to_info(tmp_path: Path) -> None:
    """Looping answers of random weights are information; an exception counted as an answer stays a failure."""
    evidence = evaluation_evidence(plant(tmp_path / "root", evaluate="looping_lines"), Variant("", "H-3", ""))
    for rehearsal, expected in ((False, Severity.FAIL), (True, Severity.INFO)):
        _, checks, _ = judge_evaluation(replace(evidence, rehearsal=rehearsal))
        by_id = {check.id: check for check in checks}
        assert by_id["responses_bounded"].severity is expected
        assert by_id["no_error_answers"].severity is Severity.FAIL


def test_when_no_answer_can_be_read_at_all_it_is_a_warning(tmp_path: Path) -> None:
    """An accuracy over unread answers means nothing, so all of them unknown is shown first."""
    evidence = evaluation_evidence(plant(tmp_path / "root", evaluate="unreadable"), Variant("", "H-3", ""))
    found = {check.id: check.severity for check in judge_evaluation(evidence)[1] if check.holds is False}
    assert found == {"answers_parsed": Severity.WARN}


def test_hostile_content_ends_in_bounded_findings(sound: EvalEvidence) -> None:
    """Megabytes of markup, lone surrogates and figures that no float holds are judged, bounded and can be stored."""
    markup = "</details>\n```\n|x|<img src=x onerror=alert(1)>\ud800" * 20_000

    def change(content: dict[str, object]) -> object:
        rows = content["results"]
        assert isinstance(rows, list)
        rows[0] |= {"response": markup, "seconds": 10**400, "finish_reason": markup}
        rows[1] |= {"question": markup, "choices": {"a": [markup]}}
        config = content["config"]
        assert isinstance(config, dict)
        return content | {"config": config | {"llm_model": markup, "top_k": 10**300, "lora_path": [markup]}}

    evidence = rewritten(sound, change)
    outcome, checks, _ = judge_evaluation(
        replace(evidence, stdout=sound.stdout + "\nError during LLM invocation: " + markup)
    )
    assert max(len(str(check.message)) for check in checks) <= LINE_CHARS
    assert [Check.model_validate_json(check.model_dump_json()) for check in checks] == list(checks)
    assert type(outcome).model_validate_json(outcome.model_dump_json()) == outcome


def _unmeasured(evidence: EvalEvidence) -> set[str]:
    return {check.id for check in judge_evaluation(evidence)[1] if check.holds is None}


def test_a_json_that_says_nothing_of_its_settings_leaves_them_unmeasured(sound: EvalEvidence) -> None:
    """No config, no claim: neither as asked nor otherwise."""
    assert "config_as_asked" not in _unmeasured(sound)
    assert "config_as_asked" in _unmeasured(rewritten(sound, lambda found: found | {"config": {}}))


def test_a_data_set_that_is_gone_leaves_its_questions_unmeasured_and_nothing_green(sound: EvalEvidence) -> None:
    """Answers to questions that nobody can look up do not pass."""
    gone = replace(sound, dataset=sound.root / "gone.json", questions=None)
    assert _unmeasured(gone) >= {"rows_distinct", "questions_of_dataset", "first_rows"}
    assert checks_verdict(judge_evaluation(gone)[1]) is not None


def test_without_any_time_the_speed_is_unmeasured(sound: EvalEvidence) -> None:
    """Neither the rows nor the attempt say how long it took."""
    assert "answers_fast" in _unmeasured(replace(sound, seconds=None))


def test_an_attempt_that_left_nothing_is_judged_without_an_exception(tmp_path: Path) -> None:
    """No output, no JSON, no data set: findings and unmeasured checks only."""
    evidence = EvalEvidence(
        root=tmp_path, dataset=tmp_path / "none.json", output_path="out/r.json", settings=EvalSettings(),
        model_name="m", lora_path="runs/x", stdout="", output="", returncode=None, attempt_started_unix=0.0,
    )  # fmt: skip
    outcome, checks, artifacts = judge_evaluation(evidence)
    assert (outcome.total, outcome.accuracy, artifacts) == (None, None, ())
    assert {check.id for check in checks if check.holds} == {
        "no_traceback", "base_weights_loaded", "library_warnings", "model_names_agree", "no_invocation_error",
        "adapter_loaded", "results_agree",
    }  # fmt: skip


def test_the_same_question_with_other_choices_is_another_question() -> None:
    """Many questions read 次のうち、正しいものを教えてください。 and differ in their choices only."""
    question = "次のうち、正しいものを教えてください。"
    one, other = question_key(question, "a 甲\nb 乙\nc 丙\nd 丁"), question_key(question, "a 甲\nb 乙\nc 丙\nd 戊")
    assert one != other
    assert one == question_key(question + " ", ["a 甲", "b 乙", "c 丙", "d 丁"])
    assert one == question_key(question, {"a": "甲", "b": "乙", "c": "丙", "d": "丁"})
    assert one == question_key("次のうち、正しいものを教えてください。\n", "ａ．甲\nｂ．乙\nｃ．丙\nｄ．丁")


def test_a_question_inside_a_prompt_without_meta_is_found(tmp_path: Path) -> None:
    """Training rows that carry no question of their own are searched in their whole prompt."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        json.dumps({"input": "条文。\n問い: 期間はどれか。\na 十日\nb 二十日\n回答:", "output": "a"})
        + "\nnot json\n[]\n",
        encoding="utf-8",
    )
    known = questions_in(path)
    assert is_in_training(question_key("期間はどれか。", ["a 十日", "b 二十日"]), known)
    assert not is_in_training(question_key("期間はどれか。", ["a 三日", "b 二十日"]), known)


def test_the_frame_of_prompts_is_what_all_rows_share(tmp_path: Path) -> None:
    """Beginning and end that all training prompts share must be in the evaluation's prompt; too little says nothing."""
    root = plant(tmp_path / "root")
    frame = prompt_template_in(root / TRAIN_FILE)
    assert frame is not None
    assert prompt_template_agrees(frame, f"<|im_start|>user\n{frame[0]}\n問い\n{frame[1]}<|im_end|>") is True
    assert prompt_template_agrees(frame, "別の指示です。問いに答えよ。") is False
    assert prompt_template_agrees(("", "回答:"), "x") is None
    assert len(questions_of(root / DATASET)) == 60


def test_all_questions_of_the_real_data_set_are_told_apart() -> None:
    """140 real rows have 140 keys, though 17 of them share their question's text."""
    root = os.environ.get("STEPH_TEST_DATA")
    if not root:
        pytest.skip("STEPH_TEST_DATA is not set")
    questions = questions_of(Path(root) / "lawqa_jp/data/selection.json")
    assert len({question.key for question in questions}) == len(questions) == 140
    assert {question.answer for question in questions} == set("abcd")


@pytest.mark.parametrize(
    ("written", "pattern", "found"),
    [
        ("results_7.json", "results_*.json", True),
        ("results_7.json", None, False),
        ("20260131-1200_small.json", "results_*.json", True),
        ("results_7.txt", "results_*.json", False),
    ],
)
def test_a_file_of_another_name_is_taken_where_the_description_says_so(
    written: str, pattern: str | None, found: bool, tmp_path: Path
) -> None:
    """The pattern adds names to the asked one and its dated form; the newest of this attempt counts."""
    (tmp_path / "out").mkdir()
    old = tmp_path / "out" / "results_1.json"
    old.write_text("{}", encoding="utf-8")
    os.utime(old, (1, 1))
    (tmp_path / "out" / written).write_text("{}", encoding="utf-8")
    file = find_results(tmp_path, ResultsForm(), "out/small.json", None, time.time() - 60, pattern=pattern)
    assert (file.path is not None and file.fresh) is found
    assert not found or file.name == f"out/{written}"


@pytest.mark.parametrize(
    ("tail", "holds"), [("{}", False), ("回答: {}\n", False), ("（{}）。", False), ("", None), ("答えよ", True)]
)
def test_a_prompt_that_ends_with_the_answer_gives_it_away(sound: EvalEvidence, tail: str, holds: bool | None) -> None:
    """A text made as for training ends with the right letter, which changes; a frame ends alike for every question."""

    def with_prompts(result: dict[str, object]) -> dict[str, object]:
        rows = result["results"]
        assert isinstance(rows, list)
        for row in rows:
            row.update({"prompt": f"{row['question']}\n{tail.format(row['correct_answer'])}"} if tail else {})
        return result

    checks = {check.id: check for check in judge_evaluation(rewritten(sound, with_prompts))[1]}
    assert checks["prompts_hide_answers"].holds is holds


def test_a_whole_lora_path_must_lie_in_this_root(sound: EvalEvidence, tmp_path: Path) -> None:
    """The same folder in another checkout is another adapter; the own one may be printed whole, also through a link."""
    assert sound.lora_path is not None
    (tmp_path / "link").symlink_to(sound.root)
    (tmp_path / "other" / sound.lora_path).mkdir(parents=True)
    for root, broken_checks in (
        (sound.root, set()),
        (tmp_path / "link", set()),
        (tmp_path / "other", {"lora_path_named"}),
        (Path("/workspace/in/a/container"), set()),
    ):
        shown = sound.stdout.replace(f"LoRA Path: {sound.lora_path}", f"LoRA Path: {root / sound.lora_path}")
        assert broken(replace(sound, stdout=shown)) == broken_checks


def test_a_root_with_spaces_and_runs_on_another_disk_is_judged_alike(tmp_path: Path) -> None:
    """Japanese, brackets and spaces in its path, and a link in the place of its runs, break no check."""
    root = plant(tmp_path / "根 (1) [x]")
    (tmp_path / "another disk").mkdir()
    (root / "runs").symlink_to(tmp_path / "another disk")
    assert broken(evaluation_evidence(root, Variant("", "H-3", ""))) == set()


def test_gold_letters_are_those_from_before_the_evaluation(sound: EvalEvidence) -> None:
    """A data set that is rewritten meanwhile, and then put back, hides no answer that was changed."""
    answers = [replace(question, answer="b" if question.answer == "a" else "a") for question in sound.questions or ()]
    assert broken(replace(sound, questions=tuple(answers))) == {"questions_of_dataset"}


def test_without_a_hash_from_before_the_data_set_is_unmeasured(sound: EvalEvidence) -> None:
    """Nothing is claimed of what nobody saw; the adapter's files likewise."""
    assert _unmeasured(replace(sound, dataset_sha256=None, adapter_files=None)) >= {
        "dataset_unchanged", "adapter_left_alone",
    }  # fmt: skip
