"""Faults of processes, disks and people through the whole suite: nothing green that is not, nothing lost or left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from process_tree import STUBBORN, becomes_true, command_line
from steph.record import StageId, Verdict
from steph.run import processes
from steph.run.journal import record_folders
from suite_runs import CLONE, Bench, clean_environment, make_bench

H1, H2, H3 = StageId
HANG = "print('begun', flush=True)\ntime.sleep(600)\n"


def before_training(bench: Bench, code: str) -> None:
    """Have the planted training run this code before its first step."""
    script = bench.root / "scripts" / "train_qwen_law_ft.py"
    text = script.read_text(encoding="utf-8")
    place = "    run.train()\n"
    assert place in text
    indented = "".join(f"    {line}\n" for line in code.splitlines())
    script.write_text(text.replace(place, indented + place), encoding="utf-8")


def plugin_of(folder: Path, code: str) -> dict[str, str]:
    """A pytest plugin named `meddler` with this code, and the environment in which `-p meddler` finds it."""
    (folder / "meddler.py").write_text(code, encoding="utf-8")
    return {"PYTHONPATH": str(folder)}


def run(bench: Bench, *stages: StageId, options: tuple[str, ...] = (), **environment: str) -> tuple[int, str]:
    """Run the stages in a changed environment: exit status and both streams."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *bench.arguments(*stages), *options],
        cwd=CLONE,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def processes_of(bench: Bench) -> list[int]:
    """Pids of living processes that belong to an attempt of this bench."""
    prefix = f"STEPH_PROBE_DIR={bench.folder}".encode()
    table = processes.all_processes().values()
    return [
        stat.pid
        for stat in table
        if stat.alive and any(entry.startswith(prefix) for entry in processes.environment_of(stat.pid))
    ]


def in_training(bench: Bench, is_begun: Callable[[str], bool] = bool) -> Callable[[], bool]:
    """Whether the planted training has printed what is waited for."""

    def look() -> bool:
        logs = bench.reports.glob("runs/*/H-2-*/stdout.log")
        return any(is_begun(log.read_text(encoding="utf-8", errors="replace")) for log in logs)

    return look


def verdicts(bench: Bench) -> list[Verdict]:
    """The newest record's verdicts in the stages' order."""
    return [bench.record().verdict_of(stage) for stage in StageId]


def test_a_stage_skipped_by_somebody_is_not_green_by_an_earlier_result(tmp_path: Path) -> None:
    """H-1 passed before; a conftest that now skips it makes the session red."""
    bench = make_bench(tmp_path)
    assert run(bench, H1)[0] == 0
    skipping = "import pytest\ndef pytest_runtest_setup(item):\n    pytest.skip('not today')\n"
    environment = plugin_of(tmp_path, skipping)
    status, output = run(bench, H1, options=("-p", "meddler"), **environment)
    assert "1 skipped" in output
    assert status == 1


def test_a_selection_that_runs_nothing_opens_no_record(tmp_path: Path) -> None:
    """`--setup-plan` shows what would run and leaves no trace."""
    bench = make_bench(tmp_path)
    run(bench, options=("--setup-plan",))
    assert not bench.reports.exists()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/steph"])
def test_a_reports_folder_that_cannot_be_written_is_one_line(tmp_path: Path, place: str) -> None:
    """A file, a path below one or a read-only place for reports: exit 4, the place and the option named."""
    bench = make_bench(tmp_path)
    (tmp_path / "file").write_text("a person's own")
    status, output = run(bench, H1, options=(f"--steph-report={tmp_path / place}",))
    assert status == 4, output
    assert "a record can't be written here" in output
    assert "--steph-report" in output
    assert "INTERNALERROR" not in output
    assert (tmp_path / "file").read_text() == "a person's own"


def test_two_runs_in_one_pipeline_root_do_not_meet(tmp_path: Path) -> None:
    """While one run trains, another one, also through a link and into other reports, stops and names the first."""
    bench = make_bench(tmp_path)
    before_training(bench, HANG)
    (tmp_path / "link").symlink_to(bench.root)
    first = bench.start()
    try:
        assert becomes_true(in_training(bench), 30)
        elsewhere = (f"--steph-pipeline-root={tmp_path / 'link'}", f"--steph-report={tmp_path / 'other'}")
        status, output = run(bench, options=elsewhere)
        assert status == 4, output
        assert f"is in use by pid {first.pid}" in output
        assert not (tmp_path / "other").exists()
    finally:
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=30)


def test_the_next_run_waits_until_a_killed_runs_child_has_ended(tmp_path: Path) -> None:
    """After kill -9 of pytest a child that ignores SIGTERM still has its grace; no new stage begins meanwhile."""
    bench = make_bench(tmp_path)
    bench.profile.write_text(bench.profile.read_text().replace("grace_seconds = 1", "grace_seconds = 2"))
    before_training(bench, STUBBORN)
    process = bench.start()
    assert becomes_true(in_training(bench, lambda text: "ready" in text), 30)
    process.kill()
    process.communicate()
    assert processes_of(bench)
    status, output = run(bench, H1)
    assert status == 0, output
    assert processes_of(bench) == []
    assert len(record_folders(bench.reports / "runs")) == 1
    assert verdicts(bench) == [Verdict.PASS, Verdict.CRASHED, Verdict.NOT_RUN]


def test_orphans_of_a_run_whose_supervisor_was_killed_too_are_ended_by_the_next(tmp_path: Path) -> None:
    """kill -9 of pytest and supervisor together leaves grandchildren; the next run ends them before it begins."""
    bench = make_bench(tmp_path)
    before_training(bench, STUBBORN)
    process = bench.start()
    assert becomes_true(in_training(bench, lambda text: "ready" in text), 30)
    supervisor = next(pid for pid in processes_of(bench) if "supervisor.py" in command_line(pid))
    os.kill(process.pid, signal.SIGSTOP)
    os.kill(supervisor, signal.SIGKILL)
    process.kill()
    process.communicate()
    assert processes_of(bench)
    assert run(bench, H1)[0] == 0
    assert processes_of(bench) == []
