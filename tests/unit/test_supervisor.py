"""The supervisor on its own: its exit, its logs on a full disk, and what reaches it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from process_tree import wait_until
from steph.child import supervisor
from steph.child.supervisor import CappedLog
from steph.run import output
from steph.run.output import Exit, ExitFile, read_exit

SUPERVISOR = Path(supervisor.__file__)
# nothing of the surrounding environment gets into a supervisor, also not what would measure its coverage
ISOLATED = () if "COVERAGE_PROCESS_CONFIG" in os.environ else ("-I", "-S")


def start(folder: Path, code: str, parent: int | None = None, grace_seconds: float = 5) -> subprocess.Popen[bytes]:
    """Start a supervisor of a child that runs `code`, as the runner starts it."""
    own = os.getpid() if parent is None else parent
    asked = (own, folder, folder, grace_seconds, sys.executable, "-u", "-c", code)
    argv = (sys.executable, *ISOLATED, SUPERVISOR, *asked)
    return subprocess.Popen(list(map(str, argv)), stdin=subprocess.DEVNULL, start_new_session=True)


def exit_report(folder: Path) -> Exit:
    """What the supervisor wrote at its end."""
    found = read_exit(folder)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise SystemExit(0)", 0),
        ("raise SystemExit(3)", 3),
        ("1 / 0", 1),
        ("import os; os.abort()", -signal.SIGABRT),
        ("import os; os.kill(os.getpid(), 11)", -signal.SIGSEGV),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
    ],
)
def test_supervisor_ends_as_its_child_ended(tmp_path: Path, code: str, status: int) -> None:
    """Exit status and signal of the child are the supervisor's own, and stand in `exit.json`."""
    assert start(tmp_path, code).wait() == status
    report = exit_report(tmp_path)
    assert (report.returncode, report.by_itself) == (status, True)
    assert report.ended_monotonic is not None
    assert report.ended_monotonic >= report.started_monotonic
    assert not list(tmp_path.glob("core*"))


def test_sigterm_gives_the_child_its_grace(tmp_path: Path) -> None:
    """A child that handles SIGTERM has time to say its last words, and they are kept."""
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *a: (print('saved'), sys.exit(5)))\n"
        "print('ready'); time.sleep(600)"
    )
    process = start(tmp_path, code)
    wait_until(lambda: output.stdout_text(tmp_path) == "ready\n")
    process.terminate()
    assert process.wait() == 5
    assert output.stdout_text(tmp_path) == "ready\nsaved\n"
    assert not exit_report(tmp_path).by_itself


def test_a_script_that_kills_its_group_does_not_reach_the_supervisor(tmp_path: Path) -> None:
    """`kill 0`, common in shell scripts' traps, ends the child alone."""
    assert start(tmp_path, "import os; os.killpg(0, 15)").wait() == -signal.SIGTERM
    assert exit_report(tmp_path).by_itself


def test_nothing_starts_for_a_parent_that_is_gone(tmp_path: Path) -> None:
    """A parent that died before the supervisor was ready is noticed, and no child is started for it."""
    assert start(tmp_path, "open('started', 'w')", parent=1).wait() == 143
    assert not (tmp_path / "started").exists()


def test_supervisor_does_not_see_the_pipelines_modules(tmp_path: Path) -> None:
    """A `json.py` or `signal.py` beside the script, or on PYTHONPATH, can't break the supervisor."""
    for name in ("json", "signal", "steph"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(99)")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    argv = (sys.executable, "-I", "-S", SUPERVISOR, os.getpid(), tmp_path, tmp_path, 1, "true")
    assert subprocess.run(list(map(str, argv)), cwd=tmp_path, env=environment, check=False).returncode == 0


def test_log_without_room_drops_and_counts(tmp_path: Path) -> None:
    """Where every write fails for want of room (/dev/full), nothing raises and each byte is counted."""
    output.head_path(tmp_path, "output").symlink_to("/dev/full")
    output.tail_path(tmp_path, "output", 100).symlink_to("/dev/full")
    log = CappedLog(tmp_path, "output")
    log.write(b"a" * 100)
    log.write(b"b" * 23)
    log.close()
    assert (log.dropped_bytes, log.position) == (123, 123)


def test_log_that_finds_room_again_says_what_is_missing(tmp_path: Path) -> None:
    """After a gap the log goes on, and reading it gives the number of missing bytes."""
    log = CappedLog(tmp_path, "output")
    log.write(b"first\n")
    log.close()
    (tmp_path / "output.log").chmod(0o600)
    log.skip(5)
    log.write(b"kept\n")
    log.close()
    assert output.read_output(tmp_path) == "first\n\n[... 5 bytes cut ...]\nkept\n"


@pytest.mark.parametrize("chunk", [1 << 20, (1 << 20) - 7, 20 << 20])
def test_capped_log_is_exact_for_any_chunk_size(tmp_path: Path, chunk: int) -> None:
    """Whatever sizes arrive, head and tails hold exactly the first and last bytes, two tail files at most."""
    total = 41 << 20
    pattern = bytes(range(251)) * (total // 251 + 1)
    log = CappedLog(tmp_path, "output")
    for begin in range(0, total, chunk):
        log.write(pattern[begin : min(begin + chunk, total)])
    log.close()
    segments = output.segments(tmp_path)
    assert [segment.data == pattern[segment.offset :][: len(segment.data)] for segment in segments] == [True, True]
    assert segments[0].offset + len(segments[0].data) == output.HEAD_BYTES
    assert segments[1].offset + len(segments[1].data) == total
    assert len(list(tmp_path.iterdir())) == 3


def test_many_gaps_do_not_make_a_log_grow(tmp_path: Path) -> None:
    """Of tails broken by gaps, too, no more is kept than two full ones hold, and no less than one."""
    log = CappedLog(tmp_path, "output")
    for number in range(40):
        log.write(bytes([number]) * (1 << 20))
        log.skip(1000)
    log.close()
    tails = [segment for segment in output.segments(tmp_path) if segment.offset]
    assert output.TAIL_BYTES <= sum(len(segment.data) for segment in tails) <= 2 * output.TAIL_BYTES
    assert tails[-1].data == bytes([39]) * (1 << 20)
    assert tails[-1].offset == 39 * ((1 << 20) + 1000)


def test_secrets_do_not_reach_any_file(tmp_path: Path) -> None:
    """A token on stdout or stderr, whole or in pieces, is in none of the files, and what stands around it is."""
    token = "hf_" + "aB3" * 11
    code = (
        f"import fcntl, os, termios, time; os.write(1, b'using {token} now\\n'); os.write(2, b'with {token[:9]}')\n"
        "while any(fcntl.ioctl(2, termios.FIONREAD, bytes(4))): time.sleep(0.01)  # until the first piece was read\n"
        f"os.write(2, b'{token[9:]} then\\n')"
    )
    assert start(tmp_path, code).wait() == 0
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert token.encode()[9:] not in written
    assert "using hf_*** now" in output.stdout_text(tmp_path)
    assert "with hf_*** then" in output.read_output(tmp_path)


def test_secrets_do_not_reach_any_file_in_a_flood(tmp_path: Path) -> None:
    """Where a flood is thrown away in the middle of lines, no half of a token is left at the seams."""
    token = "hf_" + "aB3" * 11
    code = (
        f"import os\nblock = (b'HF_TOKEN={token} ' + b'.' * 300) * 30 + b'\\n'\n"
        "for _ in range(60): os.write(1, block * 100)"
    )
    assert start(tmp_path, code).wait() == 0
    text = output.stdout_text(tmp_path)
    assert " bytes cut ...]" in text
    assert "aB3" not in text
    assert "HF_TOKEN=" in text


def test_a_bar_that_stands_still_can_be_read(tmp_path: Path) -> None:
    """A progress bar has no line end until its next state; it is in the log long before that."""
    process = start(tmp_path, "import os, time; os.write(2, b'\\r 33%|#  | 1/3 [00:01<00:02]'); time.sleep(600)")
    wait_until(lambda: "1/3" in output.read_output(tmp_path))
    process.terminate()
    process.wait()


def test_the_end_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Runner and supervisor share the value, also where the child could not be started."""
    for end in (Exit(8, 1.0), Exit(8, 1.0, False, -9, 2.5, 3, 1, 4096, ("sh (pid 5)",))):
        ExitFile(tmp_path).write(end)
        assert vars(read_exit(tmp_path)) == vars(end)


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{", "null", "{}", '{"by_itself": true}', '{"child_pid": 1, "reason": "else"}']
)
def test_a_file_that_no_supervisor_wrote_tells_no_end(content: str | None, tmp_path: Path) -> None:
    """A missing, cut or foreign `exit.json` is that of a lost supervisor, never that of a child that ended well."""
    if content is not None:
        (tmp_path / "exit.json").write_text(content, encoding="utf-8")
    assert read_exit(tmp_path) is None
