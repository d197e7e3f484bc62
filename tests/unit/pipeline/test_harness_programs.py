"""lm_eval itself, run as a person may get it wrong, and judged: the adapter, the model, the samples, the rows.

Needs `STEPH_TEST_PROGRAMS`, the folder of an environment's programs with lm_eval; `make test-programs`.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from steph.base.terms import Severity
from steph.contract.description import load_description
from steph.judge.checks_evaluation import adapter_files, judge_evaluation
from steph.judge.evidence import EvalEvidence
from steph.judge.verdict import checks_verdict
from steph.record.settings import EvalSettings
from steph.record.values import Check
from test_witness_programs import TASK, program, run, sha256_of

DESCRIPTION = """
[train]
preset = "trl"
rows = { file = "rows.jsonl", format = "messages" }
[evaluate]
preset = "lm-eval"
extra = ["--tasks", "steph_choice", "--include_path", "tasks"]
output = "out"
"""
ADAPTER = """
import sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
model, *folders = sys.argv[1:]
for seed, folder in enumerate(folders):
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    made = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    made.peft_config["default"].base_model_name_or_path = model
    made.save_pretrained(folder)
"""
CORE = ("exit_zero", "json_fresh", "json_valid", "total_samples", "json_consistent", "answers_generated",
        "adapter_active", "model_loaded", "adapter_unchanged")  # fmt: skip


@dataclass(frozen=True)
class Root:
    """A pipeline root with a task, a model and two adapters."""

    folder: Path
    model: Path

    def judged(self, *flags: object, name: str, samples: int = 3) -> dict[str, Check]:
        """What the suite says of one run with these flags in the place of the preset's own."""
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        wanted, started = sha256_of(self.folder / "adapter/adapter_model.safetensors"), time.time()
        files = adapter_files(self.folder / "adapter")
        done = run(
            self.folder / f"seen-{name}", program("lm_eval"), "--model", "hf", "--device", "cpu", "--batch_size", 1,
            "--include_path", "tasks", "--tasks", "steph_choice", "--output_path", "out", *flags,
            watched=True, cwd=self.folder,
        )  # fmt: skip
        assert done.process.returncode == 0, done.process.stderr[-2000:]
        evidence = EvalEvidence(
            root=self.folder, dataset=None, output_path="out",
            settings=EvalSettings(samples=samples, load_in_4bit=False), model_name=str(self.model),
            lora_path="adapter", stdout=done.process.stdout, output=done.process.stdout + done.process.stderr,
            returncode=0, attempt_started_unix=started, seconds=time.time() - started, random_weights=True,
            rehearsal=True, adapter_sha256_expected=wanted, adapter_files=files, train_questions=frozenset(),
            adapter_sha256_actual=sha256_of(self.folder / "adapter/adapter_model.safetensors"),
            witness=done.seen, description=load_description(self.folder),
        )  # fmt: skip
        return {check.id: check for check in judge_evaluation(evidence)[1]}


@pytest.fixture(scope="module")
def root(tiny_model: Path, questions_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Root:
    """The reference pipeline's questions as a task of the harness."""
    python = Path(program("lm_eval")).with_name("python")
    folder = tmp_path_factory.mktemp("harness")
    questions = json.loads(questions_file.read_text(encoding="utf-8"))["samples"]
    asked = [{"question": f"{one['問題文']}\n{one['選択肢']}", "answer": one["output"]} for one in questions]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, asked)), encoding="utf-8")
    (folder / "tasks").mkdir()
    (folder / "tasks/choice.yaml").write_text(TASK.format(data=folder / "rows.jsonl"), encoding="utf-8")
    (folder / "steph.toml").write_text(DESCRIPTION, encoding="utf-8")
    (folder / "make.py").write_text(ADAPTER, encoding="utf-8")
    made = run(folder / "made", python, "make.py", tiny_model, "adapter", "yesterday", watched=False, cwd=folder)
    assert made.process.returncode == 0, made.process.stderr[-2000:]
    return Root(folder, tiny_model)


def arguments(model: Path, adapter: str | None = "adapter") -> tuple[str, str]:
    """`--model_args`, as the preset writes them."""
    peft = f",peft={adapter}" if adapter else ""
    return "--model_args", f"pretrained={model}{peft},dtype=float32"


def test_a_sound_run_is_green_and_all_core_checks_are_measured(root: Root) -> None:
    """Three samples, scored with the record's adapter."""
    checks = root.judged(*arguments(root.model), "--limit", 3, "--log_samples", name="sound")
    assert [checks[one].holds for one in CORE] == [True] * len(CORE), [checks[one].message for one in CORE]
    assert checks_verdict(tuple(checks.values())) is None
    accused = {one.id for one in checks.values() if one.holds is False and one.severity is not Severity.INFO}
    assert accused <= {"letters_vary"}  # of random weights


@pytest.mark.parametrize(
    ("name", "adapter", "flags", "caught"),
    [
        ("peft-lost", None, ("--limit", 3, "--log_samples"), {"adapter_active", "lora_path_named"}),
        ("of-yesterday", "yesterday", ("--limit", 3, "--log_samples"), {"adapter_active", "lora_path_named"}),
        ("limit-lost", "adapter", ("--log_samples",), {"total_samples"}),
        ("samples-lost", "adapter", ("--limit", 3), {"json_valid"}),
    ],
)
def test_a_flag_that_is_lost_or_wrong_is_found(
    name: str, adapter: str | None, flags: tuple[object, ...], caught: set[str], root: Root
) -> None:
    """The program itself ends well each time."""
    checks = root.judged(*arguments(root.model, adapter), *flags, name=name)
    assert caught <= {one.id for one in checks.values() if one.holds is False}
    assert checks_verdict(tuple(checks.values())) is not None


def test_another_model_is_found(root: Root) -> None:
    """A copy by another name is another model for all that can be known."""
    other = root.folder / "another-model"
    shutil.copytree(root.model, other)
    checks = root.judged(*arguments(other), "--limit", 3, "--log_samples", name="other-model")
    assert {"model_named", "model_loaded"} <= {one.id for one in checks.values() if one.holds is False}
