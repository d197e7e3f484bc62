"""The reference pipeline in two processes under torchrun, run by the suite, beside the same work in one process.

They run where STEPH_TEST_REHEARSALS is set (`make test-rehearsals`); what the suite makes of ranks is tested without
torch in `test_ranks.py`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from small_run import PIPELINE, CallScript
from steph.base.terms import StageId, Verdict
from steph.record.values import Record
from steph.run.journal import read_record, record_folders
from suite_runs import CLONE, PAGE, clean_environment

pytestmark = pytest.mark.skipif(
    "STEPH_TEST_REHEARSALS" not in os.environ,
    reason="a rehearsal in two processes: set STEPH_TEST_REHEARSALS, or make test-rehearsals",
)
PROFILE = """
[machine]
title = "two ranks"
device = "cpu"
[model]
candidates = ["a/b"]
preferred = 1
min_parameters = 0
[train]
batch_size = 1
gradient_accumulation_steps = 2
learning_rate = 1e-2
lora_dropout = 0.0
bnb_4bit_compute_dtype = "float32"
launcher = "torchrun"
num_processes = 2
[evaluate]
samples = 3
launcher = "torchrun"
num_processes = 2
"""
ADAPTER, EVALUATION = (
    "runs/debug_small_model/direct_norag_small_4bit",
    "results/evaluations/small_model_debug_direct.json",
)
ROWS = "results/finetune/ft_direct_full_norag.jsonl"


@dataclass(frozen=True)
class TwoRanks:
    """The pipeline root after both stages ran in two processes, and what the suite recorded of them."""

    root: Path
    record: Record

    def stdout(self, stage: StageId) -> list[str]:
        """What the stage's processes printed together."""
        log = next(self.root.parent.glob(f"reports/runs/*/{stage}-1/stdout.log"))
        return log.read_text(encoding="utf-8").splitlines()


def load(path: Path) -> dict[str, Any]:
    """A JSON object."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def two_ranks(tiny_model: Path, questions_file: Path, tmp_path_factory: pytest.TempPathFactory) -> TwoRanks:
    """All stages on a copy of the pipeline with eight questions; five rows, so that no step is full at its end."""
    folder = tmp_path_factory.mktemp("ranks")
    root = shutil.copytree(PIPELINE, folder / "pipeline", ignore=shutil.ignore_patterns("runs", "results"))
    dataset = root / "datasets/lawqa_jp/data/selection.json"
    dataset.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(questions_file, dataset)
    (folder / "two.toml").write_text(PROFILE, encoding="utf-8")
    places = {"pipeline-root": root, "report": folder / "reports", "profile": folder / "two.toml", "model": tiny_model}
    options = [f"--steph-{name}={value}" for name, value in places.items()]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", str(PAGE), *options, "-p", "no:cacheprovider"],
        cwd=CLONE,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return TwoRanks(root, read_record(record_folders(folder / "reports" / "runs")[-1]))


def test_two_ranks_train_as_one_with_twice_the_batch(
    two_ranks: TwoRanks, tiny_model: Path, tmp_path: Path, call_script: CallScript
) -> None:
    """The same rows in the same steps: losses to rounding, tokens exactly, also in the last, incomplete step."""
    flags = ("--batch-size", 2, "--gradient-accumulation-steps", 2, "--learning-rate", "1e-2", "--num-epochs", 1)
    places = ("--model-name", tiny_model, "--train-file", two_ranks.root / ROWS, "--output-dir", tmp_path / "one")
    same = ("--max-seq-length", 512, "--lora-dropout", 0, "--use-4bit", "--bnb-4bit-compute-dtype", "float32")
    assert call_script("train_qwen_law_ft", *places, *flags, *same, "--do-train") == 0
    one, two = load(tmp_path / "one/train_metrics.json"), load(two_ranks.root / ADAPTER / "train_metrics.json")
    assert len(one["losses"]) == 2
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert two["step_tokens"] == one["step_tokens"]
    assert (len(two["ranks"]), two["epochs"], two["rows"]) == (2, 1.0, 5)


def test_two_ranks_answer_as_one(
    two_ranks: TwoRanks, tiny_model: Path, tmp_path: Path, call_script: CallScript, capfd: pytest.CaptureFixture[str]
) -> None:
    """The ranks' shares come together to the lines and the file that one process prints and writes."""
    places = ("--data", two_ranks.root / "datasets/lawqa_jp/data/selection.json", "--output", tmp_path / "one.json")
    model = ("--llm-backend", "hf", "--hf-model-name", tiny_model, "--hf-lora-path", two_ranks.root / ADAPTER)
    flags = ("--samples", 3, "--no-rag", "--top-k", 1, "--hf-load-in-4bit")
    assert call_script("evaluate_multiple_choice", *places, *model, *flags) == 0
    one, two = load(tmp_path / "one.json"), load(two_ranks.root / EVALUATION)
    timeless = [[{**row, "seconds": 0} for row in found["results"]] for found in (one, two)]
    assert timeless[0] == timeless[1]
    assert one["summary"] == two["summary"]
    assert [line for line in capfd.readouterr().out.splitlines() if not re.search("Path|saved|dataset", line)] == [
        line for line in two_ranks.stdout(StageId.H3) if not re.search("Path|saved|dataset", line)
    ]


def test_the_suite_records_every_rank(two_ranks: TwoRanks) -> None:
    """Both stages are green, each process left its figures, and only the first one printed."""
    for stage in (StageId.H2, StageId.H3):
        result = two_ranks.record.stages[stage]
        attempt = result.attempts[-1]
        assert result.verdict is Verdict.PASS
        assert {"ranks_as_asked", "results_printed_once", "exit_zero"} <= result.held
        assert [probe.rank for probe in attempt.probes if probe.rank is not None] == [0, 1]
        assert all(probe.peak_rss_bytes for probe in attempt.probes)
        assert attempt.argv[1:3] == ("-m", "torch.distributed.run")
    assert [line[:8] for line in two_ranks.stdout(StageId.H2)] == ["{'loss':", "{'loss':", "{'train_"]
