"""Answers learnt by heart, and one step without 4-bit: what is drawn, what is written, and what each end comes to."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from planted import DATASET, ROOT, TRAIN_FILE
from steph.base.messages import speaking
from steph.base.terms import ExtendedId, Severity, StageId, Verdict
from steph.conduct import stages
from steph.contract.results import Row
from steph.judge.checks_extended import (
    LETTERS,
    QUESTIONS,
    NoExampleError,
    draw,
    loss_low_check,
    output_only_check,
    questions_like,
    remembered_check,
    rows_like,
    settings_by_heart,
    teaches,
    unknown_check,
)
from steph.judge.checks_setup import Seen
from steph.judge.witness import Batch, Process, TrainingBegins
from steph.record.settings import TrainSettings, steps_due
from steph.run.inputs import InputError
from suite_runs import Bench, make_bench

ONE_STEP, HEART = ExtendedId.ONE_STEP, ExtendedId.HEART
SAMPLES = json.loads((ROOT / DATASET).read_text(encoding="utf-8"))["samples"]
FIRST_ROW = json.loads((ROOT / TRAIN_FILE).read_text(encoding="utf-8").splitlines()[0])


@pytest.mark.parametrize("seed", range(40))
def test_who_always_says_the_same_letter_has_two_of_eight(seed: int) -> None:
    """Each letter is right twice in whatever order, and no name or choice comes twice."""
    drawn = draw(seed)
    assert Counter(secret.letter for secret in drawn) == dict.fromkeys(LETTERS, 2)
    words = [word for secret in drawn for word in (secret.name, *secret.choices)]
    assert len(set(words)) == len(words) == 5 * QUESTIONS
    assert draw(seed) == drawn


def test_the_order_of_the_letters_is_drawn() -> None:
    """Nobody can know it: a hundred seeds give a hundred orders, or nearly."""
    assert len({tuple(secret.letter for secret in draw(seed)) for seed in range(100)}) > 90


def test_the_questions_have_the_form_of_the_data_sets_own() -> None:
    """Every key of the example is there, the choices are behind its labels, and nothing of its text is left."""
    drawn = draw(1)
    written = questions_like(SAMPLES[0], drawn)
    assert all(question.keys() >= SAMPLES[0].keys() for question in written)
    assert [str(question["選択肢"]).splitlines()[1] for question in written] == [f"b {s.choices[1]}" for s in drawn]
    assert [question["output"] for question in written] == [secret.letter for secret in drawn]
    assert SAMPLES[0]["問題文"] not in json.dumps(written, ensure_ascii=False)


@pytest.mark.parametrize(
    ("choices", "second"),
    [
        ("ａ．甲\nｂ．乙\nｃ．丙\nｄ．丁", "ｂ．{}"),
        (["甲", "乙", "丙", "丁"], "{}"),
        (["a) 甲", "b) 乙", "c) 丙", "d) 丁"], "b) {}"),
        ({"a": "甲", "b": "乙", "c": "丙", "d": "丁"}, "{}"),
        ("どれでもよい", "b {}"),
    ],
)
def test_choices_are_written_as_the_example_has_them(choices: object, second: str) -> None:
    """Lines with other labels, a list with or without them, a table."""
    (secret, *_) = draw(1)
    parts = questions_like(SAMPLES[0] | {"選択肢": choices}, [secret])[0]["選択肢"]
    if isinstance(parts, dict):
        parts = [*parts.values()]
    if isinstance(parts, str):
        parts = parts.splitlines()
    assert isinstance(parts, list)
    assert parts[1] == second.format(secret.choices[1])


@pytest.mark.parametrize("row", [FIRST_ROW, {key: FIRST_ROW[key] for key in ("input", "output")}], ids=["meta", "bare"])
def test_a_row_is_written_by_the_example_of_the_first_one(row: dict[str, object]) -> None:
    """The frame of the prompt stays, question, choices and letter are the drawn ones; no builder is needed."""
    drawn = draw(2)
    rows = rows_like(row, SAMPLES, questions_like(SAMPLES[0], drawn))
    assert all(teaches(written, secret) for written, secret in zip(rows, drawn, strict=True))
    for written, secret in zip(rows, drawn, strict=True):
        text = str(written["input"])
        assert text.startswith("次の問題に答えてください。")
        assert text.endswith("回答は記号を一つだけ書いてください。\n")
        assert all(choice in text for choice in secret.choices)
        assert str(FIRST_ROW["meta"]["question"]) not in text
        assert written["output"] == secret.letter


def test_examples_that_are_worked_out_in_a_prompt_stay() -> None:
    """Only the question at its end is replaced, also where the same one is an example."""
    example = FIRST_ROW | {"input": f"例: {FIRST_ROW['meta']['question']}\n答え: b\n{FIRST_ROW['input']}"}
    drawn = draw(3)
    text = str(rows_like(example, SAMPLES, questions_like(SAMPLES[0], drawn))[0]["input"])
    assert text.count(str(FIRST_ROW["meta"]["question"])) == 1
    assert text.count(drawn[0].question) == 1


@pytest.mark.parametrize(
    "row",
    [{}, {"input": "別の形", "output": "b"}, FIRST_ROW | {"output": "二番目"}],
    ids=["none", "other", "no letter"],
)
def test_a_row_of_another_form_is_no_example(row: dict[str, object]) -> None:
    """What can't be understood is said, not guessed."""
    with pytest.raises(NoExampleError):
        rows_like(row, SAMPLES, questions_like(SAMPLES[0], draw(1)))


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize(("batch_size", "longest"), [(1, None), (2, 400), (2, 900), (16, 400), (3, 400)])
@pytest.mark.parametrize("most", [1, 7, 60])
def test_the_training_keeps_to_its_steps(batch_size: int, longest: int | None, processes: int, most: int) -> None:
    """Never more steps than allowed, no row cut, and a learning rate that is the profile's."""
    base = TrainSettings(batch_size=batch_size, num_processes=processes, launcher="torchrun", max_seq_length=512)
    settings = settings_by_heart(base, learning_rate=3e-3, max_steps=most, longest_row=longest)
    assert 1 <= steps_due(QUESTIONS, settings) <= most
    assert settings.max_seq_length >= (longest or 0)
    assert (settings.learning_rate, settings.lora_dropout) == (3e-3, 0.0)
    assert settings.batch_size <= batch_size


def _rows(right: int) -> list[Row]:
    """Answers to the questions of seed 1, so many of them right."""
    return [
        Row(question=secret.question, choices="", correct_answer=secret.letter, is_correct=n < right, response=letter,
            predicted_answer=letter)
        for n, secret in enumerate(draw(1))
        for letter in [secret.letter if n < right else LETTERS[(LETTERS.index(secret.letter) + 1) % 4]]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("right", "loss", "supervised", "holds"),
    [
        (8, 0.001, 2, True),
        (7, 0.05, 2, True),
        (6, 0.05, 2, False),
        (6, 0.05, None, False),
        (2, 0.09, 300, None),
        (8, 0.09, 300, True),
        (2, 0.001, 300, False),
    ],
)
def test_seven_of_eight_must_be_remembered(right: int, loss: float, supervised: int | None, holds: bool | None) -> None:
    """A low mean loss over a whole prompt proves nothing of its one letter: wrong letters are then unmeasured."""
    check = remembered_check(_rows(right), draw(1), [2.0, loss, loss, loss], supervised)
    assert check.holds is holds
    assert check.severity is (Severity.INFO if holds is None else Severity.FAIL)


@pytest.mark.parametrize(("right", "holds"), [(0, True), (4, True), (5, False), (8, False)])
def test_nobody_knows_more_than_four_without_having_learnt(right: int, holds: bool) -> None:
    """Who does has the letters from elsewhere."""
    assert unknown_check(_rows(right), draw(1)).holds is holds


@pytest.mark.parametrize("seed", [2, 3])
def test_answers_to_other_questions_measure_nothing(seed: int) -> None:
    """An evaluation that asked its own questions can't be given any: said, and no failure."""
    for check in (remembered_check(_rows(8), draw(seed), [0.0], 2), unknown_check(_rows(8)[:7], draw(1))):
        assert (check.holds, check.severity) == (None, Severity.INFO)
        assert "問題を渡せない" in str(check.message)


@pytest.mark.parametrize(
    ("losses", "holds"),
    [((2.0, 0.1, 0.05, 0.02), True), ((2.0, 1.5, 1.2), None), ((), None), ((2.0, float("nan"), 0.0), None)],
)
def test_a_loss_that_stayed_high_is_unmeasured(losses: tuple[float, ...], holds: bool | None) -> None:
    """The mean of the last steps counts; the learning rate and the seed are in the message."""
    check = loss_low_check(losses, len(losses), 1e-3, 77)
    assert (check.holds, check.severity) == (holds, Severity.INFO)
    assert "学習率 0.001" in str(check.message)
    assert "種 77" in str(check.message)


def _seen(supervised: tuple[int, ...]) -> Seen:
    batch = Batch(at=0, shape=(len(supervised), 100), supervised=supervised, padding=0.0)
    return Seen(Process(1, None), TrainingBegins.model_validate({"at": 0}), None, (batch,), ())


@pytest.mark.parametrize(
    ("supervised", "answer", "holds"),
    [
        ((2, 2), 2, True),
        ((9, 2), 3, True),
        ((100, 98), 2, False),
        ((0, 0), 2, False),
        ((3, 3), None, True),
        ((100, 90), None, False),
    ],
)
def test_with_the_flag_only_the_answer_carries_labels(
    supervised: tuple[int, ...], answer: int | None, holds: bool
) -> None:
    """By the answer's tokens where they can be counted, else by their share of the row."""
    assert output_only_check(_seen(supervised), answer).holds is holds


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """H-1 to H-3 have passed."""
    bench = make_bench(tmp_path_factory.mktemp("bench"))
    status, output = bench.run()
    assert status == 0, output
    return bench


@pytest.mark.parametrize(
    ("knobs", "verdict", "broken", "said"),
    [
        ({}, Verdict.PASS, set(), "問題なし"),
        ({"train": "nothing_remembered"}, Verdict.FAIL, {"heart_remembered"}, "8 問中 3 問"),
        ({"evaluate": "knows_every_answer"}, Verdict.FAIL, {"heart_unknown"}, "学習以外から得ている"),
        ({"evaluate": "adapter_ignored"}, Verdict.FAIL, {"heart_remembered"}, "アダプタつきで"),
        ({"train": "never_learns"}, Verdict.PASS_DEGRADED, set(), "暗記は未測定(損失は"),
        ({"evaluate": "own_questions"}, Verdict.PASS_DEGRADED, set(), "評価に問題を渡せない"),
        ({"evaluate": "refuses_other_data"}, Verdict.PASS_DEGRADED, set(), "評価に問題を渡せない(終了コード 2)"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_what_is_wrong_between_a_row_and_an_answer_shows(
    passed: Bench, knobs: dict[str, str], verdict: Verdict, broken: set[str], said: str
) -> None:
    """An adapter that knows nothing, one that is not used, answers from elsewhere: red. What can't be seen says so."""
    passed.plant(**knobs)
    status, output = passed.run(HEART)
    result = passed.record().extended[HEART]
    assert result.verdict is verdict, output
    assert status == (0 if verdict.is_green else 1)
    assert said in str(result.explanation)
    assert broken <= {check.id for check in result.findings}
    assert {check.id for check in result.findings if check.id.startswith("heart")} == broken


def test_what_is_learnt_lies_in_the_record_and_not_in_the_pipeline(passed: Bench) -> None:
    """Questions, rows and seed; the root's own files are as they were, and the report names rate and seed."""
    before = {path: (passed.root / path).read_bytes() for path in (DATASET, TRAIN_FILE)}
    passed.plant()
    assert passed.run(HEART)[0] == 0
    assert before == {path: (passed.root / path).read_bytes() for path in before}
    record = passed.record()
    train, with_adapter, without = record.extended[HEART].attempts
    folder = Path(train.argv[train.argv.index("--train-file") + 1]).parent
    assert folder.parent == passed.reports / "runs" / record.id
    seed = json.loads((folder / "drawn.json").read_text(encoding="utf-8"))["seed"]
    assert f"種 {seed}" in passed.report()
    assert "学習率 0.001" in passed.report()
    assert "--hf-lora-path" in with_adapter.argv
    assert "--hf-lora-path" not in without.argv
    assert without.evaluation is not None
    assert without.evaluation.with_adapter is not None
    assert without.evaluation.with_adapter.wrong_to_right == 6


@pytest.mark.parametrize(
    ("knobs", "verdict", "broken"),
    [
        ({}, Verdict.PASS, set()),
        ({"train": "four_bit_always"}, Verdict.FAIL, {"step_unquantised"}),
        ({"train": "output_only_ignored"}, Verdict.FAIL, {"step_output_only"}),
        ({"train": "exit_one"}, Verdict.FAIL, set()),
    ],
    ids=["sound", "trap 5", "trap 9", "fails"],
)
def test_one_step_shows_whether_flags_do_what_they_say(
    passed: Bench, knobs: dict[str, str], verdict: Verdict, broken: set[str]
) -> None:
    """4-bit that nobody asked for and a flag without effect are red; H-2's own adapter stays where it was."""
    adapter = passed.root / "runs/debug_small_model/direct_norag_small_4bit/adapter_model.safetensors"
    before = adapter.read_bytes()
    passed.plant(**knobs)
    status, output = passed.run(ONE_STEP)
    assert status == (0 if verdict.is_green else 1)
    record = passed.record()
    assert record.extended[ONE_STEP].verdict is verdict, output
    assert {check.id for check in record.extended[ONE_STEP].findings} == broken
    assert adapter.read_bytes() == before
    assert record.verdict_of(StageId.H2) is Verdict.PASS


def test_one_step_that_does_not_fit_without_4bit_is_said_and_no_failure(passed: Bench) -> None:
    """A card that 4-bit is needed for can't show it by a step without."""
    passed.plant(train="cuda_oom")
    assert passed.run(ONE_STEP)[0] == 0
    result = passed.record().extended[ONE_STEP]
    assert result.verdict is Verdict.PASS_DEGRADED
    assert "4bit なしの 1 ステップは CUDA OOM" in str(result.explanation)


def test_rows_that_cannot_be_made_are_said_and_red(passed: Bench) -> None:
    """Training rows in which no question can be recognised: nothing was measured, so nothing is green."""
    path = passed.root / TRAIN_FILE
    kept = path.read_bytes()
    passed.plant()
    path.write_text(json.dumps({"input": "別の形の行", "output": "a"}) + "\n", encoding="utf-8")
    assert passed.run(HEART)[0] == 1
    path.write_bytes(kept)
    result = passed.record().extended[HEART]
    assert result.verdict is Verdict.NOT_RUN
    assert "暗記させる行を作れない" in str(result.explanation)


def test_a_seed_can_be_given_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one is drawn; what is no number is said."""
    monkeypatch.setenv("STEPH_HEART_SEED", "571445177")
    assert stages.drawn_seed() == 571445177
    monkeypatch.setenv("STEPH_HEART_SEED", "one")
    with speaking("en"), pytest.raises(InputError, match="'one' is no whole number"):
        stages.drawn_seed()
    monkeypatch.delenv("STEPH_HEART_SEED")
    assert stages.drawn_seed() != stages.drawn_seed()
