"""The Trainer's own arithmetic: how many optimiser steps a run is due, and how many an epoch figure stands for. Pure.

Source: `Trainer.set_initial_training_values` and `_inner_training_loop` of transformers 4.57 and 5.23.
"""

from __future__ import annotations

import math

from steph.record.settings import TrainSettings


def batches_per_epoch(rows: int, settings: TrainSettings) -> int:
    """Batches that each process sees in one epoch; the last one may be smaller."""
    return math.ceil(math.ceil(rows / settings.batch_size) / settings.num_processes)


def steps_per_epoch(rows: int, settings: TrainSettings) -> int:
    """Optimiser steps in one epoch, at least one; an incomplete accumulation counts as a step."""
    return max(1, math.ceil(batches_per_epoch(rows, settings) / settings.gradient_accumulation_steps))


def steps_due(rows: int, settings: TrainSettings) -> int:
    """Steps of the asked epochs, capped at `max_steps`."""
    return min(settings.num_epochs * steps_per_epoch(rows, settings), settings.max_steps)


def epochs_in(steps: int, rows: int, settings: TrainSettings) -> float:
    """The epoch figure that the Trainer gives after so many optimiser steps."""
    whole, part = divmod(steps, steps_per_epoch(rows, settings))
    batches = part * settings.gradient_accumulation_steps
    return whole + min(1.0, batches / batches_per_epoch(rows, settings))


def steps_in(epochs: float, rows: int, settings: TrainSettings) -> int:
    """Optimiser steps that a printed epoch figure (four digits) stands for."""
    whole, part = divmod(epochs, 1)
    batches = round(part * batches_per_epoch(rows, settings))
    return int(whole) * steps_per_epoch(rows, settings) + math.ceil(batches / settings.gradient_accumulation_steps)
