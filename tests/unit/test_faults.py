"""Faults of processes, disks and people through the whole suite: nothing green that is not, nothing lost or left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from process_tree import STUBBORN, command_line, wait_until
from steph.base.messages import speaking
from steph.base.terms import StageId, Verdict
from steph.contract.description import DescriptionError, load_description
from steph.contract.rows import row_lengths
from steph.run import processes
from steph.run.inputs import InputError, read_train_file, require_outputs_apart, set_aside, write_subset
from steph.run.journal import read_record, record_folders
from suite_runs import CLONE, Bench, clean_environment, make_bench, run_pytest

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
    return run_pytest(bench.arguments(*stages), options, **environment)


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


@pytest.mark.parametrize("place", ["file", "/proc/steph"])
def test_a_reports_folder_that_cannot_be_written_is_one_line(tmp_path: Path, place: str) -> None:
    """A file, a path below one or a read-only place for reports: exit 4, the place and the option named."""
    bench = make_bench(tmp_path)
    (tmp_path / "file").write_text("a person's own")
    status, output = run(bench, H1, options=(f"--steph-report={tmp_path / place}",))
    assert status == 4, output
    assert "ここに記録を書けない" in output
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
        wait_until(in_training(bench))
        elsewhere = (
            f"--steph-pipeline-root={tmp_path / 'link'}",
            f"--steph-report={tmp_path / 'other'}",
            "--steph-language=en",
        )
        status, output = run(bench, options=elsewhere)
        assert status == 4, output
        assert f"is in use by pid {first.pid}" in output
        assert not (tmp_path / "other").exists()
    finally:
        first.send_signal(signal.SIGINT)
        first.end()


def test_the_next_run_waits_until_a_killed_runs_child_has_ended(tmp_path: Path) -> None:
    """After kill -9 of pytest a child that ignores SIGTERM still has its grace; no new stage begins meanwhile."""
    bench = make_bench(tmp_path)
    bench.profile.write_text(bench.profile.read_text().replace("grace_seconds = 1", "grace_seconds = 2"))
    before_training(bench, STUBBORN)
    process = bench.start()
    wait_until(in_training(bench, lambda text: "ready" in text))
    process.send_signal(signal.SIGKILL)
    process.end()
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
    wait_until(in_training(bench, lambda text: "ready" in text))
    supervisor = next(pid for pid in processes_of(bench) if "supervisor.py" in command_line(pid))
    os.kill(process.pid, signal.SIGSTOP)
    os.kill(supervisor, signal.SIGKILL)
    process.send_signal(signal.SIGKILL)
    process.end()
    assert processes_of(bench)
    assert run(bench, H1)[0] == 0
    assert processes_of(bench) == []


@pytest.mark.parametrize("output_dir", [".", "", "scripts", "datasets/lawqa_jp", "results", "scripts/../results"])
def test_an_output_path_that_holds_anything_else_is_refused(tmp_path: Path, output_dir: str) -> None:
    """What lies at an output's path is moved away: one that holds the root, an input or the reports is one line."""
    bench = make_bench(tmp_path)
    (bench.root / "steph.toml").write_text(f'[paths]\noutput_dir = "{output_dir}"\n')
    with speaking("en"), pytest.raises(InputError, match=r"steph\.toml: paths\.output_dir.*give it a path of its own"):
        require_outputs_apart(bench.root, load_description(bench.root), bench.reports)


def test_outputs_of_their_own_are_fine_wherever_they_lie(tmp_path: Path) -> None:
    """The spec's paths, and a link to a folder beside the root, hold nothing else."""
    bench = make_bench(tmp_path)

    def refusal(reports: Path) -> InputError | None:
        try:
            require_outputs_apart(bench.root, load_description(bench.root), reports)
        except InputError as error:
            return error
        return None

    assert refusal(bench.root / "reports") is None
    (tmp_path / "big-disk").mkdir()
    (bench.root / "runs").symlink_to("../big-disk")
    (bench.root / "steph.toml").write_text('[paths]\noutput_dir = "runs/adapter"\n')
    assert refusal(bench.reports) is None


@pytest.mark.usefixtures("english")
@pytest.mark.parametrize("key", ["output_dir", "evaluation_output"])
@pytest.mark.parametrize("path", ["/big-disk/adapter", "..", "../reports", "a/../../b"])
def test_an_output_path_that_leads_out_of_the_root_by_its_text_is_refused(tmp_path: Path, key: str, path: str) -> None:
    """What the suite moves lies below the root, as far as a person can read it off steph.toml."""
    (tmp_path / "steph.toml").write_text(f'[paths]\n{key} = "{path}"\n')
    with pytest.raises(
        DescriptionError, match=rf"steph\.toml: paths\.{key}: '.*' is not allowed: an output lies below"
    ):
        load_description(tmp_path)
    (tmp_path / "steph.toml").write_text(f'[paths]\n{key} = "a/../b"\n')
    load_description(tmp_path)


def test_a_data_set_smaller_than_the_sample_is_refused_before_training(tmp_path: Path) -> None:
    """Two questions where three are asked: exit 4 at once, with file, key and remedy, instead of a FAIL in H-3."""
    bench = make_bench(tmp_path)
    path = bench.root / "datasets/lawqa_jp/data/selection.json"
    dataset = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({"samples": dataset["samples"][:2]}))
    status, output = run(bench)
    assert status == 4
    assert "問題が 2 問しかなく" in output
    assert "evaluate.samples = 3 に足りない" in output
    assert not bench.reports.exists()


def test_a_build_that_fails_gives_the_training_file_back(tmp_path: Path) -> None:
    """A builder that leaves half a file and exits 3: one line in the verdict, the old file in place, the half kept."""
    bench = make_bench(tmp_path)
    code = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('half'); sys.exit('no questions')"
    command = json.dumps(["-c", code, "{train_file}"])
    (bench.root / "steph.toml").write_text(f"[build]\ncommand = {command}\n")
    path = bench.root / "results/finetune/ft_direct_full_norag.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows[0]["meta"] = {"source_sha256": "of other data", "holdout": 0}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = path.read_bytes()
    assert run(bench, H1, H2)[0] == 1
    assert "を作れない" in str(bench.record().stages[H2].explanation)
    assert "no questions" in str(bench.record().stages[H2].explanation)
    assert path.read_bytes() == before
    assert [half.read_text() for half in bench.reports.glob("runs/*/build-1/failed/*")] == ["half"]


def test_a_training_file_with_a_byte_order_mark_is_trained_on(tmp_path: Path) -> None:
    """Counting answers reads what the input check accepts; whether the pipeline takes the mark is its own affair."""
    bench = make_bench(tmp_path)
    path = bench.root / "results/finetune/ft_direct_full_norag.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_train_file(bench.root, "results/finetune/ft_direct_full_norag.jsonl").rows == 40
    assert row_lengths(path, tmp_path / "model" / "tokenizer.json", "right").truncated_at(512).rows == 40


def test_half_a_character_in_the_training_file_is_one_line(tmp_path: Path) -> None:
    """A lone surrogate, which JSON can spell and nothing can write, is named with its line before anything starts."""
    bench = make_bench(tmp_path)
    with (bench.root / "results/finetune/ft_direct_full_norag.jsonl").open("a") as file:
        file.write('{"input": "\\ud800", "output": "a"}\n')
    status, output = run(bench)
    assert status == 4, output
    assert "'input' に文字の半分しかない" in output


def test_a_subset_counts_rows_and_not_lines(tmp_path: Path) -> None:
    """Blank lines between rows do not make the subset shorter than what the record says."""
    (tmp_path / "rows").write_text("\n1\n\n2\n3\n")
    write_subset(tmp_path, "rows", 2, tmp_path / "subset")
    assert (tmp_path / "subset").read_text().split() == ["1", "2"]


def test_a_linked_output_folder_stays_a_link(tmp_path: Path) -> None:
    """A person's link to a bigger disk stays; what it leads to is set aside, and the next adapter is written there."""
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "old").write_text("of another run")
    (tmp_path / "output").symlink_to("big")
    set_aside(tmp_path / "output", tmp_path / "before")
    assert (tmp_path / "output").is_symlink()
    assert list((tmp_path / "output").iterdir()) == []
    assert (tmp_path / "before" / "output" / "old").read_text() == "of another run"


def test_what_cannot_be_set_aside_is_one_line(tmp_path: Path) -> None:
    """An output that can't be moved is left as it is, and the message names both places."""
    (tmp_path / "output").mkdir()
    (tmp_path / "before").write_text("no folder")
    with speaking("en"), pytest.raises(InputError, match=r"output: cannot be moved to .*before"):
        set_aside(tmp_path / "output", tmp_path / "before")
    assert (tmp_path / "output").is_dir()


def test_an_attempt_that_cannot_be_judged_stays_on_record(tmp_path: Path) -> None:
    """Where judging breaks, the stage is CRASHED, and what its child did, how long and at which status, is kept."""
    bench = make_bench(tmp_path)
    breaking = (
        "import steph.conduct.jobs\n"
        "def broken(evidence):\n    raise PermissionError('planted')\n"
        "steph.conduct.jobs.judge_training = broken\n"
    )
    environment = plugin_of(tmp_path, "def pytest_collection(session):\n    " + breaking.replace("\n", "\n    "))
    assert run(bench, H1, H2, options=("-p", "meddler"), **environment)[0] == 1
    result = bench.record().stages[H2]
    assert result.verdict is Verdict.CRASHED
    assert result.attempts[-1].returncode == 0
    assert result.attempts[-1].seconds is not None


def test_a_rerun_with_another_interpreter_stops_and_one_on_changed_code_says_so(tmp_path: Path) -> None:
    """Another pipeline interpreter is a difference; a checkout that has become dirty is one in the record."""
    bench = make_bench(tmp_path)
    for words in (("init", "-q", "-b", "work"), ("add", "."), ("commit", "-q", "-m", "all")):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *identity, *words], cwd=bench.root, check=True, capture_output=True)
    assert run(bench, H1)[0] == 0
    assert bench.record().context.pipeline_git.dirty is False
    (tmp_path / "python").symlink_to(sys.executable)
    status, output = run(bench, H2, options=(f"--steph-pipeline-python={tmp_path / 'python'}",))
    assert (status, "パイプラインの Pythonが" in output) == (4, True), output
    before_training(bench, "sys.exit(1)")
    assert run(bench, H1)[0] == 0
    assert bench.record().context.pipeline_git.dirty is True


def test_a_terminal_that_takes_no_more_text_ends_no_stage(tmp_path: Path) -> None:
    """A log on a full disk or a reader that left costs the lines, never a stage."""
    bench = make_bench(tmp_path)
    deaf = """
def pytest_runtest_setup(item):
    reporter = item.config.pluginmanager.getplugin("terminalreporter")
    reporter.write_again, reporter.write = reporter.write, broken
def pytest_runtest_teardown(item):
    reporter = item.config.pluginmanager.getplugin("terminalreporter")
    reporter.write = reporter.write_again
def broken(*words, **options):
    raise OSError(28, "No space left on device")
"""
    status, output = run(bench, H1, options=("-p", "meddler"), **plugin_of(tmp_path, deaf))
    assert status == 0, output
    assert "H-1 PASS" not in output


def on_a_small_disk(bench: Bench, size: str) -> tuple[int, str]:
    """Run all stages with the reports on a disk of this size, in a mount namespace of its own; they are copied out."""
    bench.reports.mkdir()
    copy = bench.folder / "copy"
    script = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift && "${@:3}"; code=$?; cp -r "$1" "$2"; exit $code'
    command = ["unshare", "-rm", "bash", "-c", script, "bash", size, str(bench.reports), str(copy)]
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(bench.reports)], check=False).returncode:
        pytest.skip("no mount namespaces here")
    done = subprocess.run(
        [*command, sys.executable, "-m", "pytest", *bench.arguments()],
        cwd=CLONE,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    bench.reports.rmdir()
    copy.rename(bench.reports)
    return done.returncode, done.stdout + done.stderr


def test_a_disk_that_fills_up_in_training_loses_no_attempt(tmp_path: Path) -> None:
    """The training fills the reports' disk: its attempt is on record with its end, the session ends by itself."""
    bench = make_bench(tmp_path)
    place = str(bench.reports / "fill")
    filling = f"with open({place!r}, 'ab', 0) as file:\n    while file.write(b'0' * 4096):\n        pass"
    nested = filling.replace("\n", "\n    ")
    before_training(bench, f"import contextlib\nwith contextlib.suppress(OSError):\n    {nested}")
    status, output = on_a_small_disk(bench, "3m")
    assert status == 1, output
    assert "Traceback" not in output
    record = bench.record()
    assert record.stages[H2].verdict is Verdict.FAIL
    assert record.stages[H2].attempts[-1].returncode == 0
    assert record.verdict_of(H3) is Verdict.BLOCKED
    assert record.sessions[-1].exit_status == 1


def test_a_disk_without_any_room_is_one_line_a_stage(tmp_path: Path) -> None:
    """Where even the journal's spare room is gone, each stage names the file and the remedy, and nothing is green."""
    bench = make_bench(tmp_path)
    status, output = on_a_small_disk(bench, "8k")
    assert status == 1, output
    assert "events.jsonl: No space left on device。空きを作って、このステージをもう一度実行する" in output
    assert "Traceback" not in output
    assert "During handling" not in output
    assert not any(bench.record().verdict_of(stage).is_green for stage in (H2, H3))


def test_foreign_and_broken_things_among_the_records_harm_nobody(tmp_path: Path) -> None:
    """Files, folders, garbage and a newer version's record beside a good one are left alone; the good one is joined."""
    bench = make_bench(tmp_path)
    assert run(bench, H1)[0] == 0
    runs = bench.reports / "runs"
    (good,) = record_folders(runs)
    (good / "record.json").write_text("{ broken")
    with (good / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "stage_ended", "at": "cut')
    (runs / "notes.txt").write_text("mine")
    (runs / "99990101-000000-aaaa" / "events.jsonl").mkdir(parents=True)
    for name, content in (("99990101-000000-bbbb", b"\xff\xfe garbage"), ("99990101-000000-cccc", _newer(good))):
        (runs / name).mkdir()
        (runs / name / "events.jsonl").write_bytes(content)
    assert run(bench, H1)[0] == 0
    record = read_record(good)
    assert record.verdict_of(H1) is Verdict.PASS
    assert len(record.sessions) == 2
    assert json.loads((good / "record.json").read_text(encoding="utf-8"))["id"] == record.id
    assert (runs / "notes.txt").read_text() == "mine"
    assert (runs / "99990101-000000-bbbb" / "events.jsonl").read_bytes() == b"\xff\xfe garbage"


def _newer(good: Path) -> bytes:
    first, _, rest = (good / "events.jsonl").read_bytes().partition(b"\n")
    return json.dumps(json.loads(first) | {"version": 99}).encode() + b"\n" + rest


@pytest.mark.parametrize("victim", ["supervisor.py", "train_qwen", "worker = "])
def test_kill_9_of_anything_below_pytest_is_red_and_leaves_nothing(tmp_path: Path, victim: str) -> None:
    """Supervisor, script or a worker of it killed in H-2: a verdict that says so, H-3 blocked, no process left."""
    bench = make_bench(tmp_path)
    worker = "subprocess.Popen([sys.executable, '-c', 'import time; worker = time.sleep(600)'])"
    code = f"import subprocess\nchild = {worker}\nprint('begun', flush=True)\nsys.exit(child.wait() != 0)"
    before_training(bench, code)
    process = bench.start()
    wait_until(in_training(bench))
    named = {pid: command_line(pid) for pid in processes_of(bench)}
    hidden = {"supervisor.py": "nothing", "train_qwen": "supervisor.py", "worker = ": "train_qwen"}[victim]
    os.kill(next(pid for pid, line in named.items() if victim in line and hidden not in line), signal.SIGKILL)
    assert process.end()[0] == 1
    assert processes_of(bench) == []
    red = Verdict.FAIL if victim == "worker = " else Verdict.CRASHED
    assert verdicts(bench) == [Verdict.PASS, red, Verdict.BLOCKED]


def test_a_tokenizer_that_cannot_be_read_here_costs_the_count_alone(tmp_path: Path) -> None:
    """A tokenizer.json newer than the suite's library leaves the answers uncounted and H-2 to the pipeline."""
    bench = make_bench(tmp_path)
    (tmp_path / "model" / "tokenizer.json").write_text('{"version": "9.0", "model": {"type": "Unheard of"}}')
    status, output = run(bench, H1, H2)
    assert status == 0, output
    assert "解答の長さを数えられない" in output
    assert [c.holds for c in bench.record().stages[H2].checks if c.id == "answers_kept"] == [None]


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_everything_that_a_run_writes_has_the_modes_of_the_umask(tmp_path: Path, umask: int) -> None:
    """Record, logs, report and figures can be read by a group that shares the folder, or by nobody else."""
    bench = make_bench(tmp_path)
    before = os.umask(umask)
    try:
        status, output = run(bench)
    finally:
        os.umask(before)
    assert status == 0, output
    written = [path for path in bench.reports.rglob("*") if path.is_file()]
    assert {"events.jsonl", "record.json", "stdout.log", "exit.json"} <= {path.name for path in written}
    assert {
        (path.name, oct(path.stat().st_mode & 0o777))
        for path in written
        if path.stat().st_mode & 0o777 != 0o666 & ~umask
    } == set()


@pytest.mark.parametrize("name", ["StepH_予行.md", "mine.md"])
def test_a_report_that_cannot_be_written_is_not_exit_0(tmp_path: Path, name: str) -> None:
    """A folder in the report's place: every stage is green, the record is kept, and the run says what was lost."""
    bench = make_bench(tmp_path)
    (bench.reports / name).mkdir(parents=True)
    status, output = run(bench, options=() if name != "mine.md" else (f"--steph-report={bench.reports / name}",))
    assert status == 1, output
    assert "レポートを書けなかった: IsADirectoryError" in output
    assert str(bench.reports / name) in output
    assert verdicts(bench) == [Verdict.PASS] * 3
