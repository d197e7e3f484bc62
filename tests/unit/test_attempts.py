"""One attempt, run for real with a tiny child: what its journal entry carries."""

from __future__ import annotations

import errno
import inspect
import os
import re
import sys
import tempfile
import time
from dataclasses import is_dataclass
from pathlib import Path

import pytest
import record_factory as factory
from steph.base.files import is_fresh
from steph.base.messages import verbatim
from steph.base.terms import Cause, EndedBy, StageId, TrainerName
from steph.conduct import attempts
from steph.conduct.attempts import Finished, Judge, in_own_words, run_attempt
from steph.conduct.preparation import Console, Setup, StageRun
from steph.contract.commands import Call
from steph.contract.description import Description
from steph.contract.options import Options
from steph.contract.settings import load_profile, profile_path
from steph.diagnose.engine import diagnose
from steph.judge.evidence import CardMemory
from steph.memory.forecast import predict
from steph.memory.shapes import BUILT_IN
from steph.memory.terms import Workload
from steph.record.events import AttemptEnded
from steph.record.values import Attempt, DevicePeak, PredictedPeak, Probe
from steph.run import output, runner
from steph.run.inputs import file_clock_unix
from steph.run.journal import Journal, read_events
from steph.run.runner import ChildOutcome

REPOSITORY = Path(__file__).parents[2]
FORECAST = predict(BUILT_IN["Qwen/Qwen1.5-1.8B-Chat"], Workload(TrainerName.ANSWER, 2, 512))
PLAN = Attempt(stage=StageId.H2, number=0, label=verbatim("512/b2/4bit"), started_at="", limit_seconds=60)
CALL = Call((sys.executable, "-c", ""))


def as_it_is(finished: Finished) -> Attempt:
    """No artifacts to judge."""
    return finished.attempt


def attempted(folder: Path, plan: Attempt = PLAN, call: Call = CALL, judge: Judge = as_it_is) -> Attempt:
    """Run one child below `folder`, on no card."""
    record = factory.rehearsal()
    options = Options("rtx3080", folder, None, None, False, None, folder)
    profile = load_profile(profile_path("rtx3080", REPOSITORY))
    setup = Setup(options, profile, Description(), sys.executable, None, record.data[0], record.context)
    run = StageRun(setup, Journal(folder / "record"), Console(lambda _: None, False), time.monotonic() + 60)
    return run_attempt(run, plan, call, judge)


def test_an_attempt_carries_its_prediction_with_the_interval(tmp_path: Path) -> None:
    """The report holds predicted and measured side by side, so the record has the peak and both its bounds."""
    attempt = attempted(tmp_path, PLAN.changed(predicted=FORECAST.peak))
    low, peak, high = FORECAST.peak.low_bytes, FORECAST.peak.peak_bytes, FORECAST.peak.high_bytes
    assert attempt.predicted == PredictedPeak(peak_bytes=peak, low_bytes=low, high_bytes=high)
    assert attempt.returncode == 0


def test_an_attempt_that_nobody_predicted_has_no_figures_of_it(tmp_path: Path) -> None:
    """Without a prediction there is none in the record."""
    attempt = attempted(tmp_path)
    assert attempt.predicted is None


def test_output_that_cannot_be_read_costs_no_figure_of_the_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child ended: its status and its time are on record, without a diagnosis and so never green."""

    def unreadable(folder: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(output, "read_output", unreadable)
    with pytest.raises(OSError, match="Input/output error"):
        attempted(tmp_path)
    (ended,) = (event for event in read_events(tmp_path / "record") if isinstance(event, AttemptEnded))
    assert (ended.attempt.returncode, ended.attempt.ended_by, ended.attempt.diagnosis) == (0, EndedBy.EXIT, None)
    assert ended.attempt.seconds
    assert not ended.attempt.ended_well


def test_the_judge_is_given_the_cards_memory_over_the_attempt(tmp_path: Path) -> None:
    """Its size, NVML's samples, and of several processes the one whose torch reserved most; nothing on the CPU."""
    probes = (Probe(pid=1, peak_reserved_bytes=7), Probe(pid=2, peak_reserved_bytes=9), Probe(pid=3))
    outcome = ChildOutcome(0, EndedBy.EXIT, 1.0, probes=probes, memory_samples=((0.2, 5), (0.4, 6)))
    finished = Finished(factory.green_acceptance().stages[StageId.H2].attempts[0], outcome, tmp_path, 0.0, "", "")
    card = factory.device()
    assert finished.card_memory(card) == CardMemory(card.total_bytes, ((0.2, 5), (0.4, 6)), 9)
    assert finished.card_memory(None) is None


LOSSES_OF_ZERO = "print('\\n'.join(str({'loss': 0.0, 'grad_norm': 0.0, 'epoch': n / 9}) for n in range(9)))"


@pytest.mark.parametrize(("end", "judged"), [("", 1), ("; raise SystemExit(1)", 0)], ids=["at status 0", "at 1"])
def test_what_ended_at_status_0_is_judged_whatever_its_log_says(tmp_path: Path, end: str, judged: int) -> None:
    """A loss of 0 is a symptom, by which the attempt fails; the checks say what it comes from."""
    seen: list[Attempt] = []

    def judge(finished: Finished) -> Attempt:
        seen.append(finished.attempt)
        return finished.attempt

    attempt = attempted(tmp_path, call=Call((sys.executable, "-c", LOSSES_OF_ZERO + end)), judge=judge)
    assert attempt.diagnosis is not None
    assert attempt.diagnosis.cause is Cause.NAN_LOSS
    assert len(seen) == judged


@pytest.mark.parametrize("ahead_seconds", [-30.0, 0.0, 30.0])
def test_a_file_is_as_old_as_its_own_drives_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_seconds: float
) -> None:
    """Where our clock and the one that stamps files differ, what an attempt wrote is fresh, and nothing older is."""
    written = tmp_path / "out" / "new.txt"
    old = file_clock_unix([tmp_path]) - 1
    script = f"import os; os.mkdir({str(written.parent)!r}); open({str(written)!r}, 'w')"
    argv = (sys.executable, "-c", script)
    seen: list[bool] = []

    def judge(finished: Finished) -> Attempt:
        seen.extend([is_fresh(written, finished.started_unix), old >= finished.started_unix])
        return finished.attempt

    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + ahead_seconds)
    attempted(tmp_path, call=Call(argv, writes=str(written.parent)), judge=judge)
    assert seen == [True, False]
    assert not list(tmp_path.rglob(".steph-clock-*"))


@pytest.mark.parametrize(("after_seconds", "is_late"), [(-1.0, False), (1.0, True)])
def test_what_is_written_before_the_end_is_not_late_however_slowly_the_child_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after_seconds: float, is_late: bool
) -> None:
    """A child that started a minute after the call, ran for a second and left a process behind."""
    written, late = tmp_path / "out" / "adapter", list[bool]()
    written.parent.mkdir()

    def run_child(spec: object, **_: object) -> ChildOutcome:
        written.parent.mkdir()
        written.touch()
        at = file_clock_unix([written]) + 60 + after_seconds
        os.utime(written, (at, at))
        ended = time.monotonic() + 60
        return ChildOutcome(0, EndedBy.EXIT, 1.0, left_behind=("sleep",), ended_monotonic=ended)

    def judge(finished: Finished) -> Attempt:
        late.append(bool(finished.written_late))
        return finished.attempt

    monkeypatch.setattr(attempts, "run_child", run_child)
    attempted(tmp_path, call=Call(("true",), writes=str(written.parent)), judge=judge)
    assert late == [is_late]


def test_where_no_file_can_be_made_our_clock_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that can't be written, and an attempt that writes nothing, cost nothing but the comparison."""

    def refuse(**options: object) -> None:
        raise PermissionError

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    for paths in ([tmp_path / "not" / "there"], []):
        before = time.time()
        assert before <= file_clock_unix(paths) <= time.time()


def test_nine_values_lead_from_what_a_child_is_asked_to_the_record() -> None:
    """The docstring of the module names every value on the way; a tenth needs a reason and its word there."""
    named = re.findall(r"`([A-Z]\w+)`", inspect.getdoc(attempts) or "")
    on_the_way = [
        name
        for module in (attempts, runner)
        for name, value in vars(module).items()
        if is_dataclass(value) and value.__module__ == module.__name__
    ]
    from_other_rooms = [value.__name__ for value in (Call, output.Exit, Probe, DevicePeak, Attempt)]
    assert {*named} == {*on_the_way, *from_other_rooms}
    assert len({*named}) == 9


def test_advice_names_a_setting_as_the_program_takes_it() -> None:
    """What the description passes by an option goes by that; what is inside or unsaid keeps its usual name."""
    log = (
        'Traceback (most recent call last):\n  File "/x/t.py", line 5, in <module>\n    loss.backward()\n'
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of "
        "9.64 GiB of which 10.00 MiB is free. Of the allocated memory 9.00 GiB is allocated by PyTorch.\n"
    )
    told = " ".join(map(str, in_own_words(diagnose(log, 1), {"batch_size": "--mb", "max_seq_length": ""}).advice))
    assert "--mb" in told
    assert "per_device_train_batch_size" not in told
    assert "gradient_accumulation_steps" in told
