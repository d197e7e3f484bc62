"""Pictures show what the record and the samples hold, and never cost the report."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from datetime import datetime
from pathlib import Path

import pytest
import record_factory as factory
from steph.tell import figures
from steph.tell.figures import VramSample, loss_svg, vram_svg, write_figures

START = datetime.fromisoformat("2026-11-20T01:03:00+00:00").timestamp()
SAMPLES = [VramSample(START + second, second * 1024**2) for second in range(300)]


def test_the_loss_picture_is_svg_without_background_and_without_a_date() -> None:
    """The same record gives the same bytes, with no white page behind and no font needed."""
    first = loss_svg(factory.green_acceptance())
    assert first is not None
    assert first == loss_svg(factory.green_acceptance())
    assert ElementTree.fromstring(first).tag.endswith("svg")  # noqa: S314 - made by this test
    assert "<text" not in first
    assert "#ffffff" not in first


def test_there_is_no_picture_without_data() -> None:
    """A record without losses and a run without samples have nothing to draw."""
    assert loss_svg(factory.crashed()) is None
    assert vram_svg(factory.green_acceptance(), []) is None


def test_the_memory_picture_grows_with_attempts_and_keeps_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many samples are thinned to their local maxima, so that a short peak stays."""
    monkeypatch.setattr(figures, "MOST_POINTS", 10)
    spike = [*SAMPLES[:150], VramSample(START + 150, 9 * 1024**3), *SAMPLES[151:]]
    thinned = figures._thinned(spike)
    assert len(thinned) == 10
    assert max(sample.used_bytes for sample in thinned) == 9 * 1024**3
    assert vram_svg(factory.walked_down(), spike) is not None


def test_names_with_math_and_markup_do_not_break_a_picture(tmp_path: Path) -> None:
    """A record's odd id becomes a plain file name inside the folder."""
    record = factory.green_acceptance("../$x^{ 記録")
    written = write_figures(record, SAMPLES, tmp_path / "figures")
    assert set(written) == {"loss", "vram"}
    assert all(path.parent == tmp_path / "figures" for path in written.values())


def test_a_failing_picture_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When one drawing raises, the others are written and nothing is raised."""

    def broken(*_: object) -> str:
        raise RuntimeError("no font")

    monkeypatch.setattr(figures, "loss_svg", broken)
    assert set(write_figures(factory.green_acceptance(), SAMPLES, tmp_path)) == {"vram"}


def test_rendering_loads_no_matplotlib() -> None:
    """Text without pictures needs no plotting library."""
    program = (
        "import sys, record_factory as f; from steph.tell.report import render; import steph.tell.compare;"
        "render(f.crashed()); print(int('matplotlib' in sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": f"{root / 'plugins'}:{root / 'tests' / 'unit'}", "PATH": ""},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "0"
