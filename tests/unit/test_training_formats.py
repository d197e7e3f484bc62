"""Lines, states and adapters of other trainers: found where a description says, and read as the Trainer's own."""

from __future__ import annotations

import ast
import json
import os
import pprint
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from steph.base.files import files_at
from steph.base.terms import Severity
from steph.contract.description import load_description
from steph.contract.lines import parse_metrics
from steph.contract.training_files import adapter_folder, losses_in_words, read_log, read_state
from steph.judge.checks_training import judge_training
from steph.judge.evidence import TrainEvidence
from steph.judge.witness import read_witness
from steph.record.settings import TrainSettings
from steph.record.values import Check, TrainOutcome

TRL = "{'loss': '2.31', 'grad_norm': '4.2', 'learning_rate': '0.0002', 'entropy': '1.9', 'num_tokens': '812', " \
      "'mean_token_accuracy': '0.48', 'epoch': '0.5'}"  # fmt: skip
FINAL = "{'train_runtime': '9.1', 'train_samples_per_second': '0.9', 'train_loss': '2.1', 'epoch': '1'}"


@pytest.mark.parametrize(
    "line",
    [
        TRL,
        f"[INFO|2026-11-29 02:03:01] llamafactory.train.callbacks:157 >> {TRL}",
        f"[2026-11-29 02:03:01,123] [INFO] [axolotl.train.train:120] [PID:811] [RANK:0] {TRL}",
        f" 50%|█████     | 2/4 [00:03<00:03,  1.6s/it]{TRL}",
        f"{TRL} 50%|█████     | 2/4 [00:03<00:03,  1.6s/it]",
        f"[rank0]: {TRL}",
        f"(trainer pid=4242) {TRL}",
        f"\x1b[32m2026-11-29 02:03:01\x1b[0m - INFO - {TRL}\x1b[0m",
        f"[02:03:01] INFO     {TRL}   trainer.py:2114",
        f"2026-11-29T02:03:01.123456789Z stdout F {TRL}",
        f"trainer-1  | {TRL}",
        f"2026-11-29 02:03:01.123 | INFO     | __main__:on_log:88 - {TRL}",
        json.dumps({"event": TRL, "level": "info"}),
        "\n".join(textwrap.wrap(TRL, 80)),
        pprint.pformat(ast.literal_eval(TRL), width=40),
        "[02:03:01] INFO     " + "\n".join(textwrap.wrap(TRL, 60)).replace("\n", "   trainer.py:2114\n" + 20 * " ", 1),
    ],
)
def test_a_trainers_line_is_read_behind_what_others_put_before_it(line: str) -> None:
    """More keys than transformers has, loggers, launchers, ranks and bars."""
    (metrics,) = read_log(line).losses
    assert (metrics.get("loss"), metrics.get("entropy"), metrics.get("num_tokens")) == (2.31, 1.9, 812.0)


def test_a_config_that_is_printed_is_no_line_of_a_trainer() -> None:
    """A table of settings may have a learning rate; a loss it has not."""
    assert read_log("INFO config: {'learning_rate': 0.0002, 'loss_type': 'nll', 'epochs': 1}").losses == ()
    assert parse_metrics("loss: 2.31") is None


def write_state(path: Path, steps: int, *, final: bool = False, losses: int = 2) -> Path:
    """A `trainer_state.json` as transformers writes it."""
    history: list[dict[str, Any]] = [
        {"loss": 2.5 - 0.1 * n, "grad_norm": 3.0, "learning_rate": 2e-4, "epoch": (n + 1) / losses, "step": n + 1}
        for n in range(losses)
    ]
    if final:
        history.append({"train_runtime": 8.0, "train_loss": 2.4, "epoch": 1.0, "step": steps})
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"global_step": steps, "max_steps": steps, "epoch": 1.0, "log_history": history, "train_batch_size": 2}
    path.write_text(json.dumps(state), encoding="utf-8")
    return path


def test_a_state_beside_the_checkpoints_has_the_last_word(tmp_path: Path) -> None:
    """LLaMA-Factory writes one at the end; an older one of another run does not count."""
    out = tmp_path / "out"
    write_state(out / "checkpoint-4/trainer_state.json", 4)
    top = write_state(out / "trainer_state.json", 4, final=True)
    state = read_state(out, 0.0, files_at(tmp_path, "out/trainer_state.json"))
    assert state.final is not None
    assert (state.final.get("train_loss"), state.global_step) == (2.4, 4)
    assert state.folder == out / "checkpoint-4"
    os.utime(top, (1000, 1000))
    assert read_state(out, 2000.0, files_at(tmp_path, "out/trainer_state.json")).final is None


def test_a_whole_number_is_a_loss_too(tmp_path: Path) -> None:
    """Other tools write 2.0 as 2: each loss still stands at its own entry; the closing entry is no loss."""
    path = write_state(tmp_path / "out/checkpoint-3/trainer_state.json", 3, final=True, losses=3)
    written = json.loads(path.read_text(encoding="utf-8"))
    written["log_history"][1]["loss"] = 2
    written["log_history"].insert(2, {"eval_loss": 2.2, "epoch": 0.7, "step": 2})
    path.write_text(json.dumps(written), encoding="utf-8")
    state = read_state(tmp_path / "out", 0.0)
    assert state.losses == (2.5, 2.0, 2.3)
    assert state.losses == tuple(entry.get("loss") for entry in state.history)
    assert [entry.get("step") for entry in state.other_entries] == [2.0, 3.0]


def test_a_state_elsewhere_is_found_by_its_pattern(tmp_path: Path) -> None:
    """Where no checkpoint lies in the output folder itself."""
    write_state(tmp_path / "out/run-7/checkpoint-2/trainer_state.json", 2)
    write_state(tmp_path / "out/run-7/checkpoint-6/trainer_state.json", 6)
    found = files_at(tmp_path, "out/*/checkpoint-*/trainer_state.json")
    state = read_state(tmp_path / "out", 0.0, found)
    assert (state.global_step, state.problem, state.fresh) == (6, None, True)


def test_of_several_adapters_the_attempts_newest_counts(tmp_path: Path) -> None:
    """A folder for each checkpoint; one of an earlier run lies beside them."""
    for n, age in ((1, 1000), (2, 3000), (3, 2000)):
        config = tmp_path / f"out/checkpoint-{n}/adapter_config.json"
        config.parent.mkdir(parents=True)
        config.write_text("{}", encoding="utf-8")
        os.utime(config, (age, age))
    assert adapter_folder(tmp_path, "out/checkpoint-*", 1500).name == "checkpoint-2"
    assert adapter_folder(tmp_path, "out", 1500) == tmp_path / "out"
    assert adapter_folder(tmp_path, "none/*", 1500) == tmp_path / "none/*"


TOML = """
[train]
command = ["{{python}}", "train.py"]
rows = {{ file = "rows.jsonl", format = "text" }}
artifacts = {{ adapter = "out/*/lora"{state} }}
output_dir = "out"
[evaluate]
none = "not here"
"""


def judged(
    root: Path, stdout: str = "", *, state: str | None = '["out/trainer_state.json"]', seen: bool = True,
    source: str = "loop",
) -> tuple[TrainOutcome, dict[str, Check]]:  # fmt: skip
    """A training of one's own that prints what is given, in a root with its adapter in a folder of its own."""
    (root / "steph.toml").write_text(TOML.format(state=f", state = {state}" if state else ""), encoding="utf-8")
    (root / "out/v1/lora").mkdir(parents=True, exist_ok=True)
    config = json.dumps({"base_model_name_or_path": "org/model", "r": 16, "lora_alpha": 32, "peft_type": "LORA"})
    (root / "out/v1/lora/adapter_config.json").write_text(config, encoding="utf-8")
    (root / "seen").mkdir(exist_ok=True)
    facts = [
        {"fact": "training_begins", "at": 1.0, "source": source, "rows": 8, "steps_due": 4},
        {"fact": "training_ends", "at": 2.0, "source": source, "steps": 4, "due": 4, "optimizer_steps": 4},
    ]
    if seen:
        lines = "".join(json.dumps(fact) + "\n" for fact in facts)
        (root / "seen/witness-none-7.jsonl").write_text(lines, encoding="utf-8")
    evidence = TrainEvidence(
        output_dir=root / "out", output_dir_name="out", settings=TrainSettings(batch_size=2), model_name="org/model",
        stdout=stdout, output=stdout, returncode=0, attempt_started_unix=time.time() - 60, train_rows=None,
        witness=read_witness(root / "seen"), description=load_description(root), row_format="text",
    )  # fmt: skip
    outcome, checks, _ = judge_training(evidence)
    return outcome, {check.id: check for check in checks}


def test_a_training_that_prints_nothing_is_read_from_its_state(tmp_path: Path) -> None:
    """Losses, steps, epochs and the whole run's figures; the adapter is where the description says."""
    write_state(tmp_path / "out/trainer_state.json", 4, final=True)
    outcome, checks = judged(tmp_path)
    assert (outcome.steps_done, outcome.train_loss, outcome.losses) == (4, 2.4, (2.5, 2.4))
    assert outcome.adapter_folder == "out/v1/lora"
    assert checks["line_train_result"].holds
    assert checks["checkpoint_trainer_state"].holds
    assert checks["loss_finite"].holds
    assert checks["adapter_base"].holds


def test_a_loop_without_a_trainer_is_judged_by_what_was_seen(tmp_path: Path) -> None:
    """No line, no state: both are not applicable, and the steps are those that the witness counted."""
    outcome, checks = judged(tmp_path, state="[]")
    assert (outcome.steps_done, outcome.steps_due) == (4, 4)
    assert [checks[one].applies for one in ("line_train_result", "checkpoint_trainer_state")] == [False, False]
    assert checks["steps_complete"].holds
    assert checks["steps_complete"].applies


@pytest.mark.parametrize("source", ["loop", "trainer"])
def test_a_training_that_was_seen_needs_no_state(tmp_path: Path, source: str) -> None:
    """Where the description says nothing of a state: a loop has none, and a Trainer may save no checkpoint."""
    check = judged(tmp_path, state=None, source=source)[1]["checkpoint_trainer_state"]
    assert (check.applies, check.holds) == (False, None)
    (tmp_path / "seen/witness-none-7.jsonl").unlink()
    assert judged(tmp_path, state=None, seen=False)[1]["checkpoint_trainer_state"].severity is Severity.FAIL


def test_a_state_that_is_missing_where_it_should_be_is_told(tmp_path: Path) -> None:
    """A warning beside steps that were seen, and a failure where nobody saw them."""
    assert judged(tmp_path)[1]["checkpoint_trainer_state"].severity is Severity.WARN
    (tmp_path / "seen/witness-none-7.jsonl").unlink()
    missing = judged(tmp_path, seen=False)[1]["checkpoint_trainer_state"]
    assert (missing.holds, missing.severity) == (False, Severity.FAIL)


def test_lines_on_the_error_stream_are_read_where_nothing_else_is(tmp_path: Path) -> None:
    """A program that logs instead of printing."""
    log = f"[INFO] trainer: {TRL}\n[INFO] trainer: {FINAL}\n"
    outcome, checks = judged(tmp_path, log)
    assert (outcome.losses, outcome.train_loss) == ((2.31,), 2.1)
    assert checks["line_train_result"].holds


@pytest.mark.parametrize(
    ("line", "loss"),
    [
        ("step 3 | loss: 2.31 | lr 2e-4", 2.31),
        ("Epoch 1 Step 10 Loss 1.5e-1", 0.15),
        ("train_loss=2.31 grad_norm=1.1", 2.31),
        ("[12:00:01] INFO training loss is 0.52", 0.52),
        ("  40%|████      | 2/5 [00:01<00:02,  1.2it/s, loss=2.31]", 2.31),
        ("val_loss: 2.0", None),
        ("eval loss = 2.0", None),
        ("best loss 2.0", None),
        ("loss function: cross entropy", None),
        ("glossary: 3", None),
        ("lossless 3", None),
        ("loss_scale: 65536", None),
        ("loss 3 of 4 runs", None),
    ],
)
def test_a_loss_in_words_is_read_and_a_validations_is_not(line: str, loss: float | None) -> None:
    """As loops of one's own print it."""
    found = losses_in_words(line)
    assert [metrics.get("loss") for metrics in found] == ([] if loss is None else [loss])


def test_a_loop_that_prints_its_losses_in_words_has_them(tmp_path: Path) -> None:
    """And one of them that is no number fails."""
    sound = "".join(f"step {n} loss: {3 - n / 10:.2f}\n" for n in range(4))
    outcome, checks = judged(tmp_path, sound, state="[]")
    assert outcome.losses == (3.0, 2.9, 2.8, 2.7)
    assert checks["loss_finite"].holds
    assert judged(tmp_path, sound + "step 5 loss: nan\n", state="[]")[1]["loss_finite"].holds is False
    assert judged(tmp_path, "done\n", state="[]")[1]["loss_finite"].holds is None
