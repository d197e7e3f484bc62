"""Judging a training: the Trainer's arithmetic, what a rehearsal lowers, and texts and files made to do harm."""

from __future__ import annotations

import json
import os
import struct
import unicodedata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace as Told

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import plant
from planted.defects import Variant
from planted.scenario import training_evidence
from steph.base.messages import NOTHING, verbatim
from steph.base.terms import Severity, StageId
from steph.base.text import LINE_CHARS, one_line
from steph.conduct import jobs
from steph.contract.description import load_description
from steph.judge.checks_adapter import ADAPTER_FINITE
from steph.judge.checks_evaluation import LINE_BACKEND
from steph.judge.checks_process import EXIT_ZERO
from steph.judge.checks_progress import steps_check
from steph.judge.checks_training import ANSWERS_KEPT, judge_training
from steph.judge.evidence import Trained, TrainEvidence, names_model, same_model, same_path
from steph.judge.kinds import check_kinds
from steph.judge.verdict import checks_verdict
from steph.record.settings import TrainSettings, steps_due, steps_in
from steph.record.values import Attempt, Check

SOUND = Variant("", "H-2", "")


def settings(batch: int, accumulation: int, *, epochs: int = 1, cap: int = 500, ranks: int = 1) -> TrainSettings:
    """Training settings that differ only in what counts steps."""
    return TrainSettings(
        batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_epochs=epochs,
        max_steps=cap,
        num_processes=ranks,
    )


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "epochs", "cap", "ranks", "due"),
    [
        (140, 2, 2, 1, 50, 1, 35), (45, 2, 2, 1, 50, 1, 12), (140, 1, 4, 1, 50, 1, 35), (140, 2, 4, 3, 500, 1, 54),
        (140, 2, 2, 3, 50, 1, 50), (1, 8, 8, 1, 50, 1, 1), (140, 2, 2, 1, 50, 2, 18), (137, 2, 2, 1, 50, 1, 35),
    ],
)  # fmt: skip
def test_steps_due_follow_the_trainers_arithmetic(
    rows: int, batch: int, accumulation: int, epochs: int, cap: int, ranks: int, due: int
) -> None:
    """Batches round up, an incomplete accumulation is a step, and the cap ends it; 45 rows gave 12 in a real run."""
    assert steps_due(rows, settings(batch, accumulation, epochs=epochs, cap=cap, ranks=ranks)) == due


@given(rows=st.integers(1, 300), batch=st.integers(1, 8), accumulation=st.integers(1, 8), data=st.data())
def test_a_printed_epoch_gives_back_the_step(rows: int, batch: int, accumulation: int, data: st.DataObject) -> None:
    """The epoch that the Trainer prints with four digits stands for exactly one step of the first epoch."""
    asked = settings(batch, accumulation)
    step = data.draw(st.integers(1, steps_due(rows, asked)))
    batches = -(-rows // batch)
    epoch = min(step * accumulation, batches) / batches
    assert steps_in(float(f"{epoch:.4g}"), rows, asked) == step


def test_more_steps_than_an_epoch_are_seen_as_the_published_run_shows_them(tmp_path: Path) -> None:
    """50 steps over 140 rows are 1.43 epochs and not the 35 steps that were due."""
    evidence = TrainEvidence(
        output_dir=tmp_path, output_dir_name="runs/x", settings=TrainSettings(), model_name="m", returncode=0,
        stdout="{'train_runtime': 46.9, 'train_loss': 1.55, 'epoch': 1.4286}", output="", attempt_started_unix=0.0,
        train_rows=140,
    )  # fmt: skip
    outcome, checks, _ = judge_training(evidence)
    assert (outcome.steps_done, outcome.steps_due, outcome.epochs_done) == (50, 35, 1.4286)
    assert {check.id for check in checks if check.holds is False} >= {"steps_complete", "epochs_as_asked"}


@pytest.mark.parametrize(
    ("is_text", "epochs", "hardness"),
    [(True, 1.0, Severity.WARN), (False, 1.0, Severity.FAIL), (True, 1.4286, Severity.FAIL)],
)
def test_texts_that_are_cut_into_blocks_make_more_steps(is_text: bool, epochs: float, hardness: Severity) -> None:
    """Only plain texts are, and not for longer than the epochs that were asked for."""
    trained = Trained(
        settings=TrainSettings(), rows=140, steps_done=50, steps_due=35, steps_counted=50, epochs=epochs,
        is_plain_text=is_text,
    )  # fmt: skip
    check = steps_check(trained)
    assert (check.holds, check.severity) == (False, hardness)


def test_a_flood_of_losses_does_not_swell_the_record(tmp_path: Path) -> None:
    """Of a hundred thousand printed losses the record keeps the first ten thousand; all of them are judged."""
    evidence = TrainEvidence(
        output_dir=tmp_path, output_dir_name="runs/x", settings=TrainSettings(), model_name="m", returncode=0,
        stdout="{'loss': 1.5}\n" * 99_999 + "{'loss': nan}\n", output="", attempt_started_unix=0.0,
    )  # fmt: skip
    outcome, checks, _ = judge_training(evidence)
    assert len(outcome.losses) == 10_000
    assert "loss_finite" in {check.id for check in checks if check.holds is False}


def test_an_attempt_that_left_nothing_is_judged_without_an_exception(tmp_path: Path) -> None:
    """No folder, no output, no exit code: findings and unmeasured checks, and nothing green."""
    evidence = TrainEvidence(
        output_dir=tmp_path / "none", output_dir_name="runs/none", settings=TrainSettings(), model_name="m",
        stdout="", output="", returncode=None, attempt_started_unix=0.0,
    )  # fmt: skip
    outcome, checks, artifacts = judge_training(evidence)
    assert (outcome.steps_done, outcome.adapter_sha256, artifacts) == (None, None, ())
    assert checks_verdict(checks) is not None
    silent = {"no_traceback", "no_leftovers", "base_weights_loaded", "library_warnings"}
    assert {check.id for check in checks if check.holds} <= silent


def test_a_check_that_the_conductor_adds_is_ruled_out_as_the_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program without a file of rows is not asked about them, wherever the check is put together."""
    text = '[train]\npreset = "trl"\nrows.format = "none"\n[evaluate]\nnone = "no time"\n'
    (tmp_path / "steph.toml").write_text(text, encoding="utf-8")
    evidence = TrainEvidence(
        output_dir=tmp_path / "x", output_dir_name="x", settings=TrainSettings(), model_name="m", stdout="", output="",
        returncode=0, attempt_started_unix=0.0, description=load_description(tmp_path),
    )  # fmt: skip
    added = ANSWERS_KEPT.check(False, verbatim("added"))
    monkeypatch.setattr(jobs, "machine_checks", lambda _processes, _stdout: (added,))
    job = Told(evidence=lambda *_: evidence, setup=None)
    attempt = Attempt(stage=StageId.H2, number=1, label=NOTHING, started_at="")
    finished = Told(processes=lambda _: None, stdout="", attempt=attempt)
    checks = jobs.TrainingJob.judged(job, finished, None, evidence.settings).checks  # type: ignore[arg-type]
    assert (checks[-1].id, checks[-1].applies, checks[-1].holds) == (added.id, False, None)


def test_the_outcome_carries_the_measured_figures(tmp_path: Path) -> None:
    """Steps, losses, step times, runtime, the adapter's hash and the artifacts come out as they went in."""
    outcome, _, artifacts = judge_training(training_evidence(plant(tmp_path / "root"), SOUND))
    assert (outcome.steps_done, outcome.steps_due, outcome.epochs_done) == (10, 10, 1.0)
    assert len(outcome.losses) == 10
    assert outcome.step_seconds == (0.5,) * 9
    assert (outcome.train_runtime_seconds, outcome.checkpoint) == (5.0, "checkpoint-10")
    by_name = {Path(artifact.path).name: artifact for artifact in artifacts}
    assert by_name["adapter_model.safetensors"].sha256 == outcome.adapter_sha256
    assert by_name["trainer_state.json"].path.startswith(
        "runs/debug_small_model/direct_norag_small_4bit/checkpoint-10/"
    )


@pytest.mark.parametrize("name", ["学習 [1] の根", "a b'c"])
def test_a_root_of_any_name_behind_a_link_is_judged_alike(name: str, tmp_path: Path) -> None:
    """Spaces, brackets, Japanese, and `runs/` on another disk: nothing is accused."""
    root = plant(tmp_path / name)
    (tmp_path / "disk").mkdir()
    (root / "runs").symlink_to(tmp_path / "disk")
    _, checks, _ = judge_training(training_evidence(root, SOUND))
    assert [check for check in checks if check.holds is False] == []


def test_an_output_folder_that_was_a_link_before_accuses_nobody(tmp_path: Path) -> None:
    """A person may have put the adapter's place elsewhere; it is the same place afterwards."""
    root = plant(tmp_path / "root")
    place = root / "runs/debug_small_model/direct_norag_small_4bit"
    place.parent.mkdir(parents=True)
    (tmp_path / "disk").mkdir()
    place.symlink_to(tmp_path / "disk")
    _, checks, _ = judge_training(training_evidence(root, SOUND))
    assert [check for check in checks if check.holds is False] == []


def test_a_log_whose_middle_was_cut_agrees_with_the_disk(tmp_path: Path) -> None:
    """30 MiB between the losses leave the first and the last of them; the others are in log_history."""
    evidence = training_evidence(plant(tmp_path / "root"), SOUND)
    lines = evidence.stdout.splitlines()
    cut = "\n".join([*lines[:3], "[... 30000000 bytes cut ...]", *lines[7:]])
    outcome, checks, _ = judge_training(replace(evidence, stdout=cut, output=cut))
    assert [check for check in checks if check.holds is False] == []
    assert len(outcome.losses) == 10


def test_checks_of_the_work_keep_their_weight_in_a_rehearsal(tmp_path: Path) -> None:
    """What a run did is no question of how good its model is: the findings of a rehearsal are as hard."""
    for plant_name in ("nothing_trained", "orig_mod_prefix", "loss_tiny", "response_key_missing", "runtime_of_another"):
        evidence = training_evidence(plant(tmp_path / plant_name, train=plant_name), SOUND)
        found = [
            {(check.id, check.severity) for check in judge_training(replace(evidence, rehearsal=rehearsal))[1]
             if check.holds is False}
            for rehearsal in (False, True)
        ]  # fmt: skip
        assert found[0] == found[1] != set()


def test_a_pipelines_own_token_rate_is_taken_only_where_it_is_a_number(tmp_path: Path) -> None:
    """`train_metrics.json` may give tokens per second; text in its place is left out."""
    evidence = training_evidence(plant(tmp_path / "root"), SOUND)
    rates = []
    for value in (1746.5, "fast", float("inf")):
        (evidence.output_dir / "train_metrics.json").write_text(json.dumps({"tokens_per_second": value}))
        rates.append(judge_training(evidence)[0].tokens_per_second)
    assert rates == [1746.5, None, None]


def test_a_rehearsal_lowers_the_checks_of_quality_to_info(tmp_path: Path) -> None:
    """A loss that rises is a warning in an acceptance and information in a rehearsal; hard checks stay hard."""
    evidence = training_evidence(plant(tmp_path / "root", train="loss_rising"), Variant("loss_rising", "H-2", ""))

    def severity(rehearsal: bool) -> Severity:
        _, checks, _ = judge_training(replace(evidence, rehearsal=rehearsal))
        assert {c.severity for c in checks if c.id == "adapter_finite"} == {Severity.FAIL}
        return next(check.severity for check in checks if check.id == "loss_lower")

    assert (severity(False), severity(True)) == (Severity.WARN, Severity.INFO)


def test_only_quality_checks_are_lowered() -> None:
    """The table lowers what only a trained model can show in rehearsals, and nothing else."""
    lowered = {kind.trap for kind in check_kinds().values() if kind.quality}
    assert lowered == {3, 8, 17, 28, None}
    assert {kind.id for kind in check_kinds().values() if kind.quality and kind.trap is None} == {
        "loss_lower",
        "answers_parsed",
        "cot_reasoned",
        "adapter_changes_responses",
        "responses_differ",
    }


def test_a_check_has_only_words_of_the_catalogs() -> None:
    """A key that the catalogs lack is an error, so that nothing is shown in one language only."""
    with pytest.raises(KeyError):
        EXIT_ZERO.check(False, "no such key")


def test_an_unmeasured_optional_check_is_information() -> None:
    """What can't be asked of every pipeline becomes INFO where it can't be measured; the others keep their severity."""
    assert LINE_BACKEND.check(None, verbatim("x")).severity is Severity.INFO
    assert LINE_BACKEND.check(False, verbatim("x")).severity is Severity.FAIL
    assert ADAPTER_FINITE.check(None, verbatim("x")).severity is Severity.FAIL


@given(st.text(max_size=2000))
def test_text_from_a_child_is_bounded_in_messages(text: str) -> None:
    """Messages are one printable, encodable line of limited length, whatever they quote."""
    message = str(EXIT_ZERO.check(False, verbatim(text * 3)).message)
    assert len(message) <= LINE_CHARS
    assert message.encode("utf-8").decode() == message
    assert not {unicodedata.category(character) for character in message} & {"Cc", "Zl", "Zp"}


def test_lone_surrogates_and_escapes_are_made_harmless() -> None:
    """What JSON may smuggle in can be written to a file as UTF-8 and shows no colours."""
    assert one_line("a\ud800b\x1b[31m red\x1b[0m\u202e") == "a\ufffdb red"


def test_hostile_files_end_in_findings(tmp_path: Path) -> None:
    """Megabytes of HTML as base model, a pipe as adapter, figures that no float holds: judged, one_line, quick."""
    evidence = training_evidence(plant(tmp_path / "root"), SOUND)
    folder = evidence.output_dir
    html = "<script>alert(1)</script>|`" * 50_000
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": html, "base_model_name_or_path": html}))
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "adapter_model.safetensors")
    state = {"global_step": 10, "num_input_tokens_seen": 10**400, "log_history": [{"loss": 10**400}, {"loss": "x"}, 7]}
    (folder / "checkpoint-10" / "trainer_state.json").write_text(json.dumps(state))
    outcome, checks, _ = judge_training(replace(evidence, output=evidence.output + html))
    assert max(len(str(check.message)) for check in checks) <= LINE_CHARS
    assert outcome.tokens_per_second is None
    broken = {check.id for check in checks if check.holds is False}
    assert broken >= {"adapter_weights", "adapter_config", "adapter_base"}
    assert [Check.model_validate_json(check.model_dump_json()) for check in checks] == list(checks)


@pytest.mark.parametrize(
    ("asked", "found", "holds"),
    [
        (("q_proj", "v_proj"), ["v_proj", "q_proj"], True),
        (("q_proj", "v_proj"), ["q_proj"], False),
        (("q_proj",), "q_proj", False),
        (("q_proj",), None, False),
        ((), ["v_proj", "q_proj"], True),
    ],
)
def test_an_adapter_on_other_modules_is_not_the_one_that_was_asked_for(
    tmp_path: Path, asked: tuple[str, ...], found: object, holds: bool
) -> None:
    """In any order, and only where the profile names some; the message has both."""
    evidence = training_evidence(plant(tmp_path / "root"), SOUND)
    path = evidence.output_dir / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": found}))
    judged = replace(evidence, settings=evidence.settings.model_copy(update={"target_modules": asked}))
    check = next(check for check in judge_training(judged)[1] if check.id == "adapter_as_asked")
    assert check.holds is holds
    assert ("target_modules=" in str(check.message)) is not holds


def test_weights_in_a_type_that_is_not_decoded_are_unmeasured_and_never_green(tmp_path: Path) -> None:
    """Float8 may hold anything: whether it is finite and was trained is not known."""
    evidence = training_evidence(plant(tmp_path / "root"), SOUND)
    name = "base_model.model.layers.0.q_proj.lora_B.weight"
    header = json.dumps({name: {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    weights = struct.pack("<Q", len(header)) + header + b"\x7f\x7f"
    (evidence.output_dir / "adapter_model.safetensors").write_bytes(weights)
    checks = judge_training(evidence)[1]
    assert {check.id for check in checks if check.holds is None} >= {"adapter_finite", "adapter_trained"}
    assert checks_verdict(checks) is not None


@pytest.mark.parametrize(
    ("asked", "named", "same"),
    [
        ("Qwen/Qwen1.5-1.8B-Chat", "Qwen/Qwen1.5-1.8B-Chat", True),
        (
            "Qwen/Qwen1.5-1.8B-Chat",
            "/home/u/.cache/huggingface/hub/models--Qwen--Qwen1.5-1.8B-Chat/snapshots/ab12",
            True,
        ),
        ("models/twin", "/home/u/root/models/twin/", True),
        ("./models/twin", "models/twin", True),
        ("Qwen/Qwen1.5-1.8B-Chat", "Qwen/Qwen1.5-1.8B", False),
        ("Qwen/Qwen1.5-1.8B", "Qwen/Qwen1.5-1.8B-Chat", False),
        ("Qwen/Qwen1.5-1.8B-Chat", "Other/Qwen1.5-1.8B-Chat", False),
        ("twin", "/a/other-twin", False),
        ("m", "", False),
    ],
)
def test_models_are_the_same_by_id_folder_or_snapshot_only(asked: str, named: str, same: bool) -> None:
    """An id's cached snapshot and a relative folder are recognised; a name that merely contains it is not."""
    assert same_model(asked, named) is same


def test_a_printed_name_may_carry_a_remark_but_no_longer_name() -> None:
    """`name (4bit)` names the model, `name-GPTQ` names another."""
    assert names_model("Qwen/Qwen1.5-1.8B-Chat (4bit)", "Qwen/Qwen1.5-1.8B-Chat")
    assert not names_model("Qwen/Qwen1.5-1.8B-Chat-GPTQ", "Qwen/Qwen1.5-1.8B-Chat")
    assert not names_model("qwen3:8b", "Qwen/Qwen1.5-1.8B-Chat")
    assert same_path("runs/a/", "./runs/a")
    assert not same_path("runs/a", "None")
