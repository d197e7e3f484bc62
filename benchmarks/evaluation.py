"""Whole processes, as a person starts them: the training and the evaluation script by hand, and the suite around both.

Nothing is injected: a phase ends when its line arrives. The evaluation prints its configuration right after the model
is loaded, and its results right after the last answer.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.inputs import DATASET, REPOSITORY, TRAIN_FILE
from benchmarks.records import Note, ProcessRun, TimeBox, append

REPEATS = 3
LOADED, ANSWERED = "imports_and_load_seconds", "until_results_seconds"
_MARKS = {"RAG Mode:": LOADED, "EVALUATION RESULTS": ANSWERED}
STEPS = 50
HAND_ADAPTER = "runs/by_hand"


@dataclass(frozen=True)
class Place:
    """Where the processes run and write."""

    root: Path
    model: Path
    work: Path
    results: Path
    box: TimeBox
    environment: Mapping[str, str]
    tiny: bool

    @property
    def log(self) -> Path:
        """All of their output."""
        return self.work / "logs" / "processes.log"


def timed_process(place: Place, row: str, label: str, repeat: int, argv: Sequence[str], cwd: Path) -> ProcessRun:
    """Run one command to its end and note when each awaited line of its stdout arrived."""
    marks: dict[str, float] = {}
    with place.log.open("ab") as log:
        log.write(f"\n$ {' '.join(argv)}\n".encode())
        log.flush()
        started = time.perf_counter()
        with subprocess.Popen(
            argv, cwd=cwd, env=place.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
        ) as child:
            end = threading.Timer(max(place.box.left_seconds, 1.0), child.terminate)
            end.start()
            for line in child.stdout or ():
                moment = time.perf_counter() - started
                log.write(line)
                for start, name in _MARKS.items():
                    if line.decode(errors="replace").startswith(start):
                        marks.setdefault(name, moment)
            returncode = child.wait()
            end.cancel()
        seconds = time.perf_counter() - started
    return ProcessRun(row, label, repeat, " ".join(argv), seconds, returncode, marks)


def train_command(place: Place) -> list[str]:
    """The spec's H-2 command for 50 steps (two epochs, capped), as the suite's own profile below has it."""
    return [
        *(sys.executable, "scripts/train_qwen_law_ft.py", "--model-name", str(place.model)),
        *("--train-file", TRAIN_FILE, "--output-dir", HAND_ADAPTER, "--num-epochs", "2", "--batch-size", "2"),
        *("--learning-rate", "0.0002", "--max-seq-length", "512", "--gradient-accumulation-steps", "2"),
        *("--warmup-ratio", "0.03", "--lora-r", "16", "--lora-alpha", "32", "--lora-dropout", "0.05", "--use-4bit"),
        *("--bnb-4bit-compute-dtype", "bfloat16", "--bnb-4bit-quant-type", "nf4", "--logging-steps", "1"),
        *("--max-steps-override", str(_steps(place)), "--do-train"),
    ]


def evaluate_command(place: Place) -> list[str]:
    """The spec's H-3 command."""
    return [
        *(sys.executable, "scripts/evaluate_multiple_choice.py", "--data", DATASET),
        *("--output", "results/evaluations/by_hand.json", "--samples", "3", "--top-k", "1", "--no-rag"),
        *("--llm-backend", "hf", "--hf-model-name", str(place.model), "--hf-lora-path", HAND_ADAPTER),
        *("--hf-load-in-4bit", "--ensemble", "1"),
    ]


def train_by_hand(place: Place, repeat: int) -> ProcessRun:
    """One whole training process into an empty folder."""
    shutil.rmtree(place.root / HAND_ADAPTER, ignore_errors=True)
    return timed_process(place, "E", "training by hand", repeat, train_command(place), place.root)


def evaluate_by_hand(place: Place, repeat: int) -> ProcessRun:
    """One whole evaluation process; how many tokens it made is read from its JSON file."""
    found = timed_process(place, "D", "evaluation by hand", repeat, evaluate_command(place), place.root)
    if found.returncode != 0:
        return found
    content = json.loads((place.root / "results/evaluations/by_hand.json").read_text(encoding="utf-8"))
    figures = {
        "new_tokens": float(sum(answer["new_tokens"] for answer in content["results"])),
        "longest_answer_tokens": float(max(answer["new_tokens"] for answer in content["results"])),
        "generate_seconds": float(sum(answer["seconds"] for answer in content["results"])),
        "peak_reserved_bytes": float(content["config"]["peak_reserved_bytes"] or 0),
    }
    return ProcessRun(**{**vars(found), "figures": figures})


def row_d(place: Place) -> None:
    """An adapter trained by hand, then the evaluation, three times."""
    trained = train_by_hand(place, 0)
    append(place.results, trained)
    if trained.returncode != 0:
        append(place.results, Note("D", f"skipped: the training by hand ended with {trained.returncode}"))
        return
    for repeat in range(REPEATS):
        found = evaluate_by_hand(place, repeat)
        append(place.results, found)
        if not place.box.admits(found.seconds):
            append(place.results, Note("D", "stopped: no time left"))
            return


def row_e(place: Place) -> None:
    """The suite's H-1 once, which makes its twin; then the whole suite, and the rest of the trainings by hand."""
    profile = suite_profile(place)
    made = run_suite(place, profile, 0, only_model=True)
    append(place.results, made)
    if made.returncode != 0:
        append(place.results, Note("E", f"skipped: the suite's H-1 ended with {made.returncode}"))
        return
    expected_seconds = 0.0
    for repeat in range(REPEATS):
        if not place.box.admits(expected_seconds):
            append(place.results, Note("E", f"stopped before repeat {repeat}: no time left"))
            return
        started = time.perf_counter()
        append(place.results, run_suite(place, profile, repeat, only_model=False))
        if repeat:
            append(place.results, train_by_hand(place, repeat))
        expected_seconds = time.perf_counter() - started


def suite_profile(place: Place) -> Path:
    """The default profile with two epochs, so that its cap of 50 steps is what ends the training."""
    name = "cpu" if place.tiny else "rtx3080"
    text = (REPOSITORY / "profiles" / f"{name}.toml").read_text(encoding="utf-8")
    text = re.sub(r"^num_epochs = .*$", "num_epochs = 2", text, flags=re.MULTILINE)
    text = re.sub(r"^max_steps = .*$", f"max_steps = {_steps(place)}", text, flags=re.MULTILINE)
    target = place.work / "benchmark.toml"
    target.write_text(text, encoding="utf-8")
    return target


def run_suite(place: Place, profile: Path, repeat: int, *, only_model: bool) -> ProcessRun:
    """The suite as a person starts it; with all stages, also the seconds that its attempts took by its own record."""
    report = place.work / "suite" / (f"run-{repeat}-{time.time_ns()}" if not only_model else "twin")
    argv = [
        *(sys.executable, "-m", "pytest", "tests/acceptance/test_steph.py", "-m", "gpu", "-p", "no:cacheprovider"),
        *("--steph-twin", "--steph-profile", str(profile), "--steph-pipeline-root", str(place.root)),
        *("--steph-report", str(report)),
        *(("-k", "h1") if only_model else ()),
    ]
    label = "suite, H-1 alone (makes the twin)" if only_model else "suite"
    found = timed_process(place, "E", label, repeat, argv, REPOSITORY)
    records = sorted(report.rglob("record.json"))
    if only_model or not records:
        return found
    stages = json.loads(records[-1].read_text(encoding="utf-8"))["stages"]
    figures = {
        f"{stage} attempt seconds": float(attempt["seconds"])
        for stage, result in stages.items()
        for attempt in result["attempts"]
        if attempt["seconds"] is not None
    }
    return ProcessRun(**{**vars(found), "figures": figures})


def _steps(place: Place) -> int:
    return 6 if place.tiny else STEPS
