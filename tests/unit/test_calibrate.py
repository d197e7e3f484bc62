"""`--steph-calibrate`: a short training at another length, recorded apart and never able to change a verdict."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import record_factory as factory
from planted import TRAIN_FILE
from process_tree import wait_until
from scripted_training import LARGE, PROFILE, ScriptedTraining
from steph.base.messages import verbatim
from steph.base.terms import Cause, EndedBy, Purpose, StageId, Verdict
from steph.conduct import training
from steph.conduct.training import other_length
from steph.contract.rows import RowLengths
from steph.record.events import AttemptEnded, AttemptStarted, RecordOpened, StageEnded, StageStarted, fold
from steph.record.settings import TrainSettings
from steph.record.values import Attempt, StageResult
from steph.tell import wording
from suite_runs import Bench, lengthen_rows, make_bench, make_model

H1, H2, H3 = StageId
CALIBRATE = ("--steph-calibrate",)
WRAPPER = """
import os, runpy, signal, sys, time
if "-calibrate" in sys.argv[sys.argv.index("--output-dir") + 1]:
    {then}
runpy.run_path("scripts/original.py", run_name="__main__")
"""


def _bench(folder: Path, then: str = "pass", *, train_seconds: float = 250) -> Bench:
    """A sound planted pipeline whose training does something else first where it calibrates."""
    bench = make_bench(folder, train_seconds=train_seconds)
    script = bench.root / "scripts" / "train_qwen_law_ft.py"
    script.rename(script.with_name("original.py"))
    script.write_text(WRAPPER.format(then=then), encoding="utf-8")
    (bench.root / "steph.toml").write_text('optional_flags = ["--max-steps-override"]\n', encoding="utf-8")
    return bench


def test_another_length_is_trained_and_leaves_the_adapter_alone(tmp_path: Path) -> None:
    """Five steps at another length beside H-2's own attempt; H-3 evaluates what H-2 trained; the report shows both."""
    bench = _bench(tmp_path)
    status, output = bench.run(options=CALIBRATE)
    assert status == 0, output
    record = bench.record()
    h2 = record.stages[H2]
    assert [record.verdict_of(stage) for stage in StageId] == [Verdict.PASS] * 3
    assert [attempt.purpose for attempt in h2.attempts] == ["stage"]
    (extra,) = h2.calibration_attempts
    assert extra.purpose == "calibrate"
    assert extra.diagnosis is not None
    assert extra.diagnosis.cause is Cause.NONE
    own = h2.attempts[0].settings
    assert own is not None
    assert extra.settings == own.model_copy(
        update={"max_steps": 5, "max_seq_length": _settings(extra).max_seq_length, "logging_steps": 1}
    )
    assert 0 < _settings(extra).max_seq_length < _settings(h2.attempts[0]).max_seq_length
    assert not list(bench.root.glob("runs/*/*-calibrate"))
    assert "--steph-calibrate" in bench.report()
    assert str(extra.label) in bench.report()


def _settings(attempt: Attempt) -> TrainSettings:
    assert isinstance(attempt.settings, TrainSettings)
    return attempt.settings


@dataclass(frozen=True)
class _Ending:
    then: str
    cause: Cause
    ended_by: EndedBy = EndedBy.EXIT
    train_seconds: float = 250


OUT_OF_MEMORY = "sys.exit('torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.16 GiB.')"
ENDINGS = {
    "out of memory": _Ending(OUT_OF_MEMORY, Cause.CUDA_OOM),
    "time-out": _Ending("time.sleep(600)", Cause.TIMEOUT, EndedBy.DEADLINE, train_seconds=6),
    "crash": _Ending("os.kill(os.getpid(), signal.SIGKILL)", Cause.HOST_OOM),
    "error": _Ending("raise RuntimeError('planted')", Cause.OTHER),
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_whatever_it_ends_in_is_recorded_and_no_verdict_changes(tmp_path: Path, ending: _Ending) -> None:
    """OOM, time-out, a kill or an exception of the extra attempt: H-2 keeps its PASS, H-3 runs, the report says so."""
    bench = _bench(tmp_path, ending.then, train_seconds=ending.train_seconds)
    status, output = bench.run(options=CALIBRATE)
    assert status == 0, output
    record = bench.record()
    assert [record.verdict_of(stage) for stage in StageId] == [Verdict.PASS] * 3
    (extra,) = record.stages[H2].calibration_attempts
    assert extra.ended_by is ending.ended_by
    assert extra.diagnosis is not None
    assert extra.diagnosis.cause is ending.cause
    row = next(line for line in bench.report().splitlines() if str(extra.label) in line)
    assert wording.outcome_words(extra) in row


def test_a_red_stage_is_not_calibrated(tmp_path: Path) -> None:
    """Where H-2 failed there is nothing to calibrate, and nothing that could make it green."""
    bench = make_bench(tmp_path, train="adapter_nan")
    assert bench.run(H1, H2, options=CALIBRATE)[0] == 1
    h2 = bench.record().stages[H2]
    assert h2.verdict is Verdict.FAIL
    assert h2.calibration_attempts == ()


def test_kill_9_of_pytest_while_calibrating_keeps_the_verdict(tmp_path: Path) -> None:
    """H-2's PASS is written before the extra attempt begins; a rerun of H-3 can stand on it."""
    bench = _bench(tmp_path, "time.sleep(600)")
    process = bench.start(H1, H2, options=CALIBRATE)
    wait_until(lambda: any(bench.reports.glob("runs/*/H-2-2/stdout.times")))
    process.send_signal(signal.SIGKILL)
    process.end()
    h2 = bench.record().stages[H2]
    assert h2.verdict is Verdict.PASS
    assert [attempt.ended_by for attempt in h2.calibration_attempts] == [None]
    status, output = bench.run(H3, options=CALIBRATE)
    assert status == 0, output


def _rows(longest: int, middle: int) -> RowLengths:
    return RowLengths((longest, middle, middle), (0, 0, 0), (3, 3, 3))


@pytest.mark.parametrize(
    ("max_seq_length", "rows", "length"),
    [
        (512, None, 256),
        (512, _rows(707, 460), 256),
        (1024, _rows(707, 460), 352),
        (512, _rows(2000, 100), 96),
        (16, None, None),
        (512, _rows(20, 18), None),
    ],
)
def test_the_other_length_is_one_that_most_rows_fill(
    max_seq_length: int, rows: RowLengths | None, length: int | None
) -> None:
    """Half of the longest row as it is trained, never more than the middle row has; None where that says nothing."""
    assert other_length(max_seq_length, rows) == length


def test_an_attempt_after_the_verdict_changes_nothing_but_itself() -> None:
    """The fold keeps verdict, end and H-2's last attempt, also while the extra attempt is in flight."""
    own = Attempt(stage=H2, number=1, label=verbatim("x"), folder="H-2-1", started_at="", returncode=0)
    extra = Attempt(stage=H2, number=2, label=verbatim("y"), folder="H-2-2", started_at="", purpose=Purpose.CALIBRATE)
    events = (
        RecordOpened(at="", id="r", context=factory.context()),
        StageStarted(at="", stage=H2),
        AttemptStarted(at="", attempt=own),
        AttemptEnded(at="", attempt=own),
        StageEnded(at="1", stage=H2, verdict=Verdict.PASS, explanation=verbatim(""), seconds=1),
        AttemptStarted(at="2", attempt=extra),
    )
    for live in (False, True):
        h2: StageResult = fold(events, live=live).stages[H2]
        assert (h2.verdict, h2.ended_at, h2.last_attempt) == (Verdict.PASS, "1", own)
        assert h2.calibration_attempts == (extra,)
        assert h2.newest_attempt == extra


@pytest.mark.parametrize(("truncation", "longest"), [("right", 300), ("keeps_answer", 308)])
def test_both_lengths_of_a_slope_count_the_rows_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, truncation: str, longest: int
) -> None:
    """Rows of 300 tokens are as long for H-2's attempt as for the one at another length, with a template or without."""
    counted: list[RowLengths] = []
    monkeypatch.setattr(training, "train_beside", lambda *_, **told: counted.append(told["rows"]))
    stage = ScriptedTraining(tmp_path, truncation=truncation)
    lengthen_rows(stage.setup.root, 300)
    model = LARGE.model_copy(update={"snapshot_path": str(make_model(tmp_path / "model"))})
    stage.walk(monkeypatch, model)
    training.calibrate(stage.job, model, PROFILE.train)
    assert [stage.planned[0].longest_row_tokens, *(rows.longest_tokens for rows in counted)] == [longest, longest]


@pytest.mark.parametrize("broken", ["a newer tokenizer", "no training file"])
def test_rows_that_cannot_be_counted_are_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """H-2 and its calibration go on without the rows' lengths, and nothing raises."""
    stage = ScriptedTraining(tmp_path)
    model = LARGE.model_copy(update={"snapshot_path": str(make_model(tmp_path / "model"))})
    if broken == "no training file":
        (stage.setup.root / TRAIN_FILE).unlink()
    else:
        (tmp_path / "model" / "tokenizer.json").write_text('{"version": "9.0", "model": {"type": "Unheard of"}}')
    outcome = stage.walk(monkeypatch, model)
    assert (outcome.verdict, stage.planned[0].longest_row_tokens) == (Verdict.PASS, None)
    monkeypatch.setattr(training, "train_beside", lambda *_, **told: factory.trained(2, PROFILE.train))
    training.calibrate(stage.job, model, PROFILE.train)
    assert [line.startswith("H-2 解答の長さを数えられない: ") for line in stage.said] == [True]
