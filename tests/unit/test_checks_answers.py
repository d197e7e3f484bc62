"""What was seen of an evaluation decides whose answers the results are; other sound programs are left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planted import plant
from planted.defects import SEEN, Variant
from planted.scenario import evaluation_evidence
from seen_facts import Change, Facts, each, facts_in, witness_of
from steph.base.fingerprint import fingerprints, text_hash
from steph.base.terms import Severity
from steph.contract.results_files import read_lawqa
from steph.judge.checks_answers import WITNESSED_ANSWERS, witnessed_answer_checks
from steph.judge.checks_evaluation import judge_evaluation
from steph.judge.evidence import EvalEvidence
from steph.record.settings import EvalSettings
from steph.record.values import Check

OURS = {kind.id for kind in WITNESSED_ANSWERS} | {"model_loaded", "quantised_as_asked", "parameters_on_gpu"}
CORE = {"answers_generated", "adapter_active", "model_loaded", "quantised_as_asked"}
NO_ADAPTER: dict[str, Any] = {"adapters": [], "layers": 0, "scaling": [], "sha256": None}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> EvalEvidence:
    """A sound planted evaluation with what was seen of it and of its training."""
    return evaluation_evidence(plant(tmp_path_factory.mktemp("sound") / "root"), Variant("", "H-3", ""))


def judged(evidence: EvalEvidence, folder: Path, *changes: Change) -> dict[str, Check]:
    """Our checks of the same run, had these facts been seen."""
    facts = facts_in(evidence.root / SEEN)
    for change in changes:
        facts = change(facts)
    seen = replace(evidence, witness=witness_of(folder / "seen", facts))
    return {check.id: check for check in judge_evaluation(seen)[1] if check.id in OURS}


def broken(checks: dict[str, Check]) -> dict[str, Severity]:
    """What does not hold, and how hard it is."""
    return {name: check.severity for name, check in checks.items() if check.holds is False}


def answers(change: Callable[[int, dict[str, Any]], list[dict[str, Any]]]) -> Change:
    """Put other facts in the place of each answer; they are numbered from 0."""

    def changed(facts: Facts) -> Facts:
        generations = [fact for fact in facts if fact["fact"] == "generation"]
        at = facts.index(generations[0])
        new = [one for n, fact in enumerate(generations) for one in change(n, fact)]
        return [*facts[:at], *new, *facts[at + len(generations) :]]

    return changed


def uncounted(facts: Facts) -> Facts:
    """The process was killed before it could count its calls."""
    return [fact for fact in facts if fact["fact"] != "ended"]


def joined(facts: Facts) -> Facts:
    """All answers in one call, as a batch."""
    generations = [fact for fact in facts if fact["fact"] == "generation"]
    per_row = [key for key, value in generations[0].items() if isinstance(value, list) and key not in
               ("adapters", "scaling", "quantised", "eos")]  # fmt: skip
    whole = generations[0] | {key: [value for fact in generations for value in fact[key]] for key in per_row}
    return answers(lambda n, fact: [whole | {"rows": len(generations)}] if n == 0 else [])(facts)


def saying(fact: dict[str, Any], text: str) -> dict[str, Any]:
    """The same call with another response."""
    lines = text.strip().splitlines() or [""]
    hashes = [text_hash(part) for part in (text, text.rpartition("</think>")[2], lines[0], lines[-1])]
    tokens = [len(text) + 1]
    return fact | {"response_hashes": [hashes], "response_fingerprints": [fingerprints(text)], "new_tokens": tokens}


def test_a_sound_evaluation_shows_the_whole_core(sound: EvalEvidence, tmp_path: Path) -> None:
    """All core checks are measured and hold by what the stand-in shows."""
    checks = judged(sound, tmp_path)
    assert broken(checks) == {}
    assert {name for name, check in checks.items() if check.holds} >= CORE | {"prompts_hold_questions"}


@pytest.mark.parametrize("change", [joined, uncounted, answers(lambda n, fact: [fact] * 5)],
                         ids=["one_batch", "killed_uncounted", "several_runs"])  # fmt: skip
def test_however_the_calls_are_made(sound: EvalEvidence, tmp_path: Path, change: Change) -> None:
    """A batch, calls without a count at the end, and several calls for each question are all sound."""
    assert broken(judged(sound, tmp_path, change)) == {}


def test_a_batch_that_was_tried_again_smaller_is_told_of(sound: EvalEvidence, tmp_path: Path) -> None:
    """A call that raised is a finding, and no more where every question was answered after it."""
    raised = {"fact": "generation_raised", "at": 1.0, "error": "OutOfMemoryError"}
    change = answers(lambda n, fact: [raised, fact] if n == 0 else [fact])
    assert broken(judged(sound, tmp_path, change)) == {"answers_generated": Severity.WARN}


def test_one_question_without_an_answer_fails(sound: EvalEvidence, tmp_path: Path) -> None:
    """Where a call raised and no other answered in its place, the results have an answer that nobody gave."""
    raised = {"fact": "generation_raised", "at": 1.0, "error": "RuntimeError"}
    found = broken(judged(sound, tmp_path, uncounted, answers(lambda n, fact: [raised] if n == 1 else [fact])))
    assert found["answers_generated"] is Severity.FAIL


def test_a_model_that_the_adapter_was_merged_into_is_sound(sound: EvalEvidence, tmp_path: Path) -> None:
    """The training's process merged the adapter into a folder; the evaluation loads that folder, without PEFT."""
    sha256, folder = sound.adapter_sha256_expected, "/runs/merged"
    merge = {"fact": "model_saved", "at": 1.0, "path": folder, "adapter": False, "merged_sha256": [sha256]}
    load = each("model_loaded", path=folder, name_or_path=folder)
    generate = each("generation", name_or_path=folder, **NO_ADAPTER)
    trained = replace(sound, training_witness=witness_of(tmp_path / "trained", [merge]))
    assert broken(judged(trained, tmp_path / "a", load, generate)) == {}
    other = replace(sound, training_witness=witness_of(tmp_path / "other", [merge | {"merged_sha256": ["0" * 64]}]))
    found = broken(judged(other, tmp_path / "b", load, generate))
    assert found == {"adapter_active": Severity.FAIL, "model_loaded": Severity.FAIL}


def test_an_adapter_that_answered_only_the_first_question_fails(sound: EvalEvidence, tmp_path: Path) -> None:
    """Every answer must have had it."""
    found = broken(judged(sound, tmp_path, answers(lambda n, fact: [fact | ({} if n == 0 else NO_ADAPTER)])))
    assert found["adapter_active"] is Severity.FAIL


def test_an_adapter_from_another_file_format_is_not_called_missing(sound: EvalEvidence, tmp_path: Path) -> None:
    """Active, but its weights file could not be hashed: unmeasured, which is not green either."""
    check = judged(sound, tmp_path, each("adapter_loaded", sha256=None), each("generation", sha256=None))
    assert (check["adapter_active"].holds, check["adapter_active"].severity) == (None, Severity.FAIL)


def test_a_short_answer_taken_out_of_a_long_one_is_no_finding(sound: EvalEvidence, tmp_path: Path) -> None:
    """The model explained itself at length, and the program wrote down the letter alone."""
    long = "条文の文言に照らすと、期間の定めは強行規定であるから、正しい選択肢は次のとおりと考えられる。"
    assert broken(judged(sound, tmp_path, answers(lambda n, fact: [saying(fact, long)]))) == {}


def _relabelled(style: str) -> Callable[[str], str]:
    def relabel(choices: str) -> str:
        texts = [line[2:] for line in choices.splitlines()]
        return "\n".join(style.format(l="abcd"[n], L="ABCD"[n], n=n + 1, text=text) for n, text in enumerate(texts))

    return relabel


@pytest.mark.parametrize(
    "style", ["{L}. {text}", "({l}) {text}", "{n}) {text}", "選択肢{L}：{text}", "- {text}", "{text}"]
)
def test_choices_may_be_labelled_in_any_way(sound: EvalEvidence, tmp_path: Path, style: str) -> None:
    """The prompt has other labels than the data set: the question is the same."""
    content = json.loads((sound.root / sound.output_path).read_text(encoding="utf-8"))
    rows = content["results"]

    def ask(n: int, fact: dict[str, Any]) -> list[dict[str, Any]]:
        prompt = f"質問: {rows[n]['question']}\n{_relabelled(style)(rows[n]['choices'])}\n答え:"
        return [fact | {"prompt_fingerprints": [fingerprints(prompt)]}]

    found = broken(judged(sound, tmp_path, answers(ask)))
    assert set(found) <= {"frame_as_trained"}  # this frame is another one, and that is said


def test_more_questions_than_are_written_down_are_counted(sound: EvalEvidence, tmp_path: Path) -> None:
    """Of calls beyond the first ones only the number is known; that is enough for the answers, not for their texts."""
    ended = each("ended", generations={"a": 20})
    kept = answers(lambda n, fact: [fact] if n == 0 else [])
    checks = judged(sound, tmp_path, kept, ended)
    assert broken(checks) == {}
    assert checks["answers_generated"].holds
    assert checks["prompts_hold_questions"].holds is None


def test_scores_without_generation_are_answers(sound: EvalEvidence, tmp_path: Path) -> None:
    """An evaluation by likelihood generates nothing; its forwards show adapter, model and prompts."""

    def score(n: int, fact: dict[str, Any]) -> list[dict[str, Any]]:
        dropped = ("new_tokens", "stopped", "limit", "response_hashes", "response_fingerprints", "do_sample")
        kept = {key: value for key, value in fact.items() if key not in dropped}
        return [kept | {"fact": "scoring"}] * 4

    ended = each("ended", generations={}, scorings={"a": 12})
    checks = judged(sound, tmp_path / "plain", answers(score), ended)
    assert broken(checks) == {}
    assert {name for name, check in checks.items() if check.holds} >= CORE
    for place, holds in (("cuda:0", True), ("cpu", False)):
        moved = each("generation", devices={place: 100})
        on_gpu = judged(replace(sound, on_gpu=True), tmp_path / place, moved, answers(score), ended)
        assert on_gpu["parameters_on_gpu"].holds is holds


def test_an_ensemble_may_sample(sound: EvalEvidence, tmp_path: Path) -> None:
    """Several runs that are to differ need sampling; one run does not."""
    drawn = each("generation", do_sample=True)
    assert broken(judged(sound, tmp_path / "a", drawn)) == {"answers_greedy": Severity.WARN}
    ensemble = replace(sound, settings=EvalSettings(ensemble=3))
    assert broken(judged(ensemble, tmp_path / "b", drawn, answers(lambda n, fact: [fact] * 3))) == {}


def test_answers_to_the_limit_are_a_note_in_a_rehearsal(sound: EvalEvidence, tmp_path: Path) -> None:
    """A model of random weights runs to the limit; that is about the quality of its answers."""
    cut = each("generation", stopped=[False])
    assert broken(judged(sound, tmp_path / "a", cut)) == {"answers_stopped": Severity.WARN}
    rehearsal = replace(sound, rehearsal=True)
    assert broken(judged(rehearsal, tmp_path / "b", cut)) == {"answers_stopped": Severity.INFO}


@pytest.mark.parametrize(
    ("devices", "hardness"),
    [({"cuda:0": 100}, None), ({"cpu": 100}, Severity.FAIL), ({"cuda:0": 90, "meta": 10}, Severity.WARN), ({}, None)],
)
def test_parameters_belong_on_the_gpu(
    sound: EvalEvidence, tmp_path: Path, devices: dict[str, int], hardness: Severity | None
) -> None:
    """All of them beside the GPU that was given fail, some of them warn; without a GPU nobody asks."""
    moved = each("generation", devices=devices)
    expected = {} if hardness is None else {"parameters_on_gpu": hardness}
    assert broken(judged(replace(sound, on_gpu=True), tmp_path / "a", moved)) == expected
    assert broken(judged(sound, tmp_path / "b", moved)) == {}


def test_retrieval_may_put_passages_into_the_prompt(sound: EvalEvidence, tmp_path: Path) -> None:
    """With retrieval the prompt has more than the question, and that is what was asked for."""
    passage = fingerprints("参考条文: " + "".join(chr(0x4E00 + 3 * n) for n in range(200)))

    def longer(n: int, fact: dict[str, Any]) -> list[dict[str, Any]]:
        return [fact | {"prompt_fingerprints": [[*passage[5 * n :], *fact["prompt_fingerprints"][0]]]}]

    rag = replace(sound, settings=EvalSettings(use_rag=True))
    assert set(broken(judged(rag, tmp_path, answers(longer)))) & {"prompts_bare", "prompts_hold_questions"} == set()


def _swapped(sound: EvalEvidence, form: str) -> Change:
    """Each call says what the next row has, in this form."""
    rows = json.loads((sound.root / sound.output_path).read_text(encoding="utf-8"))["results"]
    return answers(lambda n, fact: [saying(fact, form.format(rows[(n + 1) % len(rows)]["response"]))])


def test_answers_to_other_questions_fail_and_one_such_is_told_of(sound: EvalEvidence, tmp_path: Path) -> None:
    """Most of the letters were said to the question before."""
    assert broken(judged(sound, tmp_path / "a", _swapped(sound, "{}"))) == {"responses_generated": Severity.FAIL}
    one = answers(lambda n, fact: [saying(fact, "zzz")] if n == 0 else [fact])
    assert broken(judged(sound, tmp_path / "b", one)) == {"responses_generated": Severity.WARN}


def test_letters_that_were_written_down_otherwise_are_not_swapped(sound: EvalEvidence, tmp_path: Path) -> None:
    """Every call says its row's letter, most with a dot behind it that the program took off."""
    rows = json.loads((sound.root / sound.output_path).read_text(encoding="utf-8"))["results"]
    dotted = answers(lambda n, fact: [
        saying(fact, f"{rows[n]['response']}."), saying(fact, rows[(n + 1) % len(rows)]["response"]) | {"rows": 0}
    ])  # fmt: skip
    assert broken(judged(sound, tmp_path, dotted)).get("responses_generated") is not Severity.FAIL


@pytest.mark.parametrize(
    ("tries", "hardness"),
    [
        ({0: 1, 1: 2, 2: 2}, Severity.FAIL),  # what is right at once is asked once
        ({0: 2, 1: 2, 2: 2}, Severity.WARN),  # all are asked alike
        ({0: 2, 1: 1, 2: 1}, Severity.WARN),  # a wrong answer was let stand
        ({0: 1, 1: 1, 2: 1}, None),
    ],
)
def test_asking_until_the_answer_is_right_fails(
    sound: EvalEvidence, tmp_path: Path, tries: dict[int, int], hardness: Severity | None
) -> None:
    """Only where readable letters were thrown away for no other reason than that they were wrong."""
    path = sound.root / sound.output_path
    content = json.loads(path.read_text(encoding="utf-8"))
    flags = [row["is_correct"] for row in content["results"]]
    assert flags == [True, False, False]
    root = tmp_path / "root"
    (root / sound.output_path).parent.mkdir(parents=True)
    row = content["results"][1]
    row.update(predicted_answer=row["correct_answer"], response=row["correct_answer"], is_correct=True)
    (root / sound.output_path).write_text(json.dumps(content), encoding="utf-8")
    other = "d" if row["correct_answer"] == "a" else "a"
    last = {n: one["response"] for n, one in enumerate(content["results"])}

    def ask(n: int, fact: dict[str, Any]) -> list[dict[str, Any]]:
        wrong = other if n == 1 else "c" if last[n] == "b" else "b"
        return [saying(fact, wrong)] * (tries[n] - 1) + [saying(fact, last[n]) | {"at": fact["at"] + 1}]

    facts = uncounted(answers(ask)(facts_in(sound.root / SEEN)))
    seen = replace(sound, witness=witness_of(tmp_path / "seen", facts))
    results = read_lawqa(root / sound.output_path)
    found = {check.id: check for check in witnessed_answer_checks(seen, results)}["answers_greedy"]
    assert (found.severity if found.holds is False else None) is hardness


@pytest.mark.parametrize(("scaling", "holds"), [([2.0], True), ([8.0], False), ([], None)])
def test_a_merge_has_the_scaling_that_it_was_made_with(
    sound: EvalEvidence, tmp_path: Path, scaling: list[float], holds: bool | None
) -> None:
    """The layers are gone when it answers; the merge is known, in whichever process it was made."""
    sha256 = sound.adapter_sha256_expected
    merge = {"fact": "adapter_merged", "at": 1.0, "adapter": ["default"], "sha256": [sha256], "scaling": scaling}
    generate = each("generation", **NO_ADAPTER, merged_sha256=[sha256])
    checks = judged(sound, tmp_path, lambda facts: [merge, *facts], generate)
    assert checks["scaling_as_trained"].holds is holds


@pytest.mark.parametrize(
    ("ending", "thinks", "hardness"),
    [
        (lambda n, gold: ["p", "q", "r", "lead"], False, None),
        (lambda n, gold: ["p", "x", f"y{gold}", "r", "lead"], False, Severity.FAIL),  # p [gold] r
        (lambda n, gold: ["p", "x", "y", "r", "lead"], False, Severity.WARN),  # the same text in each prompt
        (lambda n, gold: ["p", *(f"{n}{k}" for k in range(5)), "r", "lead"], False, Severity.WARN),
        (lambda n, gold: ["p", "x", f"y{gold}", "r", "lead"], True, None),
        (lambda n, gold: ["z", "w", "r", "lead"], False, None),  # another text before the header, in place of it
        (lambda n, gold: ["p", "q", "r", "lead", "begun"], False, None),  # as each learnt answer begins
        (lambda n, gold: ["p", "q", "r", "lead", "begun", "further"], False, None),
        (lambda n, gold: ["p", "q", "r", "lead", "another"], False, Severity.WARN),
        (lambda n, gold: ["p", "q", "r", "lead", "another"], True, None),
        (lambda n, gold: ["p", "q", "r"], False, Severity.WARN),
    ],
)  # fmt: skip
def test_prompts_end_as_the_rows_do_before_their_answers(
    sound: EvalEvidence,
    tmp_path: Path,
    ending: Callable[[int, str], list[str]],
    thinks: bool,
    hardness: Severity | None,
) -> None:
    """A text before the header, or behind it, that no row has was never trained; it may be the right answer."""
    (path,) = (sound.root / "seen-training").glob("witness-*.jsonl")
    facts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    batch = next(fact for fact in facts if fact["fact"] == "batch")
    rows = len(batch["supervised"])
    trained = each("batch", lead_hashes=[["p", "q", "r", "lead"]] * rows, begin_hashes=[["begun", "further"]] * rows)
    evidence = replace(sound, training_witness=witness_of(tmp_path / "training", trained(facts)))
    results = read_lawqa(sound.root / sound.output_path)
    golds = [row.correct_answer for row in results.results]
    change = answers(lambda n, fact: [fact | {"lead_hashes": [ending(n, golds[n])], "thinks": [thinks]}])
    found = broken(judged(evidence, tmp_path, change))
    assert found == ({} if hardness is None else {"frame_as_trained": hardness})


@pytest.mark.parametrize(
    ("ending", "is_found"),
    [
        (["a", "b", "c", "p", "q", "r", "lead"], False),
        (["a", "b", "c", "x", "y", "r", "lead"], True),  # another token
        (["a", "b", "c", "x", "r", "lead"], True),  # a token less
        (["b", "c", "x", "y", "r", "lead"], False),  # two pairs may be alike by chance
        (["x", "y", "z", "w", "q", "r", "lead"], False),  # what the rows of this file happened to have
    ],
)
def test_what_all_rows_have_before_their_answers_is_changed_in_the_prompts(
    sound: EvalEvidence, tmp_path: Path, ending: list[str], is_found: bool
) -> None:
    """A place is found where what stands before it and behind it is the same."""
    (path,) = (sound.root / "seen-training").glob("witness-*.jsonl")
    facts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = len(next(fact for fact in facts if fact["fact"] == "batch")["supervised"])
    trained = each("batch", lead_hashes=[["a", "b", "c", "p", "q", "r", "lead"]] * rows)
    evidence = replace(sound, training_witness=witness_of(tmp_path / "training", trained(facts)))
    found = broken(judged(evidence, tmp_path, each("generation", lead_hashes=[ending])))
    assert found == ({"frame_as_trained": Severity.WARN} if is_found else {})


@pytest.mark.parametrize(
    ("ending", "rows", "is_found"),
    [
        (["asks", "answer", ":", "cut"], "{own} in the the form answer :", False),
        (["asks", "reply", ":", "cut"], "{own} in the form answer : more", False),  # the last but one is learnt
        (["asks", "answer", "-", "cut"], "{own} in the form answer :", True),
        (["asks", "answer", "-", "cut"], "{own} {own}2 {own}3", False),  # no template in the rows
        (["asks", "answer", "-", "cut"], "{own} in - form answer :", False),
        (["asks", "answer", "-", "cut"], "in {own} the {own}2 form {own}3 answer", False),  # of a language, no template
    ],
)
def test_prompts_end_in_words_of_the_rows_whose_prompts_have_labels_too(
    sound: EvalEvidence, tmp_path: Path, ending: list[str], rows: str, is_found: bool
) -> None:
    """No label tells where these rows' prompts end: all pairs of tokens are compared, but for the last."""
    (path,) = (sound.root / "seen-training").glob("witness-*.jsonl")
    facts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    count = len(next(fact for fact in facts if fact["fact"] == "batch")["supervised"])
    pairs = [rows.format(own=f"row{n}").split() for n in range(count)]
    trained = each("batch", lead_hashes=[[]] * count, begin_hashes=[[]] * count, pair_hashes=pairs)
    evidence = replace(sound, training_witness=witness_of(tmp_path / "training", trained(facts)))
    change = answers(lambda n, fact: [fact | {"lead_hashes": [[f"question{n}", *ending]]}])
    found = broken(judged(evidence, tmp_path, change))
    assert found == ({"frame_as_trained": Severity.WARN} if is_found else {})


@pytest.mark.parametrize(
    ("in_rows", "in_prompts", "padding", "thinks", "is_found"),
    [
        (["user", "answer"], ["system", "user", "answer"], 0.3, False, True),
        (["system", "user", "answer"], ["user", "answer"], 0.3, False, True),
        (["user", "answer"], ["user", "answer"], 0.3, False, False),
        (["user"], [], 0.3, False, False),  # no turns at all: another finding's
        (["user", "answer"], ["thought", "user", "answer"], 0.3, True, False),  # an order to think is nobody's turn
        (["user", "answer"], ["system", "user", "answer"], 0.0, False, False),  # rows that were cut from the left
    ],
)
def test_a_turn_that_only_rows_or_only_prompts_have(
    sound: EvalEvidence,
    tmp_path: Path,
    in_rows: list[str],
    in_prompts: list[str],
    padding: float,
    thinks: bool,
    is_found: bool,
) -> None:
    """A short system prompt that the evaluation alone gives is found by whose turn it is, whatever it says."""
    (path,) = (sound.root / "seen-training").glob("witness-*.jsonl")
    facts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = len(next(fact for fact in facts if fact["fact"] == "batch")["supervised"])
    trained = each("batch", header_hashes=[in_rows] * rows, padding=padding, shape=[rows, 512])(facts)
    evidence = replace(sound, training_witness=witness_of(tmp_path / "training", trained))
    found = broken(judged(evidence, tmp_path, each("generation", header_hashes=[in_prompts], thinks=[thinks])))
    assert found == ({"frame_as_trained": Severity.WARN} if is_found else {})


@pytest.mark.parametrize(
    ("in_rows", "in_prompts", "changes", "is_found"),
    [
        (1, 0, {}, True),
        (0, 1, {}, True),
        (1, 2, {}, True),
        (1, 1, {}, False),
        (0, 0, {}, False),
        (1, 0, {"bos": 7}, False),  # another tokenizer's, such as a reranker's
        (1, 0, {"bos": None, "leading_bos": None}, False),
        (1, 0, {"prompt_tokens": [64]}, True),
    ],
)
def test_rows_and_prompts_begin_with_as_many_bos(
    sound: EvalEvidence, tmp_path: Path, in_rows: int, in_prompts: int, changes: dict[str, Any], is_found: bool
) -> None:
    """One in the training only, in the evaluation only, or one more of it: the model is asked as it was not trained."""
    (path,) = (sound.root / "seen-training").glob("witness-*.jsonl")
    facts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = len(next(fact for fact in facts if fact["fact"] == "batch")["supervised"])

    def found(folder: str, *further: Change, **batch: Any) -> dict[str, Severity]:  # noqa: ANN401
        trained = each("batch", **{"bos": 1, "leading_bos": [in_rows] * rows, **batch})(facts)
        evidence = replace(sound, training_witness=witness_of(tmp_path / f"{folder}-training", trained))
        asked = each("generation", **{"bos": 1, "leading_bos": [in_prompts], **changes})
        return broken(judged(evidence, tmp_path / folder, asked, *further))

    assert found("as_they_are") == ({"frame_as_trained": Severity.WARN} if is_found else {})
    assert found("packed", packed=True, leading_bos=None) == {}
    # cut from the left to one length
    if not in_rows:
        assert found("rows_cut", shape=[rows, 64], padding=0.0) == {}
    if not in_prompts:
        cut = answers(lambda n, fact: [fact | {"prompt_tokens": [64], "prompt_fingerprints": [
            [f"{n}", *fact["prompt_fingerprints"][0]]]}])  # fmt: skip
        assert found("prompts_cut", cut) == {}
