"""`steph fit`: says whether a fine-tuning run fits a card, without a GPU, a download or torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steph.memory.forecast import Forecast, largest_fitting, predict
from steph.memory.shapes import TINY, ModelShape, linear_shapes
from steph.memory.trainers import TRAINERS, Workload
from steph.plan.answers import RowLengths, row_lengths
from steph.units import GIB

ALL_LINEAR = tuple(linear_shapes(TINY))
GRID_BATCHES = (1, 2, 4, 8)
GRID_LENGTHS = (256, 384, 512, 768, 1024, 1536, 2048)


class FitError(ValueError):
    """The question can't be answered; the message is one line that names the option and the value."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Forecasts by (batch size, max_seq_length) on one card, and the largest of them that surely fits.

    `basis` says where the constants come from if not from here.
    """

    model: str
    vram_bytes: int
    forecasts: dict[tuple[int, int], Forecast]
    largest: tuple[int, int] | None
    basis: str = ""


def workload_of_options(trainer: str, target_modules: str, recompute: str, **settings: Any) -> Workload:  # noqa: ANN401 - Workload's own fields
    """The options as a workload of one row; raises FitError naming an option whose value is not allowed."""
    for option, value, allowed in (("recompute", recompute, ("on", "off")), ("trainer", trainer, tuple(TRAINERS))):
        if value not in allowed:
            raise FitError(f"--{option} {value}: allowed are {', '.join(allowed)}")
    names = ALL_LINEAR if target_modules == "all" else tuple(name.strip() for name in target_modules.split(","))
    return Workload(trainer, 1, 1, target_modules=names, recompute=recompute == "on", **settings)


def rows_of(data: str, tokenizer: str | None, model: str) -> RowLengths:
    """How long a training file's rows and answers are, the chat template included; raises FitError."""
    found = Path(tokenizer or model).expanduser()
    found = found / "tokenizer.json" if found.is_dir() or not tokenizer else found
    if not found.is_file():
        raise FitError(f"--data needs the model's tokenizer: {found} is not there; name one with --tokenizer")
    try:
        return row_lengths(Path(data), found, "keeps_answer")  # the template that a trainer `answer` goes with
    except (OSError, ValueError) as error:
        raise FitError(f"--data {data}: {error}") from error


def fit(
    model: str,
    shape: ModelShape,
    work: Workload,
    vram_bytes: int,
    *,
    batches: Sequence[int] = GRID_BATCHES,
    lengths: Sequence[int] = GRID_LENGTHS,
    rows: RowLengths | None = None,
    forecast: Callable[[ModelShape, Workload], Forecast] = predict,
    basis: str = "",
) -> Fit:
    """Forecast every batch size and length; `work` gives the other settings.

    Rows are as long as the length and answers direct ones, except where `rows` is given and the trainer pads to the
    longest row only. Micro-batches are not fused. `forecast`: how a record predicts. Raises FitError.
    """
    forecasts = {}
    for length in lengths:
        for batch in batches:
            point = replace(work, batch_size=batch, width=length)
            if rows is not None and not work.kind.pads_to_maximum:
                point = point.of_rows(rows.longest, rows.longest_answer)
            try:
                forecasts[batch, length] = forecast(shape, point)
            except ValueError as error:
                raise FitError(str(error)) from error
    return Fit(model, vram_bytes, forecasts, largest_fitting(forecasts, vram_bytes), basis)


def as_json(result: Fit) -> str:
    """One object for one setting; for several `grid` with one object each, named by its setting, and `largest`."""
    if len(result.forecasts) == 1:
        (only,) = result.forecasts.values()
        return json.dumps(_values(result, only), ensure_ascii=False, indent=1)
    rows = {
        (batch, length): {"batch_size": batch, "max_seq_length": length, **_values(result, forecast)}
        for (batch, length), forecast in result.forecasts.items()
    }
    largest = rows[result.largest] if result.largest else None
    return json.dumps({"grid": list(rows.values()), "largest": largest}, ensure_ascii=False, indent=1)


def _values(result: Fit, forecast: Forecast) -> dict[str, Any]:
    sizes = ("peak_allocated", "peak_reserved", "total", "low", "high")
    return {
        **{f"{name}_gib": _gib(getattr(forecast, f"{name}_bytes")) for name in sizes},
        "verdict": forecast.verdict(result.vram_bytes),
        "terms": {term.name: _gib(term.size_bytes) for term in forecast.terms if term.at_peak},
    }


def _gib(size_bytes: float) -> float:
    return round(size_bytes / GIB, 4)


def as_text(result: Fit) -> str:
    """The breakdown of one setting, or the grid and the largest setting that fits."""
    some = next(iter(result.forecasts.values()))
    work = some.workload
    lines = [
        f"{result.model}, trainer {work.trainer}, {'4-bit' if work.use_4bit else '16-bit'}, LoRA r {work.lora_r} on "
        f"{','.join(work.target_modules)}; card {result.vram_bytes / GIB:.2f} GiB; figures in GiB, the whole process"
    ]
    lines += [result.basis] if result.basis else []
    lines += _breakdown(result, some) if len(result.forecasts) == 1 else _grid(result)
    return "\n".join([*lines, ""])


def _grid(result: Fit) -> list[str]:
    batches = sorted({batch for batch, _ in result.forecasts})
    lines = ["", "max-seq-length  " + "".join(f"{f'batch {batch}':>22}" for batch in batches)]
    for length in sorted({length for _, length in result.forecasts}):
        row = [result.forecasts[batch, length] for batch in batches]
        cells = [f"{forecast.total_bytes / GIB:.2f} {forecast.verdict(result.vram_bytes)}" for forecast in row]
        lines.append(f"{length:>14}  " + "".join(f"{cell:>22}" for cell in cells))
    largest = "none"
    if result.largest is not None:
        largest = f"--batch-size {result.largest[0]} --max-seq-length {result.largest[1]}"
    return [*lines, "", f"largest that fits: {largest}"]


def _breakdown(result: Fit, forecast: Forecast) -> list[str]:
    work = forecast.workload
    lines = [f"recompute {'on' if work.recompute else 'off'}, {work.rows} rows of {work.width} tokens a forward", ""]
    for term in forecast.terms:
        note = "" if term.at_peak else "  (not at the peak)"
        lines.append(f"{term.name:<44}{term.size_bytes / GIB:>8.3f}{note}")
    span = f"({forecast.low_bytes / GIB:.2f} to {forecast.high_bytes / GIB:.2f})"
    return [
        *lines,
        "",
        f"{'peak allocated':<44}{forecast.peak_allocated_bytes / GIB:>8.2f}",
        f"{'peak reserved':<44}{forecast.peak_reserved_bytes / GIB:>8.2f}",
        f"{'whole process':<44}{forecast.total_bytes / GIB:>8.2f}  {span}",
        "",
        forecast.verdict(result.vram_bytes),
    ]
