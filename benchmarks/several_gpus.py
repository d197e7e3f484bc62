"""Two GPUs against one: speed, loss, and a rank that is killed, all through the suite. One host, two cards, 3 minutes.

    PYTHONPATH=.:plugins python -m benchmarks.several_gpus --out DIR [--data selection.json] [--tokenizer DIR]

Measured on a random-weight twin of Qwen3-8B, rows of exactly 1,024 tokens, LoRA on q and v without dropout:

1. one GPU, batch 2 × accumulation 4, and at the same time on the other GPU batch 4 × accumulation 4; after them batch
   2 × accumulation 8, each micro-batch by itself, whose steps are the same sums as the second one's in another order;
2. the suite's H-2 under `accelerate launch` in two processes, batch 2 × accumulation 4 in each;
3. the same H-2 again, and rank 1 is killed with SIGKILL once steps are running.

Steps 2 to 9 are timed. Bars: two GPUs do 1.7 times the rows a second of one at the same batch in each; losses differ
from one GPU's at the same effective batch by at most twice what that one differs by from itself; the killed rank is
named, the stage ends within 60 s, no process and no GPU memory is left. Prints a table, writes `several_gpus.json`,
ends with 0 where all bars hold. Variables like NCCL_DEBUG are passed on. `--tiny` tries it all on the CPU with a tiny
model, torchrun and gloo; its speed is no bar.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from steph.base.terms import StageId
from steph.record.values import Attempt
from steph.run import processes
from steph.run.gpu import used_bytes, visible_devices
from steph.run.journal import read_record, record_folders

from benchmarks.gpu_pair import Found, Killed, Training
from benchmarks.inputs import REPOSITORY, TRAIN_FILE, full_rows, make_root

STEPS = 9
MEMORY_SLACK_BYTES = 256 << 20
PAGE = REPOSITORY / "tests" / "acceptance" / "test_steph.py"
TESTS = {StageId.H1: "test_h1_model_is_reachable", StageId.H2: "test_h2_lora_training_completes"}
PROFILE = """
[machine]
title = "two GPUs"
device = "{device}"
[model]
candidates = ["{model}"]
preferred = 1
min_parameters = 0
max_parameters = 9_000_000_000
twin = true
[train]
max_steps = {steps}
batch_size = {batch_size}
gradient_accumulation_steps = {accumulation}
max_seq_length = {length}
lora_dropout = 0.0
launcher = "{launcher}"
num_processes = 2
"""


@dataclass(frozen=True)
class Scale:
    """What is run: on which device, which twin, how long its rows are."""

    device: str
    model: str
    launcher: str
    batch_size: int
    accumulation: int
    length: int

    @property
    def rows(self) -> int:
        """Rows of one process's optimizer step."""
        return self.batch_size * self.accumulation

    def profile(self) -> str:
        """The suite's profile for both processes."""
        return PROFILE.format(**asdict(self), steps=STEPS)


FULL = Scale("gpu", "Qwen/Qwen3-8B", "accelerate", 2, 4, 1024)
TINY = Scale("cpu", "steph/tiny-qwen2", "torchrun", 1, 2, 128)


class Bench:
    """The pipeline's copy, the suite's record beside it, and the processes of one call."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.scale = TINY if options.tiny else FULL
        self.work: Path = options.work.resolve()
        self.reports = options.out.resolve() / "reports"
        shutil.rmtree(self.reports, ignore_errors=True)
        self.root = make_root(self.work / "root", options.data.resolve())
        rows = self.root / TRAIN_FILE
        rows.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(full_rows(self.work), rows)
        self.profile = self.work / "two_gpus.toml"
        self.profile.write_text(self.scale.profile(), encoding="utf-8")
        self.cards = () if options.tiny else visible_devices(os.environ)[:2]
        self._environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "STEPH_CACHE": str(self.work / "cache"),
            **({"STEPH_TOKENIZER": str(options.tokenizer.resolve())} if options.tokenizer else {}),
            **({"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} if options.tiny else {}),
        }

    def stage(self, stage: StageId) -> subprocess.Popen[bytes]:
        """Start one stage of the suite."""
        places = {"profile": self.profile, "pipeline-root": self.root, "report": self.reports}
        options = [f"--steph-{name}={value}" for name, value in places.items()]
        test = f"{PAGE}::{TESTS[stage]}"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", test, *options]
        return subprocess.Popen(command, cwd=REPOSITORY, env=self._environment)

    def attempt(self, stage: StageId) -> Attempt:
        """The newest attempt of a stage."""
        result = read_record(record_folders(self.reports / "runs")[-1]).stages[stage]
        return result.attempts[-1]

    def twin(self) -> str:
        """The model that H-1 makes."""
        if self.stage(StageId.H1).wait() != 0:
            raise SystemExit("H-1 did not pass")
        model = read_record(record_folders(self.reports / "runs")[-1]).stages[StageId.H1].model
        assert model is not None  # noqa: S101 - a passed H-1 has one
        return model.name

    def alone(
        self, model: str, batch_size: int, card: int, output: Path, accumulation: int = 0, fuse: str = "auto"
    ) -> subprocess.Popen[bytes]:
        """Start the training script in one process on one card."""
        scale = self.scale
        flags = [
            *("--model-name", model, "--train-file", TRAIN_FILE, "--output-dir", str(output), "--num-epochs", "1"),
            *("--batch-size", str(batch_size), "--fuse-accumulation", fuse),
            *("--gradient-accumulation-steps", str(accumulation or scale.accumulation)),
            *("--max-seq-length", str(scale.length), "--lora-dropout", "0", "--use-4bit", "--logging-steps", "1"),
            *("--max-steps-override", str(STEPS), "--do-train"),
        ]
        visible = {"CUDA_VISIBLE_DEVICES": self.cards[card].uuid} if self.cards else {}
        shutil.rmtree(output, ignore_errors=True)
        with (self.work / f"{output.name}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "scripts/train_qwen_law_ft.py", *flags],
                cwd=self.root,
                env={**self._environment, **visible},
                stdout=log,
                stderr=log,
            )

    def both_alone(self, model: str) -> tuple[Training, Training]:
        """The same batch as one rank's, and the same effective batch as both ranks', each on a card of its own."""
        scale = self.scale
        folders = [self.work / "one", self.work / "one_large"]
        sizes = (scale.batch_size, 2 * scale.batch_size)
        started = [self.alone(model, size, card, folders[card]) for card, size in enumerate(sizes)]
        ended = [process.wait() for process in started]
        if any(ended):
            raise SystemExit(f"a training alone failed; see {self.work}/one*.log")
        names = [f"1 GPU, batch {size} × {scale.accumulation}" for size in sizes]
        one, large = (Training.read(*of) for of in zip(names, (scale.rows, 2 * scale.rows), folders, strict=True))
        return one, large

    def split(self, model: str) -> Training:
        """The same effective batch as both ranks' on one card, micro-batch by micro-batch."""
        scale, folder = self.scale, self.work / "one_split"
        accumulation = 2 * scale.accumulation
        if self.alone(model, scale.batch_size, 0, folder, accumulation, "off").wait():
            raise SystemExit(f"a training alone failed; see {self.work}/one_split.log")
        return Training.read(f"1 GPU, batch {scale.batch_size} × {accumulation}", 2 * scale.rows, folder)

    def together(self) -> Training:
        """The suite's H-2 in two processes."""
        if self.stage(StageId.H2).wait() != 0:
            raise SystemExit(f"H-2 did not pass; see {self.reports}")
        scale, folder = self.scale, self.root / self._output_dir()
        name = f"2 GPUs, batch {scale.batch_size} × {scale.accumulation} in each"
        return Training.read(name, 2 * scale.rows, folder)

    def killed(self) -> Killed:
        """H-2 once more; rank 1 is killed after its second step."""
        before = self._used_bytes()
        running = self.stage(StageId.H2)
        pid = self._rank_in_steps(running)
        os.kill(pid, signal.SIGKILL)
        killed_at = time.monotonic()
        running.wait()
        seconds = time.monotonic() - killed_at
        result = read_record(record_folders(self.reports / "runs")[-1]).stages[StageId.H2]
        diagnosis = result.attempts[-1].diagnosis
        assert diagnosis is not None  # noqa: S101 - an attempt that ended has one
        after = self._used_bytes()
        back = all(now <= then + MEMORY_SLACK_BYTES for then, now in zip(before, after, strict=True))
        return Killed(
            verdict=result.verdict,
            cause=diagnosis.cause,
            rank=diagnosis.rank,
            evidence=diagnosis.evidence,
            seconds_to_end=seconds,
            processes_left=len(self._processes()),
            memory_back=back if self.cards else None,
        )

    def _output_dir(self) -> str:
        argv = self.attempt(StageId.H2).argv
        return argv[argv.index("--output-dir") + 1]

    def _rank_in_steps(self, running: subprocess.Popen[bytes]) -> int:
        """The pid of rank 1 once two losses were printed in a new attempt."""
        known = set(self.reports.glob("runs/*/H-2-*"))
        while running.poll() is None:
            time.sleep(0.1)
            logs = [folder / "stdout.log" for folder in self.reports.glob("runs/*/H-2-*") if folder not in known]
            if logs and logs[0].is_file() and logs[0].read_text(encoding="utf-8").count("'loss'") >= 2:
                ranks = [pid for pid in self._processes() if b"RANK=1" in processes.environment_of(pid)]
                if ranks:
                    return ranks[0]
        raise SystemExit("H-2 ended before rank 1 could be killed")

    def _processes(self) -> list[int]:
        """Every living process of an attempt of this call."""
        mark = b"STEPH_PROBE_DIR=" + os.fsencode(self.reports)
        found = [stat.pid for stat in processes.all_processes().values() if stat.alive]
        return [pid for pid in found if any(e.startswith(mark) for e in processes.environment_of(pid))]

    def _used_bytes(self) -> list[int]:
        return [used_bytes(card.uuid) for card in self.cards]


def measure(options: argparse.Namespace) -> Found:
    """Run everything, one part after the other."""
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    seconds: dict[str, float] = {}
    marks = [time.monotonic()]

    def lap(name: str) -> None:
        marks.append(time.monotonic())
        seconds[name] = marks[-1] - marks[-2]

    model = bench.twin()
    lap("twin")
    one, large = bench.both_alone(model)
    split = bench.split(model)
    lap("one GPU")
    two = bench.together()
    lap("two GPUs")
    killed = bench.killed()
    lap("killed rank")
    seconds["all"] = marks[-1] - marks[0]
    return Found(tuple(card.name for card in bench.cards), one, large, split, two, killed, seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 where a bar does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPOSITORY / "pipeline/datasets/sample/selection.json")
    parser.add_argument("--tokenizer", type=Path, help="folder of a Qwen tokenizer (default: a small one is trained)")
    parser.add_argument("--out", type=Path, required=True, help="folder for several_gpus.json and the suite's record")
    parser.add_argument("--work", type=Path, default=Path("/tmp/steph-several-gpus"), help="twin and runs; kept")  # noqa: S108
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU: does everything run?")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    found = measure(options)
    failures = found.failures(timed=not options.tiny)
    report = {**asdict(found), "ratio": found.ratio, "loss_difference": found.loss_difference}
    report |= {"rounding_noise": found.rounding_noise, "failures": failures}
    (options.out / "several_gpus.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(found.table())
    print("\n".join(f"FAILED: {failure}" for failure in failures) or "all bars hold")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
