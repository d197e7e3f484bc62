"""Turn the grid's measurements into the error table and the plot: `python -m benchmarks.vram_report points.jsonl`.

Constants are set on the points marked `calibrate` alone, errors are taken of the points marked `judge` and, apart, of
those marked `seen`. A point
that ran out of memory under a cap is judged by its verdict, and so is every other capped point.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from steph.base.units import GIB
from steph.memory.calibration import MeasuredPoint, calibrated
from steph.memory.forecast import BUILT_IN_CONSTANTS, Constants, Forecast
from steph.memory.terms import TRAINERS

from benchmarks.vram_points import SHAPES, Point, Use, card_bytes


@dataclass(frozen=True)
class Measured:
    """One line of the grid: the point and its process's peaks."""

    point: Point
    allocated_bytes: int
    reserved_bytes: int
    context_bytes: int | None
    oom: bool


@dataclass(frozen=True)
class Judged:
    """One point's prediction beside its measurement; errors as shares of the measured value."""

    measured: Measured
    forecast: Forecast

    @property
    def allocated_error(self) -> float:
        """Predicted over measured, less one."""
        return self.forecast.peak_allocated_bytes / self.measured.allocated_bytes - 1

    @property
    def reserved_error(self) -> float:
        """Predicted over measured, less one."""
        return self.forecast.peak_reserved_bytes / self.measured.reserved_bytes - 1


def read_points(path: Path) -> list[Measured]:
    """Every measured point; those that failed otherwise than for memory, or have no peaks (dry run), are left out."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [_measured(line) for line in lines if line["peak_allocated"] is not None and line["error"] is None]


def _measured(line: dict[str, Any]) -> Measured:
    values = {field.name: line[field.name] for field in fields(Point) if field.name in line}
    point = Point(**{**values, "targets": tuple(values["targets"])})
    oom = line["oom"] is not None
    return Measured(point, line["peak_allocated"], line["peak_reserved"], line["context"], oom)


def slack_share_from(points: Sequence[Measured], trainer: str) -> float:
    """What the allocator reserves beyond what is allocated, as a share of it: the calibration points' median.

    It is what `slack_share` of the trainer's row in `steph/memory/trainers.toml` is set to, in hundredths.
    """
    chosen = [found for found in points if found.point.use == "calibrate" and found.point.trainer == trainer]
    return median(found.reserved_bytes / found.allocated_bytes - 1 for found in chosen if not found.oom)


def constants_from(points: Sequence[Measured]) -> Constants:
    """The constants that the calibration points give."""
    chosen = [found for found in points if found.point.use == "calibrate" and not found.oom]
    return calibrated([_as_point(found) for found in chosen])


def _as_point(found: Measured) -> MeasuredPoint:
    shape = SHAPES[found.point.model]
    return MeasuredPoint(shape, found.point.work, found.allocated_bytes, found.context_bytes)


def judge(points: Sequence[Measured], constants: Constants, uses: Collection[Use]) -> list[Judged]:
    """Predictions for points that set nothing."""
    chosen = [found for found in points if found.point.use in uses]
    return [Judged(found, found.point.forecast(constants)) for found in chosen]


def table(judged: Sequence[Judged], constants: Constants) -> str:
    """Markdown: the uncapped points with errors, the capped ones with verdicts, and the summary."""
    free = [found for found in judged if found.measured.point.allowed_gib is None and not found.measured.oom]
    capped = [found for found in judged if found.measured.point.allowed_gib is not None]
    lines = [
        "| model | trainer | batch x seq | LoRA | steps | allocated: measured, predicted | error "
        "| reserved: measured, predicted | error |",
        "|---|---|---|---|---|---|---|---|---|",
        *map(_free_row, free),
    ]
    if free:
        errors = [abs(found.reserved_error) for found in free]
        lines += ["", f"Reserved: median error {median(errors):.1%}, largest {max(errors):.1%} ({len(free)} points)."]
        allocated = [abs(found.allocated_error) for found in free]
        lines += [f"Allocated: median error {median(allocated):.1%}, largest {max(allocated):.1%}."]
    lines += [
        "",
        "| model | trainer | batch x seq | LoRA | steps | allocator | verdict | ran out of memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_capped_row(found, constants) for found in capped]
    ended = [(verdict(found, constants), found.measured.oom) for found in capped]
    lines += ["", f"Said to fit and out of memory: {ended.count(('fits', True))} of {len(capped)}."]
    lines += [f"Said not to fit and trained: {ended.count(('does_not_fit', False))} of {len(capped)}.", ""]
    return "\n".join(lines)


def _setting(point: Point) -> str:
    targets = "all linear" if len(point.targets) > 2 else "q, v"
    host = {"embeddings": "embeddings in host memory", "all": "embeddings and checkpoints in host memory"}
    steps = [
        "recompute" if point.recompute else "kept activations",
        "" if point.dropout else "no dropout",
        host.get(point.host_memory, ""),
        "CUDA graph" if point.cuda_graph else "",
    ]
    model = point.model.rpartition("/")[2]
    size = f"{point.batch} x {point.seq}, {point.accumulation} at a step"
    return f"| {model} | {point.trainer} | {size} | r {point.r}, {targets} | {', '.join(filter(None, steps))} "


def _free_row(found: Judged) -> str:
    measured, forecast = found.measured, found.forecast
    allocated = f"{measured.allocated_bytes / GIB:.2f}, {forecast.peak_allocated_bytes / GIB:.2f}"
    reserved = f"{measured.reserved_bytes / GIB:.2f}, {forecast.peak_reserved_bytes / GIB:.2f}"
    errors = f"{found.allocated_error:+.1%}", f"{found.reserved_error:+.1%}"
    return f"{_setting(measured.point)}| {allocated} | {errors[0]} | {reserved} | {errors[1]} |"


def _capped_row(found: Judged, constants: Constants) -> str:
    point = found.measured.point
    oom = "yes" if found.measured.oom else "no"
    return f"{_setting(point)}| {point.allowed_gib} GiB | {verdict(found, constants)} | {oom} |"


def verdict(found: Judged, constants: Constants) -> str:
    """What is said of a capped point's card; empty for the others."""
    card = card_bytes(found.measured.point, constants)
    return found.forecast.verdict(card) if card is not None else ""


def plot(judged: Sequence[Judged], target: Path) -> None:
    """Predicted against measured reserved peaks, with the 8 % band."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 6))
    free = [found for found in judged if found.measured.point.allowed_gib is None and not found.measured.oom]
    for trainer, marker in (("full", "s"), ("answer", "o")):
        chosen = [found for found in free if found.measured.point.trainer == trainer]
        measured = [found.measured.reserved_bytes / GIB for found in chosen]
        axes.scatter(
            measured, [found.forecast.peak_reserved_bytes / GIB for found in chosen], marker=marker, label=trainer
        )
    most = max((found.measured.reserved_bytes / GIB for found in free), default=1.0) * 1.05
    axes.plot([0, most], [0, most], color="black", linewidth=0.8)
    axes.fill_between([0, most], [0, 0.92 * most], [0, 1.08 * most], alpha=0.15, color="black", label="8 %")
    axes.set(xlabel="measured peak reserved, GiB", ylabel="predicted, GiB", xlim=(0, most), ylim=(0, most))
    axes.legend()
    figure.savefig(target, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def main() -> int:
    """Print constants and table; with --plot write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--uncalibrated", action="store_true", help="use the built-in constants as they are")
    options = parser.parse_args()
    points = read_points(options.points)
    constants = BUILT_IN_CONSTANTS if options.uncalibrated else constants_from(points)
    print(f"constants: {constants}")
    shares = [
        f"{name} {slack_share_from(points, name):.3f} ({row.slack_share:.2f} used)" for name, row in TRAINERS.items()
    ]
    print(f"slack shares: {', '.join(shares)}\n")
    headings: dict[Use, str] = {"judge": "Points that judge", "seen": "Points seen while the model was made"}
    for use, heading in headings.items():
        print(f"## {heading}\n\n{table(judge(points, constants, (use,)), constants)}")
    if options.plot:
        plot(judge(points, constants, tuple(headings)), options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
