"""`--steph-deep`: pairs of short trainings that differ in one flag, judged, and kept away from the verdict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import record_factory as factory
from scripted_training import ScriptedTraining, on_disk
from steph.conduct import calibrate, deep, training
from steph.conduct.course import Course
from steph.conduct.stages import Conductor
from steph.judge.checks_deep import four_bit_check, loss_flag_check, padding_check
from steph.judge.verdict import checks_verdict
from steph.record import Attempt, Check, Probe, Severity, StageId, StageResult, TrainOutcome, TrainSettings, Verdict
from steph.run.events import (
    AttemptEnded,
    AttemptStarted,
    ChecksAdded,
    ModelChosen,
    RecordOpened,
    StageEnded,
    StageStarted,
    fold,
)
from steph.run.journal import JournalError, stages_in_flight
from suite_runs import make_bench

H1, H2, H3 = StageId
DEEP = ("--steph-deep",)
STEP_SECONDS = 0.03
GIB = 2**30


def _checks(result: StageResult) -> dict[str, Check]:
    return {check.id: check for check in result.checks}


def test_a_sound_pipeline_passes_the_deep_checks_and_keeps_its_adapter(tmp_path: Path) -> None:
    """The flag changes the loss, a step at 1024 takes no longer than at 512, and H-3 evaluates what H-2 trained."""
    bench = make_bench(tmp_path, step_seconds=STEP_SECONDS)
    status, output = bench.run(options=DEEP)
    assert status == 0, output
    record = bench.record()
    h2 = record.stages[H2]
    assert [record.verdict_of(stage) for stage in StageId] == [Verdict.PASS] * 3
    assert {"loss_flag_works", "no_max_padding", "deep_runs_complete"} <= h2.held
    four_bit = _checks(h2)["four_bit_as_asked"]
    assert (four_bit.holds, four_bit.severity) == (None, Severity.INFO)
    assert [attempt.purpose for attempt in h2.attempts] == ["stage"]
    assert h2.last_attempt is not None
    assert h2.last_attempt.label == "512/b2/4bit"
    assert [attempt.label for attempt in h2.deep_attempts] == [
        "deep 512/b2/4bit 1ステップ",
        "deep 512/b2/4bit 1ステップ --loss-on-output-only",
        "deep 512/b2/4bit 5ステップ",
        "deep 1024/b2/4bit 5ステップ",
    ]
    folder = bench.reports / "runs" / record.id / h2.deep_attempts[0].folder
    assert len(list(folder.glob("*-deep/adapter_model.safetensors"))) == 1
    assert not list(bench.root.glob("runs/*/*-deep"))
    assert "deep 1024/b2/4bit 5ステップ" in bench.report()


@pytest.mark.parametrize(
    ("knobs", "broken", "severity"),
    [
        ({"train": "output_only_ignored"}, "loss_flag_works", Severity.WARN),
        ({"train": "pads_to_max"}, "no_max_padding", Severity.INFO),
        ({"train": "exit_one", "fails_within": 1}, "deep_runs_complete", Severity.WARN),
    ],
    ids=["trap 9", "trap 11", "a deep attempt fails"],
)
def test_a_planted_trap_is_found_and_never_turns_a_pass_into_a_failure(
    tmp_path: Path, knobs: dict[str, Any], broken: str, severity: Severity
) -> None:
    """An ignored flag, padding to the maximum and a failing deep attempt are findings; H-2 passes all the same."""
    bench = make_bench(tmp_path, step_seconds=STEP_SECONDS, **knobs)
    status, output = bench.run(H1, H2, options=DEEP)
    assert status == 0, output
    h2 = bench.record().stages[H2]
    assert h2.verdict is Verdict.PASS
    found = _checks(h2)[broken]
    assert (found.holds, found.severity) == (False, severity), found.message
    assert {check.id for check in h2.findings} == {broken}
    assert broken in bench.report()


def test_without_the_options_h2_has_its_own_attempts_alone(tmp_path: Path) -> None:
    """A plain run has no deep attempts, none of their checks, and trains at no other length."""
    bench = make_bench(tmp_path, train="output_only_ignored")
    assert bench.run(H1, H2)[0] == 0
    h2 = bench.record().stages[H2]
    assert (h2.deep_attempts, h2.calibration_attempts) == ((), ())
    assert "loss_flag_works" not in _checks(h2)


def _attempt(number: int = 1, **changes: Any) -> Attempt:  # noqa: ANN401 - any field
    return Attempt(stage=H2, number=number, label="x", folder=f"H-2-{number}", started_at="", **changes)


def _with_peak(torch_gib: float | None, nvml_gib: float | None = None) -> Attempt:
    probes = (Probe(pid=1), Probe(pid=2, peak_allocated_bytes=int(torch_gib * GIB))) if torch_gib else ()
    return _attempt(probes=probes, peak_own_bytes=int(nvml_gib * GIB) if nvml_gib else None)


@pytest.mark.parametrize(
    ("used", "full", "holds"),
    [
        (_with_peak(4.97), _with_peak(6.6), True),
        (_with_peak(4.97, 5.9), _with_peak(4.97, 5.9), False),
        (_with_peak(6.55), _with_peak(6.6), False),
        (_with_peak(None, 5.9), _with_peak(6.6, 7.4), True),
        (_with_peak(4.97), _with_peak(None, 7.4), None),
        (_with_peak(None), _with_peak(None), None),
        (None, _with_peak(6.6), None),
    ],
)
def test_four_bit_must_save_memory(used: Attempt | None, full: Attempt | None, holds: bool | None) -> None:
    """Equal peaks with and without the flag are a warning; peaks of two kinds are never held against each other."""
    check = four_bit_check(used, full)
    assert check.holds is holds
    assert check.severity is (Severity.INFO if holds is None else Severity.WARN)


def test_running_out_of_memory_without_four_bit_shows_that_the_flag_works() -> None:
    """Where only the run without 4-bit does not fit, 4-bit was on when asked and off when not."""
    assert four_bit_check(_with_peak(8.0), None, ran_out=True).holds is True


@pytest.mark.parametrize(
    ("with_flag", "without_flag", "holds"),
    [
        (2.3456, 2.3456, False),
        (2.34561, 2.34564, False),
        (0.9, 2.3, True),
        (None, 2.3, None),
        (float("nan"), 2.3, None),
    ],
)
def test_the_loss_flag_must_change_the_loss(with_flag: float | None, without_flag: float, holds: bool | None) -> None:
    """The same loss up to the digits that a Trainer logs is a finding; a loss that is no number says nothing."""
    assert loss_flag_check(with_flag, without_flag).holds is holds


def _stepping(seconds: float) -> Attempt:
    return _attempt(training=TrainOutcome(output_dir="x", step_seconds=(seconds, seconds, 9.0)))


@pytest.mark.parametrize(
    ("short", "long", "holds"), [(0.5, 1.0, False), (0.5, 0.6, True), (0.5, 0.74, True), (0.001, 0.002, None)]
)
@pytest.mark.parametrize("rows_fit", [True, False])
def test_padding_shows_in_the_step_time_at_twice_the_length(
    short: float, long: float, holds: bool | None, rows_fit: bool
) -> None:
    """Without a GPU double time for the same rows is padding; steps too short to time prove nothing."""
    assert padding_check(_stepping(short), _stepping(long), 512, rows_fit=rows_fit).holds is holds


@pytest.mark.parametrize(("peak_gib", "holds"), [(4.97, True), (5.21, True), (5.23, False), (6.91, False)])
def test_padding_shows_in_the_memory_of_the_same_rows(peak_gib: float, holds: bool) -> None:
    """A fast GPU hides it in the time: 1.38 times was measured for twice the tokens; the peak can't be hidden."""
    short, long = (
        _with_peak(peak).model_copy(update={"training": _stepping(seconds).training})
        for peak, seconds in ((4.97, 0.398), (peak_gib, 0.548))
    )
    assert padding_check(short, long, 776, rows_fit=True).holds is holds
    assert padding_check(short, long, 776, rows_fit=False).holds is True


def test_running_out_of_memory_at_twice_the_length_is_padding() -> None:
    """Rows that fit the shorter length need no more at the longer one; of rows nobody counted it proves nothing."""
    assert padding_check(_with_peak(5), _attempt(), 776, rows_fit=True, ran_out=True).holds is False
    assert padding_check(_with_peak(5), _attempt(), 776, rows_fit=False, ran_out=True).holds is None


def test_no_deep_finding_can_fail_a_stage() -> None:
    """Every deep check that does not hold leaves a stage with sound checks green."""
    found = (
        four_bit_check(_with_peak(5), _with_peak(5)),
        loss_flag_check(2.0, 2.0),
        padding_check(_stepping(1), _stepping(2), 512, rows_fit=True),
    )
    assert [check.holds for check in found] == [False] * 3
    assert checks_verdict((Check(id="x", severity=Severity.FAIL, holds=True, message=""), *found)) is None


class Kill(KeyboardInterrupt):
    """What ends a run in the middle."""


@dataclass
class Beside:
    """In place of `train_beside`: the first `soundly` trainings end well, then comes `then`."""

    soundly: int
    then: BaseException
    ran: int = 0

    def __call__(self, course: Course, model: object, settings: TrainSettings, **options: object) -> Attempt:
        self.ran += 1
        if self.ran > self.soundly:
            raise self.then
        return factory.trained(1 + self.ran, settings)


def _conducted(folder: Path, monkeypatch: pytest.MonkeyPatch, beside: Beside) -> tuple[ScriptedTraining, Conductor]:
    """H-1 has passed; H-2's own attempt will end well, and both options ask for more beside it."""
    stage = ScriptedTraining(folder)
    journal, options = stage.journal, replace(stage.setup.options, deep=True, calibrate=True)

    def attempt(*request: Any) -> Attempt:  # noqa: ANN401 - those of run_attempt
        ended = stage.attempt(*request)
        journal.append(AttemptEnded(at="", attempt=ended))
        return ended

    monkeypatch.setattr(training, "run_attempt", attempt)
    monkeypatch.setattr(deep, "train_beside", beside)
    monkeypatch.setattr(calibrate, "train_beside", beside)
    journal.append(StageStarted(at="", stage=H1))
    journal.append(ModelChosen(at="", stage=H1, model=on_disk(folder / "model")))
    journal.append(StageEnded(at="", stage=H1, verdict=Verdict.PASS, explanation="", seconds=1))
    return stage, Conductor(replace(stage.setup, options=options), journal, stage.run.console, lambda _: None)


@pytest.mark.parametrize(
    ("soundly", "known"),
    [
        (0, {"loss_flag_works", "four_bit_as_asked"}),
        (1, {"loss_flag_works", "four_bit_as_asked"}),
        (2, {"loss_flag_works", "four_bit_as_asked", "no_max_padding", "deep_runs_complete"}),
    ],
    ids=["in the first deep attempt", "in the second one", "while calibrating"],
)
def test_an_interrupt_beside_h2_costs_neither_its_verdict_nor_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, soundly: int, known: set[str]
) -> None:
    """H-2 has ended before the first of them begins, and each check is on record as soon as it is known."""
    stage, conductor = _conducted(tmp_path, monkeypatch, Beside(soundly, Kill()))
    with pytest.raises(Kill):
        conductor.run(H2, 60)
    h2 = stage.recorded
    assert (h2.verdict, h2.ended_at is None) == (Verdict.PASS, False)
    assert sorted(check.id for check in h2.checks) == sorted({"ok", *known})


def test_a_disk_that_takes_no_more_ends_both_with_a_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H-2 keeps the PASS that is on the disk, and its test does not fail."""
    beside = Beside(0, JournalError("events.jsonl: No space left on device"))
    stage, conductor = _conducted(tmp_path, monkeypatch, beside)
    assert conductor.run(H2, 60).verdict is Verdict.PASS
    assert beside.ran == 2
    assert [line.split(":")[0] for line in stage.said if "No space" in line] == ["H-2 deep", "H-2 calibrate"]


def test_a_run_that_was_killed_in_a_deep_attempt_keeps_verdict_and_checks() -> None:
    """Nothing is in flight any more: the stage is as it ended, with what was found since."""
    own, extra = _attempt(1, returncode=0), _attempt(2, purpose="deep")
    found = Check(id="loss_flag_works", severity=Severity.WARN, holds=False, message="")
    ended = Check(id="ok", severity=Severity.FAIL, holds=True, message="")
    record = fold(
        (
            RecordOpened(at="", id="r", context=factory.context()),
            StageStarted(at="", stage=H2),
            AttemptStarted(at="", attempt=own),
            AttemptEnded(at="", attempt=own),
            StageEnded(at="", stage=H2, verdict=Verdict.PASS, explanation="", seconds=1, checks=(ended,)),
            ChecksAdded(at="", stage=H2, checks=(found,)),
            AttemptStarted(at="", attempt=extra),
        )
    )
    h2 = record.stages[H2]
    assert (h2.verdict, h2.last_attempt, h2.checks) == (Verdict.PASS, own, (ended, found))
    assert h2.deep_attempts == (extra,)
    assert stages_in_flight(record) == []
