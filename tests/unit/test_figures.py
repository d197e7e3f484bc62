"""Pictures show what the record and the samples hold, and never cost the report."""

from __future__ import annotations

import html
import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pytest
import record_factory as factory
from matplotlib.textpath import TextPath
from record_factory import render
from steph.base.messages import LANGUAGES, Language, Message, speaking
from steph.base.terms import StageId
from steph.record.settings import TrainSettings
from steph.record.values import Record
from steph.run.runner import NAME, read_samples
from steph.tell import drawings
from steph.tell.drawings import VramSample, loss_svg, plain, vram_svg, vram_words, write_figures

GIB = 1024**3
START = datetime.fromisoformat("2026-11-20T01:03:00+00:00").timestamp()
SAMPLES = [VramSample(START + second, second * 1024**2) for second in range(300)]

DRAWERS: dict[str, Callable[[], str | None]] = {
    "loss": lambda: loss_svg(factory.green_acceptance()),
    "vram": lambda: vram_svg(factory.walked_down(), SAMPLES),
}


@pytest.mark.parametrize("name", DRAWERS)
def test_a_picture_is_svg_without_background_or_date(name: str) -> None:
    """The same data give the same bytes, with no white page behind and words that are text."""
    first = DRAWERS[name]()
    assert first is not None
    assert first == DRAWERS[name]()
    assert ElementTree.fromstring(first).tag.endswith("svg")  # noqa: S314 - made by this test
    assert "<text" in first
    assert "<dc:date>" not in first
    assert not re.search(r"fill: ?(#fff(fff)?\b|white)", first)


def test_there_is_no_picture_without_data() -> None:
    """Without losses or samples there is nothing to draw."""
    assert loss_svg(factory.crashed()) is None
    assert vram_svg(factory.green_acceptance(), []) is None
    assert vram_svg(factory.green_acceptance(), [VramSample(START + 9e6 + n, GIB) for n in range(9)]) is None


def words_in(svg: str | None) -> str:
    """Give all words that a picture draws."""
    return " ".join(html.unescape(word) for word in re.findall(r"<text[^>]*>([^<]*)</text>", svg or ""))


def test_the_memory_picture_names_attempts_and_outcomes() -> None:
    """Each attempt that is wide enough has stage, setting and outcome; the card's capacity is drawn."""
    words = words_in(vram_svg(factory.walked_down(), SAMPLES))
    for said in ("H-2 #1", "512/b2/4bit", "OOM", "256/b1/4bit", "成功", "カード: 10.11 GiB"):
        assert said in words
    assert "H-2 試行 1(512/b2/4bit) 9.33 GiB" in vram_words(factory.walked_down())


@pytest.mark.parametrize("name", DRAWERS)
def test_a_pictures_words_are_the_reports_language(name: str) -> None:
    """Every word of it; the English one has no letter of the other, but for the record's own labels."""
    japanese = words_in(DRAWERS[name]())
    with speaking("en"):
        english = words_in(DRAWERS[name]())
    assert re.search("[\u3040-\u30ff\u4e00-\u9fff]", japanese)
    assert not re.search("[\u3040-\u30ff\u4e00-\u9fff]", english)


class Box(NamedTuple):
    """Where words stand, in points from the picture's upper left."""

    words: str
    left: float
    right: float
    top: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two share more than an edge."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


def boxes(svg: str) -> list[Box]:
    """Give the place of every level text, measured with matplotlib's own font, wide letters as squares."""
    found = []
    for style, place, words in re.findall(r'<text style="([^"]*)"([^>]*)>([^<]*)</text>', svg):
        if "rotate(-90" in place:
            continue
        size = float(re.findall(r"font-size: ([\d.]+)px", style)[0])
        x, y = re.findall(r"(?:translate\(|rotate\(\S+ )([\d.]+) ([\d.]+)\)", place)[0]
        narrow = "".join(letter for letter in html.unescape(words) if letter < "\u3000")
        width = (len(words) - len(narrow)) * size
        if narrow.strip():
            width += TextPath((0, 0), narrow, size=size).get_extents().width
        anchor = re.findall("text-anchor: (middle|end)", style)
        left = float(x) - width * {"middle": 0.5, "end": 1.0}.get("".join(anchor), 0.0)
        found.append(Box(words, left, left + width, float(y) - 0.75 * size, float(y) + 0.22 * size))
    return found


def many_attempts(count: int, peak_gib: float, cap_bytes: int | None) -> tuple[Record, list[VramSample]]:
    """A record of so many trainings, each of 40 s, all but the last out of memory, and its samples."""
    attempts = []
    for number in range(1, count + 1):
        settings = TrainSettings(max_seq_length=1024 - number)
        made = (factory.trained if number == count else factory.out_of_memory)(number, settings)
        started = datetime.fromtimestamp(START + 50 * number, UTC).isoformat()
        attempts.append(made.changed(started_at=started, seconds=40.0))
    record = factory.out_of_memory_everywhere()
    stages = {**record.stages, StageId.H2: factory.stage_h2(attempts)}
    context = record.context.changed(vram_cap_bytes=cap_bytes)
    samples = [VramSample(START + 50 + second, int(peak_gib * GIB)) for second in range(50 * count)]
    return record.changed(stages=stages, context=context), samples


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("count", [3, 10, 40])
@pytest.mark.parametrize(("peak_gib", "cap_bytes"), [(9.0, None), (2.9, 3 * GIB), (0.5, 3 * GIB), (12.0, None)])
def test_no_words_of_the_memory_picture_overlap(
    language: Language, count: int, peak_gib: float, cap_bytes: int | None
) -> None:
    """Few attempts or many, a full card or an empty one, under a cap or not: all words are inside and apart."""
    with speaking(language):
        svg = vram_svg(*many_attempts(count, peak_gib, cap_bytes)) or ""
    found = boxes(svg)
    assert [(one.words, other.words) for one, other in combinations(found, 2) if one.overlaps(other)] == []
    assert [box.words for box in found if box.left < 0 or box.right > 518.4 or box.top < 0 or box.bottom > 230.4] == []
    numbered = [box for box in found if "#" in box.words]
    assert len(numbered) == count if count <= 16 else len(numbered) <= count


def test_every_attempt_of_training_is_in_the_memory_picture() -> None:
    """Those at another length, too, and of an older record those of its deep checks."""
    record, samples = many_attempts(4, 9.0, None)
    h2 = record.stages[StageId.H2]
    apart = h2.changed(
        attempts=h2.attempts[:2],
        deep_attempts=(h2.attempts[2].changed(purpose="deep"),),
        calibration_attempts=(h2.attempts[3].changed(purpose="calibrate"),),
    )
    words = words_in(vram_svg(record.changed(stages={**record.stages, StageId.H2: apart}), samples))
    assert all(f"H-2 #{number}" in words for number in (1, 2, 3, 4))


def test_a_stage_run_again_next_day_does_not_stretch_the_axis() -> None:
    """Attempts keep their length, a day between two takes seconds on the axis, and the order stays."""
    clock = drawings._Clock([(0.0, 10.0), (86_400.0, 90_000.0), (89_990.0, 90_005.0)])
    moments = (-5.0, 0.0, 4.0, 10.0, 11.0, 40_000.0, 86_400.0, 88_000.0, 90_000.0, 90_005.0, 99_999.0)
    places = [clock.shown(moment) for moment in moments]
    assert places == sorted(places)
    assert places[2:5] == [4.0, 10.0, 11.0]
    assert places[6:8] == [15.0, 1615.0]
    assert places[-1] == clock.total_seconds == 10 + 5 + 3600 + 5


def test_the_memory_picture_thins_samples_and_keeps_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many samples are thinned to their local maxima, so that a short peak stays."""
    monkeypatch.setattr(drawings, "MOST_POINTS", 10)
    spike = [*SAMPLES[:150], VramSample(START + 150, 9 * GIB), *SAMPLES[151:]]
    thinned = drawings._thinned(spike)
    assert len(thinned) == 10
    assert max(sample.used_bytes for sample in thinned) == 9 * GIB


def test_any_letters_of_a_label_are_drawn_as_they_are(tmp_path: Path) -> None:
    """Japanese, emoji and what looks like markup; matplotlib's missing glyphs are no warning, control codes go."""
    record = factory.walked_down()
    h2 = record.stages[StageId.H2]
    label = Message(id="verbatim", values={"text": "設定 $x^{ 🟡\n\\frac"})
    attempts = tuple(attempt.changed(label=label) for attempt in h2.attempts)
    odd = record.changed(stages=record.stages | {StageId.H2: h2.changed(attempts=attempts)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = write_figures(odd, SAMPLES, tmp_path)
    assert set(written) == {"loss", "vram"}
    assert "(設定 $x^{ 🟡\\frac)" in words_in(written["loss"].read_text(encoding="utf-8"))
    assert plain("3問/4bit\n\x1b $é") == r"3問/4bit \$é"


def test_an_odd_record_id_stays_inside_the_folder(tmp_path: Path) -> None:
    """A record's id with a path in it becomes a plain file name."""
    written = write_figures(factory.green_acceptance("../$x^{ 記録"), SAMPLES, tmp_path / "figures")
    assert set(written) == {"loss", "vram"}
    assert all(path.parent == (tmp_path / "figures").resolve() for path in written.values())


def test_a_failing_picture_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When one drawing raises, or matplotlib is not there, the others are written and nothing is raised."""

    def broken(*_: object) -> str:
        raise ImportError("no matplotlib")

    monkeypatch.setattr(drawings, "loss_svg", broken)
    assert set(write_figures(factory.green_acceptance(), SAMPLES, tmp_path)) == {"vram"}


def test_few_losses_stand_in_a_table_too() -> None:
    """The losses can be read as numbers, folded; a long run's are left to the picture and the record."""
    said = render(factory.green_acceptance())
    assert said.count("損失の数値(35 点)") == 1
    assert len(re.findall(r"(?m)^\| \d+ \| [\d.]+ \|$", said)) == 35
    assert "損失の数値" not in render(factory.crashed())


def test_rendering_loads_no_matplotlib() -> None:
    """Text without pictures needs no plotting library."""
    program = (
        "import sys, record_factory as f; import steph.tell.compare;"
        "f.render(f.crashed()); print(int('matplotlib' in sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": f"{root / 'plugins'}:{root / 'tests' / 'unit'}", "PATH": ""},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "0"


def test_samples_that_can_not_be_read_cost_no_report(tmp_path: Path) -> None:
    """A folder in a sample file's place, broken lines and moments that are no numbers are passed over."""
    (tmp_path / "H-2-1" / NAME).mkdir(parents=True)
    (tmp_path / "H-2-2").mkdir()
    (tmp_path / "H-2-2" / NAME).write_text("2.5 20\nnan 5\ninf 5\n1.5 10\nbroken\n3.5 x\n", encoding="ascii")
    assert read_samples(tmp_path) == [(1.5, 10), (2.5, 20)]
