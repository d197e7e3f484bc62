"""What a training leaves running when it has ended: ended, named, and never the author of what H-3 evaluates."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from steph.base.terms import Severity, StageId, Verdict
from steph.record.values import Check, Record
from suite_runs import Bench, make_bench

ADAPTER = "runs/debug_small_model/direct_norag_small_4bit/adapter_model.safetensors"


def _left(record: Record) -> Check:
    return next(check for check in record.stages[StageId.H2].checks if check.id == "no_process_left")


def _sha256(bench: Bench) -> str:
    return hashlib.sha256((bench.root / ADAPTER).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("defect", "program"),
    [
        ("background_left", "sleep"),
        ("child_holds_stdout", "sleep"),
        ("daemon_rewrites", "train_qwen_law_ft.py"),
    ],
)
def test_a_process_that_is_left_behind_is_ended_and_named(tmp_path: Path, defect: str, program: str) -> None:
    """In its own session, with the script's stdout or as a daemon: a note of H-2, which it neither delays nor changes.

    The adapter that H-3 loads is the one that H-2 ended with.
    """
    bench = make_bench(tmp_path, train=defect)
    status, output = bench.run()
    assert status == 0, output
    record = bench.record()
    left = _left(record)
    assert (left.holds, left.severity) == (False, Severity.INFO)
    assert f"{program} (pid " in str(left.message)
    assert "すべて終わらせた" in str(left.message)
    assert program in bench.report()
    attempt = record.stages[StageId.H2].attempts[-1]
    assert attempt.seconds is not None
    assert attempt.training is not None
    assert attempt.training.adapter_sha256 == _sha256(bench)


def test_an_adapter_that_is_written_after_the_end_fails_h2(tmp_path: Path) -> None:
    """A daemon that SIGTERM does not end rewrites it before it is killed: nobody vouches for what lies there."""
    bench = make_bench(tmp_path, train="daemon_rewrites_at_once")
    assert bench.run()[0] == 1
    record = bench.record()
    assert record.verdict_of(StageId.H2) is Verdict.FAIL
    left = _left(record)
    assert (left.holds, left.severity) == (False, Severity.FAIL)
    assert "プログラムの終了後に書かれたファイル: adapter_model.safetensors" in str(left.message)
    assert record.verdict_of(StageId.H3) is Verdict.BLOCKED


def test_an_adapter_that_changes_before_h3_blocks_it(tmp_path: Path) -> None:
    """Rewritten by whatever is no descendant of the training any more: a job of cron, a container, a person."""
    bench = make_bench(tmp_path)
    assert bench.run(StageId.H1, StageId.H2)[0] == 0
    path = bench.root / ADAPTER
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert bench.run(StageId.H3)[0] == 1
    h3 = bench.record().stages[StageId.H3]
    assert h3.verdict is Verdict.BLOCKED
    assert "sha256不一致" in str(h3.explanation)


@pytest.mark.parametrize(
    ("stage", "script", "place"),
    [
        (StageId.H2, "train_qwen_law_ft.py", "    run.train()\n"),
        (StageId.H3, "evaluate_multiple_choice.py", "    result = run.result()\n"),
    ],
)
def test_a_program_that_goes_on_as_a_daemon_has_not_done_its_work(
    tmp_path: Path, stage: StageId, script: str, place: str
) -> None:
    """Its first process ends at once with status 0, and what works on is ended with it: nothing of it counts."""
    bench = make_bench(tmp_path)
    path = bench.root / "scripts" / script
    text = path.read_text(encoding="utf-8")
    assert text.count(place) == 1
    path.write_text(
        text.replace(place, f"    import os, time\n    if os.fork(): os._exit(0)\n    time.sleep(60)\n{place}")
    )
    assert bench.run()[0] == 1
    assert bench.record().verdict_of(stage) is Verdict.FAIL
