"""`steph fit`: says whether a fine-tuning run fits a card, without a GPU, a download or torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steph.contract.answers import RowLengths, row_lengths
from steph.memory.forecast import Forecast, largest_fitting, predict
from steph.memory.shapes import TINY, ModelShape, linear_shapes
from steph.memory.trainers import TRAINERS, Workload

ALL_LINEAR = tuple(linear_shapes(TINY))
GRID_BATCHES = (1, 2, 4, 8)
GRID_LENGTHS = (256, 384, 512, 768, 1024, 1536, 2048)


class FitError(ValueError):
    """The question can't be answered; the message is one line that names the option and the value."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Forecasts by (batch size, max_seq_length) on one card, and the largest of them that surely fits."""

    model: str
    vram_bytes: int
    forecasts: dict[tuple[int, int], Forecast]
    largest: tuple[int, int] | None


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
    return Fit(model, vram_bytes, forecasts, largest_fitting(forecasts, vram_bytes))
