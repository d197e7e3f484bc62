"""The facts that the witness wrote are read as they were seen, and nothing else is taken for one."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from steph.judge.checks_witness import witnessed_training_checks
from steph.judge.evidence import TrainEvidence
from steph.judge.witness import (
    AdapterChanged,
    Batch,
    Ended,
    Generation,
    Logged,
    ModelLoaded,
    ModelSaved,
    TrainingBegins,
    read_witness,
)
from steph.record.settings import TrainSettings


def _write(folder: Path, name: str, *facts: object) -> None:
    lines = [fact if isinstance(fact, str) else json.dumps(fact) for fact in facts]
    (folder / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def test_facts_of_all_processes_are_read_in_times_order(tmp_path: Path) -> None:
    """Each file is one process with its rank; the facts of one kind come together in time's order."""
    _write(tmp_path, "witness-1-12.jsonl", {"fact": "logged", "at": 2.0, "loss": 0.5, "step": 2})
    _write(tmp_path, "witness-none-11.jsonl", {"fact": "logged", "at": 1.0, "loss": "nan", "step": 1})
    witness = read_witness(tmp_path)
    assert [(process.rank, process.pid) for process in witness.processes] == [(1, 12), (None, 11)]
    first, second = witness.of(Logged)
    assert math.isnan(first.loss or 0)
    assert (second.loss, second.step, second.pid) == (0.5, 2, 12)


def test_a_torn_or_foreign_line_is_passed_over_and_counted(tmp_path: Path) -> None:
    """A line cut by SIGKILL, a list, an unknown fact and one of a wrong type cost none of the others."""
    whole = {"fact": "batch", "at": 1.0, "shape": [2, 160], "supervised": [2, 2], "aligned": True, "later": 1}
    _write(tmp_path, "witness-0-3.jsonl", "[1]", {"fact": "dream", "at": 1.0}, {"fact": "batch", "at": "?"}, whole,
           '{"fact": "batch", "at": 2.0, "sha')  # fmt: skip
    witness = read_witness(tmp_path)
    assert witness.unread_lines == 4
    assert witness.of(Batch)[0].supervised == (2, 2)


def test_nested_parts_and_single_values_are_taken_as_if_they_stood_alone(tmp_path: Path) -> None:
    """A state or model may be nested; a sha256 may be one value, several or none."""
    state = {"adapters": ["default"], "layers": 14, "scaling": [2.0], "sha256": "ab", "merged_sha256": None}
    quantised = [{"class": "Linear4bit", "quant_type": "nf4", "layers": 14}]
    _write(tmp_path, "witness-none-3.jsonl",
           {"fact": "generation", "at": 1, "rows": 3, "state": state, "quantised": quantised, "stopped": [True, None]},
           {"fact": "training_begins", "at": 2.0, "model": {"lora": {"layers": 4, "rank": [16]}, "class": "Qwen2"}},
           {"fact": "adapter_merged", "at": 3.0, "sha256": ["ab"]})  # fmt: skip
    witness = read_witness(tmp_path)
    (generation,), (begins,) = witness.of(Generation), witness.of(TrainingBegins)
    assert (generation.sha256, generation.merged_sha256, generation.stopped) == (("ab",), (), (True, None))
    assert generation.quantised[0].kind == "Linear4bit"
    assert begins.lora is not None
    assert (begins.lora.rank, begins.kind) == ((16.0,), "Qwen2")
    assert witness.of(AdapterChanged)[0].change == "merged"


def test_the_last_count_of_each_process_counts(tmp_path: Path) -> None:
    """Counts are written again and again; those of the end replace the earlier ones."""
    counts = {"fact": "counts", "at": 1.0, "generations": {"a": 16}}
    _write(tmp_path, "witness-none-3.jsonl", counts, {"fact": "ended", "at": 2.0, "generations": {"a": 20, "b": 1}})
    _write(tmp_path, "witness-none-4.jsonl", counts)
    witness = read_witness(tmp_path)
    assert witness.totals("generations") == 37
    assert witness.totals("raised") == 0
    assert witness.of(Ended)


def test_no_file_and_no_folder_are_a_witness_that_saw_nothing(tmp_path: Path) -> None:
    """Where no witness could look there is no process."""
    (tmp_path / "witness-other.jsonl").write_text("{}")
    assert read_witness(tmp_path).processes == ()
    assert read_witness(tmp_path / "nowhere").processes == ()


SAMPLES = Path(__file__).parent / "samples" / "witness"


@pytest.mark.parametrize("name", ["reference_train", "reference_eval", "trl_sft"])
def test_what_real_programs_showed_is_read_whole(tmp_path: Path, name: str) -> None:
    """Every line that the witness wrote of the reference pipeline and of TRL is a fact that the reader knows."""
    shutil.copy(SAMPLES / f"{name}.jsonl", tmp_path / "witness-none-5.jsonl")
    witness = read_witness(tmp_path)
    assert witness.unread_lines == 0
    assert witness.of(ModelLoaded)[0].quantised[0].layers == 14
    assert witness.of(Ended)[0].hook_seconds


@pytest.mark.parametrize(("name", "rank"), [("reference_train", 16), ("trl_sft", 8)])
def test_the_core_of_a_real_training_holds(tmp_path: Path, name: str, rank: int) -> None:
    """By what was seen of them alone, the trainings of the reference pipeline and of TRL are green."""
    shutil.copy(SAMPLES / f"{name}.jsonl", tmp_path / "witness-none-5.jsonl")
    dtype = "bfloat16" if name == "reference_train" else "float32"
    settings = TrainSettings(
        num_epochs=2, learning_rate=0.01, lora_r=rank, lora_alpha=2 * rank, max_seq_length=80
    ).model_copy(update={"bnb_4bit_compute_dtype": dtype})
    witness = read_witness(tmp_path)
    evidence = TrainEvidence(
        output_dir=Path("/runs/out"), output_dir_name="out", settings=settings, model_name="/models/tiny", stdout="",
        output="", returncode=0, attempt_started_unix=0.0, train_rows=8, witness=witness,
    )  # fmt: skip
    checks = witnessed_training_checks(evidence, witness.of(ModelSaved)[-1].sha256)
    assert {check.id: check.message for check in checks if check.holds is False} == {}
    unmeasured = {check.id for check in checks if check.holds is None}
    later = {
        "saved_as_trained",
        "base_unchanged",
        "no_own_code",
        "mask_and_positions",
        "loss_as_computed",
        "template_once",
    }  # than these samples
    assert unmeasured <= {"rows_seen", "rows_whole", "answers_of_file"} | later  # no file to compare with
