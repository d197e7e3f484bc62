"""Replaying a micro-batch's forward and backward as one CUDA graph, where launching kernels takes longer than they do.

A fast card waits for Python: Qwen1.5-1.8B launches some 4,500 kernels a step, and an H200 is done with them in a third
of the time. A graph launches them all at once, but needs the same shapes at the same addresses each time: each batch is
written into the corner of the largest one. Whether that pays is measured on the first micro-batches of the run itself,
which count as any others.
"""

import functools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

from app.fast.plan import LargestRow
from app.training.collator import AnswerCollator
from app.training.rows import IGNORED

Batch = dict[str, torch.Tensor]
Items: TypeAlias = torch.Tensor | int | None
# the first one warms up, the second tells what a micro-batch takes without a graph
EAGER_BATCHES = 2
# tokens of a whole run's rows from which on cuDNN's attention, some 15 ms faster in 2,000 tokens of Qwen3-8B, pays for
# its plan: half a second for each shape, and a graph has but one (H200, torch 2.11)
CUDNN_TOKENS = 150_000
# of an eager micro-batch's seconds, times the share of the largest batch that the replayed one fills: it takes as long
# for any batch, and without a graph a smaller one takes less
WORTH_SHARE = 0.95
LEAST_BATCHES = 10


class Replay(Protocol):
    """A captured micro-batch: run it again on what its batch holds now."""

    def replay(self) -> None:
        """Launch all of it."""


Step = Callable[[Batch, Items], torch.Tensor]
Capture = Callable[[Callable[[], torch.Tensor]], tuple[Replay, torch.Tensor]]


class FixedBatch:
    """The largest batch's tensors; every batch fits into their left edge, and the rest is padding without labels."""

    def __init__(self, rows: int, largest: LargestRow, collator: AnswerCollator, device: torch.device) -> None:
        shape = (rows, largest.tokens)
        self._fillers = {"input_ids": collator.pad_token_id, "attention_mask": 0, "labels": IGNORED}
        self.tensors = {name: torch.full(shape, filler, device=device) for name, filler in self._fillers.items()}
        # the last position predicts nothing, whatever the batch
        self._nothing = rows * largest.tokens - 1
        self.tensors["answer_positions"] = torch.full((rows * largest.labels,), self._nothing, device=device)
        self.items = torch.ones((), dtype=torch.long, device=device)

    def write(self, batch: Batch, items: Items) -> None:
        """Put a batch in, and the count of labels of its step, or its own where that is not known."""
        rows, width = batch["input_ids"].shape
        for name, filler in self._fillers.items():
            self.tensors[name].fill_(filler)[:rows, :width] = batch[name]
        positions = batch["answer_positions"]
        own = positions // width * self.tensors["input_ids"].shape[1] + positions % width
        self.tensors["answer_positions"].fill_(self._nothing)[: len(own)] = own
        self.items.copy_(torch.as_tensor(len(own) if items is None else items))


@dataclass(frozen=True)
class CapturedStep:
    """A graph with the tensors that it reads, and those that it adds gradients into."""

    graph: Replay
    batch: FixedBatch
    loss: torch.Tensor
    gradients: Sequence[torch.Tensor]

    def run(self, batch: Batch, items: Items, trained: Sequence[torch.nn.Parameter]) -> torch.Tensor:
        """This micro-batch: its loss, its gradients added to the parameters'."""
        self.batch.write(batch, items)
        if trained[0].grad is None:  # an optimizer step begins
            torch._foreach_zero_(list(self.gradients))
            set_gradients(trained, self.gradients)
        self.graph.replay()
        return self.loss.clone()


def set_gradients(trained: Sequence[torch.nn.Parameter], gradients: Sequence[torch.Tensor | None]) -> None:
    """Let the parameters' gradients be these."""
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.grad = gradient


class GraphedStep:
    """Runs micro-batches one by one, then captures one and replays it from there on if that is faster.

    A step runs forward and backward of a batch and returns the loss; it adds to the gradients of `trained`. `told` is
    what came of it. With `cudnn` attention is cuDNN's from the capture on.
    """

    def __init__(
        self,
        trained: Sequence[torch.nn.Parameter],
        fixed: FixedBatch,
        *,
        forced: bool = False,
        cudnn: bool = False,
        capture: Capture | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._trained = trained
        self._fixed: FixedBatch | None = fixed
        self._forced = forced
        self._cudnn = cudnn
        self._capture = capture or cuda_capture
        self._clock = clock or _synchronised_seconds
        self._eager_seconds: list[float] = []
        self._captured: CapturedStep | None = None
        self.told = f"not tried: {EAGER_BATCHES} micro-batches come first"

    def __call__(self, step: Step, batch: Batch, items: Items) -> torch.Tensor:
        """One micro-batch: its loss, its gradients in the parameters."""
        if self._captured:
            return self._captured.run(batch, items, self._trained)
        if self._fixed is None:
            return step(batch, items)
        if len(self._eager_seconds) < EAGER_BATCHES:
            loss, seconds = self._timed(lambda: step(batch, items))
            self._eager_seconds.append(seconds)
            return loss
        fixed, self._fixed = self._fixed, None
        return self._first_replay(step, batch, items, fixed)

    def _first_replay(self, step: Step, batch: Batch, items: Items, fixed: FixedBatch) -> torch.Tensor:
        """Capture this micro-batch and run it; where that fails, run it without, and never try again."""
        captured = None
        try:
            captured = self._capture_step(step, batch, items, fixed)
        except RuntimeError as error:  # out of memory too: the run was fine without a graph
            self._tell(f"not used: {type(error).__name__}: {str(error).splitlines()[0]}")
        if captured is None:  # out of the handler: its error holds all that the capture had allocated
            _draw_without_a_graph()
            _empty_cache()
            self._leave_cudnn()
            return step(batch, items)
        loss, seconds = self._timed(functools.partial(captured.run, batch, items, self._trained))
        eager_seconds = self._eager_seconds[-1]
        times = f"{seconds:.3f} s a micro-batch instead of {eager_seconds:.3f} s"
        filled = batch["input_ids"].numel() / fixed.tensors["input_ids"].numel()
        if self._forced or seconds <= WORTH_SHARE * filled * eager_seconds:
            self._captured = captured
            self._tell(f"used: {times}")
        else:
            self._tell(f"not used: {times}")
            self._leave_cudnn()
            del captured
            _empty_cache()  # nothing else can use the memory that was the graph's
        return loss

    def _capture_step(self, step: Step, batch: Batch, items: Items, fixed: FixedBatch) -> CapturedStep:
        """Gradients are none of the graph's memory: they outlive it, and what they hold so far stays."""
        had = [parameter.grad for parameter in self._trained]
        gradients = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in self._trained
        ]
        _empty_cache()
        fixed.write(batch, items)
        try:
            if self._cudnn:  # it makes its plan for this shape now: inside a capture it can't
                use_cudnn_attention(enabled=True)
                set_gradients(self._trained, [None] * len(gradients))
                step(dict(fixed.tensors), fixed.items)
            set_gradients(self._trained, gradients)
            graph, loss = self._capture(lambda: self._added(step, fixed, gradients))
        except RuntimeError:
            set_gradients(self._trained, had)
            raise
        set_gradients(self._trained, gradients)
        return CapturedStep(graph, fixed, loss, gradients)

    def _added(self, step: Step, fixed: FixedBatch, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """A micro-batch whose gradients are added to these all at once, not one by one."""
        set_gradients(self._trained, [None] * len(gradients))
        loss = step(dict(fixed.tensors), fixed.items)
        pairs = [
            (into, each.grad) for into, each in zip(gradients, self._trained, strict=True) if each.grad is not None
        ]
        torch._foreach_add_([into for into, _ in pairs], [gradient for _, gradient in pairs])
        return loss

    def _leave_cudnn(self) -> None:
        if self._cudnn:
            use_cudnn_attention(enabled=False)

    def _timed(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
        started = self._clock()
        loss = run()
        return loss, self._clock() - started

    def _tell(self, text: str) -> None:
        self.told = text
        print(f"CUDA graph: {text}", file=sys.stderr)


def use_cudnn_attention(*, enabled: bool) -> None:
    """Let torch's attention be cuDNN's, or flash attention; with both allowed it takes the latter."""
    torch.backends.cuda.enable_cudnn_sdp(enabled)
    torch.backends.cuda.enable_flash_sdp(not enabled)


def is_cudnn_worth_it(micro_batches: float, tokens: int) -> bool:
    """Whether cuDNN's attention is the faster one, from Hopper on, and the run long enough for its plan."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 9:
        return False
    return micro_batches * tokens >= CUDNN_TOKENS


def why_not(*, whole_logits: bool, random_recompute: bool, ranks: int, half: bool, micro_batches: float) -> str | None:
    """Why a run's micro-batches can't be graphs, or are too few to try; None where they can."""
    reasons = {
        "no GPU": not torch.cuda.is_available(),
        "several GPUs": ranks > 1,
        "the positions of the answers are looked up in each batch": whole_logits,
        "recompute with dropout draws its random numbers outside a graph": random_recompute,
        "float16's loss scale changes between steps": half,
        f"less than {LEAST_BATCHES} micro-batches": micro_batches < LEAST_BATCHES,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def cuda_capture(run: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
    """Record what `run` launches, without running it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = run()
    return graph, loss


def _draw_without_a_graph() -> None:
    """Let random numbers be drawn on: torch takes a generator for capturing still where CUDA broke a capture off."""
    if torch.cuda.is_available():
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())


def _synchronised_seconds() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def _empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
