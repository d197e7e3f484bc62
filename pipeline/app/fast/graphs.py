"""Replaying a step's forward and backward as one CUDA graph, where launching kernels takes longer than running them.

A small model on a fast card waits for Python: Qwen1.5-1.8B launches some 4,500 kernels a step, and an H200 is done with
them in a third of the time. A graph launches them all at once, but needs the same shapes at the same addresses in every
step: each batch is written into the corner of the largest one. Whether that pays is measured on the first steps of the
run itself, which count as any others.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from app.fast.plan import LargestRow
from app.training.collator import AnswerCollator, additive, round_up, visible_positions
from app.training.rows import IGNORED

Batch = dict[str, Any]
# the first step warms up, the second tells what a step takes without a graph
EAGER_STEPS = 2
WORTH_SHARE = 0.8
LEAST_STEPS = 10


class Replay(Protocol):
    """A captured step: run it again on what its batch holds now."""

    def replay(self) -> None:
        """Launch the whole step."""


Step = Callable[[Batch], torch.Tensor]
Capture = Callable[[Callable[[], torch.Tensor]], tuple[Replay, torch.Tensor]]


@dataclass(frozen=True)
class BatchShape:
    """The most that any batch of the run has: rows, tokens of a row, logit positions of a row."""

    rows: int
    width: int
    kept: int

    @classmethod
    def of(cls, rows: int, largest: LargestRow) -> "BatchShape":
        """What the collator makes of that many of the largest row."""
        width = round_up(largest.tokens)
        return cls(rows, width, min(width, largest.labels))


class FixedBatch:
    """The largest batch's tensors; every batch fits into their right edge, and the rest is padding without labels."""

    def __init__(self, shape: BatchShape, collator: AnswerCollator, device: torch.device) -> None:
        rows, width = shape.rows, shape.width
        self._pad_token_id = collator.pad_token_id
        nothing = visible_positions(torch.zeros(1, width, dtype=torch.bool))
        self._nothing_seen = additive(nothing, collator.mask_dtype).to(device)
        self.tensors: Batch = {
            "input_ids": torch.full((rows, width), self._pad_token_id, device=device),
            "attention_mask": self._nothing_seen.expand(rows, -1, -1, -1).contiguous(),
            "position_ids": torch.zeros((rows, width), dtype=torch.long, device=device),
            "labels": torch.full((rows, shape.kept), IGNORED, device=device),
            "logits_to_keep": shape.kept,
        }

    def write(self, batch: Batch) -> None:
        """Put a batch in."""
        rows, width = batch["input_ids"].shape
        kept = batch["labels"].shape[1]
        for name, filler in (("input_ids", self._pad_token_id), ("position_ids", 0)):
            self.tensors[name].fill_(filler)[:rows, -width:] = batch[name]
        self.tensors["labels"].fill_(IGNORED)[:rows, -kept:] = batch["labels"]
        self.tensors["attention_mask"].copy_(self._nothing_seen)[:rows, :, -width:, -width:] = batch["attention_mask"]


@dataclass(frozen=True)
class CapturedStep:
    """A graph with the tensors that it reads and writes."""

    graph: Replay
    batch: FixedBatch
    loss: torch.Tensor
    gradients: Sequence[torch.Tensor | None]

    def run(self, batch: Batch, trained: Sequence[torch.nn.Parameter]) -> torch.Tensor:
        """The step on this batch: its loss, its gradients in the parameters."""
        self.batch.write(batch)
        self.graph.replay()
        for parameter, gradient in zip(trained, self.gradients, strict=True):
            parameter.grad = gradient
        return self.loss.clone()


class GraphedStep:
    """Runs steps one by one, then captures one and replays it from there on if that is faster.

    A step runs forward and backward of a batch and returns the loss; gradients are the ones of `trained`. `told` is
    what came of it.
    """

    def __init__(
        self,
        trained: Sequence[torch.nn.Parameter],
        fixed: FixedBatch,
        *,
        forced: bool = False,
        capture: Capture | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._trained = trained
        self._fixed: FixedBatch | None = fixed
        self._forced = forced
        self._capture = capture or cuda_capture
        self._clock = clock or _synchronised_seconds
        self._eager_seconds: list[float] = []
        self._captured: CapturedStep | None = None
        self.told = f"not tried: {EAGER_STEPS} steps come first"

    def __call__(self, step: Step, batch: Batch) -> torch.Tensor:
        """One micro-batch: its loss, its gradients in the parameters."""
        if self._captured:
            return self._captured.run(batch, self._trained)
        if self._fixed is None:
            return step(batch)
        if len(self._eager_seconds) < EAGER_STEPS:
            loss, seconds = self._timed(lambda: step(batch))
            self._eager_seconds.append(seconds)
            return loss
        fixed, self._fixed = self._fixed, None
        return self._first_replay(step, batch, fixed)

    def _first_replay(self, step: Step, batch: Batch, fixed: FixedBatch) -> torch.Tensor:
        """Capture this step and run it; where that fails, run it without, and never try again."""
        try:
            captured = self._capture_step(step, batch, fixed)
        except RuntimeError as error:  # out of memory too: the run was fine without a graph
            self._tell(f"not used: {type(error).__name__}: {str(error).splitlines()[0]}")
            self._forget_gradients()
            _empty_cache()
            return step(batch)
        loss, seconds = self._timed(lambda: captured.run(batch, self._trained))
        eager_seconds = min(self._eager_seconds[1:])
        times = f"{seconds:.3f} s a step instead of {eager_seconds:.3f} s"
        if self._forced or seconds <= WORTH_SHARE * eager_seconds:
            self._captured = captured
            self._tell(f"used: {times}")
        else:
            self._tell(f"not used: {times}")
            self._copy_gradients()
        return loss

    def _capture_step(self, step: Step, batch: Batch, fixed: FixedBatch) -> CapturedStep:
        _empty_cache()
        fixed.write(batch)
        graph, loss = self._capture(lambda: step(dict(fixed.tensors)))
        return CapturedStep(graph, fixed, loss, [parameter.grad for parameter in self._trained])

    def _copy_gradients(self) -> None:
        """This step's gradients outlive the graph's memory."""
        for parameter in self._trained:
            parameter.grad = None if parameter.grad is None else parameter.grad.clone()

    def _forget_gradients(self) -> None:
        for parameter in self._trained:
            parameter.grad = None

    def _timed(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
        started = self._clock()
        loss = run()
        return loss, self._clock() - started

    def _tell(self, text: str) -> None:
        self.told = text
        print(f"CUDA graph: {text}", file=sys.stderr)


def why_not(*, recompute: bool, micro_batches: int, ranks: int, half: bool, steps: float) -> str | None:
    """Why a run's steps can't be one graph each, or are too few to try; None where they can."""
    reasons = {
        "no GPU": not torch.cuda.is_available(),
        "several GPUs": ranks > 1,
        "recompute draws its random numbers outside a graph": recompute,
        "a step is several micro-batches": micro_batches > 1,
        "float16's loss scale changes between steps": half,
        f"less than {LEAST_STEPS} steps": steps < LEAST_STEPS,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def cuda_capture(run: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
    """Record what `run` launches, without running it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = run()
    return graph, loss


def _synchronised_seconds() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def _empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
