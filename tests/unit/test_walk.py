"""H-2's walk over the ladder: every cause leads where the ladder says, attempt after attempt."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import record_factory as factory
from planted import TRAIN_FILE
from scripted_training import (
    BASE,
    DRIFT,
    LARGE,
    MAX_STEPS_FLAG,
    NO_BNB,
    OK,
    OOM,
    OOM_LOADING,
    PROFILE,
    SMALL,
    THREE,
    ScriptedTraining,
    offer,
)
from steph.base.messages import say
from steph.base.terms import ExtendedId, StageId, Verdict
from steph.conduct.jobs import half_precision_of
from steph.conduct.training import Walk
from steph.contract.settings import Rung
from steph.record.settings import TrainSettings
from steph.record.values import Diagnosis
from suite_runs import lengthen_rows, make_model


@pytest.mark.parametrize(
    ("ends", "tried", "given_up"),
    [
        ([], ["512/b2/4bit"], ()),
        (
            [OOM, OOM, OOM],
            ["512/b2/4bit", "384/b2/4bit", "256/b2/4bit", "256/b1/4bit"],
            ("max-seq-length 512 → 256", "batch-size 2 → 1", "gradient-accumulation-steps 2 → 4"),
        ),
        ([NO_BNB], ["512/b2/4bit", "512/b2/bf16"], ("4bit あり → なし", "mixed precision なし → bf16")),
        (
            [OOM, NO_BNB, OOM],
            ["512/b2/4bit", "384/b2/4bit", "512/b2/bf16", "384/b2/bf16"],
            ("max-seq-length 512 → 384", "4bit あり → なし", "mixed precision なし → bf16"),
        ),
    ],
)
def test_each_cause_leads_where_the_ladder_says(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ends: list[Diagnosis],
    tried: list[str],
    given_up: tuple[str, ...],
) -> None:
    """OOM goes one rung down, bitsandbytes to the first settings without 4-bit, and what was given up is told."""
    stage = ScriptedTraining(tmp_path, ends)
    outcome = stage.walk(monkeypatch, SMALL)
    assert stage.tried == tried
    assert outcome.verdict is (Verdict.PASS_DEGRADED if given_up else Verdict.PASS)
    assert (tuple(map(str, outcome.given_up)), outcome.checks) == (given_up, (OK,))


@pytest.mark.parametrize(
    ("ends", "tried"),
    [
        ([DRIFT], ["512/b2/4bit"]),
        ([OOM, DRIFT], ["512/b2/4bit", "384/b2/4bit"]),
        ([NO_BNB, NO_BNB], ["512/b2/4bit", "512/b2/bf16"]),
        ([OOM] * 5, ["512/b2/4bit", "384/b2/4bit", "256/b2/4bit", "256/b1/4bit", "256/b1/bf16"]),
    ],
)
def test_what_no_setting_cures_ends_the_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: list[Diagnosis], tried: list[str]
) -> None:
    """Any other cause, bitsandbytes without 4-bit and the ladder's end fail with the last attempt's cause."""
    stage = ScriptedTraining(tmp_path, ends)
    outcome = stage.walk(monkeypatch, SMALL)
    assert stage.tried == tried
    assert (outcome.verdict, outcome.given_up, outcome.checks) == (Verdict.FAIL, (), (OK,))
    assert f"原因: {say(f'diagnose.cause.{ends[-1].cause}.name')}" in str(outcome.explanation)


def test_each_step_of_the_walk_is_said_on_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line with the settings that failed and why it goes on where it does."""
    stage = ScriptedTraining(tmp_path, [OOM])
    stage.walk(monkeypatch, SMALL)
    assert stage.said == ["H-2 512/b2/4bit: CUDA OOMのため一段下げる\n"]


def test_an_oom_while_loading_goes_to_the_next_smaller_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest smaller candidate that can be had is trained from the first rung on, and the pass names it."""
    asked = offer(monkeypatch, SMALL.name)
    stage = ScriptedTraining(tmp_path, [OOM, OOM_LOADING])
    outcome = stage.walk(monkeypatch, LARGE)
    assert asked == [THREE, SMALL.name]
    assert stage.tried == ["512/b2/4bit", "384/b2/4bit", "512/b2/4bit"]
    assert [plan.model_name for plan in stage.planned] == [LARGE.name, LARGE.name, SMALL.name]
    assert outcome.verdict is Verdict.PASS_DEGRADED
    assert tuple(map(str, outcome.given_up)) == (f"より小さいモデル {SMALL.name} に変更",)
    model = stage.recorded.model
    assert model is not None
    assert (model.name, model.automatic_substitute) == (SMALL.name, True)
    assert LARGE.name in str(model.reason)


def test_of_several_smaller_models_the_one_that_passed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the next smaller model is too large as well, the condition is the one that was trained in the end."""
    offer(monkeypatch, THREE, SMALL.name)
    stage = ScriptedTraining(tmp_path, [OOM_LOADING, OOM_LOADING])
    assert tuple(map(str, stage.walk(monkeypatch, LARGE).given_up)) == (f"より小さいモデル {SMALL.name} に変更",)
    assert [plan.model_name for plan in stage.planned] == [LARGE.name, THREE, SMALL.name]


def test_an_oom_while_loading_without_a_smaller_model_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No smaller candidate can be had: the walk ends with that OOM, and the record keeps its model."""
    offer(monkeypatch)
    stage = ScriptedTraining(tmp_path, [OOM_LOADING])
    outcome = stage.walk(monkeypatch, LARGE)
    assert (stage.tried, outcome.verdict) == (["512/b2/4bit"], Verdict.FAIL)
    assert "原因: CUDA OOM" in str(outcome.explanation)
    assert stage.recorded.model is None


def test_a_stagebeside_the_three_keeps_the_records_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CoT training never changes the model that H-2 and H-3 stand on."""
    asked = offer(monkeypatch, SMALL.name)
    stage = ScriptedTraining(tmp_path, [OOM_LOADING], of=ExtendedId.COT_TRAINING)
    assert stage.walk(monkeypatch, LARGE).verdict is Verdict.FAIL
    assert (asked, len(stage.planned)) == ([], 1)


def test_a_stageout_of_time_ends_before_its_next_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An OOM that leaves less than an attempt takes is a TIMEOUT that keeps the checks of what was tried."""
    stage = ScriptedTraining(tmp_path, [OOM], spends_all=True)
    outcome = stage.walk(monkeypatch, SMALL)
    assert stage.tried == ["512/b2/4bit"]
    assert (outcome.verdict, str(outcome.explanation), outcome.checks) == (
        Verdict.TIMEOUT,
        "H-2の制限時間を使い切った",
        (OK,),
    )
    stage.planned.clear()
    again = stage.walk(monkeypatch, SMALL)
    assert (stage.tried, again.verdict, again.checks) == ([], Verdict.TIMEOUT, ())


def test_an_attempt_may_take_its_own_limit_or_what_is_left_of_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each child's limit is the smaller of the two."""
    stage = ScriptedTraining(tmp_path)
    stage.walk(monkeypatch, SMALL)
    stage.leave(monkeypatch, 60)
    stage.walk(monkeypatch, SMALL)
    whole, rest = (plan.limit_seconds or 0 for plan in stage.planned)
    assert whole == PROFILE.limits.train_attempt_seconds
    assert 50 < rest <= 60


@pytest.mark.parametrize(
    ("change", "tried", "given_up"),
    [
        ({}, ["512/b2/4bit", "384/b2/4bit"], ("max-seq-length 512 → 384",)),
        ({"max_seq_length": 384}, ["384/b2/4bit", "256/b2/4bit"], ("max-seq-length 512 → 256",)),
        (
            {"max_seq_length": 256, "batch_size": 1, "gradient_accumulation_steps": 4},
            ["256/b1/4bit", "256/b1/bf16"],
            (
                "max-seq-length 512 → 256",
                "batch-size 2 → 1",
                "gradient-accumulation-steps 2 → 4",
                "4bit あり → なし",
                "mixed precision なし → bf16",
            ),
        ),
        ({"max_seq_length": 100}, ["100/b2/4bit"], ()),
    ],
)
def test_a_walk_goes_on_from_settings_that_are_known_to_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
    tried: list[str],
    given_up: tuple[str, ...],
) -> None:
    """It starts at their rung; settings that are on no rung are tried alone."""
    stage = ScriptedTraining(tmp_path, [OOM])
    outcome = stage.walk(monkeypatch, SMALL, BASE.model_copy(update=change))
    assert (stage.tried, tuple(map(str, outcome.given_up))) == (tried, given_up)


@pytest.mark.parametrize(
    ("flags", "epochs", "due_rows", "is_capped"),
    [((MAX_STEPS_FLAG,), 1, 40, True), ((), 1, 20, False), ((), 2, 8, False), ((), 5, 4, False), ((), 9, 4, False)],
)
def test_a_long_training_is_cut_by_its_flag_or_by_its_rows(
    tmp_path: Path, flags: tuple[str, ...], epochs: int, due_rows: int, is_capped: bool
) -> None:
    """40 rows, 5 steps of 4 at most: by --max-steps-override, else on whole steps of the first rows in each epoch."""
    train = BASE.model_copy(update={"max_steps": 5, "num_epochs": epochs})
    stage = ScriptedTraining(tmp_path, flags=flags, train=train)
    argv, rows = stage.job.planned(SMALL, train, None)[1].argv, stage.job.rows_trained(train)
    assert (rows, MAX_STEPS_FLAG in argv, TRAIN_FILE in argv) == (due_rows, is_capped, is_capped)
    assert is_capped or epochs * rows // 4 <= 5 or rows == 4  # which is one step an epoch
    train_file = stage.setup.root / argv[argv.index("--train-file") + 1]
    lines = train_file.read_text(encoding="utf-8").splitlines()
    whole = (stage.setup.root / TRAIN_FILE).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [json.loads(line) for line in whole[:due_rows]]


@pytest.mark.parametrize("flags", [(MAX_STEPS_FLAG,), ()])
def test_a_training_that_is_short_enough_is_left_whole(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """40 rows take 10 steps of 4: all rows, the root's own file, no flag, whatever more steps are allowed."""
    stage = ScriptedTraining(tmp_path, flags=flags)
    for allowed in (10, 50):
        train = BASE.model_copy(update={"max_steps": allowed})
        argv, rows = stage.job.planned(SMALL, train, None)[1].argv, stage.job.rows_trained(train)
        assert (rows, MAX_STEPS_FLAG in argv, TRAIN_FILE in argv) == (40, False, True)


def test_the_output_goes_to_the_jobs_folder_or_to_the_one_asked_for(tmp_path: Path) -> None:
    """A further training writes beside H-2's output, which therefore stays."""
    job = ScriptedTraining(tmp_path, of=ExtendedId.COT_TRAINING).job
    own = "runs/debug_small_model/direct_norag_small_4bit-cot"
    for asked, place in ((job, own), (replace(job, output_dir="elsewhere"), "elsewhere")):
        argv = asked.planned(SMALL, BASE, None)[1].argv
        assert argv[argv.index("--output-dir") + 1] == place


@pytest.mark.parametrize(("flags", "is_known"), [(None, True), ((), False), (("--seed",), False)])
def test_a_flag_is_known_by_the_description_else_by_the_scripts_help(
    tmp_path: Path, flags: tuple[str, ...] | None, is_known: bool
) -> None:
    """What `steph.toml` says of the script's flags is the last word, also that there are none."""
    stage = ScriptedTraining(tmp_path, flags=flags)
    assert stage.job.flags is not None
    assert (MAX_STEPS_FLAG in stage.job.flags) is is_known


def test_an_attempt_is_asked_for_with_all_that_is_known_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its setting, its model, the output that it writes, and how long its rows are."""
    stage = ScriptedTraining(tmp_path)
    lengthen_rows(stage.setup.root, 100, longer=1)
    model = SMALL.model_copy(update={"snapshot_path": str(make_model(tmp_path / "model"))})
    stage.walk(monkeypatch, model)
    (plan,), (call,) = stage.planned, stage.calls
    assert (plan.stage, plan.settings, plan.model_name) == (StageId.H2, BASE, SMALL.name)
    assert call.writes == stage.setup.description.paths.output_dir
    assert (plan.longest_row_tokens, plan.mean_row_tokens) == (600, (39 * 100 + 600) / 40)


@pytest.mark.parametrize(
    ("compute_capability", "half"),
    [("7.5", "fp16"), ("8.0", "bf16"), ("8.6", "bf16"), ("10.0", "bf16"), ("7", "fp16"), ("8", "bf16"), (None, "bf16")],
)
def test_the_rung_without_4bit_trains_in_what_the_card_can_do(compute_capability: str | None, half: str) -> None:
    """A card before Ampere has no bf16: its last rung is fp16, also after skipped rungs."""
    card = factory.device().model_copy(update={"compute_capability": compute_capability})
    ladder = (Rung(max_seq_length=384), Rung(use_4bit=False))
    walk = Walk(SMALL, TrainSettings(), ladder, rung=2, skipped=frozenset({1}), half=half_precision_of(card))
    assert walk.settings.mixed_precision == half
    assert walk.settings.short() == f"512/b2/{half}"


def test_without_a_card_the_half_precision_is_bf16() -> None:
    """The CPU computes in bf16."""
    assert half_precision_of(None) == "bf16"


def test_a_card_without_bf16_walks_without_4bit_in_fp16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the card can do is asked of it: bitsandbytes trouble on Turing leads to fp16."""
    card = factory.device().model_copy(update={"compute_capability": "7.5"})
    stage = ScriptedTraining(tmp_path, [NO_BNB], card=card)
    stage.walk(monkeypatch, SMALL)
    assert stage.tried == ["512/b2/4bit", "512/b2/fp16"]


@pytest.mark.parametrize(
    ("ended_on", "cause", "tried"),
    [
        ({}, OOM, ["512/b2/4bit", "384/b2/4bit"]),
        ({"max_seq_length": 384}, OOM, ["384/b2/4bit", "256/b2/4bit"]),
        ({"max_seq_length": 384}, NO_BNB, ["384/b2/4bit", "512/b2/bf16"]),
        ({"use_4bit": False, "mixed_precision": "bf16"}, OOM, ["512/b2/bf16", "384/b2/bf16"]),
        ({"max_seq_length": 100}, OOM, ["100/b2/4bit"]),
    ],
)
def test_the_cot_training_walks_on_from_where_h2_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended_on: dict[str, object], cause: Diagnosis, tried: list[str]
) -> None:
    """Settings as the record gives them are found on the profile's ladder; only those on no rung are tried alone."""
    stage = ScriptedTraining(tmp_path, [cause], of=ExtendedId.COT_TRAINING)
    start = TrainSettings.model_validate_json(BASE.model_copy(update=ended_on).model_dump_json())
    outcome = stage.walk(monkeypatch, SMALL, start)
    assert stage.tried == tried
    assert outcome.verdict is (Verdict.PASS_DEGRADED if len(tried) > 1 else Verdict.FAIL)
