"""The card's memory over an attempt, kept beside its logs: one `unix_seconds used_bytes` line a sample."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from pathlib import Path

NAME = "vram.txt"


def write_samples(folder: Path, started_unix: float, samples: Iterable[tuple[float, int]]) -> None:
    """Keep samples of (seconds since the start, used bytes); a full disk costs the picture, not the attempt."""
    lines = [f"{started_unix + seconds:.2f} {used}\n" for seconds, used in samples]
    if lines:
        with contextlib.suppress(OSError):
            (folder / NAME).write_text("".join(lines), encoding="ascii")


def read_samples(record_folder: Path) -> list[tuple[float, int]]:
    """All samples of a record as (unix seconds, used bytes), in time's order; what can't be read is passed over."""
    found = []
    for path in record_folder.glob(f"*/{NAME}"):
        with contextlib.suppress(OSError):
            for line in path.read_text(encoding="ascii", errors="replace").splitlines():
                moment, _, used = line.partition(" ")
                with contextlib.suppress(ValueError):
                    found.append((float(moment), int(used)))
    return sorted(sample for sample in found if math.isfinite(sample[0]))
