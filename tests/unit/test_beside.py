"""A calibration that can't run or ends badly: a line or an event of the record, and H-2's verdict stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import record_factory as factory
from scripted_training import BASE, LARGE, ScriptedTraining, on_disk
from steph.base.messages import Message, verbatim
from steph.base.terms import StageId, Verdict
from steph.conduct import training
from steph.conduct.jobs import TrainingJob
from steph.conduct.preparation import MIN_ATTEMPT_SECONDS
from steph.conduct.stages import Conductor
from steph.conduct.training import calibrate as run_calibration
from steph.record.events import AttemptEnded, ModelChosen, StageEnded, StageStarted
from steph.record.settings import TrainSettings
from steph.record.values import Attempt, Diagnosis, ModelChoice, Probe
from steph.run.inputs import InputError
from steph.run.journal import Journal, JournalError
from steph.run.runner import RunnerError
from suite_runs import make_model

GIB = 2**30


@dataclass
class Beside:
    """In place of `train_beside`: notes the label, then raises or ends as scripted for it, else well at 4 GiB."""

    scripted: Mapping[str, Exception | Diagnosis | int] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)

    def __call__(
        self, job: TrainingJob, model: ModelChoice, settings: TrainSettings, *, label: Message, **options: object
    ) -> Attempt:
        self.labels.append(str(label))
        self.options.append(options)
        end = self.scripted.get(str(label), 4 * GIB)
        if isinstance(end, Exception):
            raise end
        attempt = factory.trained(len(self.labels), settings)
        if isinstance(end, Diagnosis):
            return attempt.model_copy(update={"returncode": 1, "diagnosis": end, "probes": ()})
        return attempt.model_copy(update={"probes": (Probe(pid=1, peak_allocated_bytes=end),)})


def _calibrated(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    beside: Beside,
    settings: TrainSettings = BASE,
    prepare: Callable[[ScriptedTraining], None] = lambda stage: None,
) -> ScriptedTraining:
    monkeypatch.setattr(training, "train_beside", beside)
    stage = ScriptedTraining(folder)
    prepare(stage)
    run_calibration(stage.job, LARGE, settings)
    return stage


def test_a_length_that_cannot_be_halved_is_not_calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record says why nothing was run."""
    beside = Beside()
    stage = _calibrated(tmp_path, monkeypatch, beside, BASE.model_copy(update={"max_seq_length": 16}))
    (skipped,) = stage.recorded.skipped_rungs
    assert (beside.labels, str(skipped.reason)) == ([], "これより短くできる長さがない")
    assert str(skipped.label) == "メモリの校正 16/b2/4bit 5 ステップ"


def test_no_time_left_is_not_calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H-2's budget is what it runs in."""

    def spend(stage: ScriptedTraining) -> None:
        stage.leave(monkeypatch, MIN_ATTEMPT_SECONDS - 0.1)

    beside = Beside()
    stage = _calibrated(tmp_path, monkeypatch, beside, prepare=spend)
    assert beside.labels == []
    assert str(stage.recorded.skipped_rungs[0].reason) == "H-2の制限時間の残りがない"


@pytest.mark.parametrize("error", [InputError("no rows"), OSError("no disk"), RunnerError("no child")])
def test_a_calibration_that_cannot_run_is_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It raises nothing: H-2's verdict is written already."""
    beside = Beside({"メモリの校正 256/b2/4bit 5 ステップ": error})
    stage = _calibrated(tmp_path, monkeypatch, beside)
    (skipped,) = stage.recorded.skipped_rungs
    assert str(skipped.reason) == f"動かせない: {error}"
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

    ends = {"メモリの校正 256/b2/4bit 5 ステップ": full if lost_in == "attempt" else RunnerError("no child")}
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
    monkeypatch.setattr(training, "train_beside", beside)
    stage = ScriptedTraining(tmp_path)
    run_calibration(stage.job, LARGE.model_copy(update={"snapshot_path": str(folder)}), BASE)
    assert beside.labels == ["メモリの校正 256/b2/4bit 5 ステップ"]
    assert beside.options[0]["rows"] is None


class Kill(KeyboardInterrupt):
    """What ends a run in the middle."""


def _conducted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, then: BaseException
) -> tuple[ScriptedTraining, Conductor]:
    """H-1 has passed; H-2's own attempt will end well, and the calibration after it ends with `then`."""
    stage = ScriptedTraining(folder)
    journal, options = stage.journal, replace(stage.setup.options, calibrate=True)

    def attempt(*request: Any) -> Attempt:  # noqa: ANN401 - those of run_attempt
        ended = stage.attempt(*request)
        journal.append(AttemptEnded(at="", attempt=ended))
        return ended

    def calibration(*asked: object, **options: object) -> Attempt:
        raise then

    monkeypatch.setattr(training, "run_attempt", attempt)
    monkeypatch.setattr(training, "train_beside", calibration)
    journal.append(StageStarted(at="", stage=StageId.H1))
    journal.append(ModelChosen(at="", stage=StageId.H1, model=on_disk(folder / "model")))
    journal.append(StageEnded(at="", stage=StageId.H1, verdict=Verdict.PASS, explanation=verbatim(""), seconds=1))
    return stage, Conductor(replace(stage.setup, options=options), journal, stage.run.console, lambda _: None)


def test_an_interrupt_while_calibrating_costs_h2_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H-2 has ended before the calibration begins."""
    stage, conductor = _conducted(tmp_path, monkeypatch, Kill())
    with pytest.raises(Kill):
        conductor.run(StageId.H2, 60)
    h2 = stage.recorded
    assert (h2.verdict, h2.ended_at is None) == (Verdict.PASS, False)
    assert [check.id for check in h2.checks] == ["ok"]


def test_a_disk_that_takes_no_more_ends_the_calibration_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H-2 keeps the PASS that is on the disk, and its test does not fail."""
    stage, conductor = _conducted(tmp_path, monkeypatch, JournalError("events.jsonl: No space left on device"))
    assert conductor.run(StageId.H2, 60).verdict is Verdict.PASS
    assert [line.split(":")[0] for line in stage.said if "No space" in line] == ["H-2 events.jsonl"]
