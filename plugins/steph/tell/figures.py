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
    drawers: Mapping[str, Callable[[], str | None]] = {
        "loss": lambda: drawings.loss_svg(record),
        "vram": lambda: drawings.vram_svg(record, samples),
    }
    written = {}
    stem = re.sub(r"[^0-9A-Za-z_-]", "_", record.id)
    for name, draw in drawers.items():
        try:
            svg = draw()
            if svg is not None:
                written[name] = _write(folder / f"{stem}-{name}.svg", svg)
        except Exception as error:
            _log.warning("the %s picture could not be made: %s: %s", name, type(error).__name__, error)
    return written


def _write(path: Path, svg: str) -> Path:
    return place.renew(path, lambda _: svg.encode())
