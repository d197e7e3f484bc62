"""Seconds without making the GPU wait for them."""

import time
from typing import Any

import torch


class StepClock:
    """Times between marks without making the GPU wait: CUDA events there, a monotonic clock on the CPU."""

    def __init__(self) -> None:
        self._on_gpu = torch.cuda.is_available()
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Note this moment in the device's own order of work."""
        if not self._on_gpu:
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def seconds(self) -> list[float]:
        """The time between each mark and the next; waits for the GPU once."""
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if not self._on_gpu:
            return [later - earlier for earlier, later in pairs]
        torch.cuda.synchronize()
        return [earlier.elapsed_time(later) / 1000 for earlier, later in pairs]
