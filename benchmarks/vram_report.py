"""Turn the grid's measurements into the error table and the plot: `python -m benchmarks.vram_report points.jsonl`.

Constants are set on the points marked `calibrate` alone, errors are taken on the points marked `judge` alone. A point
that ran out of memory under a cap is judged by its verdict, and so is every other capped point.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from steph.plan.vram import KEPT_FREE_BYTES, Forecast, predict
from steph.plan.vram_calibration import MeasuredPoint, calibrated
from steph.plan.vram_constants import GIB, MEASURED, Constants

from benchmarks.vram_points import SHAPES, Point, card_bytes


@dataclass(frozen=True)
class Measured:
    """One line of the grid: the point, and its peaks as a process of its own would show them."""

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
    """Every measured point; those of the dry run, which have no peaks, are left out."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [_measured(line) for line in lines if line["peak_allocated"] is not None]


def _measured(line: dict[str, Any]) -> Measured:
    values = {field.name: line[field.name] for field in fields(Point)}
    point = Point(**{**values, "targets": tuple(values["targets"])})
    # each point's peak was counted anew; a process of its own also has the peak of its preparation
    allocated = max(line["peak_allocated"], line.get("prepare_peak_allocated") or 0)
    reserved = max(line["peak_reserved"], line.get("prepare_peak_reserved") or 0)
    return Measured(point, allocated, reserved, line["context"], line["oom"] is not None)


def constants_from(points: Sequence[Measured]) -> Constants:
    """The constants that the calibration points give."""
    chosen = [found for found in points if found.point.use == "calibrate" and not found.oom]
    return calibrated([_as_point(found) for found in chosen])


def _as_point(found: Measured) -> MeasuredPoint:
    shape = SHAPES[found.point.model]
    return MeasuredPoint(shape, found.point.work, found.allocated_bytes, found.reserved_bytes, found.context_bytes)


def judge(points: Sequence[Measured], constants: Constants) -> list[Judged]:
    """Predictions for the points that set nothing."""
    chosen = [found for found in points if found.point.use == "judge"]
    return [Judged(found, predict(SHAPES[found.point.model], found.point.work, constants)) for found in chosen]


def table(judged: Sequence[Judged], constants: Constants) -> str:
    """Markdown: the uncapped points with errors, the capped ones with verdicts, and the summary."""
    free = [found for found in judged if found.measured.point.allowed_gib is None and not found.measured.oom]
    capped = [found for found in judged if found.measured.point.allowed_gib is not None]
    lines = [
        "| model | trainer | batch x seq | LoRA | recompute | allocated: measured, predicted | reserved: measured, "
    ]
    lines[0] += "predicted | error |"
    lines += ["|---|---|---|---|---|---|---|---|", *map(_free_row, free)]
    if free:
        errors = [abs(found.reserved_error) for found in free]
        lines += ["", f"Reserved: median error {median(errors):.1%}, largest {max(errors):.1%} ({len(free)} points)."]
        allocated = [abs(found.allocated_error) for found in free]
        lines += [f"Allocated: median error {median(allocated):.1%}, largest {max(allocated):.1%}."]
    lines += [
        "",
        "| model | trainer | batch x seq | allocator | ran out of memory | verdict |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_capped_row(found, constants) for found in capped]
    wrong = sum(found.measured.oom and _verdict(found, constants) == "fits" for found in capped)
    return "\n".join([*lines, "", f"`fits` for a point that ran out of memory: {wrong} of {len(capped)}.", ""])


def _setting(point: Point) -> str:
    return f"| {point.model.rpartition('/')[2]} | {point.trainer} | {point.batch} x {point.seq} "


def _free_row(found: Judged) -> str:
    point, measured, forecast = found.measured.point, found.measured, found.forecast
    targets = "all linear" if len(point.targets) > 2 else "q, v"
    peaks = (measured.allocated_bytes, forecast.peak_allocated_bytes)
    reserved = (measured.reserved_bytes, forecast.peak_reserved_bytes)
    shown = " | ".join(f"{before / GIB:.2f}, {after / GIB:.2f}" for before, after in (peaks, reserved))
    recompute = "on" if point.recompute else "off"
    return f"{_setting(point)}| r {point.r}, {targets} | {recompute} | {shown} | {found.reserved_error:+.1%} |"


def _capped_row(found: Judged, constants: Constants) -> str:
    point = found.measured.point
    oom = "yes" if found.measured.oom else "no"
    return f"{_setting(point)}| {point.allowed_gib} GiB | {oom} | {_verdict(found, constants)} |"


def _verdict(found: Judged, constants: Constants) -> str:
    card = card_bytes(found.measured.point, constants.context_bytes, KEPT_FREE_BYTES)
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
    constants = MEASURED if options.uncalibrated else constants_from(points)
    judged = judge(points, constants)
    print(f"constants: {constants}\n\n{table(judged, constants)}")
    if options.plot:
        plot(judged, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
