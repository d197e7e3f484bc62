"""Our side: the training script's own functions on one loaded model, point after point, in one process.

Run by `run.py` from the pipeline root, one process a row: `python -m benchmarks.training --row B …`. Three names of
`app.training.run` are replaced: the loader (loads once), `get_peft_model` (so that the adapter can be taken off again)
and the Trainer (its `train_runtime` is kept). A row's first point starts as the script's own process does.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.fast.startup import lean_imports
from steph.memory.shapes import ModelShape, shape_from_config

from benchmarks.flops import flops_per_row, lora_parameters, row_sizes
from benchmarks.points import CONFIRM_LABEL, SEARCH_LABEL, Point, RowName, Setting, largest_fitting, our_points, setting
from benchmarks.records import Note, TimeBox, TrainingRun, append

SIDE = "ours"
SEARCH_STEPS, CONFIRM_STEPS = 3, 10
LARGEST_TRIED_BATCH = 24
SPARE_SHARE = 0.03
SCRIPT = "python scripts/train_qwen_law_ft.py"


class OutOfTimeError(Exception):
    """The time box has no room for the next run."""


@dataclass(frozen=True)
class Options:
    """This process's command line."""

    row: RowName
    model: str
    train_file: Path
    results: Path
    work: Path
    deadline: float
    process: int
    tiny: bool


def parse_options(description: str | None) -> Options:
    """Read the command line that both sides' processes share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--row", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train-file", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--deadline", type=float, required=True, help="seconds since the epoch")
    parser.add_argument("--process", type=int, default=0, help="which of the row's processes this is")
    parser.add_argument("--tiny", action="store_true")
    return Options(**vars(parser.parse_args()))


def model_shape(model: str) -> ModelShape:
    """The shape that a model folder's config.json gives."""
    return shape_from_config(json.loads((Path(model) / "config.json").read_text(encoding="utf-8")))


class OurSide:
    """The training script's functions, with the base model kept between runs."""

    def __init__(self, options: Options, shared: Setting) -> None:
        with lean_imports():
            from app.training import run

            from benchmarks.shared_base import SharedBase
        self._options = options
        self._shared = shared
        script: Any = run
        self._script = script
        self._base = SharedBase(script.load_base_model, script.get_peft_model)
        self._runtimes: list[float] = []
        script.load_base_model = self._base.load
        script.get_peft_model = self._base.adapt
        script.RecordingTrainer = _timed(script.RecordingTrainer, self._runtimes)
        self._sizes: Any = None

    def measure(self, point: Point, repeat: int, steps: int | None, shared: Setting, label: str) -> TrainingRun:
        """Train once; an error becomes the run's outcome and the base model is whole again afterwards."""
        from benchmarks.shared_base import allocator_retries, allowed_bytes

        output_dir = self._options.work / self._options.row / label.replace(" ", "-").replace(",", "").replace(":", "")
        argv = [*shared.flags(self._options.model, self._options.train_file, output_dir), *point.flags]
        argv += ["--max-steps-override", str(steps)] if steps else []
        retries_before = allocator_retries()
        outcome, seconds = self._train(argv)
        retries = allocator_retries()
        found = TrainingRun(
            row=self._options.row,
            side=SIDE,
            label=label,
            repeat=repeat,
            command=" ".join([SCRIPT, *argv]),
            batch_size=shared.batch_size,
            gradient_accumulation_steps=shared.gradient_accumulation_steps,
            max_seq_length=shared.max_seq_length,
            recompute=point.recompute == "on",
            fused_micro_batches=1,
            outcome=outcome,
            allocator_retries=None if retries is None or retries_before is None else retries - retries_before,
            allowed_bytes=allowed_bytes(),
        )
        if outcome == "ok":
            found = self._with_metrics(found, output_dir, seconds)
        self._base.release()
        return found

    def _train(self, argv: list[str]) -> tuple[str, float]:
        import torch
        from app.training.rows import read_rows
        from app.training.settings import parse_settings

        settings = parse_settings(argv)
        started = time.perf_counter()
        try:
            self._script.train(settings, read_rows(settings.train_file, settings.train_mode))
        except torch.OutOfMemoryError as error:
            return f"oom: {str(error)[:300]}", time.perf_counter() - started
        except Exception as error:  # a point that fails must not take the other points with it
            traceback.print_exc()
            return f"error: {type(error).__name__}: {str(error)[:300]}", time.perf_counter() - started
        return "ok", time.perf_counter() - started

    def _with_metrics(self, found: TrainingRun, output_dir: Path, seconds: float) -> TrainingRun:
        metrics = json.loads((output_dir / "train_metrics.json").read_text(encoding="utf-8"))
        plan = metrics["step_plan"]
        per_row = self._flops_per_row(found.max_seq_length, recompute=plan["gradient_checkpointing"])
        return replace(
            found,
            recompute=plan["gradient_checkpointing"],
            fused_micro_batches=plan["fused_micro_batches"],
            train_seconds=self._runtimes[-1],
            prepare_seconds=seconds - self._runtimes[-1],
            step_seconds=metrics["step_seconds"],
            step_tokens=metrics["step_tokens"],
            losses=metrics["losses"],
            peak_allocated_bytes=metrics["peak_allocated_bytes"],
            peak_reserved_bytes=metrics["peak_reserved_bytes"],
            model_flops_per_step=per_row * found.effective_batch,
            remark=f"{plan['reason']}; CUDA graph {metrics['cuda_graph']}",
        )

    def _flops_per_row(self, max_seq_length: int, *, recompute: bool) -> float:
        from app.llm.chat_tokens import load_tokenizer
        from app.training.rows import IGNORED, encode_rows, read_rows

        if self._sizes is None:
            rows = read_rows(self._options.train_file, "auto")
            tokenizer = load_tokenizer(self._options.model)
            encoded = encode_rows(tokenizer, rows, max_seq_length=max_seq_length, loss_on_output_only=True)
            self._sizes = row_sizes(encoded.rows, IGNORED)
        shape = model_shape(self._options.model)
        return flops_per_row(shape, lora_parameters(shape, 16, self._shared.targets), self._sizes, recompute=recompute)


def _timed(trainer_class: Any, runtimes: list[float]) -> Any:  # noqa: ANN401 - transformers has no types
    class TimedTrainer(trainer_class):  # type: ignore[misc]
        def train(self, *arguments: object, **options: object) -> object:
            output = super().train(*arguments, **options)
            runtimes.append(output.metrics["train_runtime"])
            return output

    return TimedTrainer


def guess_largest_batch(small: TrainingRun, large: TrainingRun) -> int:
    """From two measured peaks, by the straight line through them, with a little kept free."""
    if small.peak_allocated_bytes is None or large.peak_allocated_bytes is None or large.allowed_bytes is None:
        return large.batch_size
    slope = (large.peak_allocated_bytes - small.peak_allocated_bytes) / (large.batch_size - small.batch_size)
    room = large.allowed_bytes * (1 - SPARE_SHARE) - large.peak_allocated_bytes
    return large.batch_size + int(room // slope) if slope > 0 else large.batch_size


class Row:
    """One row's points in order, each written down as it ends, for as long as the time box lasts."""

    def __init__(self, options: Options, measure: Callable[..., TrainingRun], shared: Setting) -> None:
        self._options = options
        self._measure = measure
        self._shared = shared
        self._box = TimeBox(options.deadline)
        self._seconds: list[float] = []

    def point(self, point: Point, steps: Sequence[int | None]) -> None:
        """Every repeat of one point, up to the first that fails."""
        for repeat, count in enumerate(steps):
            if self.once(point, repeat, count, self._shared, point.label).outcome != "ok":
                return

    def largest_batch(self, point: Point, largest: int) -> None:
        """Search the largest batch of full rows, a few steps each, then show it for longer."""
        tried: dict[int, TrainingRun] = {}

        def fits(batch: int) -> bool:
            if batch not in tried:
                tried[batch] = self.once(point, 0, SEARCH_STEPS, self._batch(batch), SEARCH_LABEL)
            return tried[batch].outcome == "ok"

        small, large = self._shared.batch_size, self._shared.batch_size * 2
        guess = small
        if fits(small) and fits(large):
            guess = guess_largest_batch(tried[small], tried[large])
        found = largest_fitting(fits, guess, largest)
        while found:
            if self.once(point, 0, CONFIRM_STEPS, self._batch(found), CONFIRM_LABEL).outcome == "ok":
                return
            found -= 1

    def once(self, point: Point, repeat: int, steps: int | None, shared: Setting, label: str) -> TrainingRun:
        """One run, written down; raises OutOfTimeError where there is no time for another like the last ones."""
        if not self._box.admits(max(self._seconds[-3:], default=0.0)):
            raise OutOfTimeError(f"{SIDE}: stopped before {label}, repeat {repeat}: no time left")
        started = time.perf_counter()
        found = self._measure(point, repeat, steps, shared, label)
        self._seconds.append(time.perf_counter() - started)
        append(self._options.results, found)
        return found

    def _batch(self, batch_size: int) -> Setting:
        return replace(self._shared, batch_size=batch_size, gradient_accumulation_steps=1)


def measure_row(options: Options, row: Row, shared: Setting) -> None:
    """A row's points in the order of their worth."""
    first, *others = our_points(options.row, options.process, tiny=options.tiny)
    row.point(first, first.steps)
    if shared.full:
        row.largest_batch(first, 5 if options.tiny else LARGEST_TRIED_BATCH)
    for point in others:
        row.point(point, point.steps)


def main() -> None:
    """Measure one row's points for as long as there is time."""
    options = parse_options(__doc__)
    shared = setting(options.row, tiny=options.tiny)
    try:
        measure_row(options, Row(options, OurSide(options, shared).measure, shared), shared)
    except OutOfTimeError as error:
        append(options.results, Note(options.row, str(error)))


if __name__ == "__main__":
    main()
