"""The reference pipeline beside Unsloth on one GPU, sides alternating: a table row for each kind of work.

    PYTHONPATH=.:plugins:pipeline python -m benchmarks.unsloth_pair --work DIR --tokenizer DIR --data selection.json
        [--seconds 280] [--runs 3] [--only NAME] [--sides ours] [--profile] [--tiny]

One process a side stays for the whole session and loads each model once; they take turns on the card. A run is a
training of its own, from a fresh adapter on, with the allocator held to the row's GiB. Both sides train on the same
token ids and labels, with effective batch, r 16 and dropout 0 alike. A run's seconds a step are the mean of the second
half of its steps, on real rows one epoch: each side takes them in an order of its own, and wide batches take longer. A
row's are the median of its runs, its GiB their largest. Models are random-weight twins,
made in DIR once and kept there. No row is begun that would end after --seconds. --profile writes the kernels of each
run's last step, which it slows down, into DIR/SIDE.log.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.inputs import LARGE, SMALL, build_train_file, make_root, make_twin, some_rows
from benchmarks.long_answers import ALL_LINEAR, GIB, SOME_LINEAR, profile_last_step, write_rows

OURS, THEIRS = "ours", "Unsloth"
WHOLE_CARD = 1000.0
FIXED = ("--gradient-checkpointing", "on", "--fuse-accumulation", "off")


@dataclass(frozen=True)
class Work:
    """What is trained, by whom, and how each side does it best."""

    name: str
    model: str
    rows: str  # long, full, or so many of the real ones
    batch: int
    accumulation: int
    length: int
    targets: str
    gib: float
    flags: tuple[str, ...]
    steps: int
    their_batch: int = 0  # 0: as ours
    their_recompute: bool | str = "unsloth"
    sides: tuple[str, ...] = (OURS, THEIRS)


LONG = Work(
    "Qwen3-8B, 1 × 2048 long answers, all 7, 8.8 GiB", LARGE, "long", 1, 4, 2048, ALL_LINEAR, 8.8,
    (*FIXED, "--host-memory", "embeddings"), 5,
)  # fmt: skip
FULL = replace(
    LONG, name="Qwen3-8B, 2 × 1024 full, all 7, 8.8 GiB", rows="full", batch=2, length=1024, steps=3,
    flags=(*FIXED, "--host-memory", "all"), sides=(OURS,),
)  # fmt: skip
REAL = Work(
    "Qwen1.5-1.8B, real rows, 2 × 2 × 512, 8.8 GiB, best", SMALL, "96", 2, 2, 512, SOME_LINEAR, 8.8, (), 48, 4, False
)
WORKS = (
    LONG,
    replace(LONG, name="Qwen3-8B, 1 × 2048 long answers, all 7, 20 GB slice, best", gib=18.1, flags=(), steps=20,
            their_batch=4),
    FULL,
    replace(FULL, name="Qwen3-8B, 2 × 1024 full, q and v, 8.8 GiB", targets=SOME_LINEAR),
    REAL,
    Work("Qwen3-8B, real rows, 2 × 4 × 1024, whole card, best", LARGE, "64", 2, 4, 1024, SOME_LINEAR, WHOLE_CARD, (),
         16, 8, False),
    replace(REAL, name="Qwen1.5-1.8B, real rows, 2 × 2 × 512, with recompute", their_recompute=True, their_batch=0,
            flags=("--gradient-checkpointing", "on", "--host-memory", "embeddings")),
)  # fmt: skip
LONGEST_STEPS = 20


@dataclass
class Found:
    """All runs of one side at one kind of work."""

    seconds: list[float] = field(default_factory=list)
    first_seconds: float | None = None
    steps: int = 0
    allocated: float = 0.0
    reserved: float = 0.0
    told: str = ""
    error: str = ""


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for twins and runs; twins are kept")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=280.0, help="no row is begun that would end later")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", action="append", choices=[work.name for work in WORKS], metavar="NAME")
    parser.add_argument("--sides", nargs="+", choices=(OURS, THEIRS), default=[OURS, THEIRS])
    parser.add_argument("--profile", action="store_true", help="list the kernels of each run's last step")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on the CPU too")
    parser.add_argument("--serve", choices=(OURS, THEIRS), help=argparse.SUPPRESS)
    return parser.parse_args()


class Side:
    """A process of one side, asked line by line."""

    def __init__(self, side: str, options: argparse.Namespace) -> None:
        command = [sys.executable, "-m", "benchmarks.unsloth_pair", "--serve", side, "--work", str(options.work)]
        command += ["--tokenizer", str(options.tokenizer), "--data", str(options.data)]
        log = (options.work / f"{side}.log").open("w")
        self._process: Any = subprocess.Popen(
            [*command, *(f"--{name}" for name in ("tiny", "profile") if getattr(options, name))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=Path(__file__).parents[1],
        )  # fmt: skip

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        print(json.dumps(request), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process ended"}
        return answer

    def close(self) -> None:
        """Let the process end."""
        self._process.stdin.close()
        self._process.wait(60)


def prepare(options: argparse.Namespace) -> Path:
    """Rows of every kind, each made once; the real ones, all of them."""
    real = build_train_file(make_root(options.work / "root", options.data))
    for work in WORKS:
        if work.rows.isdigit():
            some_rows(real, options.work, int(work.rows))
    for kind in ("long", "full"):
        write_rows(options.work, kind, tiny=options.tiny)
    return real


def rows_file(work: Work, folder: Path) -> Path:
    """The training file of this kind of work."""
    return folder / (f"real_rows_{work.rows}.jsonl" if work.rows.isdigit() else f"{work.rows}.jsonl")


def model_folder(work: Work, folder: Path, *, tiny: bool) -> Path:
    """The twin."""
    return folder / "twins" / ("tiny" if tiny else work.model.rpartition("/")[2])


# --- inside a side's process


def serve(options: argparse.Namespace) -> None:
    """Answer requests until there are no more; whatever is printed meanwhile goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    trainer: Any = (OurTrainings if options.serve == OURS else TheirTrainings)(options)
    for line in sys.stdin:
        request = json.loads(line)
        work = next(each for each in WORKS if each.name == request["work"])
        import torch

        if torch.cuda.is_available():
            share = work.gib * GIB / torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, share))
        try:
            answer = trainer.load(work) if request["steps"] == 0 else trainer.train(work, request["steps"])
        except Exception as error:  # out of memory is a finding too
            import traceback

            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        print(json.dumps(answer), file=answers, flush=True)


def memory() -> dict[str, float]:
    """The allocator's peaks, in GiB."""
    import torch

    if not torch.cuda.is_available():
        return {"allocated": 0.0, "reserved": 0.0}
    return {
        "allocated": torch.cuda.max_memory_allocated() / GIB,
        "reserved": torch.cuda.max_memory_reserved() / GIB,
    }


def give_back() -> None:
    """What nobody holds any more goes back to the card."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class OurTrainings:
    """The training script's functions, each base model loaded once."""

    def __init__(self, options: argparse.Namespace) -> None:
        from app.fast.startup import lean_imports

        with lean_imports():
            from app.training import run

            from benchmarks.shared_base import SharedBase
        self._options = options
        self._script: Any = run
        if options.profile:
            from app.fast.steps import FastSteps

            attach = FastSteps.attach
            FastSteps.attach = lambda fast, trainer: (attach(fast, trainer), profile_last_step(trainer))  # type: ignore[assignment,method-assign]
        self._trainer = run.RecordingTrainer
        self._runtimes: list[float] = []
        self._bases: dict[str, Any] = {}
        self._make_base = lambda: SharedBase(self._load, self._adapt)
        self._load, self._adapt = run.load_base_model, run.get_peft_model

    def load(self, work: Work) -> dict[str, Any]:
        """Nothing: the first training loads."""
        return {}

    def train(self, work: Work, steps: int) -> dict[str, Any]:
        """Once, as the script does it."""
        from app.training.rows import read_rows
        from app.training.settings import parse_settings

        from benchmarks.training import _timed

        if work.model not in self._bases:  # the one before makes room
            self._bases = {}
            give_back()
            self._bases = {work.model: self._make_base()}
        base = self._bases[work.model]
        self._script.load_base_model, self._script.get_peft_model = base.load, base.adapt
        self._script.RecordingTrainer = _timed(self._trainer, self._runtimes)
        output = self._options.work / "runs" / "".join(filter(str.isalnum, work.name))
        settings = parse_settings(self._argv(work, steps, output))
        try:
            self._script.train(settings, read_rows(settings.train_file, settings.train_mode))
            found = json.loads((output / "train_metrics.json").read_text(encoding="utf-8"))
            peaks = memory()
        finally:
            base.release()
        told = f"{found['step_plan']['reason']}; CUDA graph {found['cuda_graph']}"
        return {"seconds": found["step_seconds"], "run_seconds": self._runtimes[-1], "told": told, **peaks}

    def _argv(self, work: Work, steps: int, output: Path) -> list[str]:
        values = {
            "--model-name": model_folder(work, self._options.work, tiny=self._options.tiny),
            "--train-file": rows_file(work, self._options.work),
            "--output-dir": output,
            "--batch-size": work.batch,
            "--gradient-accumulation-steps": work.accumulation,
            "--max-seq-length": work.length // (8 if self._options.tiny and not work.rows.isdigit() else 1),
            "--max-steps-override": steps,
            "--num-epochs": 2,  # the steps end it
            "--target-modules": work.targets,
            "--lora-dropout": 0,
            "--logging-steps": 10,
        }
        return [*(str(word) for pair in values.items() for word in pair), "--use-4bit", "--do-train", *work.flags]


class TheirTrainings:
    """Unsloth's model and its SFTTrainer; a model is loaded anew for other targets or another recompute."""

    def __init__(self, options: argparse.Namespace) -> None:
        import unsloth  # type: ignore[import-not-found, unused-ignore]

        self._fast = unsloth.FastLanguageModel
        self._options = options
        self._key: tuple[object, ...] = ()
        self._model: Any = None

    def load(self, work: Work) -> dict[str, Any]:
        """The model with a fresh adapter; a loaded one gets fresh weights."""
        import torch

        key = (work.model, work.targets, work.their_recompute)
        if key != self._key:
            self._model = None
            give_back()
            base, _ = self._fast.from_pretrained(
                model_name=str(model_folder(work, self._options.work, tiny=False)), max_seq_length=work.length,
                dtype=torch.bfloat16, load_in_4bit=True, local_files_only=True,
            )  # fmt: skip
            self._model = self._fast.get_peft_model(
                base, r=16, target_modules=work.targets.split(","), lora_alpha=32, lora_dropout=0, bias="none",
                use_gradient_checkpointing=work.their_recompute, random_state=42,
            )  # fmt: skip
            self._key = key
        for name, weight in self._model.named_parameters():
            weight.grad = None
            if "lora_A" in name:
                torch.nn.init.kaiming_uniform_(weight, a=5**0.5)
            elif "lora_B" in name:
                torch.nn.init.zeros_(weight)
        give_back()
        return {}

    def train(self, work: Work, steps: int) -> dict[str, Any]:
        """Once, on the rows that our collator gets."""
        import torch
        import trl  # type: ignore[import-not-found, import-untyped, unused-ignore]
        from app.llm.chat_tokens import load_tokenizer
        from app.training.rows import encode_rows, read_rows
        from datasets import Dataset  # type: ignore[attr-defined, import-untyped, unused-ignore]
        from transformers import DataCollatorForSeq2Seq

        self.load(work)
        tokenizer = load_tokenizer(str(model_folder(work, self._options.work, tiny=False)))
        rows = encode_rows(
            tokenizer, read_rows(rows_file(work, self._options.work), "auto"), max_seq_length=work.length,
            loss_on_output_only=True,
        ).rows  # fmt: skip
        batch = work.their_batch or work.batch
        arguments = trl.SFTConfig(
            output_dir=str(self._options.work / "theirs"), num_train_epochs=1, max_steps=steps,
            per_device_train_batch_size=batch, gradient_accumulation_steps=work.batch * work.accumulation // batch,
            gradient_checkpointing=False, learning_rate=2e-4, warmup_steps=2, max_length=work.length, bf16=True,
            logging_steps=10, report_to=[], seed=42, save_strategy="no", train_sampling_strategy="group_by_length",
        )  # fmt: skip
        arguments.dataset_kwargs = {"skip_prepare_dataset": True}
        arguments.remove_unused_columns = False
        from benchmarks.trl_side import StepTimes

        times = StepTimes()
        trainer = trl.SFTTrainer(
            model=self._model, args=arguments, processing_class=tokenizer, callbacks=[times],
            data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
            train_dataset=Dataset.from_list([{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]),
        )  # fmt: skip
        if self._options.profile:
            profile_last_step(trainer)
        torch.cuda.reset_peak_memory_stats()
        output = trainer.train()
        found = {
            "seconds": times.clock.seconds(),
            "run_seconds": output.metrics["train_runtime"],
            "told": f"{batch} at once",
        }
        return {**found, **memory()}


# --- the session


def measure(work: Work, sides: dict[str, Side], runs: int) -> dict[str, Found]:
    """So many runs of each side, taking turns."""
    found = {side: Found() for side in work.sides if side in sides}
    for run in range(runs):
        for side, kept in found.items():
            if kept.error:
                continue
            steps = LONGEST_STEPS if work is LONG and side == OURS and run == 0 else work.steps
            answer = sides[side].ask({"work": work.name, "steps": steps})
            if "error" in answer:
                kept.error = answer["error"]
                continue
            seconds = answer["seconds"]
            print(f"  {side}, run {run + 1}: {[round(each, 3) for each in seconds]}", file=sys.stderr, flush=True)
            kept.seconds.append(statistics.fmean(seconds[len(seconds) // 2 :]))
            kept.first_seconds = kept.first_seconds or answer["run_seconds"]
            kept.steps = max(kept.steps, len(seconds))
            kept.allocated, kept.reserved = (
                max(kept.allocated, answer["allocated"]),
                max(kept.reserved, answer["reserved"]),
            )
            kept.told = answer["told"]
    return found


HEADER = """| work | side | runs | steps | first run, s | s a step | allocated, GiB | reserved, GiB | how |
|---|---|---|---|---|---|---|---|---|"""


def line(work: Work, side: str, kept: Found) -> str:
    """A row of the table."""
    if not kept.seconds:
        return f"| {work.name} | {side} | – | – | – | – | – | – | {kept.error} |"
    told = kept.told.rpartition("; ")[2] if side == THEIRS else kept.told
    spread = f"{statistics.median(kept.seconds):.3f} ({min(kept.seconds):.3f} to {max(kept.seconds):.3f})"
    return (
        f"| {work.name} | {side} | {len(kept.seconds)} | {kept.steps} | {kept.first_seconds:.1f} | {spread} | "
        f"{kept.allocated:.2f} | {kept.reserved:.2f} | {told}{kept.error} |"
    )


def session(options: argparse.Namespace) -> None:
    """Row after row for as long as there is time."""
    started = time.monotonic()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    with opened(options) as sides:
        real, twins, log = prepare(options), options.work / "twins", options.work / "twins.log"
        print(HEADER, flush=True)
        by_name = {work.name: work for work in WORKS}
        for work in map(by_name.get, options.only or by_name):
            if time.monotonic() - started > options.seconds:
                print(f"left out, no time: {work.name}", flush=True)
                continue
            make_twin(work.model, twins, options.tokenizer, real, log, tiny=options.tiny)
            began = time.monotonic()
            found = measure(work, sides, options.runs)
            for side, kept in found.items():
                print(line(work, side, kept), flush=True)
                with (options.work / "found.jsonl").open("a") as file:
                    print(json.dumps({"work": work.name, "side": side, **asdict(kept)}), file=file)
            print(f"  {time.monotonic() - began:.0f} s, until {time.monotonic() - started:.0f} s", file=sys.stderr)


@contextlib.contextmanager
def opened(options: argparse.Namespace) -> Iterator[dict[str, Side]]:
    """The sides' processes, which import while rows and twins are made."""
    sides = {side: Side(side, options) for side in options.sides}
    try:
        yield sides
    finally:
        for side in sides.values():
            side.close()


def main(_: Sequence[str] = ()) -> int:
    """A session, or one side of it."""
    options = parse_options()
    if options.serve:
        serve(options)
    else:
        session(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
