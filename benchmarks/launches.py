"""What stands between a short training step and the card, and two ways to launch less: a CUDA graph, `torch.compile`.

Run by `run.py`: `python -m benchmarks.launches --row F …`. One step of the row's widest batch at one fixed width: how
many kernels it launches and how long the card works on them (torch.profiler), then the same step replayed as one CUDA
graph, then compiled. Both need every batch padded to a fixed width, which real rows are not; each is given the
best case, a single width. Clipping and the optimizer stay eager in all three. Findings are notes of the table.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from app.fast.startup import lean_imports

from benchmarks.points import setting
from benchmarks.records import GIB, Note, append
from benchmarks.training import Options, parse_options

WARM_STEPS, TIMED_STEPS, PROFILED_STEPS = 3, 20, 2
PROMISED_STEPS = 50


@dataclass(frozen=True)
class Timing:
    """One way to run the step: what it costs before the first, each step's seconds, the loss, the allocator's peak."""

    preparation_seconds: float
    step_seconds: float
    loss: float
    peak_allocated_bytes: int

    def words(self, name: str) -> str:
        """A line of the notes."""
        whole = self.preparation_seconds + PROMISED_STEPS * self.step_seconds
        return (
            f"{name}: {self.step_seconds:.4f} s a step after {self.preparation_seconds:.1f} s of preparation, so "
            f"{PROMISED_STEPS} steps in {whole:.1f} s; first loss {self.loss:.4f}; "
            f"{self.peak_allocated_bytes / GIB:.2f} GiB allocated"
        )


class Step:
    """Forward and backward of one fixed batch, and the optimizer's part."""

    def __init__(self, options: Options) -> None:
        with lean_imports():
            from app.fast.loss import keep_to_answers
            from app.fast.recompute import set_recompute
            from app.training import run
            from app.training.settings import parse_settings
        shared = setting("B", tiny=options.tiny)
        script: Any = run
        settings = parse_settings(shared.flags(options.model, options.train_file, options.work))
        self.on_gpu = torch.cuda.is_available()
        self.model = script._lora_model(settings, torch.bfloat16)
        keep_to_answers(self.model.get_base_model())
        set_recompute(self.model, enabled=False)
        self.model.train()
        self.batch = self._batch(settings, shared.effective_batch)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.trained = trained
        self.optimizer = torch.optim.AdamW(trained, lr=2e-4, fused=True)
        self.forward: Callable[..., Any] = self.model
        self.captured_loss = torch.zeros(())
        self._untouched = [parameter.detach().clone() for parameter in trained]

    def _batch(self, settings: Any, rows: int) -> dict[str, Any]:  # noqa: ANN401 - the pipeline's settings
        from app.llm.chat_tokens import load_tokenizer
        from app.training.collator import AnswerCollator
        from app.training.rows import encode_rows, read_rows

        found = encode_rows(
            load_tokenizer(settings.model_name),
            read_rows(settings.train_file, "auto"),
            max_seq_length=settings.max_seq_length,
            loss_on_output_only=True,
        ).rows
        widest = sorted(found, key=lambda row: -len(row["input_ids"]))[:rows]
        device = next(self.model.parameters()).device
        batch = AnswerCollator(0)(widest)
        return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}

    def work(self) -> torch.Tensor:
        """Forward and backward; autocast's cache would tie a graph to copies of the weights of its capture."""
        device = self.batch["input_ids"].device.type
        with torch.autocast(device, torch.bfloat16, cache_enabled=False):
            loss: torch.Tensor = self.forward(**self.batch).loss
        loss.backward()
        return loss

    def update(self) -> None:
        """What follows in every step; gradients stay where they are, as a graph needs them."""
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)

    def first_loss(self) -> float:
        """The loss of untouched weights, which no dropout reaches: LoRA's B is zero."""
        self.reset()
        loss = float(self.work())
        self.optimizer.zero_grad(set_to_none=False)
        return loss

    def reset(self) -> None:
        """The adapter's weights as they were at the start."""
        with torch.no_grad():
            for parameter, untouched in zip(self.trained, self._untouched, strict=True):
                parameter.copy_(untouched)


def timed(step: Step, work: Callable[[], object], loss: float, started: float) -> Timing:
    """Warm up, then time whole steps."""
    for _ in range(WARM_STEPS):
        work()
        step.update()
    _wait()
    preparation = time.perf_counter() - started
    if step.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    for _ in range(TIMED_STEPS):
        work()
        step.update()
    _wait()
    seconds = (time.perf_counter() - begun) / TIMED_STEPS
    return Timing(preparation, seconds, loss, torch.cuda.max_memory_allocated() if step.on_gpu else 0)


def profiled(step: Step) -> str:
    """Kernels a step and the card's seconds in them."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(PROFILED_STEPS):
            step.work()
            step.update()
        _wait()
    kernels = [event for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(event.device_time for event in kernels) / 1e6 / PROFILED_STEPS
    return f"{len(kernels) / PROFILED_STEPS:.0f} kernels a step, the card works {busy:.4f} s on them"


def graphed(step: Step) -> Callable[[], object]:
    """Forward and backward captured once; inputs would be copied into the captured batch's tensors."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_STEPS):
            step.work()
        step.optimizer.zero_grad(set_to_none=False)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.captured_loss = step.work()
    step.optimizer.zero_grad(set_to_none=False)
    return graph.replay


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """Measure the three ways, each written down as it ends; one that fails says why and the next is tried."""
    options = parse_options(__doc__)
    step = Step(options)

    def note(text: str) -> None:
        append(options.results, Note(options.row, text))

    rows, width = step.batch["input_ids"].shape
    started = time.perf_counter()
    first = step.first_loss()
    note(timed(step, step.work, first, started).words(f"{rows} rows of {width} tokens, eager"))
    if step.on_gpu:
        note(profiled(step))
    for name, prepare in (("one CUDA graph", _as_graph), ("torch.compile", _compiled)):
        if name == "one CUDA graph" and not step.on_gpu:
            continue
        started = time.perf_counter()
        try:
            note(prepare(step, started).words(name))
        except Exception as error:  # what can't be captured or compiled is a finding, not the end
            note(f"{name}: failed: {type(error).__name__}: {str(error)[:300]}")


def _as_graph(step: Step, started: float) -> Timing:
    step.reset()
    replay = graphed(step)
    replay()
    return timed(step, replay, float(step.captured_loss), started)


def _compiled(step: Step, started: float) -> Timing:
    step.forward = torch.compile(step.model, dynamic=False)
    return timed(step, step.work, step.first_loss(), started)


if __name__ == "__main__":
    main()
