"""Running one child: how it ends, what is kept of it, and that nothing of it stays."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from process_tree import STUBBORN, TWO_RANKS, alive_with, children_of, supervisor_pid, wait_until
from steph.base.terms import EndedBy
from steph.child.supervisor import ArrivalTimes
from steph.run import output, processes
from steph.run.runner import ChildOutcome, ChildSpec, Progress, RunnerError, environment_of, last_bar, run_child


class Interrupted(BaseException):
    """What a timeout plugin's signal handler raises."""


@pytest.fixture
def mark() -> str:
    """A value by which all processes of one test are found."""
    return uuid.uuid4().hex


def spec_of(folder: Path, code: str, mark: str = "", grace_seconds: float = 0.3) -> ChildSpec:
    """A child that runs `code` and writes into a new folder below the given one."""
    return ChildSpec(
        argv=(sys.executable, "-c", code),
        cwd=folder,
        folder=folder / "attempt",
        limit_seconds=250,
        env={"STEPH_TEST_MARK": mark},
        grace_seconds=grace_seconds,
    )


def run(folder: Path, code: str, on_poll: Callable[[Progress], None] | None = None) -> ChildOutcome:
    """Run `code` as a child."""
    return run_child(spec_of(folder, code), on_poll=on_poll)


def once_ready(folder: Path, action: Callable[[], object], lines: int = 1) -> Callable[[Progress], None]:
    """An on_poll that acts once, as soon as the child has printed so many lines."""
    done: list[bool] = []

    def on_poll(progress: Progress) -> None:
        if len(output.stdout_text(folder / "attempt").splitlines()) >= lines and not done:
            done.append(True)
            action()

    return on_poll


def test_outcome_has_exit_status_both_streams_and_arrival_times(tmp_path: Path) -> None:
    """The exit status, stdout alone, both streams together and the second of each dict line come back."""
    code = "import sys, time; print({'loss': 1.5}); print('note', file=sys.stderr); print({'loss': '1.2'}); sys.exit(3)"
    outcome = run(tmp_path, code)
    folder = tmp_path / "attempt"
    assert (outcome.returncode, outcome.ended_by) == (3, EndedBy.EXIT)
    assert output.stdout_text(folder) == "{'loss': 1.5}\n{'loss': '1.2'}\n"
    assert sorted(output.read_output(folder).splitlines()) == ["note", "{'loss': '1.2'}", "{'loss': 1.5}"]
    assert [line for _, line in outcome.timed_lines] == ["{'loss': 1.5}", "{'loss': '1.2'}"]
    assert 0 <= outcome.timed_lines[0][0] <= outcome.timed_lines[1][0] <= outcome.seconds + 0.1


def test_script_sees_what_a_shell_would_give_it(tmp_path: Path) -> None:
    """argv, `__file__`, the path and the traceback of a script are the same with and without the runner."""
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint(sys.argv, __file__, sys.path, sys.stdin.read())\ndef f():\n    1 / 0\nf()\n")
    argv = (sys.executable, "script.py", "--x", "a b")
    plain = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    outcome = run_child(ChildSpec(argv, tmp_path, tmp_path / "attempt", 60))
    assert outcome.returncode == plain.returncode == 1
    assert output.stdout_text(tmp_path / "attempt") == plain.stdout
    assert output.read_output(tmp_path / "attempt") == plain.stdout + plain.stderr


def test_child_that_cannot_start_says_so_in_its_log(tmp_path: Path) -> None:
    """A missing interpreter is exit status 127 with a line that names it, as in a shell."""
    outcome = run_child(ChildSpec(("/nowhere/python", "x.py"), tmp_path, tmp_path / "attempt", 60))
    assert (outcome.returncode, outcome.ended_by) == (127, EndedBy.EXIT)
    assert "cannot start /nowhere/python" in output.read_output(tmp_path / "attempt")


@pytest.fixture
def let_an_hour_pass(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Sets this process's clock on, so that no test waits for a deadline."""
    clock = time.monotonic
    return lambda: monkeypatch.setattr(time, "monotonic", lambda: clock() + 3600)


def test_deadline_ends_the_whole_stubborn_tree(tmp_path: Path, mark: str, let_an_hour_pass: Callable[[], None]) -> None:
    """TERM-ignoring, setsid'd and double-forked processes are gone when a child has run into its deadline."""
    outcome = run_child(spec_of(tmp_path, STUBBORN, mark), on_poll=once_ready(tmp_path, let_an_hour_pass))
    assert (outcome.returncode, outcome.ended_by) == (-signal.SIGKILL, EndedBy.DEADLINE)
    assert (outcome.killed_descendants, outcome.left_alive) == (2, 0)
    assert alive_with(mark) == []


def test_deadline_ends_ranks_in_sessions_of_their_own(
    tmp_path: Path, mark: str, let_an_hour_pass: Callable[[], None]
) -> None:
    """Two ranks that torchrun would start in own sessions do not outlive their launcher."""
    outcome = run_child(spec_of(tmp_path, TWO_RANKS, mark), on_poll=once_ready(tmp_path, let_an_hour_pass, lines=3))
    assert outcome.ended_by is EndedBy.DEADLINE
    assert {"rank 0", "rank 1"} <= set(output.stdout_text(tmp_path / "attempt").splitlines())
    assert alive_with(mark) == []


def test_what_a_child_leaves_behind_is_ended_after_its_exit(tmp_path: Path, mark: str) -> None:
    """A daemon that holds the child's pipes open neither delays the end for long nor survives it."""
    code = STUBBORN.replace('print("ready", flush=True)\nstay()', "raise SystemExit(0)")
    outcome = run_child(spec_of(tmp_path, code, mark))
    assert (outcome.returncode, outcome.ended_by, outcome.killed_descendants) == (0, EndedBy.EXIT, 2)
    assert alive_with(mark) == []
    assert len(outcome.left_behind) == 2


def test_what_a_child_leaves_behind_is_named_without_its_arguments(tmp_path: Path) -> None:
    """A program by its name, an interpreter by its script, module or `-c` too; a token among the words stays unsaid."""
    (tmp_path / "logger.py").write_text("import time; time.sleep(600)")
    code = """if True:
        import subprocess, sys
        for words in (["sleep", "600"], [sys.executable, "logger.py", "--token", "hf_secret"],
                      [sys.executable, "-c", "import time; time.sleep(600)", "hf_secret"]):
            subprocess.Popen(words)
    """
    outcome = run(tmp_path, code)
    python = Path(sys.executable).name
    named = sorted(name.partition(" (pid ")[0] for name in outcome.left_behind)
    assert named == sorted(["sleep", f"{python} logger.py", f"{python} -c"])


def test_child_that_closes_its_streams_is_waited_for(tmp_path: Path) -> None:
    """The end of stdout and stderr is not the end of the child."""
    code = """if True:
        import os, time
        print("last", flush=True)
        os.close(1), os.close(2), open("closed", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.01)
        os._exit(4)
    """
    looks: list[Progress] = []

    def let_it_go_later(progress: Progress) -> None:
        if (tmp_path / "closed").exists():
            looks.append(progress)
        if len(looks) == 5:
            (tmp_path / "go").touch()

    assert run(tmp_path, code, on_poll=let_it_go_later).returncode == 4
    assert len(looks) >= 5
    assert output.stdout_text(tmp_path / "attempt") == "last\n"


def test_sigkill_of_the_child_is_its_own_end(tmp_path: Path, mark: str) -> None:
    """A child that the kernel or a person kills ends with that signal, and its grandchildren with it."""

    def kill_script() -> None:
        below = processes.descendants(supervisor_pid(mark))
        os.kill(next(stat.pid for stat in below if stat.parent == supervisor_pid(mark)), signal.SIGKILL)

    outcome = run_child(spec_of(tmp_path, TWO_RANKS, mark), on_poll=once_ready(tmp_path, kill_script, lines=3))
    assert (outcome.returncode, outcome.ended_by, outcome.killed_descendants) == (-9, EndedBy.EXIT, 2)
    assert alive_with(mark) == []


def test_sigkill_of_the_supervisor_leaves_nothing(tmp_path: Path, mark: str) -> None:
    """Where the supervisor is killed its orphans are swept, its log is kept, and no other child of ours is touched."""
    waiting = [sys.executable, "-c", "input(); raise SystemExit(7)"]
    foreign = subprocess.Popen(waiting, stdin=subprocess.PIPE, start_new_session=True)
    before = children_of(os.getpid())
    outcome = run_child(
        spec_of(tmp_path, STUBBORN, mark),
        on_poll=once_ready(tmp_path, lambda: os.kill(supervisor_pid(mark), signal.SIGKILL)),
    )
    assert (outcome.returncode, outcome.ended_by) == (-9, EndedBy.SUPERVISOR_LOST)
    assert outcome.killed_descendants >= 2
    assert children_of(os.getpid()) == before  # neither a living orphan nor a zombie
    assert output.stdout_text(tmp_path / "attempt") == "ready\n"
    assert alive_with(mark) == []
    assert foreign.poll() is None
    foreign.communicate(b"\n")
    assert foreign.returncode == 7
    assert not processes.is_subreaper()


def test_sigkill_of_the_runner_itself_leaves_nothing(tmp_path: Path, mark: str) -> None:
    """When the process that called run_child is killed, the supervisor ends the tree and says why."""
    code = (
        "import sys; from pathlib import Path; from steph.run.runner import ChildSpec, run_child\n"
        "run_child(ChildSpec((sys.executable, '-c', sys.argv[1]), Path.cwd(), Path('attempt'), 60, grace_seconds=0.3))"
    )
    path = os.pathsep.join([str(Path(processes.__file__).parents[2]), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "STEPH_TEST_MARK": mark}
    parent = subprocess.Popen([sys.executable, "-c", code, STUBBORN], cwd=tmp_path, env=environment)
    log = tmp_path / "attempt" / "stdout.log"
    wait_until(lambda: log.exists() and log.read_text() == "ready\n")
    parent.kill()
    parent.wait()
    wait_until(lambda: not alive_with(mark))
    assert '"by_itself": false' in (tmp_path / "attempt" / "exit.json").read_text()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Interrupted])
def test_interruption_ends_the_tree_and_goes_on(tmp_path: Path, mark: str, kind: type[BaseException]) -> None:
    """Ctrl-C and a timeout plugin's exception, raised by a signal handler, reach the caller after the cleaning up."""

    def handler(number: int, frame: object) -> None:
        raise kind

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(kind):
            run_child(
                spec_of(tmp_path, STUBBORN, mark),
                on_poll=once_ready(tmp_path, lambda: os.kill(os.getpid(), signal.SIGUSR1)),
            )
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert alive_with(mark) == []
    assert not processes.is_subreaper()


def test_second_interruption_kills_at_once(tmp_path: Path, mark: str) -> None:
    """Ctrl-C again, while the grace for a stubborn child runs, does not leave it alive."""

    def handler(number: int, frame: object) -> None:
        raise Interrupted

    def interrupt_twice() -> None:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(Interrupted):
            run_child(
                spec_of(tmp_path, STUBBORN, mark, grace_seconds=60), on_poll=once_ready(tmp_path, interrupt_twice)
            )
    finally:
        signal.signal(signal.SIGUSR1, before)
    wait_until(lambda: alive_with(mark) == [])


def test_helper_threads_are_refused(tmp_path: Path) -> None:
    """A child is bound to the thread that forked it, so only the main thread may start one."""
    errors: list[str] = []

    def start() -> None:
        try:
            run(tmp_path, "pass")
        except RunnerError as error:
            errors.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert errors == ["run_child はメインスレッドからしか呼べない"]


def test_folder_of_an_earlier_child_is_refused(tmp_path: Path) -> None:
    """Two children never share a folder, so neither's files can pass for the other's."""
    run(tmp_path, "pass")
    with pytest.raises(RunnerError, match="すでに別の子プロセスの出力がある"):
        run(tmp_path, "pass")


def test_200_mb_of_output_are_cut_in_the_middle(tmp_path: Path) -> None:
    """Of 200 MB the first 8 MiB and the last 4 to 8 are kept, and the mark between says how many bytes are gone."""
    lines, width = 2_000_000, 100
    code = (
        f"import os\nfor n in range(0, {lines}, 10):\n"
        f"    os.write(1, b''.join(b'%0{width - 1}d\\n' % (n + i) for i in range(10)))"
    )
    outcome = run(tmp_path, code)
    assert outcome.returncode == 0
    segments = output.segments(tmp_path / "attempt", "stdout")
    text = output.stdout_text(tmp_path / "attempt")
    assert segments[0].offset == 0
    assert segments[-1].offset + len(segments[-1].data) == lines * width
    assert len(segments[0].data) == output.HEAD_BYTES
    kept = sum(len(segment.data) for segment in segments[1:])
    assert output.TAIL_BYTES < kept <= 2 * output.TAIL_BYTES
    cut = sum(int(count) for count in re.findall(r"^\[\.\.\. (\d+) bytes cut \.\.\.\]$", text, re.MULTILINE))
    assert output.HEAD_BYTES + kept + cut == lines * width
    assert text.splitlines()[0] == f"{0:0{width - 1}d}"
    assert output.tail_lines(tmp_path / "attempt", 1) == [f"{lines - 1:0{width - 1}d}"]
    assert sum(path.stat().st_size for path in (tmp_path / "attempt").iterdir()) < 34 << 20


def test_invalid_utf8_and_carriage_returns_come_through(tmp_path: Path) -> None:
    """Bytes that are no text are replaced on reading, and a rewritten line shows its last state in the tail."""
    code = (
        "import os; os.write(1, b'caf\\xe9 \\xff\\xfe ok\\n')\n"
        "for n in range(4): os.write(2, b'\\r%3d%%|##| %d/3 [00:01<00:00]' % (33 * n, n))"
    )
    seen: list[Progress] = []
    outcome = run_child(spec_of(tmp_path, code + "\nimport time; time.sleep(0.7)"), on_poll=seen.append)
    assert outcome.returncode == 0
    assert output.stdout_text(tmp_path / "attempt") == "caf\ufffd \ufffd\ufffd ok\n"
    assert output.tail_lines(tmp_path / "attempt", 1) == [" 99%|##| 3/3 [00:01<00:00]"]
    assert (seen[-1].step, seen[-1].total_steps, seen[-1].label) == (3, 3, "")


def test_a_progress_bar_does_not_swallow_a_line_of_stdout(tmp_path: Path) -> None:
    """A dict line that arrives while a bar stands unfinished on stderr is a line of its own in the joint log."""
    code = "import os, time; os.write(2, b'\\r 33%|#  | 1/3 [x]'); time.sleep(0.6); print({'loss': 1.0}, flush=True)"
    run(tmp_path, code)
    assert output.read_output(tmp_path / "attempt") == "\r 33%|#  | 1/3 [x]\n{'loss': 1.0}\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_full_disk_neither_kills_nor_stalls_the_child(tmp_path: Path) -> None:
    """With no room for the log the child runs to its end; what was dropped is counted, and `exit.json` is written."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False)
    if mount.returncode:
        pytest.skip("tmpfs can't be mounted here")
    try:
        code = "import os; [os.write(1, b'x' * 1_000_000) for _ in range(5)]; os._exit(6)"
        outcome = run_child(ChildSpec((sys.executable, "-c", code), tmp_path, disk / "attempt", 30))
        kept = sum(len(segment.data) for segment in output.segments(disk / "attempt"))
        assert (outcome.returncode, outcome.ended_by) == (6, EndedBy.EXIT)
        told = output.read_exit(disk / "attempt")
        assert told is not None
        assert kept + told.dropped_bytes == 5_000_000
        assert told.dropped_bytes > 3_900_000
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_environment_is_ours_without_hub_tokens_plus_the_changes(tmp_path: Path) -> None:
    """Hub tokens stay here unless asked for, PYTHONPATH is prefixed and not replaced, None takes a variable away."""
    own = {"HF_TOKEN": "hf_x", "PYTHONPATH": "/a", "LANG": "C", "WANDB_MODE": "offline"}
    spec = ChildSpec(("x",), tmp_path, tmp_path, 1, env={"LANG": None, "HF_HUB_OFFLINE": "1"})
    environment = environment_of(own, spec)
    assert "HF_TOKEN" not in environment
    assert "LANG" not in environment
    assert environment["HF_HUB_OFFLINE"] == environment["PYTHONUNBUFFERED"] == "1"
    assert environment["WANDB_MODE"] == "offline"
    inject, _, rest = environment["PYTHONPATH"].partition(os.pathsep)
    assert (Path(inject) / "sitecustomize.py").exists()
    assert rest == "/a"
    with_token = ChildSpec(("x",), tmp_path, tmp_path, 1, env={"HF_TOKEN": "hf_y"})
    assert environment_of(own, with_token)["HF_TOKEN"] == "hf_y"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (" 33%|███▎      | 1/3 [00:00<00:00,  5.0it/s]", (1, 3, "")),
        ("Map: 100%|██████████| 140/140 [00:00<00:00, 4000.00 examples/s]", (140, 140, "Map")),
        ("  0%|          | 0/50 [00:00<?, ?it/s]", (0, 50, "")),
        ("[rank0]: 12/24 [done]", None),
        ("3/50 is a date", None),
    ],
)
def test_progress_bars_are_read_as_tqdm_writes_them(line: str, expected: tuple[int, int, str] | None) -> None:
    """Step, total and label come from tqdm's own form of a bar and from nothing else."""
    assert last_bar([line]) == expected


def test_a_torn_line_of_arrival_times_costs_those_after_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last bytes of a full disk take half a line without an error: no later one is glued to it, none is misread."""
    (tmp_path / "stdout.log").write_text("{'loss': 1}\n{'loss': 2}\n{'loss': 3}\n")
    times, write = ArrivalTimes(tmp_path, "stdout"), os.write
    times.add(1.0, 12)
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda file, data: write(file, data[:7]))
        times.add(2.0, 24)
    times.add(3.0, 36)
    assert (tmp_path / "stdout.times").read_bytes() == b"1.000 12\n2.000 2"
    (tmp_path / "stdout.times").write_bytes(b"1.000 12\n2.0003.000 36\n")
    assert [seconds for seconds, _ in output.timed_lines(tmp_path, lambda line: True)][:1] == [1.0]
