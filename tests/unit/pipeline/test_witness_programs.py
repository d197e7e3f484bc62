"""The witness in real programs on the CPU: they do the same to the last bit, and what they did is what was seen.

The reference pipeline is always run, a stranger's program where STEPH_TEST_PLANTED is set (`make test-planted`), trl
and lm_eval where STEPH_TEST_PROGRAMS names their folder (`make test-programs`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from small_run import INJECT, PIPELINE, Ended, ScriptHost, Trained, evaluation_flags, training_flags
from steph.base.fingerprint import holds
from steph.judge.witness import (
    AdapterChanged,
    AdapterLoaded,
    Batch,
    Blind,
    Generation,
    Hooked,
    Logged,
    ModelLoaded,
    ModelSaved,
    Raised,
    Scoring,
    TrainingBegins,
    TrainingEnds,
    Witness,
    read_witness,
)
from steph.judge.witness import Ended as ProcessEnded

PROGRAMS = os.environ.get("STEPH_TEST_PROGRAMS")  # the folder of an environment's programs: trl, lm_eval
LAST_HOOKS = {"transformers.modeling_utils", "transformers.generation.utils", "peft.peft_model"}
VARIES = re.compile(r"'train_(runtime|samples_per_second|steps_per_second)': '[^']*'")


@dataclass(frozen=True)
class Run:
    """A program that ended, and what was seen in it."""

    process: subprocess.CompletedProcess[str] | Ended
    seen: Witness

    @property
    def words(self) -> tuple[str, str, int]:
        """What a shell sees of it, without measured times."""
        return VARIES.sub("", self.process.stdout), self.process.stderr, self.process.returncode


def run(folder: Path, *command: object, watched: bool, cwd: Path | None = None) -> Run:
    """Run a program on the CPU, with the hooks or without; what was seen goes to `folder`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
    quiet = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
    }
    bars = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    hooks = {"PYTHONPATH": str(INJECT), "STEPH_PROBE_DIR": str(folder)} if watched else {}
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.run(
        [*map(str, command)], cwd=cwd or folder, env={**own, **quiet, **bars, **hooks},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return Run(process, read_witness(folder))


def sha256_of(path: Path) -> str:
    """A file's hash, as the facts have it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_whole(seen: Witness) -> bool:
    """All hooks were set, none failed, and the processes came to their end."""
    assert not seen.of(Blind), seen.of(Blind)
    assert not seen.unread_lines
    return {hook.module for hook in seen.of(Hooked)} >= LAST_HOOKS and len(seen.of(ProcessEnded)) == len(seen.processes)


@pytest.fixture(scope="module")
def watched(
    tiny_model: Path,
    rows_file: Path,
    questions_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> tuple[Run, Run, Path]:
    """The reference pipeline's training and evaluation as in `trained`, with the hooks; and where they wrote.

    Forked from a host that loaded the libraries with the hooks, and where STEPH_TEST_PLANTED is set from nothing.
    """
    folder = tmp_path_factory.mktemp("watched")
    adapter, evaluation = folder / "adapter", folder / "evaluation.json"
    train, evaluate = "scripts/train_qwen_law_ft.py", "scripts/evaluate_multiple_choice.py"
    training_words = (*training_flags(tiny_model, rows_file, adapter), "--use-4bit")
    evaluation_words = (*evaluation_flags(tiny_model, adapter, questions_file, evaluation), "--hf-load-in-4bit")
    if os.environ.get("STEPH_TEST_PLANTED"):
        training = run(folder / "train", sys.executable, train, *training_words, watched=True, cwd=PIPELINE)
        answering = run(folder / "evaluate", sys.executable, evaluate, *evaluation_words, watched=True, cwd=PIPELINE)
    else:
        host: ScriptHost = request.getfixturevalue("watched_host")
        training = forked(host, folder / "train", train, *training_words)
        answering = forked(host, folder / "evaluate", evaluate, *evaluation_words)
    return training, answering, folder


def forked(host: ScriptHost, folder: Path, script: str, *words: object) -> Run:
    """Run a script in a fork of this host; what the host noted when it set the hooks comes first in what was seen."""
    folder.mkdir()
    done = host.run(PIPELINE, script, *words, output=folder / "out", errors=folder / "err", facts=folder)
    (facts,) = folder.glob("witness-*.jsonl")
    facts.write_text(host.hooks.read_text(encoding="utf-8") + facts.read_text(encoding="utf-8"), encoding="utf-8")
    return Run(done, read_witness(folder))


def test_the_reference_pipeline_does_the_same(watched: tuple[Run, Run, Path], trained: Trained) -> None:
    """Losses, weights and answers are those without the hooks, to the last bit; so are exit status and lines."""
    training, answering, folder = watched
    plain = trained.adapter.parent
    assert (training.process.returncode, answering.process.returncode) == (0, 0)
    weights = [sha256_of(where / "adapter" / "adapter_model.safetensors") for where in (plain, folder)]
    assert weights[0] == weights[1]
    losses = [json.loads((where / "adapter" / "train_metrics.json").read_text())["losses"] for where in (plain, folder)]
    assert losses[0] == losses[1]
    rows = [json.loads((where / "evaluation.json").read_text()) for where in (plain, folder)]
    assert without_times(rows[0]) == without_times(rows[1])
    own = [trained.train_process.stdout, training.process.stdout]
    assert VARIES.sub("", own[0]) == VARIES.sub("", own[1])


def without_times(value: Any) -> Any:  # noqa: ANN401 - whatever JSON has
    """What an evaluation wrote but for times and places."""
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if not re.search("time|second|path", key)}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def test_the_reference_training_is_seen_whole(watched: tuple[Run, Run, Path], rows_file: Path) -> None:
    """What was quantised, which rows, which tokens were supervised, every step's figures, and that A and B moved."""
    seen, folder = watched[0].seen, watched[2]
    assert is_whole(seen)
    (begins,), (ends,), batches = seen.of(TrainingBegins), seen.of(TrainingEnds), seen.of(Batch)
    assert (begins.source, begins.rows, begins.batch_size, begins.accumulation) == ("trainer", 8, 4, 1)
    assert (begins.steps_due, begins.learning_rate, begins.schedule, begins.precision) == (40, 1e-2, "linear", "bf16")
    (kind,) = begins.quantised
    assert (kind.kind, kind.quant_type, kind.compute_dtype, kind.layers) == ("Linear4bit", "nf4", "torch.bfloat16", 14)
    assert begins.unquantised_linears == 1
    assert begins.lora is not None
    assert (begins.lora.layers, begins.lora.scaling, begins.lora.dropout) == (14, (2.0,), (0.0,))
    assert (begins.lora.pairs, begins.lora.nonzero_pairs) == (14, 0)
    rows = [json.loads(line) for line in rows_file.read_text(encoding="utf-8").splitlines()]
    assert begins.row_fingerprints is not None
    assert [holds(own, row["input"]) for own, row in zip(begins.row_fingerprints, rows, strict=True)] == [1.0] * 8
    assert len(batches) == 8
    assert {hash_ for batch in batches for hash_ in batch.row_hashes or ()} == set(begins.row_hashes or ())
    assert all(batch.aligned and not batch.shifted and batch.supervised == (2, 2, 2, 2) for batch in batches)
    assert all(batch.ends_with_end_token == (True,) * 4 and batch.unsupervised_tail == (0,) * 4 for batch in batches)
    assert (ends.steps, ends.due, ends.optimizer_steps, ends.raised) == (40, 40, 40, None)
    assert ends.lora_a is not None
    assert ends.lora_b is not None
    assert (ends.lora_a.moved, ends.lora_b.moved, ends.lora_b.zero, ends.lora_b.total) == (14, 14, 0, 14)
    logged = [line for line in seen.of(Logged) if line.loss is not None]
    assert [line.step for line in logged] == [5, 10, 15, 20, 25, 30, 35, 40]
    last = seen.of(ModelSaved)[-1]
    assert (last.step, last.in_training) == (40, False)
    assert last.sha256 == sha256_of(folder / "adapter" / "adapter_model.safetensors")


def test_the_reference_evaluation_is_seen_whole(watched: tuple[Run, Run, Path], questions_file: Path) -> None:
    """Which adapter answered in which state, which questions it was given, and what it said."""
    seen, folder = watched[1].seen, watched[2]
    assert is_whole(seen)
    sha256 = sha256_of(folder / "adapter" / "adapter_model.safetensors")
    (load,), calls = seen.of(AdapterLoaded), seen.of(Generation)
    assert (load.sha256, load.missing, load.unexpected) == (sha256, 0, 0)
    assert all(call.sha256 == (sha256,) and call.adapters == ("default",) for call in calls)
    assert all((call.disabled, call.merged, call.do_sample) == (0, 0, False) for call in calls)
    prompts = [prompt for call in calls for prompt in call.prompt_fingerprints]
    for question in json.loads(questions_file.read_text(encoding="utf-8"))["samples"]:
        assert max(holds(prompt, question["問題文"] + question["選択肢"]) or 0 for prompt in prompts) == 1.0
    assert all(stopped for call in calls for stopped in call.stopped or (False,))
    assert not seen.of(TrainingBegins)
    assert not seen.of(Raised)


@pytest.fixture(scope="module")
def stranger(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run, Path]:
    """A program of its own kind, without the hooks and with them, in the same folder."""
    if not os.environ.get("STEPH_TEST_PLANTED"):
        pytest.skip("two long runs: set STEPH_TEST_PLANTED, or make test-planted")
    folder = tmp_path_factory.mktemp("stranger")
    program = Path(__file__).with_name("own_loop.py")
    plain = run(folder / "plain", sys.executable, program, tiny_model, folder / "out", watched=False)
    return (
        plain,
        run(folder / "seen", sys.executable, program, tiny_model, folder / "out", watched=True),
        folder / "out",
    )


def test_a_strangers_program_does_not_notice(stranger: tuple[Run, Run, Path]) -> None:
    """Losses, random numbers, warnings, tracebacks and exit status are the same, compiled models and lazy rows too."""
    plain, watched_, _ = stranger
    assert "IndexError: index out of range" in plain.process.stderr
    assert "ValueError: `max_new_tokens` must be greater than 0" in plain.process.stdout
    assert watched_.words == plain.words


def test_a_loop_of_its_own_is_seen(stranger: tuple[Run, Run, Path]) -> None:
    """A training without the Trainer begins with its first step, has its batches without the probe, and ends."""
    seen, folder = stranger[1].seen, stranger[2]
    assert is_whole(seen)
    (begins, by_trainer), (ends, _) = seen.of(TrainingBegins), seen.of(TrainingEnds)
    assert (begins.source, begins.optimizer, begins.rows, begins.learning_rate) == ("loop", "AdamW", None, 1e-2)
    assert (by_trainer.source, by_trainer.trainer, by_trainer.rows, by_trainer.row_hashes) == (
        "trainer",
        "Trainer",
        8,
        None,
    )
    own = [batch for batch in seen.of(Batch) if batch.shape == (4, 7)]
    assert len(own) == 3
    assert own[0].first_supervised == (3,) * 4
    assert all(batch.row_fingerprints is not None for batch in seen.of(Batch))
    assert (ends.steps, ends.raised) == (3, None)
    assert ends.calls == ((0, 1, 1), (1, 1, 1), (2, 1, 1))
    assert ends.lora_b is not None
    assert (ends.lora_b.moved, ends.lora_b.total) == (4, 4)
    saved = seen.of(ModelSaved)[0]
    assert (saved.sha256, saved.step) == (sha256_of(folder / "loop" / "adapter_model.safetensors"), 3)


def test_the_states_of_an_adapter_are_seen(stranger: tuple[Run, Run, Path]) -> None:
    """Trained, switched off, loaded and merged: each answer is known with its state, and calls that raised are."""
    seen, folder = stranger[1].seen, stranger[2]
    sha256 = sha256_of(folder / "loop" / "adapter_model.safetensors")
    trained, off, loaded, merged = seen.of(Generation)
    assert (trained.do_sample, trained.layers, trained.disabled, trained.sha256) == (True, 4, 0, ())
    assert (off.do_sample, off.disabled) == (False, 4)
    assert (loaded.sha256, loaded.disabled, loaded.merged_sha256) == ((sha256,), 0, ())
    assert (merged.layers, merged.sha256, merged.merged_sha256) == (0, (), (sha256,))
    assert merged.response_hashes == loaded.response_hashes != off.response_hashes
    assert [fact.change for fact in seen.of(AdapterChanged)] == ["disabled", "enabled", "merged"]
    assert [raised.error for raised in seen.of(Raised)] == ["ValueError", "IndexError"]
    assert [call.merged_sha256 for call in seen.of(Scoring)] == [(), (), (), (sha256,)]
    assert all(set(call.devices) == {"cpu"} for call in seen.of(Scoring)), "the first of each state says where it is"
    folder_of_merged = seen.of(ModelSaved)[-1]
    assert (folder_of_merged.adapter, folder_of_merged.merged_sha256) == (False, (sha256,))
    assert folder_of_merged.path == str(folder / "merged")
    assert seen.totals("raised") == 2


# programs of others, where an environment has them


def program(name: str) -> Path:
    """A program of the environment that STEPH_TEST_PROGRAMS names."""
    if PROGRAMS is None or not (Path(PROGRAMS) / name).is_file():
        pytest.skip(f"STEPH_TEST_PROGRAMS names no folder with {name}")
    return Path(PROGRAMS) / name


def sft_flags(model: Path, data: Path, output: Path) -> list[object]:
    """Four steps in 4 bits."""
    return [
        *("--model_name_or_path", model, "--dataset_name", data, "--output_dir", output, "--max_steps", 4),
        *("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2, "--logging_steps", 1),
        *("--use_peft", "--lora_r", 8, "--lora_alpha", 16, "--lora_target_modules", "q_proj", "v_proj"),
        *("--load_in_4bit", "--learning_rate", "1e-2", "--report_to", "none", "--bf16", "false"),
    ]


@pytest.fixture(scope="module")
def sft(tiny_model: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """`trl sft` over the reference pipeline's rows, as prompt and completion."""
    command, folder = program("trl"), tmp_path_factory.mktemp("sft")
    data = folder / "data"
    data.mkdir()
    rows = [json.loads(line) for line in rows_file.read_text(encoding="utf-8").splitlines()]
    lines = [
        {
            "prompt": [{"role": "user", "content": row["input"]}],
            "completion": [{"role": "assistant", "content": row["output"]}],
        }
        for row in rows
    ]
    (data / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return run(
        folder / "seen", command, "sft", *sft_flags(tiny_model, data, folder / "out"), watched=True
    ), folder / "out"


def test_trl_is_seen_into(sft: tuple[Run, Path], tiny_model: Path) -> None:
    """Rows, batches, quantisation and the saved adapter of `trl sft`, whose launcher is a process of its own."""
    done, output = sft
    assert done.process.returncode == 0, done.process.stderr[-2000:]
    assert is_whole(done.seen)
    (begins,), (ends,) = done.seen.of(TrainingBegins), done.seen.of(TrainingEnds)
    assert (begins.trainer, begins.rows, begins.steps_due) == ("SFTTrainer", 8, 4)
    assert begins.name_or_path == str(tiny_model)
    assert begins.row_fingerprints is not None
    assert [kind.layers for kind in begins.quantised] == [14]
    assert len(done.seen.of(Batch)) == 8
    assert all(all(batch.ends_with_end_token or (False,)) for batch in done.seen.of(Batch))
    assert {hash_ for batch in done.seen.of(Batch) for hash_ in batch.row_hashes or ()} == set(begins.row_hashes or ())
    assert (ends.steps, ends.optimizer_steps) == (4, 4)
    assert done.seen.of(ModelSaved)[-1].sha256 == sha256_of(output / "adapter_model.safetensors")


TASK = """\
task: steph_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\n回答:"
doc_to_choice: [a, b, c, d]
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_lm_eval_is_seen_into(sft: tuple[Run, Path], tiny_model: Path, questions_file: Path, tmp_path: Path) -> None:
    """Which adapter was active while `lm_eval` scored, and which questions it scored."""
    questions = json.loads(questions_file.read_text(encoding="utf-8"))["samples"]
    asked = [{"question": f"{one['問題文']}\n{one['選択肢']}", "answer": one["output"]} for one in questions]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, asked)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "choice.yaml").write_text(TASK.format(data=tmp_path / "rows.jsonl"))
    done = run(
        tmp_path / "seen", program("lm_eval"), "run", "--model", "hf", "--device", "cpu", "--batch_size", 4,
        "--model_args", f"pretrained={tiny_model},peft={sft[1]},dtype=float32", "--include_path", tmp_path / "tasks",
        "--tasks", "steph_choice", watched=True,
    )  # fmt: skip
    assert done.process.returncode == 0, done.process.stderr[-2000:]
    sha256 = sha256_of(sft[1] / "adapter_model.safetensors")
    assert not done.seen.of(Blind)
    assert [model.path for model in done.seen.of(ModelLoaded)] == [str(tiny_model)]
    scored = done.seen.of(Scoring)
    assert sum(call.rows for call in scored) >= 8
    assert set(scored[0].devices) == {"cpu"}
    assert all(call.sha256 == (sha256,) and call.layers == 4 and not call.disabled for call in scored)
    prompts = [prompt for call in scored for prompt in call.prompt_fingerprints]
    known = [
        max(share) for row in asked if (share := [s for p in prompts if (s := holds(p, row["question"])) is not None])
    ]
    assert known
    assert min(known) == 1.0
