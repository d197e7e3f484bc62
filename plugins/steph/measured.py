"""What a record's attempts measured, as points that correct the memory model on their card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from steph.fit import model_shape
from steph.plan.description import load_description
from steph.plan.shapes import ModelShape
from steph.plan.vram import predict
from steph.plan.vram_calibration import MeasuredPoint, calibrated
from steph.plan.vram_constants import MEASURED, Constants
from steph.plan.vram_terms import DEFAULT_TARGETS, Trainer, Workload
from steph.record import Attempt, Record, StageId, TrainSettings


def workload_of(settings: TrainSettings, trainer: Trainer) -> Workload:
    """The memory side of a training attempt's settings, with rows of full length."""
    return Workload(
        trainer=trainer,
        batch_size=settings.batch_size,
        width=settings.max_seq_length,
        accumulation_steps=settings.gradient_accumulation_steps,
        lora_r=settings.lora_r,
        target_modules=settings.target_modules or DEFAULT_TARGETS,
        lora_dropout=settings.lora_dropout > 0,
        use_4bit=settings.use_4bit,
    )


def constants_of(record: Record, shape: ModelShape, trainer: Trainer) -> Constants:
    """The constants that H-2's whole attempts on `shape` speak for; the measured defaults where there are none."""
    result = record.stages.get(StageId.H2)
    points = [_point(attempt, shape, trainer) for attempt in (result.attempts if result else ())]
    return calibrated([point for point in points if point is not None])


def _point(attempt: Attempt, shape: ModelShape, trainer: Trainer) -> MeasuredPoint | None:
    """An attempt that ended well and wrote its peaks; the way it ran is the one that predicts its peak best."""
    peaks = [probe for probe in attempt.probes if probe.peak_allocated_bytes and probe.peak_reserved_bytes]
    if attempt.returncode != 0 or not isinstance(attempt.settings, TrainSettings) or not peaks:
        return None
    probe = max(peaks, key=lambda found: found.peak_allocated_bytes or 0)
    allocated, reserved = probe.peak_allocated_bytes or 0, probe.peak_reserved_bytes or 0
    own = attempt.peak_own_bytes
    context = own - reserved if own is not None and own > reserved and len(peaks) == 1 else None
    asked = workload_of(attempt.settings, trainer)
    ways = [asked]
    if trainer == "answer":
        steps = asked.accumulation_steps
        fused = [count for count in range(1, steps + 1) if steps % count == 0]
        ways = [replace(asked, recompute=on, fused_micro_batches=count) for on in (True, False) for count in fused]
    way = min(ways, key=lambda work: abs(predict(shape, work, MEASURED).peak_allocated_bytes - allocated))
    return MeasuredPoint(shape, way, allocated, reserved, context)


def record_constants(record: Record) -> Constants:
    """The constants that a record's own measurements give; the defaults where its model or trainer can't be known.

    Raises FitError where the record's model has no shape that can be read.
    """
    choice = next((record.stages[stage].model for stage in reversed(StageId) if _has_model(record, stage)), None)
    if choice is None:
        return MEASURED
    trainer = load_description(Path(record.context.pipeline_root)).trainer or "full"
    return constants_of(record, model_shape(choice.snapshot_path or choice.name), trainer)


def _has_model(record: Record, stage: StageId) -> bool:
    return stage in record.stages and record.stages[stage].model is not None
