"""Measuring what a model's training step takes on the GPU, with three very small batches."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from peft import PeftModel

from app.fast.host_memory import move_embeddings_to_host
from app.fast.plan import Growth, LargestRow, Room, StepPlan, Way, candidates, choose_plan, plan_without_measuring
from app.fast.ranks import gathered, rank_count
from app.fast.recompute import set_recompute
from app.training.collator import AnswerCollator
from app.training.rows import IGNORED
from app.training.settings import TrainingSettings

Rows = Sequence[dict[str, list[int]]]
# an fp32 gradient, which stays while micro-batches accumulate, Adam's two moments, and a 16-bit copy to compute with
_BYTES_BESIDE_A_TRAINED_PARAMETER = 14
_BUCKET_BYTES_OF_A_TRAINED_PARAMETER = 4  # the copy of its gradient that ranks exchange
_PROBE_ROWS = 2
# width of the batch, labels of each row: no more together than one chunk of the loss takes
PROBES = ((32, 2), (96, 2), (96, 64))


def set_way(model: PeftModel, way: Way, most_tokens: int = 0) -> None:
    """Run the model's steps, of `most_tokens` at most, this way from now on. What went to host memory stays there."""
    if way.host_memory != "off":
        move_embeddings_to_host(model)
    set_recompute(model, way.recompute, on_host=way.host_memory == "all", most_tokens=most_tokens)


def plan_steps(
    settings: TrainingSettings,
    model: PeftModel,
    rows: Rows,
    autocast_dtype: torch.dtype | None,
    labels_at_once: float = math.inf,
) -> StepPlan:
    """Decide recompute, fusing and host memory: as the flags say, or by measuring on the GPU where a flag is `auto`.

    All ranks take the same plan, the most careful one that any of them needs. `labels_at_once` are the most positions
    whose logits the model holds together.
    """
    flags = (
        settings.gradient_checkpointing,
        settings.fuse_accumulation,
        settings.gradient_accumulation_steps,
        settings.host_memory,
    )
    options = candidates(*flags)
    if len(options) == 1:
        return plan_without_measuring(*flags, reason="as the flags say")
    if not torch.cuda.is_available():
        return plan_without_measuring(*flags, reason="no GPU memory to measure: auto is off")
    plans = gathered(measured_plan(settings, model, rows, autocast_dtype, labels_at_once))
    return max(plans, key=lambda plan: options.index(plan.way))


def measured_plan(
    settings: TrainingSettings,
    model: PeftModel,
    rows: Rows,
    autocast_dtype: torch.dtype | None,
    labels_at_once: float = math.inf,
) -> StepPlan:
    """Run the probes that the flags leave open and choose.

    Weights, gradients and random state stay as they were; embeddings go to host memory where an option that needs it
    was tried.
    """
    options = candidates(
        settings.gradient_checkpointing,
        settings.fuse_accumulation,
        settings.gradient_accumulation_steps,
        settings.host_memory,
    )
    largest = largest_row(rows)
    device = trained_device(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        set_way(model, options[0])
        # the first probes make the libraries allocate their workspaces, which the room then counts as used
        first = _measure(model, autocast_dtype)
        room = cuda_room(model)
        measured_growth = {options[0]._replace(fused_micro_batches=1): first}

        def moved_bytes() -> float:
            """What has left the card since the room was measured; it counts against a step's growth."""
            return max(0.0, room.used_bytes - cuda_room(model).used_bytes)

        def growth(way: Way) -> Growth:
            kind = way._replace(fused_micro_batches=1)
            if kind not in measured_growth:
                set_way(model, way)
                found = _measure(model, autocast_dtype)
                measured_growth[kind] = replace(found, fixed_bytes=found.fixed_bytes - moved_bytes())
            return measured_growth[kind]

        def measured(way: Way) -> float:
            set_way(model, way)
            rows_at_once = settings.batch_size * way.fused_micro_batches
            return _growth_of_worst_batch(model, largest, rows_at_once, autocast_dtype) - moved_bytes()

        return choose_plan(options, growth, room, largest, settings.batch_size, measured, labels_at_once=labels_at_once)


def trained_device(model: PeftModel) -> torch.device:
    """Where the trained parameters are: the card, though embeddings may wait in host memory."""
    return next(parameter.device for parameter in model.parameters() if parameter.requires_grad)


def largest_row(rows: Rows) -> LargestRow:
    """The most tokens and the most labels that any row has."""
    return LargestRow(
        tokens=max(len(row["input_ids"]) for row in rows),
        labels=max(sum(label != IGNORED for label in row["labels"]) for row in rows),
    )


def cuda_room(model: PeftModel) -> Room:
    """What a step will find in use (gradients and Adam's moments too), and what card and memory fraction allow."""
    torch.cuda.empty_cache()
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    reserved_bytes = torch.cuda.memory_reserved()
    capped_bytes = total_bytes * torch.cuda.get_per_process_memory_fraction()
    beside = _BYTES_BESIDE_A_TRAINED_PARAMETER + (_BUCKET_BYTES_OF_A_TRAINED_PARAMETER if rank_count() > 1 else 0)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Room(
        used_bytes=torch.cuda.memory_allocated() + trainable * beside,
        allowed_bytes=min(free_bytes + reserved_bytes, capped_bytes),
    )


def _measure(model: PeftModel, autocast_dtype: torch.dtype | None) -> Growth:
    model.train()
    try:
        peaks = [
            _peak_growth_bytes(model, _probe_batch(model, *probe, _PROBE_ROWS), autocast_dtype) for probe in PROBES
        ]
    except torch.OutOfMemoryError:  # a card this full can't even run the probe this way: the answer is a no, not an end
        model.zero_grad(set_to_none=True)
        return Growth(math.inf, 0.0, 0.0)
    return growth_from_probes(peaks)


def _growth_of_worst_batch(
    model: PeftModel, largest: LargestRow, row_count: int, autocast_dtype: torch.dtype | None
) -> float:
    """What a batch of `row_count` longest rows takes, run once for real; infinite where memory runs out."""
    batch = _probe_batch(model, largest.tokens, largest.labels, row_count)
    try:
        return _peak_growth_bytes(model, batch, autocast_dtype)
    except torch.OutOfMemoryError:
        model.zero_grad(set_to_none=True)
        return math.inf
    finally:
        torch.cuda.empty_cache()


def growth_from_probes(peaks: Sequence[float]) -> Growth:
    """Solve the three measured peaks for the fixed part and the two slopes; a slope is never below zero."""
    (width_short, kept_few), (width_long, _), (_, kept_many) = PROBES
    tokens_short, tokens_long = _PROBE_ROWS * width_short, _PROBE_ROWS * width_long
    labels_few, labels_many = _PROBE_ROWS * kept_few, _PROBE_ROWS * kept_many
    per_token = max(0.0, (peaks[1] - peaks[0]) / (tokens_long - tokens_short))
    per_label = max(0.0, (peaks[2] - peaks[1]) / (labels_many - labels_few))
    return Growth(max(0.0, peaks[0] - per_token * tokens_short - per_label * labels_few), per_token, per_label)


def _probe_batch(model: PeftModel, width: int, kept: int, row_count: int) -> dict[str, torch.Tensor]:
    """Rows of this width, every second a token shorter, with so many labels each."""
    vocabulary = int(model.get_base_model().get_input_embeddings().num_embeddings)
    ids = [index % vocabulary for index in range(width)]
    labels = [IGNORED] * (width - kept) + ids[width - kept :]
    return AnswerCollator(0)([{"input_ids": ids[row % 2 :], "labels": labels[row % 2 :]} for row in range(row_count)])


def _peak_growth_bytes(model: PeftModel, batch: dict[str, torch.Tensor], autocast_dtype: torch.dtype | None) -> float:
    """Peak allocated bytes of one forward and backward above what stays when its gradients are gone."""
    device = trained_device(model)
    on_device = {name: value.to(device) for name, value in batch.items()}
    torch.cuda.reset_peak_memory_stats()
    with torch.autocast(device.type, autocast_dtype) if autocast_dtype else contextlib.nullcontext():
        outputs = model(**on_device)
    # accelerate's autocast wrapper hands the Trainer fp32 logits, which live beside the half-precision ones
    fp32_logits = None if outputs.logits is None else outputs.logits.float()
    outputs.loss.backward()
    peak = torch.cuda.max_memory_allocated()
    model.zero_grad(set_to_none=True)
    del outputs, fp32_logits, on_device
    return float(peak - torch.cuda.memory_allocated())
