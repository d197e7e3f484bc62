"""`steph compare FOLDER`: the records of many machines, one row each, outliers named."""

from __future__ import annotations

from pathlib import Path, PurePath

import pytest
import record_factory as factory
from steph.base.messages import LANGUAGES, Language, speaking
from steph.base.terms import StageId
from steph.record.settings import TrainSettings
from steph.record.values import Record
from steph.tell import compare
from test_cli import keep, steph
from test_compare import slower


def on(number: int, *, speed: float = 1.0, peak_gib: float = 6.0, card: str = "RTX 3080", run: str = "1") -> Record:
    """A green record of the machine with this number, with this share of the usual speed and this peak."""
    record = slower(factory.green_acceptance(f"2026112{run}-010000"), speed)
    device = factory.device(card).changed(uuid=f"GPU-{number}")
    environment = record.context.environment.model_copy(update={"device": device})
    h2 = record.stages[StageId.H2]
    peaks = factory.card_peaks(int((peak_gib + 0.4) * 2**30), int(peak_gib * 2**30))
    stage = h2.changed(attempts=(h2.attempts[-1].changed(device_peaks=peaks),))
    stages = {**record.stages, StageId.H2: stage}
    return record.changed(context=record.context.changed(environment=environment), stages=stages)


def rows(*records: Record, threshold: float = 0.1) -> dict[str, list[str]]:
    """The outliers of each machine, which has the number of its record for a name."""
    found = ((PurePath(f"node{at}/reports/runs/{record.id}"), record) for at, record in enumerate(records))
    with speaking("en"):
        return {row.name: list(map(str, row.outliers)) for row in compare.machines(found, threshold)}


def test_a_slower_and_a_fuller_machine_are_named() -> None:
    """Against the median of the others, in percent of it; the rest are not."""
    found = rows(on(0), on(1), on(2, speed=0.8), on(3, peak_gib=7.5), on(4, speed=1.5, peak_gib=4))
    assert found == {
        "node0": [], "node1": [], "node2": ["20% slower"], "node3": ["25% more GPU memory"], "node4": [],
    }  # fmt: skip


@pytest.mark.parametrize(("threshold", "is_one"), [(0.1, True), (0.3, False)])
def test_the_threshold_decides(threshold: float, is_one: bool) -> None:
    """A fifth slower is an outlier beyond a tenth, and none beyond three tenths."""
    assert bool(rows(on(0), on(1), on(2, speed=0.8), threshold=threshold)["node2"]) is is_one


@pytest.mark.parametrize(
    "other",
    [on(2, card="RTX 3090"), factory.walked_down(), factory.blocked()],
    ids=["another card", "other settings", "not green"],
)
def test_what_did_not_run_the_same_is_not_held_against(other: Record) -> None:
    """Of two machines that ran the same, neither can be told to be the odd one; a third one of another kind is none."""
    slow = rows(on(0), on(1, speed=0.5), other)
    assert (slow["node0"], slow["node1"], slow["node2"]) == ([], [], [])


def test_one_row_a_machine_is_its_newest_record() -> None:
    """A machine is known by its card; an older record of it, also under another folder, gives no row."""
    found = [(PurePath("a/runs/x"), on(0, run="1")), (PurePath("b/runs/y"), on(0, run="2"))]
    (row,) = compare.machines(found, 0.1)
    assert (row.name, row.record.id) == ("b", on(0, run="2").id)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_command_prints_a_row_a_machine_and_says_the_rule(tmp_path: Path, language: Language) -> None:
    """Exit status 1 with an outlier; both as columns and as Markdown, with threshold and unit."""
    for at, record in enumerate((on(0), on(1), on(2, speed=0.7))):
        keep(tmp_path / f"node{at}" / "reports", record)
    ended = steph("compare", tmp_path, "--language", language)
    assert ended.exit_code == 1
    lines = ended.output.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["node0", "node1", "node2"]
    assert "30%" in lines[3]
    assert "node2" in lines[-1]
    assert "10%" in lines[-1]
    shown = steph("compare", tmp_path, "--markdown", "--threshold", "0.5", "--language", language)
    assert shown.exit_code == 0
    assert "| node2 |" in shown.output
    assert "50%" in shown.output


def test_a_record_that_can_not_be_read_is_said_and_the_rest_is_compared(tmp_path: Path) -> None:
    """One line on stderr for it; where none can be read, that is the end."""
    keep(tmp_path / "node0", on(0))
    broken = tmp_path / "node1" / "runs" / "x"
    broken.mkdir(parents=True)
    (broken / "events.jsonl").write_text("{", encoding="utf-8")
    ended = steph("compare", tmp_path)
    assert ended.exit_code == 0
    assert str(broken) in ended.stderr
    assert len(ended.output.splitlines()) >= 3
    alone = steph("compare", tmp_path / "node1", "--language", "en")
    assert alone.exit_code == 2
    assert "none of its records can be read" in alone.stderr


def test_a_red_machine_is_named_and_gives_status_1(tmp_path: Path) -> None:
    """Whatever its speed."""
    keep(tmp_path / "a", on(0))
    keep(tmp_path / "b", factory.blocked())
    ended = steph("compare", tmp_path, "--language", "en")
    assert ended.exit_code == 1
    assert "Not passed: b." in ended.output


def test_settings_are_what_h2_ended_on() -> None:
    """A machine that had to step down is shown with that, and stays out of the others' median."""
    found = compare.machines([(PurePath("a/runs/x"), factory.walked_down())], 0.1)
    assert found[0].ran[2] == TrainSettings(max_seq_length=256, batch_size=1).short()
