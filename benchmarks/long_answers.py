"""Long answers within 10 GB: Qwen3-8B's memory and seconds a step on one GPU, a table row for each way.

    PYTHONPATH=.:plugins:pipeline python -m benchmarks.long_answers --work DIR [--steps 20] [--seconds 280]
    PYTHONPATH=.:plugins:pipeline python -m benchmarks.long_answers --work DIR --tiny --steps 2   (CPU, tiny model)

Trains a random-weight twin (made in DIR once, kept there) in 4 bits with the training script's own functions, the
allocator held to --gib 8.8 from before the model is loaded, accumulation 4, r 16, LoRA's dropout 0. `long` is 1 × 2048
with answers of 1,400 to 1,600 tokens, `full` is 2 × 1024 with answers of one letter and every row full. Text is digits,
each of which is one token to any Qwen tokenizer, so none is needed. The process loads the base model once; a row that
would go past --seconds is left out and said so. The median step is the last half's. --only NAME runs one row. --profile
prints what the card does in each row's last step, kernel by kernel; --graphs tries CUDA graphs, which are off else.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.fast.startup import lean_imports
from steph.memory.shapes import BUILT_IN, TINY, config_of

from benchmarks.inputs import LARGE, TWIN_SCRIPT

GIB = 2**30
ROWS = 80  # 20 steps of 1 × 4
ALL_LINEAR, SOME_LINEAR = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj", "q_proj,v_proj"
RECOMPUTE = ("--gradient-checkpointing", "on", "--fuse-accumulation", "off")


@dataclass(frozen=True)
class Way:
    """One row of the table: which rows are trained and how."""

    name: str
    kind: str
    targets: str
    flags: tuple[str, ...]
    chunked: bool = True


# the rows whose bars are named come first
WAYS = (
    *(
        Way(
            f"{kind}, {'all 7' if targets == ALL_LINEAR else 'q and v'}: host memory {host}",
            kind,
            targets,
            (*RECOMPUTE, "--host-memory", host),
        )
        for kind, targets in (("long", ALL_LINEAR), ("full", ALL_LINEAR), ("full", SOME_LINEAR))
        for host in ("embeddings", "all", "off")
    ),
    Way("long, all 7: auto", "long", ALL_LINEAR, ()),
    Way("long, all 7: whole logits", "long", ALL_LINEAR, (*RECOMPUTE, "--host-memory", "off"), chunked=False),
)


@dataclass(frozen=True)
class Measured:
    """What one way cost; None where there is no GPU or it did not train."""

    way: Way
    outcome: str
    steps: int = 0
    seconds: float | None = None
    allocated_gib: float | None = None
    reserved_gib: float | None = None
    losses: tuple[float, float] | None = None
    plan: str = ""

    def line(self) -> str:
        """A table row."""
        numbers = (self.seconds, self.allocated_gib, self.reserved_gib)
        shown = " | ".join("–" if number is None else f"{number:.2f}" for number in numbers)
        losses = "–" if self.losses is None else f"{self.losses[0]:.3f} to {self.losses[1]:.3f}"
        return f"| {self.way.name} | {self.steps} | {shown} | {losses} | {self.outcome} |"


HEADER = """| way | steps | s a step | allocated, GiB | reserved, GiB | loss | outcome |
|---|---|---|---|---|---|---|"""


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the twin and the runs; the twin is kept")
    parser.add_argument("--steps", type=int, default=20, help="of a long row; a full one takes half")
    parser.add_argument("--gib", type=float, default=8.8, help="what the allocator may take")
    parser.add_argument("--seconds", type=float, default=280.0, help="no row is started that would end later")
    parser.add_argument("--only", action="append", choices=[way.name for way in WAYS], metavar="NAME")
    parser.add_argument("--profile", action="store_true", help="list the kernels of each row's last step")
    parser.add_argument("--graphs", action="store_true", help="try CUDA graphs")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, and rows an eighth as long")
    return parser.parse_args()


def write_rows(folder: Path, kind: str, *, tiny: bool) -> Path:
    """A training file: prompts that fill a row or nearly so, answers of 1,500 digits or of one letter."""
    drawn = random.Random(0)  # noqa: S311 - nothing secret
    scale = 8 if tiny else 1

    def digits(least: int, most: int) -> str:
        return "".join(drawn.choices("0123456789", k=drawn.randint(least // scale, most // scale)))

    def row(number: int) -> dict[str, str]:
        if kind == "full":
            return {"input": digits(4000, 4000), "output": "abcd"[number % 4]}
        return {"input": digits(200, 700), "output": digits(1400, 1600)}

    path = folder / f"{kind}.jsonl"
    path.write_text("".join(json.dumps(row(number)) + "\n" for number in range(2 * ROWS)), encoding="utf-8")
    return path


def make_twin(folder: Path, text: Path, *, tiny: bool) -> Path:
    """The twin with a tokenizer trained on `text`; kept if it is there."""
    target = folder / ("tiny" if tiny else "Qwen3-8B")
    config = folder / f"{target.name}-config.json"
    config.write_text(json.dumps(config_of(TINY if tiny else BUILT_IN[LARGE], LARGE)), encoding="utf-8")
    command = [sys.executable, str(TWIN_SCRIPT), "--config", str(config), "--output", str(target)]
    subprocess.run([*command, "--train-tokenizer", str(text)], check=True)
    return target


# attention's own products are made by cutlass too: it comes first
KERNEL_KINDS = {
    "attention": ("flash", "fmha", "attention"),
    "dequantising": ("dequant",),
    "matrix products": ("gemm", "nvjet", "cutlass", "splitk", "gemv", "cublas"),
}


def by_kind(milliseconds: Mapping[str, float]) -> list[tuple[str, float]]:
    """Kernels' times by what they do, told by their names."""
    sums = dict.fromkeys([*KERNEL_KINDS, "the rest"], 0.0)
    for name, time_ms in milliseconds.items():
        kinds = (kind for kind, words in KERNEL_KINDS.items() if any(word in name.lower() for word in words))
        sums[next(kinds, "the rest")] += time_ms
    return list(sums.items())


def profile_last_step(trainer: Any) -> None:  # noqa: ANN401 - the pipeline's
    """Let a Trainer print the kernels of its last step and the seconds that the card works on them."""
    import torch
    from torch.profiler import ProfilerActivity, profile
    from transformers import TrainerCallback

    class LastStep(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seen = profile(activities=[ProfilerActivity.CUDA])

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
            if state.global_step == state.max_steps - 1:
                torch.cuda.synchronize()
                self.seen.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
            if state.global_step == state.max_steps:
                torch.cuda.synchronize()
                self.seen.stop()
                kernels = [each for each in self.seen.key_averages() if each.device_type.name == "CUDA"]
                kernels.sort(key=lambda each: -each.self_device_time_total)
                busy = sum(each.self_device_time_total for each in kernels) / 1e6
                print(f"{sum(each.count for each in kernels)} kernels a step, the card works {busy:.3f} s on them")
                for kind, milliseconds in by_kind({each.key: each.self_device_time_total / 1e3 for each in kernels}):
                    print(f"{milliseconds:9.1f} ms        all: {kind}")
                for each in kernels[:40]:
                    print(f"{each.self_device_time_total / 1e3:9.1f} ms {each.count:6d} {each.key[:100]}", flush=True)

    trainer.add_callback(LastStep())


class Trainings:
    """The training script's functions on one base model."""

    def __init__(self, options: argparse.Namespace) -> None:
        with lean_imports():
            import torch
            from app.fast import steps
            from app.training import run

            from benchmarks.shared_base import SharedBase
        if torch.cuda.is_available():
            total_bytes = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, options.gib * GIB / total_bytes))
        self._options = options
        self._work: Path = options.work
        self._script: Any = run
        self._steps: Any = steps
        self._keep = steps.keep_to_answers
        if options.profile:
            attach = steps.FastSteps.attach
            self._steps.FastSteps.attach = lambda fast, trainer: (attach(fast, trainer), profile_last_step(trainer))
        self._base = SharedBase(run.load_base_model, run.get_peft_model)
        self._script.load_base_model, self._script.get_peft_model = self._base.load, self._base.adapt
        self._files = {kind: write_rows(self._work, kind, tiny=options.tiny) for kind in ("long", "full")}
        self._model = make_twin(self._work, self._files["long"], tiny=options.tiny)

    def measure(self, way: Way) -> Measured:
        """Train once; running out of memory is an outcome."""
        import torch

        output = self._work / "runs" / "".join(filter(str.isalnum, way.name))
        self._steps.keep_to_answers = self._keep if way.chunked else lambda _model: False
        outcome = self._train(self._argv(way, output))
        peaks = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
        self._base.release()
        if outcome != "trained":
            allocated, reserved = (peak / GIB for peak in peaks)
            return Measured(way, outcome, allocated_gib=allocated, reserved_gib=reserved)
        found = json.loads((output / "train_metrics.json").read_text(encoding="utf-8"))
        seconds, losses = found["step_seconds"], found["losses"]
        allocated, reserved = (
            None if found[name] is None else found[name] / GIB
            for name in ("peak_allocated_bytes", "peak_reserved_bytes")
        )
        return Measured(
            way,
            outcome,
            len(seconds),
            statistics.median(seconds[len(seconds) // 2 :]),
            allocated,
            reserved,
            (losses[0], losses[-1]),
            f"{found['step_plan']}, loss in chunks of {found['loss_chunk_positions']}",
        )

    def _argv(self, way: Way, output: Path) -> list[str]:
        rows, length = (1, 2048) if way.kind == "long" else (2, 1024)
        steps: int = self._options.steps if way.kind == "long" else max(2, self._options.steps // 2)
        values = {
            "--model-name": self._model,
            "--train-file": self._files[way.kind],
            "--output-dir": output,
            "--batch-size": rows,
            "--max-seq-length": length // (8 if self._options.tiny else 1),
            "--gradient-accumulation-steps": 4,
            "--max-steps-override": steps,
            "--target-modules": way.targets,
            "--lora-dropout": 0,
            "--logging-steps": steps,
            "--cuda-graph": "auto" if self._options.graphs else "off",
        }
        pairs = [str(word) for pair in values.items() for word in pair]
        return [*pairs, "--use-4bit", "--do-train", *way.flags]

    def _train(self, argv: Sequence[str]) -> str:
        import torch
        from app.training.rows import read_rows
        from app.training.settings import parse_settings

        settings = parse_settings(list(argv))
        try:
            self._script.train(settings, read_rows(settings.train_file, settings.train_mode))
        except torch.OutOfMemoryError as error:
            return f"out of memory: {str(error).splitlines()[0][:90]}"
        return "trained"


def main() -> int:
    """Measure way after way for as long as there is time, then print the table."""
    started = time.monotonic()
    say = functools.partial(print, flush=True)
    options = parse_options()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    trainings = Trainings(options)
    say(f"twin ready after {time.monotonic() - started:.0f} s")
    found: list[Measured] = []
    taken: dict[str, float] = {}
    for way in WAYS:
        if options.only and way.name not in options.only:
            continue
        began = time.monotonic()
        if began - started + taken.get(way.kind, 0.0) > options.seconds:
            say(f"left out, no time: {way.name}")
            continue
        found.append(trainings.measure(way))
        taken[way.kind] = time.monotonic() - began
        say(f"{found[-1].line()} {taken[way.kind]:.0f} s\n  {found[-1].plan}")
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    say(f"\n{device}, torch {torch.__version__}, allocator held to {options.gib} GiB\n\n{HEADER}")
    say("\n".join(each.line() for each in found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
