"""Measure the memory of training steps on one GPU, one process a model, one JSON line a point.

    python -m benchmarks.vram_grid --twins FOLDER --output points.jsonl --seconds 900
    python -m benchmarks.vram_grid --twins FOLDER --output points.jsonl --dry       (CPU, tiny model)

`FOLDER` holds one model folder a shape, named by the last part of its name (steph's twins). Points that the output
already has are left out, so that a run that was cut off goes on. Every row is exactly as long as its point says.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.shared_base import SharedBase
from benchmarks.vram_points import ACCUMULATION_STEPS, DRY_MODEL, LABELS, MODELS, Point, points_of

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = 2  # the optimizer's state is there from the second step on
IGNORED = -100


def main() -> int:
    """Run the driver, or with --model one model's points."""
    options = _options()
    if options.model:
        ModelRun(options).run()
        return 0
    deadline = time.monotonic() + options.seconds
    for model in (DRY_MODEL,) if options.dry else MODELS:
        left = deadline - time.monotonic()
        if left <= 0:
            print(f"{model}: not started, the time is used up", file=sys.stderr)
            continue
        again = ["--twins", str(options.twins), "--output", str(options.output), "--seconds", str(left)]
        command = [sys.executable, "-m", "benchmarks.vram_grid", "--model", model, *again]
        status = subprocess.run([*command, *(["--dry"] if options.dry else [])], cwd=REPOSITORY).returncode
        print(f"{model}: exit status {status}", file=sys.stderr)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--twins", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--model")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    options.twins, options.output = options.twins.resolve(), options.output.resolve()
    return options


class ModelRun:
    """One model in one process: loaded once in 4 bits, an adapter of its own for each point."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.output: Path = options.output
        self.deadline = time.monotonic() + options.seconds
        self.model_name: str = options.model
        self.folder = options.twins / options.model.rpartition("/")[2]
        self.used_before = _device_used_bytes()
        sys.path[:0] = [str(REPOSITORY / "pipeline"), str(REPOSITORY / "plugins")]
        sys.modules["datasets"] = None  # type: ignore[assignment]  # the rows are lists; pipeline/datasets/ is no package
        import torch
        from app.llm.loading import Quantization, load_base_model
        from peft import get_peft_model

        self.torch = torch
        self.on_gpu = torch.cuda.is_available()
        self.shared = SharedBase(load_base_model, get_peft_model)
        self.base = self.shared.load(str(self.folder), torch.bfloat16, Quantization())
        self.base.config.use_cache = False
        self.loaded = self._peaks()
        self.prepared: dict[str, int | None] | None = None

    def run(self) -> None:
        """Measure every point that is still missing, within the time."""
        done = set(_keys(self.output))
        for point in points_of(self.model_name):
            if point.key in done:
                continue
            if time.monotonic() > self.deadline:
                print(f"{self.model_name}: stopped before {point}, the time is used up", file=sys.stderr)
                return
            if point.trainer == "full":
                peaks = self._prepare()
                self.prepared = self.prepared or peaks
            self._write(point, self._measure(point))

    def _write(self, point: Point, measured: dict[str, Any]) -> None:
        line = {**asdict(point), "key": point.key, "use": point.use, **measured, "versions": _versions()}
        with self.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
        print(json.dumps(line), file=sys.stderr)

    def _peaks(self) -> dict[str, int | None]:
        if not self.on_gpu:
            return {"peak_allocated": None, "peak_reserved": None}
        cuda = self.torch.cuda
        return {"peak_allocated": cuda.max_memory_allocated(), "peak_reserved": cuda.max_memory_reserved()}

    def _reset(self) -> None:
        gc.collect()
        if self.on_gpu:
            self.torch.cuda.empty_cache()
            self.torch.cuda.reset_peak_memory_stats()

    def _prepare(self) -> dict[str, int | None]:
        """The plain trainer's preparation and its peaks; only the first one casts, each switches recompute on."""
        from peft import prepare_model_for_kbit_training

        self._reset()
        prepare_model_for_kbit_training(self.base)
        return self._peaks()

    def _measure(self, point: Point) -> dict[str, Any]:
        self._reset()
        started = time.monotonic()
        self._cap(point.allowed_gib)
        oom = None
        try:
            self._train(point)
        except self.torch.OutOfMemoryError as error:
            oom = str(error)[:300]
        peaks, context = self._peaks(), self._context_bytes()
        self._cap(None)
        self.shared.release()
        prepared = {f"prepare_{name}": value for name, value in (self.prepared or {}).items()}
        loaded = {f"load_{name}": value for name, value in self.loaded.items()}
        seconds = round(time.monotonic() - started, 2)
        return {**peaks, **prepared, **loaded, "context": context, "oom": oom, "seconds": seconds}

    def _cap(self, allowed_gib: float | None) -> None:
        if self.on_gpu:
            total = self.torch.cuda.get_device_properties(0).total_memory
            share = 1.0 if allowed_gib is None else min(1.0, allowed_gib * 2**30 / total)
            self.torch.cuda.set_per_process_memory_fraction(share)

    def _context_bytes(self) -> int | None:
        """What the process holds on the card beside its allocator; None where the card shows no figures."""
        used = _device_used_bytes()
        if used is None or self.used_before is None:
            return None
        return int(used - self.used_before - self.torch.cuda.memory_reserved())

    def _adapted(self, point: Point) -> Any:  # noqa: ANN401 - a PeftModel, whose package is loaded late
        from peft import LoraConfig

        config = LoraConfig(
            r=point.r, lora_alpha=32, lora_dropout=0.05, target_modules=list(point.targets), task_type="CAUSAL_LM"
        )
        return self.shared.adapt(self.base, config)

    def _train(self, point: Point) -> None:
        rows = _rows(point, self.base.config.vocab_size)
        if point.trainer == "answer":
            self._answer_trainer(point, rows).train()
        else:
            self._plain_trainer(point, rows).train()

    def _answer_trainer(self, point: Point, rows: list[dict[str, list[int]]]) -> Any:  # noqa: ANN401
        """The reference pipeline's own trainer, arguments and collator."""
        from app.training import run
        from app.training.collator import AnswerCollator
        from app.training.memory import set_recompute
        from app.training.metrics import RecordingTrainer, StepRecorder
        from app.training.plan import StepPlan
        from app.training.settings import parse_settings

        flags = {
            "--model-name": self.folder,
            "--train-file": "unused",
            "--output-dir": self.output.parent / "vram-runs",
            "--batch-size": point.batch,
            "--gradient-accumulation-steps": ACCUMULATION_STEPS,
            "--max-steps-override": STEPS,
            "--logging-steps": 1,
        }
        settings = parse_settings([str(word) for pair in flags.items() for word in pair])
        model = self._adapted(point)
        set_recompute(model, point.recompute)
        plan = StepPlan(point.recompute, 1, "as the point says")
        return RecordingTrainer(
            StepRecorder(),
            model=model,
            args=_without_saving(run._arguments(settings, len(rows), plan, self.torch.bfloat16)),
            train_dataset=rows,
            data_collator=AnswerCollator(0),
        )

    def _plain_trainer(self, point: Point, rows: list[dict[str, list[int]]]) -> Any:  # noqa: ANN401
        """The Trainer as a plain script uses it: no autocast, logits everywhere, transformers' own collator."""
        from transformers import AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments

        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        arguments = TrainingArguments(
            output_dir=str(self.output.parent / "vram-runs"),
            per_device_train_batch_size=point.batch,
            gradient_accumulation_steps=ACCUMULATION_STEPS,
            max_steps=STEPS,
            save_strategy="no",
            report_to=[],
            use_cpu=not self.on_gpu,
        )
        texts = [{"input_ids": row["input_ids"], "attention_mask": [1] * len(row["input_ids"])} for row in rows]
        return Trainer(
            model=self._adapted(point),
            args=arguments,
            train_dataset=texts,
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        )


def _without_saving(arguments: Any) -> Any:  # noqa: ANN401 - TrainingArguments
    arguments.save_strategy = "no"
    return arguments


def _rows(point: Point, vocabulary: int) -> list[dict[str, list[int]]]:
    """Rows of exactly the point's length, their last tokens labelled."""
    ids = [[(7 * row + at) % (vocabulary - 1) + 1 for at in range(point.seq)] for row in range(_row_count(point))]
    return [{"input_ids": row, "labels": [IGNORED] * (len(row) - LABELS) + row[-LABELS:]} for row in ids]


def _row_count(point: Point) -> int:
    return point.batch * ACCUMULATION_STEPS * STEPS


def _keys(output: Path) -> Iterator[str]:
    if output.is_file():
        for line in output.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)["key"]


def _device_used_bytes() -> int | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)
    except Exception:  # no card, no library, or figures hidden: not measured
        return None


def _versions() -> dict[str, str]:
    from app.training.metrics import versions

    return versions()


if __name__ == "__main__":
    sys.exit(main())
