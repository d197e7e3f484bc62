"""How a run's steps are made fast and small, behind one function."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import PeftModel

from app.core.errors import PipelineError
from app.fast.card_kernels import begin_compiling
from app.fast.graphs import Batch, FixedBatch, GraphedStep, Items, Step, is_cudnn_worth_it, why_not
from app.fast.lora import LoraCopies, shorten_lora
from app.fast.loss import CHUNK_POSITIONS, chunk_positions, keep_to_answers
from app.fast.memory import largest_row, plan_steps, set_way
from app.fast.model import attend_without_masks, fuse_norms, rotate_in_one, walk_once
from app.fast.plan import StepPlan
from app.fast.ranks import note, rank_count
from app.fast.recompute import draws_random_numbers
from app.training.collator import AnswerCollator
from app.training.metrics import RecordingTrainer
from app.training.settings import TrainingSettings

_HOST = {"off": "", "embeddings": "; in host memory: embeddings", "all": "; in host memory: embeddings, checkpoints"}


@dataclass(frozen=True)
class FastSteps:
    """The way that was chosen: rows at once and how often, and what runs a micro-batch."""

    plan: StepPlan
    batch_size: int
    accumulation_steps: int
    loss_chunk_positions: int | None
    copies: LoraCopies
    graphed: GraphedStep | None
    why_not_graphed: str

    def attach(self, trainer: RecordingTrainer) -> None:
        """Let a Trainer's micro-batches run this way."""
        walk_once(trainer)
        step = functools.partial(_with_copies, self.copies, trainer.run_micro_batch)
        trainer.run_micro_batch = functools.partial(_replayed, self.graphed, trainer, step) if self.graphed else step

    def told(self) -> dict[str, Any]:
        """What was decided, for the run's metrics."""
        return {
            "step_plan": asdict(self.plan),
            "loss_chunk_positions": self.loss_chunk_positions,
            "cuda_graph": self.graphed.told if self.graphed else f"not tried: {self.why_not_graphed}",
        }


def get_ready() -> None:
    """Begin what `fast_steps` will wait for: kernels are compiled while the model is loaded."""
    if torch.cuda.is_available():
        begin_compiling()


def fast_steps(
    settings: TrainingSettings,
    model: PeftModel,
    rows: Sequence[dict[str, list[int]]],
    collator: AnswerCollator,
    dtype: torch.dtype,
    steps: float,
) -> FastSteps:
    """Change the model and choose how its steps run: as the flags say, or what the card has room for.

    `dtype` is what the model computes in; `steps` are the optimizer steps to come.
    """
    base, largest = model.get_base_model(), largest_row(rows)
    is_chunked = keep_to_answers(base)
    if not is_chunked:
        note("The logits of long answers are kept whole: this model's forward does more than its head")
    fuse_norms(base)
    attend_without_masks(base, largest.tokens)
    rotate_in_one(base)
    copies = LoraCopies(shorten_lora(model), dtype)
    labels_at_once = CHUNK_POSITIONS if is_chunked else math.inf
    plan = plan_steps(settings, model, rows, None if dtype == torch.float32 else dtype, labels_at_once)
    batch_size = settings.batch_size * plan.fused_micro_batches
    accumulation = settings.gradient_accumulation_steps // plan.fused_micro_batches
    set_way(model, plan.way, batch_size * largest.tokens)
    recompute = "on" if plan.gradient_checkpointing else "off"
    note(
        f"Gradient checkpointing: {recompute}; fused micro-batches: {plan.fused_micro_batches}"
        f"{_HOST[plan.host_memory]} ({plan.reason})"
    )
    graphed, why = None, "--cuda-graph off"
    if settings.cuda_graph != "off":
        forced = settings.cuda_graph == "on"
        reason = why_not(
            whole_logits=not is_chunked,
            random_recompute=plan.gradient_checkpointing and draws_random_numbers(model),
            ranks=rank_count(),
            half=dtype == torch.float16,
            micro_batches=math.inf if forced else steps * accumulation,
        )
        if reason and forced:
            raise PipelineError(f"--cuda-graph on: {reason}")
        why = reason or ""
        if not reason:
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            fixed = FixedBatch(batch_size, largest, collator, trained[0].device)
            is_long = is_cudnn_worth_it(steps * accumulation, batch_size * largest.tokens)
            graphed = GraphedStep(trained, fixed, forced=forced, cudnn=is_long)
    chunk = chunk_positions(base.get_output_embeddings()) if is_chunked else None
    return FastSteps(plan, batch_size, accumulation, chunk, copies, graphed, why)


def _with_copies(copies: LoraCopies, eager: Callable[..., torch.Tensor], *inputs: Any) -> torch.Tensor:  # noqa: ANN401
    with copies.fresh():
        return eager(*inputs)


def _replayed(
    graphed: GraphedStep,
    trainer: RecordingTrainer,
    eager: Callable[..., torch.Tensor],
    model: torch.nn.Module,
    inputs: Batch,
    num_items_in_batch: Items = None,
) -> torch.Tensor:
    step: Step = functools.partial(eager, model)
    return graphed(step, trainer._prepare_inputs(inputs), num_items_in_batch)
