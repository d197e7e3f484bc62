"""TRL's side: SFTTrainer on the same rows, loss positions and effective batch; everything else as it comes.

Run by `run.py`, one process a row: `python -m benchmarks.trl_side --row B …`. The model is loaded once and each run
gets a new adapter from SFTTrainer itself (`peft_config`). The rows are handed over as token ids with a completion mask,
for TRL would cut a long row's answer off; the labels that it builds are compared with ours, all of them, before
anything is timed. Its cuDNN attention stays on, which builds a plan for each new width, unless a candidate says so.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
import trl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from app.fast.clock import StepClock
from app.llm.chat_tokens import load_tokenizer
from app.training.rows import IGNORED, encode_rows, read_rows
from datasets import Dataset  # type: ignore[attr-defined, import-untyped, unused-ignore]
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback

from benchmarks.flops import flops_per_row, lora_parameters, row_sizes
from benchmarks.points import Candidate, Setting, setting, trl_points
from benchmarks.records import Note, TimeBox, TrainingRun, append
from benchmarks.shared_base import SharedBase, allocator_retries, allowed_bytes
from benchmarks.training import Options, OutOfTimeError, model_shape, parse_options

SIDE = "TRL"
TINY_STEPS = 2


class StepTimes(TrainerCallback):  # type: ignore[misc]
    """CUDA events at the start of training and after each optimizer step; nothing waits for them."""

    def __init__(self) -> None:
        self.clock = StepClock()

    def on_train_begin(self, *_: object, **__: object) -> None:
        """Start the clock."""
        self.clock.mark()

    def on_step_end(self, *_: object, **__: object) -> None:
        """Close a step."""
        self.clock.mark()


@dataclass(frozen=True)
class Trained:
    """What one run of SFTTrainer left."""

    train_seconds: float
    step_seconds: list[float]
    losses: list[float]


class TrlSide:
    """SFTTrainer, run again and again on one loaded base model."""

    def __init__(self, options: Options, shared: Setting) -> None:
        self._options = options
        self._shared = shared
        self._tokenizer = load_tokenizer(options.model)
        rows = read_rows(options.train_file, "auto")
        self._rows = encode_rows(
            self._tokenizer, rows, max_seq_length=shared.max_seq_length, loss_on_output_only=True
        ).rows
        self._base = SharedBase(_load, get_peft_model)

    def measure(self, candidate: Candidate, repeat: int, steps: int | None) -> TrainingRun:
        """Train once; an error becomes the run's outcome and the base model is whole again afterwards."""
        found = self._empty_run(candidate, repeat, steps)
        started = time.perf_counter()
        retries_before = allocator_retries()
        try:
            with _trl_adapter(self._base):
                trained = self._train(candidate, steps)
        except torch.OutOfMemoryError as error:
            found = replace(found, outcome=f"oom: {str(error)[:300]}")
        except Exception as error:  # a candidate that fails must not take the others with it
            traceback.print_exc()
            found = replace(found, outcome=f"error: {type(error).__name__}: {str(error)[:300]}")
        else:
            found = self._with_metrics(found, trained, time.perf_counter() - started)
        retries = allocator_retries()
        if retries is not None and retries_before is not None:
            found = replace(found, allocator_retries=retries - retries_before)
        self._base.release()
        return found

    def _empty_run(self, candidate: Candidate, repeat: int, steps: int | None) -> TrainingRun:
        return TrainingRun(
            row=self._options.row,
            side=SIDE,
            label=candidate.label,
            repeat=repeat,
            command=f"trl.SFTTrainer(args={self._arguments(candidate, steps)})",
            batch_size=candidate.batch_size,
            gradient_accumulation_steps=candidate.gradient_accumulation_steps,
            max_seq_length=self._shared.max_seq_length,
            recompute=candidate.recompute,
            fused_micro_batches=1,
            outcome="ok",
            allowed_bytes=allowed_bytes(),
        )

    def _arguments(self, candidate: Candidate, steps: int | None) -> dict[str, Any]:
        optional: dict[str, Any] = {}
        if candidate.by_length:
            optional["train_sampling_strategy"] = "group_by_length"
        return {
            "output_dir": str(self._options.work / self._options.row / "trl"),
            "num_train_epochs": 1,
            "max_steps": steps or -1,
            "per_device_train_batch_size": candidate.batch_size,
            "gradient_accumulation_steps": candidate.gradient_accumulation_steps,
            "gradient_checkpointing": candidate.recompute,
            "learning_rate": 2e-4,
            "warmup_steps": 0.03,
            "max_length": self._shared.max_seq_length,
            "completion_only_loss": True,
            "bf16": True,
            "logging_steps": 10,
            "report_to": [],
            "seed": 42,
            "use_cpu": not torch.cuda.is_available(),
            **optional,
        }

    def _train(self, candidate: Candidate, steps: int | None) -> Trained:
        times = StepTimes()
        trainer = trl.SFTTrainer(
            model=self._base.load(self._options.model),
            args=trl.SFTConfig(**self._arguments(candidate, steps)),
            train_dataset=Dataset.from_list(
                [
                    {"input_ids": row["input_ids"], "completion_mask": [label != IGNORED for label in row["labels"]]}
                    for row in self._rows
                ]
            ),
            processing_class=self._tokenizer,
            peft_config=LoraConfig(
                r=16, lora_alpha=32, lora_dropout=0.05, target_modules=list(self._shared.targets), task_type="CAUSAL_LM"
            ),
            callbacks=[times],
        )
        self._require_same_labels(trainer.train_dataset)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        output = trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return Trained(output.metrics["train_runtime"], times.clock.seconds(), losses)

    def _require_same_labels(self, prepared: Dataset) -> None:
        theirs = [(list(row["input_ids"]), list(row["labels"])) for row in prepared]
        ours = [(row["input_ids"], row["labels"]) for row in self._rows]
        if theirs != ours:
            raise ValueError("TRL's tokens or labels are not ours")

    def _with_metrics(self, found: TrainingRun, trained: Trained, seconds: float) -> TrainingRun:
        shape = model_shape(self._options.model)
        lora = lora_parameters(shape, 16, self._shared.targets)
        sizes = row_sizes(self._rows, IGNORED)
        on_gpu = torch.cuda.is_available()
        return replace(
            found,
            train_seconds=trained.train_seconds,
            prepare_seconds=seconds - trained.train_seconds,
            step_seconds=trained.step_seconds,
            losses=trained.losses,
            peak_allocated_bytes=torch.cuda.max_memory_allocated() if on_gpu else None,
            peak_reserved_bytes=torch.cuda.max_memory_reserved() if on_gpu else None,
            model_flops_per_step=flops_per_row(shape, lora, sizes, recompute=found.recompute) * found.effective_batch,
        )


def _load(name: str) -> Any:  # noqa: ANN401 - transformers has no types
    return AutoModelForCausalLM.from_pretrained(
        name,
        dtype=torch.bfloat16,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
        device_map={"": 0} if torch.cuda.is_available() else None,
    )


@contextlib.contextmanager
def _trl_adapter(base: SharedBase) -> Iterator[None]:
    """SFTTrainer's own `get_peft_model`, watched, so that its adapter can be taken off again."""
    from trl.trainer import sft_trainer  # type: ignore[import-not-found, import-untyped, unused-ignore]

    original = sft_trainer.get_peft_model
    sft_trainer.get_peft_model = base.adapt
    try:
        yield
    finally:
        sft_trainer.get_peft_model = original


class Row:
    """One row's runs in order, each written down as it ends, for as long as the time box lasts."""

    def __init__(self, options: Options, side: TrlSide) -> None:
        self._options = options
        self._side = side
        self._box = TimeBox(options.deadline)
        self._seconds: list[float] = []

    def repeat(self, candidate: Candidate, runs: int, steps: int | None) -> list[TrainingRun]:
        """So many runs, up to the first that fails; what went well."""
        done: list[TrainingRun] = []
        for number in range(runs):
            if not self._box.admits(max(self._seconds[-3:], default=0.0)):
                raise OutOfTimeError(f"{SIDE}: stopped before {candidate.label}, repeat {number}: no time left")
            started = time.perf_counter()
            found = self._side.measure(candidate, number, steps)
            self._seconds.append(time.perf_counter() - started)
            append(self._options.results, found)
            if found.outcome != "ok":
                break
            done.append(found)
        return done

    def note(self, text: str) -> None:
        """A fact beside the figures."""
        append(self._options.results, Note(self._options.row, text))


def measure_row(options: Options, shared: Setting) -> None:
    """The row's candidates in the order of their worth, and which one was the fastest."""
    side = TrlSide(options, shared)
    row = Row(options, side)
    epoch = TINY_STEPS if options.tiny else None
    tried: dict[str, float] = {}
    for candidate, runs in trl_points(shared, options.row, options.process):
        for found in row.repeat(candidate, runs, epoch):
            # a new width's first step pays for cuDNN's plan: the median tells candidates apart
            tried[candidate.label] = statistics.median(found.step_seconds)
    if len(tried) > 1:
        row.note(f"{SIDE}: fastest of the candidates by median step: {min(tried, key=tried.__getitem__)}")


def main() -> None:
    """Measure one row for as long as there is time."""
    options = parse_options(__doc__)
    try:
        measure_row(options, setting(options.row, tiny=options.tiny))
    except OutOfTimeError as error:
        append(options.results, Note(options.row, str(error)))


if __name__ == "__main__":
    main()
