"""`steph fit`: whether a fine-tuning run fits a card, without a GPU, a download or torch.

Comes in: the command's options. Goes out: a `Fit` for one setting or a whole grid, and its text or JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steph.base.units import GIB
from steph.contract.answers import RowLengths, row_lengths
from steph.memory.forecast import FitVerdict, Forecast, largest_fitting
from steph.memory.readings import Reading, predict_by
from steph.memory.shape_lookup import ShapeError, model_shape
from steph.memory.shapes import TINY, linear_shapes
from steph.memory.terms import Workload

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
    forecasts: tuple[tuple[int, int, Forecast], ...]
    largest: tuple[int, int] | None
    basis: str = ""

    def verdict(self, forecast: Forecast) -> FitVerdict:
        """Whether this forecast fits the card."""
        return forecast.verdict(self.vram_bytes)


def asked_workload(
    trainer: str,
    target_modules: str,
    recompute: str,
    lora_r: int,
    gradient_accumulation_steps: int,
    optimizer: str,
    use_4bit: bool,
    double_quant: bool,
) -> Workload:
    """The options as a workload of one row; raises FitError naming an option whose value is not allowed."""
    if recompute not in ("on", "off"):
        raise FitError(f"--recompute {recompute}: allowed are on, off")
    if trainer not in ("full", "answer"):
        raise FitError(f"--trainer {trainer}: allowed are full, answer")
    names = ALL_LINEAR if target_modules == "all" else tuple(name.strip() for name in target_modules.split(","))
    return Workload(
        trainer="answer" if trainer == "answer" else "full",
        batch_size=1,
        width=1,
        gradient_accumulation_steps=gradient_accumulation_steps,
        lora_r=lora_r,
        target_modules=names,
        use_4bit=use_4bit,
        double_quant=double_quant,
        recompute=recompute == "on",
        optimizer=optimizer,
    )


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
    work: Workload,
    vram_bytes: int,
    *,
    batches: Sequence[int] = GRID_BATCHES,
    lengths: Sequence[int] = GRID_LENGTHS,
    rows: RowLengths | None = None,
    readings: Sequence[Reading] = (Reading(),),
    basis: str = "",
) -> Fit:
    """Forecast every batch size and length; `work` gives the other settings.

    Rows are as long as the length and answers direct ones, except where `rows` is given and the trainer pads to the
    longest row only. Micro-batches are not fused. `readings`: how a record's measurements can be read. Raises FitError.
    """
    try:
        shape = model_shape(model)
    except ShapeError as error:
        raise FitError(f"--model {error}") from error

    def forecast(batch: int, length: int) -> Forecast:
        point = replace(work, batch_size=batch, width=length)
        if rows is not None and work.trainer == "answer":
            point = point.of_rows(rows.longest, rows.longest_answer)
        return predict_by(readings, shape, point)

    points = [(batch, length) for length in lengths for batch in batches]
    try:
        forecasts = {point: forecast(*point) for point in points}
    except ValueError as error:
        raise FitError(str(error)) from error
    largest = largest_fitting(lambda batch, length: forecasts[batch, length], tuple(points), vram_bytes)
    return Fit(model, vram_bytes, tuple((*point, found) for point, found in forecasts.items()), largest, basis)


def as_json(result: Fit) -> str:
    """One object for one setting; for several `grid` with one object each, named by its setting, and `largest`."""
    if len(result.forecasts) == 1:
        return json.dumps(_values(result, result.forecasts[0][2]), ensure_ascii=False, indent=1)
    rows = {
        (batch, length): {"batch_size": batch, "max_seq_length": length, **_values(result, forecast)}
        for batch, length, forecast in result.forecasts
    }
    largest = rows[result.largest] if result.largest else None
    return json.dumps({"grid": list(rows.values()), "largest": largest}, ensure_ascii=False, indent=1)


def _values(result: Fit, forecast: Forecast) -> dict[str, Any]:
    return {
        "peak_allocated_gib": _gib(forecast.peak_allocated_bytes),
        "peak_reserved_gib": _gib(forecast.peak_reserved_bytes),
        "total_gib": _gib(forecast.total_bytes),
        "low_gib": _gib(forecast.low_bytes),
        "high_gib": _gib(forecast.high_bytes),
        "verdict": result.verdict(forecast),
        "terms": {term.name: _gib(term.size_bytes) for term in forecast.terms if term.at_peak},
    }


def as_text(result: Fit) -> str:
    """The breakdown of one setting, or the grid and the largest setting that fits."""
    if len(result.forecasts) == 1:
        return _breakdown(result, result.forecasts[0][2])
    batches = list(dict.fromkeys(batch for batch, _, _ in result.forecasts))
    lengths = list(dict.fromkeys(length for _, length, _ in result.forecasts))
    cells = {(batch, length): forecast for batch, length, forecast in result.forecasts}
    lines = [_headline(result), "", "max-seq-length  " + "".join(f"{f'batch {batch}':>22}" for batch in batches)]
    for length in lengths:
        row = "".join(f"{_cell(result, cells[batch, length]):>22}" for batch in batches)
        lines.append(f"{length:>14}  {row}")
    largest = (
        "none" if result.largest is None else f"--batch-size {result.largest[0]} --max-seq-length {result.largest[1]}"
    )
    return "\n".join([*lines, "", f"largest that fits: {largest}", ""])


def _cell(result: Fit, forecast: Forecast) -> str:
    return f"{forecast.total_bytes / GIB:.2f} {result.verdict(forecast)}"


def _headline(result: Fit) -> str:
    work = result.forecasts[0][2].workload
    bits = "4-bit" if work.use_4bit else "16-bit"
    targets = ",".join(work.target_modules)
    return (
        f"{result.model}, trainer {work.trainer}, {bits}, LoRA r {work.lora_r} on {targets}; "
        f"card {result.vram_bytes / GIB:.2f} GiB; figures in GiB, the whole process"
        + (f"\n{result.basis}" if result.basis else "")
    )


def _breakdown(result: Fit, forecast: Forecast) -> str:
    work = forecast.workload
    way = f"recompute {'on' if work.recompute else 'off'}, {work.rows} rows of {work.width} tokens a forward"
    lines = [_headline(result), way, ""]
    for term in forecast.terms:
        note = "" if term.at_peak else "  (not at the peak)"
        lines.append(f"{term.name:<44}{term.size_bytes / GIB:>8.3f}{note}")
    lines += ["", f"{'peak allocated':<44}{forecast.peak_allocated_bytes / GIB:>8.2f}"]
    lines += [f"{'peak reserved':<44}{forecast.peak_reserved_bytes / GIB:>8.2f}"]
    span = f"({forecast.low_bytes / GIB:.2f} to {forecast.high_bytes / GIB:.2f})"
    lines += [f"{'whole process':<44}{forecast.total_bytes / GIB:>8.2f}  {span}", "", result.verdict(forecast), ""]
    return "\n".join(lines)


def _gib(size_bytes: float) -> float:
    return round(size_bytes / GIB, 4)
