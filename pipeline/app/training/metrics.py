"""What a training run cost: losses, step seconds, tokens, memory; written as `train_metrics.json`."""

import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from app.core.errors import PipelineError
from app.fast.clock import StepClock
from app.fast.ranks import gathered
from app.fast.sampler import LengthGroupedTrainer
from app.training.rows import IGNORED

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "tokenizers", "safetensors")


class StepRecorder(TrainerCallback):  # type: ignore[misc]
    """Collects each optimizer step's loss, tokens and time as device values, and reads them once at the end."""

    def __init__(self) -> None:
        self._clock = StepClock()
        self._losses: list[torch.Tensor] = []
        self._tokens: list[torch.Tensor] = []
        self._open: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._epoch = 0.0

    def add_micro_batch(self, loss: torch.Tensor, tokens: torch.Tensor) -> None:
        """One forward and backward: its share of the step's loss, and its tokens without padding."""
        self._open.append((loss, tokens))

    def on_train_begin(self, *_: object, **__: object) -> None:
        """Start the clock."""
        self._clock.mark()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Close the step; the last one is always logged, so that a short run has losses on disk."""
        self._clock.mark()
        self._losses.append(torch.stack([loss for loss, _ in self._open]).sum())
        self._tokens.append(torch.stack([tokens for _, tokens in self._open]).sum())
        self._open.clear()
        self._epoch = state.epoch
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        """Stop on a loss that is not finite, before anything is saved."""
        loss = (logs or {}).get("loss")
        if loss is not None and not torch.isfinite(torch.tensor(float(loss))):
            raise PipelineError(
                f"the training loss is {float(loss)} at step {state.global_step}, nothing was saved for it; "
                "lower --learning-rate, or train in bfloat16 instead of float16"
            )

    def metrics(self, accelerator: Accelerator) -> dict[str, Any]:
        """Losses, seconds and tokens of each step over all ranks, and tokens a second; padding is not counted.

        The first step warms up and is not in the rate, which is null where there is no other.
        """
        seconds = self._clock.seconds()
        tokens = [int(count) for count in accelerator.reduce(torch.stack(self._tokens), "sum")]
        # the Trainer scales each rank's loss so that the ranks' mean is the step's loss
        losses = [float(loss) for loss in accelerator.reduce(torch.stack(self._losses), "mean")]
        later_seconds = sum(seconds[1:])
        return {
            "losses": losses,
            "step_seconds": seconds,
            "step_tokens": tokens,
            "tokens_per_second": sum(tokens[1:]) / later_seconds if later_seconds else None,
            "steps": len(tokens),
            "epochs": self._epoch,
        }


class RecordingTrainer(LengthGroupedTrainer):
    """The plain Trainer, telling a `StepRecorder` what each micro-batch was."""

    def __init__(self, recorder: StepRecorder, **options: object) -> None:
        super().__init__(callbacks=[recorder], **options)
        self._recorder = recorder
        self.run_micro_batch = super().training_step

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """One micro-batch, recorded."""
        loss = self.run_micro_batch(model, inputs, num_items_in_batch)
        is_row = (inputs["labels"] != IGNORED).any(-1)  # what fills up a batch has no label
        tokens = (inputs["attention_mask"].sum(-1) * is_row).sum()
        self._recorder.add_micro_batch(loss, tokens.to(loss.device))
        return loss


def reset_peak_memory() -> None:
    """Forget the peak of loading and measuring, so that the figures are training's."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def memory_metrics() -> dict[str, Any]:
    """Peak bytes of the CUDA caching allocator: the largest rank's, and each rank's in order; null without a GPU."""
    on_gpu = torch.cuda.is_available()
    ranks = gathered(
        {
            "peak_allocated_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
            "peak_reserved_bytes": torch.cuda.max_memory_reserved() if on_gpu else None,
        }
    )
    return {**max(ranks, key=lambda peaks: peaks["peak_reserved_bytes"] or 0), "ranks": ranks}


def versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Python's and each installed package's version."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
