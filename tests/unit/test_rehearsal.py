"""The whole rehearsal on the CPU: the three stages on the reference pipeline, 4-bit included, as in `make accept`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_hub import FakeHub, FakeModel
from steph.base.terms import ExtendedId, StageId, Verdict
from steph.judge.verdict import Overall, overall
from steph.record.values import Record
from steph.run.journal import read_record, record_folders
from steph.tell.attempts import TEST_IDS
from suite_runs import CLONE, PAGE, clean_environment
from typed_commands import shared_twins

GUEST = Path(__file__).parent / "guest_pipeline"
SAMPLE = CLONE / "pipeline" / "datasets" / "sample" / "selection.json"


@dataclass(frozen=True)
class Rehearsed:
    """What one rehearsal left: its record and its Markdown."""

    record: Record
    report: str


def _rehearse(
    folder: Path,
    profile: str,
    environment: Mapping[str, str],
    pipeline: Path = CLONE / "pipeline",
    more: tuple[str, ...] = (),
) -> Rehearsed:
    # a copy: the pipeline's own folders hold what a person's last acceptance left there
    ignored = shutil.ignore_patterns("runs", "results", "__pycache__")
    root = shutil.copytree(pipeline, folder / "pipeline", ignore=ignored, dirs_exist_ok=True)
    places = (f"--steph-pipeline-root={root}", f"--steph-report={folder / 'reports'}", f"--steph-profile={profile}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", str(PAGE), *more, *places, "-p", "no:cacheprovider"],
        cwd=CLONE,
        env=clean_environment() | dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    record = read_record(record_folders(folder / "reports" / "runs")[-1])
    return Rehearsed(record, (folder / "reports" / "StepH_予行.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny model is kept, for this module and for what is typed."""
    return shared_twins(tmp_path_factory)


ALL = "STEPH_TEST_REHEARSALS" in os.environ
MORE = pytest.mark.skipif(
    not ALL, reason="rehearsals and stages of their own: set STEPH_TEST_REHEARSALS, or make test-rehearsals"
)


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Rehearsed:
    """The CPU profile as it is shipped; among all rehearsals with two of the extended stages.

    What the witness sees in those: test_witness_planted.py, in forks.
    """
    more = tuple(str(CLONE / TEST_IDS[stage]) for stage in (ExtendedId.RAG, ExtendedId.ONE_STEP) if ALL)
    return _rehearse(tmp_path_factory.mktemp("cpu"), "cpu", {"STEPH_CACHE": str(cache)}, more=more)


def test_the_reference_pipeline_rehearses_green_on_the_cpu(rehearsed: Rehearsed) -> None:
    """A tiny Qwen2 made on the spot trains in 4-bit, is evaluated, and the report is written."""
    assert overall(rehearsed.record) is Overall.PASSED
    training = rehearsed.record.stages[StageId.H2].attempts[-1]
    assert "bitsandbytes" in training.probes[0].packages
    assert "予行・受入ではない" in rehearsed.report


@MORE
def test_the_reference_pipeline_answers_with_passages_of_an_index_built_for_it(rehearsed: Rehearsed) -> None:
    """H-3rag has the pipeline build its index, and the prompts carry what was found in it."""
    result = rehearsed.record.extended[ExtendedId.RAG]
    assert result.verdict is Verdict.PASS
    assert {"line_rag_enabled", "rag_retrieved", "rag_in_prompt", "config_as_asked"} <= result.held


@MORE
def test_the_tiny_model_learns_eight_answers_by_heart(tmp_path: Path, cache: Path) -> None:
    """Random weights, 4-bit and the profile's rate: the adapter remembers what nobody can know, the base does not."""
    environment = {"STEPH_CACHE": str(cache), "STEPH_HEART_SEED": "7"}  # of 1 to 10 the one that is learnt fastest
    rehearsed = _rehearse(tmp_path, "cpu", environment, more=(str(CLONE / TEST_IDS[ExtendedId.HEART]),))
    result = rehearsed.record.extended[ExtendedId.HEART]
    assert result.verdict is Verdict.PASS, result.explanation
    assert {"heart_loss_low", "heart_remembered", "heart_unknown"} <= result.held
    _, with_adapter, without = result.attempts
    assert with_adapter.evaluation is not None
    assert without.evaluation is not None
    assert (with_adapter.evaluation.correct or 0) >= 7
    assert (without.evaluation.correct or 0) <= 4
    assert not list((Path(result.attempts[0].cwd)).rglob("rows.jsonl"))


@MORE
def test_one_step_of_the_reference_pipeline_does_what_its_flags_say(rehearsed: Rehearsed) -> None:
    """By what the witness saw in it: nothing was quantised, and two tokens of each row carried a label."""
    result = rehearsed.record.extended[ExtendedId.ONE_STEP]
    assert result.verdict is Verdict.PASS, result.explanation
    assert {"step_unquantised", "step_output_only"} <= result.held


def _shorter_profile(folder: Path, *candidates: str) -> Path:
    """The CPU profile, with two steps and two questions, and these models of the Hub in the place of its twin."""
    text = (CLONE / "profiles" / "cpu.toml").read_text(encoding="utf-8").replace("twin = true", "twin = false")
    text = text.replace('["steph/tiny-qwen2"]', json.dumps(candidates))
    profile = folder / "short.toml"
    profile.write_text(text.replace("max_steps = 10", "max_steps = 2").replace("samples = 3", "samples = 2"), "utf-8")
    return profile


def _write_guest_data(root: Path) -> None:
    """The data set and training rows that a pipeline without a description has at the published places."""
    dataset = root / "datasets/lawqa_jp/data/selection.json"
    rows = root / "results/finetune/ft_direct_full_norag.jsonl"
    for path in (dataset, rows):
        path.parent.mkdir(parents=True)
    shutil.copy(SAMPLE, dataset)
    samples = json.loads(SAMPLE.read_text(encoding="utf-8"))["samples"]
    lines = (json.dumps({"input": s["問題文"] + s["選択肢"], "output": s["output"], "meta": {}}) for s in samples)
    rows.write_text("\n".join(lines), encoding="utf-8")


@MORE
@pytest.mark.usefixtures("rehearsed")
def test_a_pipeline_without_a_description_rehearses_on_a_model_of_the_hub(tmp_path: Path, cache: Path) -> None:
    """Another pipeline with the published one's habits passes, its flags read off `--help`, its traps named.

    The first candidate is gone; the second is downloaded, named a substitute, then used offline by its name. A model
    folder in a twin's place is what two ranks train (test_two_ranks.py).
    """
    (twin,) = (cache / "twins").iterdir()
    files = {path.name: path.read_bytes() for path in twin.iterdir() if path.is_file() and path.name != "twin.json"}
    unused = tmp_path / "unused"
    _write_guest_data(tmp_path / "pipeline")
    with FakeHub({"ok/tiny": FakeModel(files=files)}) as hub:
        home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "*", "STEPH_CACHE": str(unused)}
        found = _rehearse(tmp_path, str(_shorter_profile(tmp_path, "gone/model", "ok/tiny")), home, GUEST)
    assert overall(found.record) is Overall.DEGRADED
    choice = found.record.stages[StageId.H1].model
    assert choice is not None
    assert (choice.name, choice.source, choice.automatic_substitute) == ("ok/tiny", "hub", True)
    assert [candidate.name for candidate in choice.rejected] == ["gone/model"]
    assert "--model-name ok/tiny" in found.report
    assert "予行・受入ではない" in found.report
    assert not found.record.context.twin
    assert not unused.exists()
    training, evaluation = (found.record.stages[stage] for stage in (StageId.H2, StageId.H3))
    assert "--max-steps-override" in training.attempts[-1].argv
    assert {check.id for check in evaluation.findings} >= {"model_names_agree"}
    assert {check.id for check in evaluation.checks if check.holds} >= {"no_error_answers", "json_consistent"}
    assert evaluation.attempts[-1].artifacts[0].path.endswith("_small_model_debug_direct.json")


# published sizes and settings that a family's config.json names; what it leaves out is transformers' own
FAMILIES = {
    "Llama-3.2-1B-Instruct": {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
        "tie_word_embeddings": True, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
    },
    "gemma-3-1b-it": {
        "model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144,
        "sliding_window": 512, "sliding_window_pattern": 6, "query_pre_attn_scalar": 256, "eos_token_id": [1, 106],
    },
    "Phi-4-mini-instruct": {
        "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 200064, "pad_token_id": 199999,
    },
}  # fmt: skip


@MORE
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.timeout(900)
def test_a_twin_of_another_family_goes_through_all_stages(tmp_path: Path, name: str) -> None:
    """From its config.json alone: small, with a tokenizer trained on the questions, in 4-bit, by PEFT's own modules."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text(json.dumps(FAMILIES[name]), encoding="utf-8")
    asked = (f"--steph-model={tmp_path / name}", "--steph-twin")
    found = _rehearse(tmp_path, "cpu", {"STEPH_CACHE": str(tmp_path / "cache")}, more=asked)
    assert overall(found.record) is Overall.PASSED
    choice = found.record.stages[StageId.H1].model
    assert choice is not None
    made = json.loads((Path(choice.name) / "config.json").read_text(encoding="utf-8"))
    assert (made["model_type"], made["hidden_size"]) == (FAMILIES[name]["model_type"], 64)
