"""What the benchmarks write down: one JSON line a measurement, on disk before the next one starts."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """The device, its measured rates, and the versions of one call; rates are None without a GPU."""

    device: str
    total_bytes: int | None
    matrix_flops_per_second: float | None
    copy_bytes_per_second: float | None
    versions: Mapping[str, str]
    command: str
    commit: str
    tiny: bool


@dataclass(frozen=True)
class TrainingRun:
    """One training run of one side, whole or cut short by an error; `step_seconds` come from CUDA events.

    `repeat` counts from 0, the first of its settings in the process. `fused_micro_batches` is 1 for a trainer that
    can't fuse. `prepare_seconds` is what lies before the Trainer's own clock (LoRA, rows, measuring).
    """

    row: str
    side: str
    label: str
    repeat: int
    command: str
    batch_size: int
    gradient_accumulation_steps: int
    max_seq_length: int
    recompute: bool
    fused_micro_batches: int
    outcome: str
    train_seconds: float | None = None
    prepare_seconds: float | None = None
    step_seconds: Sequence[float] = ()
    step_tokens: Sequence[int] = ()
    losses: Sequence[float] = ()
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    allocator_retries: int | None = None
    allowed_bytes: float | None = None
    model_flops_per_step: float | None = None
    remark: str = ""

    @property
    def effective_batch(self) -> int:
        """Rows in an optimizer step."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def samples_per_second(self) -> float | None:
        """Rows over the Trainer's whole `train_runtime`, warm-up and final checkpoint included."""
        rows = len(self.step_seconds) * self.effective_batch
        return rows / self.train_seconds if rows and self.train_seconds else None

    @property
    def step_samples_per_second(self) -> float | None:
        """Rows of a step over the median step: what a long run tends to."""
        return self.effective_batch / statistics.median(self.step_seconds) if self.step_seconds else None


@dataclass(frozen=True)
class ProcessRun:
    """One whole process: wall seconds, and the seconds from its start to each awaited line of its output."""

    row: str
    label: str
    repeat: int
    command: str
    seconds: float
    returncode: int
    marks: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Note:
    """Why something is missing, or a fact that belongs to a row."""

    row: str
    text: str


Measurement = Machine | TrainingRun | ProcessRun | Note
_KINDS: Mapping[str, Callable[..., Measurement]] = {
    kind.__name__: kind for kind in (Machine, TrainingRun, ProcessRun, Note)
}


def append(path: Path, measurement: Measurement) -> None:
    """Add one line and force it to disk, so that a process that is cut off loses nothing."""
    line = json.dumps({"kind": type(measurement).__name__, **asdict(measurement)}, ensure_ascii=False)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Measurement]:
    """Every measurement of a file; a last line that was cut off is left out."""
    found: list[Measurement] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            content: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            continue
        found.append(_KINDS[content.pop("kind")](**content))
    return found


class TimeBox:
    """The moment at which a benchmark must be over, as seconds since the epoch."""

    def __init__(self, deadline_unix: float) -> None:
        self.deadline_unix = deadline_unix

    @property
    def left_seconds(self) -> float:
        """What is left; negative when it is over."""
        return self.deadline_unix - time.time()

    def admits(self, expected_seconds: float) -> bool:
        """Whether something that takes so long would still end in time."""
        return expected_seconds < self.left_seconds
