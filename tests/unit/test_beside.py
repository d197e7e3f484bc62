"""What runs beside H-2, where it can't run or ends badly: a finding or a line, and never an exception."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import record_factory as factory
from scripted_training import BASE, DRIFT, LARGE, OOM, SMALL, ScriptedTraining
from steph.conduct import calibrate, deep
from steph.conduct.calibrate import calibrate as run_calibration
from steph.conduct.course import Course
from steph.conduct.deep import deep_checks
from steph.conduct.stage_run import MIN_ATTEMPT_SECONDS
from steph.record import Attempt, Check, Device, Diagnosis, ModelChoice, Probe, StageId, TrainSettings
from steph.run.inputs import InputError
from steph.run.journal import Journal, JournalError
from steph.run.runner import RunnerError
from suite_runs import lengthen_rows, make_model

GIB = 2**30
LOSS_FLAGS = ("--max-steps-override", "--loss-on-output-only")


@dataclass
class Beside:
    """In place of `train_beside`: notes the label, then raises or ends as scripted for it, else well at 4 GiB."""

    scripted: Mapping[str, Exception | Diagnosis | int] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)

    def __call__(
        self, course: Course, model: ModelChoice, settings: TrainSettings, *, label: str, **options: object
    ) -> Attempt:
        self.labels.append(label)
        self.options.append(options)
        end = self.scripted.get(label, 4 * GIB)
        if isinstance(end, Exception):
            raise end
        attempt = factory.trained(len(self.labels), settings)
        if isinstance(end, Diagnosis):
            return attempt.model_copy(update={"returncode": 1, "diagnosis": end, "probes": ()})
        return attempt.model_copy(update={"probes": (Probe(pid=1, peak_allocated_bytes=end),)})


def _deep(
    folder: Path, monkeypatch: pytest.MonkeyPatch, beside: Beside, card: Device | None = None
) -> dict[str, Check]:
    """The deep checks of a script without a flag for the loss, so that the pair of trap 5 comes first."""
    monkeypatch.setattr(deep, "train_beside", beside)
    stage = ScriptedTraining(folder, card=card)
    return {check.id: check for check in deep_checks(stage.course, SMALL, BASE)}


@pytest.mark.parametrize(
    ("without", "holds"), [(6 * GIB, True), (4 * GIB, False), (OOM, True), (DRIFT, None), (RunnerError("gone"), None)]
)
def test_4bit_is_held_against_the_same_step_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: Exception | Diagnosis | int, holds: bool | None
) -> None:
    """On a card: more memory without it, or no room for that at all, shows that 4-bit is on; else nothing is shown."""
    beside = Beside({"deep 512/b2/bf16 1ステップ": without})
    found = _deep(tmp_path, monkeypatch, beside, card=factory.device())
    assert beside.labels[:2] == ["deep 512/b2/4bit 1ステップ", "deep 512/b2/bf16 1ステップ"]
    assert found["four_bit_as_asked"].holds is holds
    complete = found["deep_runs_complete"]
    assert complete.holds is (holds is not None)
    if holds is None:
        assert "deep 512/b2/bf16 1ステップ" in complete.message


def test_a_trainer_that_chooses_how_it_runs_is_held_to_one_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What 4-bit saves may be spent on speed: both of the pair recompute and fuse nothing, where that can be asked."""
    beside = Beside()
    monkeypatch.setattr(deep, "train_beside", beside)
    flags = ("--max-steps-override", "--gradient-checkpointing", "--fuse-accumulation")
    stage = ScriptedTraining(tmp_path, card=factory.device(), flags=flags)
    list(deep_checks(stage.course, SMALL, BASE))
    asked = ("--gradient-checkpointing", "on", "--fuse-accumulation", "off")
    assert [options["flags"] for options in beside.options[:2]] == [asked, asked]


def test_running_out_without_4bit_shows_nothing_where_4bit_failed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An OOM on both sides is no sign that 4-bit saves anything."""
    beside = Beside({"deep 512/b2/bf16 1ステップ": OOM, "deep 512/b2/4bit 1ステップ": DRIFT})
    found = _deep(tmp_path, monkeypatch, beside, card=factory.device())
    assert found["four_bit_as_asked"].holds is None


def test_a_script_without_the_flag_is_not_asked_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 9 can't be measured there, and no attempt carries the flag."""
    beside = Beside()
    assert _deep(tmp_path, monkeypatch, beside)["loss_flag_works"].holds is None
    assert not any(options.get("flags") for options in beside.options)


@pytest.mark.parametrize("error", [InputError("no rows"), OSError("no disk"), RunnerError("no child")])
def test_a_deep_attempt_that_cannot_run_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Whatever keeps it from running is told with the attempt's label, and the others still run."""
    beside = Beside({"deep 512/b2/4bit 5ステップ": error})
    complete = _deep(tmp_path, monkeypatch, beside)["deep_runs_complete"]
    assert complete.holds is False
    assert f"deep 512/b2/4bit 5ステップ({error})" in complete.message
    assert beside.labels[-1] == "deep 1024/b2/4bit 5ステップ"


def test_deep_attempts_end_with_the_stages_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With too little left none is begun, and each is named as missing."""
    beside = Beside()
    monkeypatch.setattr(deep, "train_beside", beside)
    stage = ScriptedTraining(tmp_path, flags=LOSS_FLAGS)
    stage.leave(monkeypatch, MIN_ATTEMPT_SECONDS - 0.1)
    complete = list(deep_checks(stage.course, SMALL, BASE))[-1]
    assert (beside.labels, complete.holds) == ([], False)
    assert complete.message.count("(制限時間)") == 4


@pytest.mark.parametrize("broken", [False, True])
def test_rows_that_cannot_be_counted_leave_padding_to_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    """A tokenizer newer than the suite's library, or none: the length is H-2's own; else one that cuts no row."""
    folder = make_model(tmp_path / "model")
    if broken:
        (folder / "tokenizer.json").write_text('{"version": "9.0", "model": {"type": "Unheard of"}}')
    monkeypatch.setattr(deep, "train_beside", Beside())
    stage = ScriptedTraining(tmp_path)
    lengthen_rows(stage.setup.root, 2000)
    model = SMALL.model_copy(update={"snapshot_path": str(folder)})
    padding = next(check for check in deep_checks(stage.course, model, BASE) if check.id == "no_max_padding")
    assert padding.holds is True
    assert padding.message.startswith("max-seq-length 512 → 1024" if broken else "max-seq-length 2064 → 4128")


def _calibrated(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    beside: Beside,
    settings: TrainSettings = BASE,
    prepare: Callable[[ScriptedTraining], None] = lambda stage: None,
) -> ScriptedTraining:
    monkeypatch.setattr(calibrate, "train_beside", beside)
    stage = ScriptedTraining(folder)
    prepare(stage)
    run_calibration(stage.course, LARGE, settings)
    return stage


def test_a_length_that_cannot_be_halved_is_not_calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record says why nothing was run."""
    beside = Beside()
    stage = _calibrated(tmp_path, monkeypatch, beside, BASE.model_copy(update={"max_seq_length": 16}))
    (skipped,) = stage.recorded.skipped_rungs
    assert (beside.labels, skipped.reason) == ([], "これより短くできる長さがない")
    assert skipped.label.startswith("calibrate 16/b2/4bit")


def test_no_time_left_is_not_calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H-2's budget is what it runs in."""

    def spend(stage: ScriptedTraining) -> None:
        stage.leave(monkeypatch, MIN_ATTEMPT_SECONDS - 0.1)

    beside = Beside()
    stage = _calibrated(tmp_path, monkeypatch, beside, prepare=spend)
    assert beside.labels == []
    assert stage.recorded.skipped_rungs[0].reason == "H-2の制限時間の残りがない"


@pytest.mark.parametrize("error", [InputError("no rows"), OSError("no disk"), RunnerError("no child")])
def test_a_calibration_that_cannot_run_is_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It raises nothing: H-2's verdict is written already."""
    beside = Beside({"calibrate 256/b2/4bit 5ステップ": error})
    stage = _calibrated(tmp_path, monkeypatch, beside)
    (skipped,) = stage.recorded.skipped_rungs
    assert skipped.reason == f"動かせない: {error}"
    assert stage.said[-1].endswith(f"動かせない: {error}\n")


@pytest.mark.parametrize("lost_in", ["attempt", "note"])
def test_a_journal_without_room_ends_the_calibration_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost_in: str
) -> None:
    """Neither the attempt nor the note of its absence can be written: said on the terminal, nothing raised."""
    full = JournalError("events.jsonl: No space left on device")

    def refuse(journal: Journal, event: object) -> None:
        raise full

    def prepare(stage: ScriptedTraining) -> None:
        if lost_in == "note":
            monkeypatch.setattr(Journal, "append", refuse)

    ends = {"calibrate 256/b2/4bit 5ステップ": full if lost_in == "attempt" else RunnerError("no child")}
    stage = _calibrated(tmp_path, monkeypatch, Beside(ends), prepare=prepare)
    assert "No space left on device" in stage.said[-1]
    assert stage.recorded.stage is StageId.H2


def test_rows_that_cannot_be_read_leave_the_length_to_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the asked length is trained where no tokenizer tells how long the rows are; nothing is said of them."""
    folder = make_model(tmp_path / "model")
    (folder / "tokenizer.json").write_text('{"version": "9.0", "model": {"type": "Unheard of"}}')
    beside = Beside()
    monkeypatch.setattr(calibrate, "train_beside", beside)
    stage = ScriptedTraining(tmp_path)
    run_calibration(stage.course, LARGE.model_copy(update={"snapshot_path": str(folder)}), BASE)
    assert beside.labels == ["calibrate 256/b2/4bit 5ステップ"]
    assert beside.options[0]["rows"] is None
