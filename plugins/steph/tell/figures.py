"""The report's pictures on disk: what `drawings` draws, as SVG files beside the report.

A picture that fails, for want of matplotlib or through odd data, costs itself alone and never the report.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from steph.record.values import Record
from steph.tell import drawings, place
from steph.tell.drawings import VramSample

_log = logging.getLogger(__name__)


def write_figures(record: Record, samples: Sequence[VramSample], folder: Path) -> dict[str, Path]:
    """Write the pictures that there is data for; give their paths by name (`loss`, `vram`)."""
    stem = re.sub(r"[^0-9A-Za-z_-]", "_", record.id)
    written = {}
    for name, svg in draw(record, samples).items():
        try:
            written[name] = _write(folder / f"{stem}-{name}.svg", svg)
        except Exception as error:
            _say(name, error)
    return written


def draw(record: Record, samples: Sequence[VramSample]) -> dict[str, str]:
    """Give the pictures that there is data for, as SVG texts by name (`loss`, `vram`)."""
    drawers: Mapping[str, Callable[[], str | None]] = {
        "loss": lambda: drawings.loss_svg(record),
        "vram": lambda: drawings.vram_svg(record, samples),
    }
    drawn = {}
    for name, drawer in drawers.items():
        try:
            svg = drawer()
        except Exception as error:
            _say(name, error)
        else:
            if svg is not None:
                drawn[name] = svg
    return drawn


def _write(path: Path, svg: str) -> Path:
    return place.renew(path, lambda _: svg.encode())


def _say(name: str, error: Exception) -> None:
    _log.warning("the %s picture could not be made: %s: %s", name, type(error).__name__, error)
