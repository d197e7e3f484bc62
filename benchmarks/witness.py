"""What the witness costs: the reference pipeline's training with and without it, in pairs, one process each.

    PYTHONPATH=.:plugins python -m benchmarks.witness --model FOLDER --root PIPELINE [--pairs 3] [--epochs 1]

torch is told to be deterministic on both sides and to do attention by its plain formula: a card's fast attention adds
in any order on its way back, and two trainings alike end some hundredths of a loss apart. `--root` is a copy of the
pipeline that holds its training rows (`benchmarks.inputs` makes one), `--model` a model or a twin. Both sides run
`scripts/train_qwen_law_ft.py` at H-2's settings, alternating which goes first; "without" is an environment without the
injected folder. Compared: every loss to the last digit, both peaks of the allocator to 1 MiB beside what the runs
without it differ by, the median step, the process's seconds, and the seconds that the witness counted inside its own
hooks. Prints a table and ends with 1 where a loss or a peak differs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
INJECT = REPOSITORY / "plugins" / "steph" / "child" / "inject"
ROWS = "results/finetune/ft_direct_full_norag.jsonl"
MIB = 1 << 20
DETERMINISTIC = (
    "import runpy, sys, torch; torch.use_deterministic_algorithms(True, warn_only=True); "
    "[getattr(torch.backends.cuda, f'enable_{name}_sdp')(False) for name in ('flash', 'mem_efficient', 'cudnn')]; "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
H2_FLAGS = (
    *("--batch-size", "2", "--gradient-accumulation-steps", "2"),
    *("--learning-rate", "2e-4", "--max-seq-length", "512", "--lora-dropout", "0.05", "--logging-steps", "1"),
    *("--use-4bit", "--bf16", "--do-train"),
)


@dataclass(frozen=True)
class Run:
    """One training: its losses, peaks (None without a GPU), seconds, and what the witness says that it took."""

    witnessed: bool
    losses: tuple[float, ...]
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    median_step_seconds: float
    process_seconds: float
    training_seconds: float
    hook_seconds: float | None
    cuda_graph: str


def train(root: Path, model: str, folder: Path, *, witnessed: bool, epochs: int = 1) -> Run:
    """Train once in a process of its own; raises CalledProcessError where it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "STEPH_PROBE_DIR"}
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it cuBLAS is not deterministic
    facts = folder / "facts"
    facts.mkdir(parents=True)
    if witnessed:
        environment["STEPH_PROBE_DIR"] = str(facts)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(INJECT), environment.get("PYTHONPATH"))))
    script = ["-c", DETERMINISTIC, "scripts/train_qwen_law_ft.py"]
    command = [sys.executable, *script, "--model-name", model, "--train-file", ROWS]
    started = time.perf_counter()
    with (folder / "log.txt").open("wb") as log:
        output = str(folder / "out")
        command += ["--output-dir", output, "--num-epochs", str(epochs), "--max-steps-override", str(50 * epochs)]
        subprocess.run([*command, *H2_FLAGS], cwd=root, env=environment, stdout=log, stderr=log, check=True)
    seconds = time.perf_counter() - started
    told: dict[str, Any] = json.loads((folder / "out" / "train_metrics.json").read_text(encoding="utf-8"))
    return Run(
        witnessed=witnessed,
        losses=tuple(told["losses"]),
        peak_allocated_bytes=told["peak_allocated_bytes"],
        peak_reserved_bytes=told["peak_reserved_bytes"],
        median_step_seconds=statistics.median(told["step_seconds"][1:]),
        process_seconds=seconds,
        training_seconds=sum(told["step_seconds"]),
        hook_seconds=_hook_seconds(facts),
        cuda_graph=str(told.get("cuda_graph")),
    )


def _hook_seconds(facts: Path) -> float | None:
    lines = [json.loads(line) for path in facts.glob("witness-*.jsonl") for line in path.read_text().splitlines()]
    found = [line["hook_seconds"] for line in lines if line["fact"] == "training_ends"]
    return max(found, default=None)


def table(runs: list[Run]) -> str:
    """A Markdown row a run."""
    names = ("witness", "step s (median)", "process s", "hooks s", "of the training", "allocated MiB", "reserved MiB")
    head = "| " + " | ".join((*names, "CUDA graph")) + " |\n"
    lines = [
        f"| {'with' if run.witnessed else 'without'} | {run.median_step_seconds:.4f} | {run.process_seconds:.1f} | "
        f"{'' if run.hook_seconds is None else f'{run.hook_seconds:.3f}'} | "
        f"{'' if run.hook_seconds is None else f'{100 * run.hook_seconds / run.training_seconds:.2f} %'} | "
        f"{_mib(run.peak_allocated_bytes)} | {_mib(run.peak_reserved_bytes)} | {run.cuda_graph} |\n"
        for run in runs
    ]
    return head + "|---|---|---|---|---|---|---|---|\n" + "".join(lines)


def _mib(size: int | None) -> str:
    return "" if size is None else f"{size / MIB:.1f}"


def differences(runs: list[Run]) -> list[str]:
    """Whatever the witness changed: losses at all, a peak by 1 MiB or more beyond those of the runs without it."""
    alone, witnessed = ([run for run in runs if run.witnessed is which] for which in (False, True))
    losses = {run.losses for run in alone}
    if len(losses) > 1:
        return ["losses differ without the witness too: these runs say nothing of it"]
    found = [f"losses differ: {run.losses}" for run in witnessed if run.losses not in losses]
    for name in ("peak_allocated_bytes", "peak_reserved_bytes"):
        known = [size for run in alone if (size := getattr(run, name)) is not None]
        for run in witnessed if known else ():
            size = getattr(run, name)
            beyond = max(min(known) - size, size - max(known))
            if beyond >= MIB:
                found.append(f"{name} differs by {beyond / MIB:.1f} MiB")
    return found


def main() -> int:
    """Run the pairs; the first run of all warms the disk and is not counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1, help="what the hooks take hardly grows with it")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as folder:
        train(options.root, options.model, Path(folder, "warm"), witnessed=False)
        for pair in range(options.pairs):
            for witnessed in (False, True) if pair % 2 == 0 else (True, False):
                place = Path(folder, f"{len(runs)}")
                runs.append(train(options.root, options.model, place, witnessed=witnessed, epochs=options.epochs))
    sys.stdout.write(table(runs))
    found = differences(runs)
    sys.stdout.write("".join(f"differs: {line}\n" for line in found) or "losses and peaks are the same\n")
    if options.out:
        options.out.write_text(json.dumps([asdict(run) for run in runs]), encoding="utf-8")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
