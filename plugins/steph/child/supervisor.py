"""Keeps one child: captures its output, ends everything that descends from it, and tells how it ended.

Started as `python -I -S supervisor.py PARENT FOLDER CWD GRACE_SECONDS ARGV...`; standard library only. It is the
subreaper of all that the child starts, whatever sessions and groups they move to, and leaves none of them behind: not
when the child exits, not on SIGTERM, not when the process PARENT (a pid) is gone. Logs and `exit.json` go to FOLDER.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":
    # last on the path: nothing that lies beside the package may shadow the standard library
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from steph.child.capture import Capture
from steph.run import processes
from steph.run.output import Exit, ExitFile

_SETTLE_SECONDS = 0.3  # resource trackers and the like end by themselves when their parent has
_GRACE_AFTER_EXIT_SECONDS = 2.0
_KILL_SECONDS = 4.0  # who is still there then sits in the kernel and dies when it leaves it
_QUIET_MILLISECONDS = 5
_MOST_NAMES = 12  # of processes that were left behind
_OOM_SCORE = 300  # where the host runs out of memory, the script goes before those who record it
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_RESET_SIGNALS = (*_STOP_SIGNALS, signal.SIGCHLD, signal.SIGPIPE, signal.SIGQUIT)


class Supervisor:
    """One child from its start to the end of its last descendant."""

    def __init__(self, parent: int, folder: Path, cwd: str, argv: Sequence[str], grace_seconds: float) -> None:
        self._parent, self._cwd, self._argv, self._grace_seconds = parent, cwd, argv, grace_seconds
        self._exit_file = ExitFile(folder)
        self._poll = select.poll()
        self._wakeup = _wakeup_pipe(self._poll)
        self._capture = Capture(folder, self._poll)
        self._stopped = False
        self._reaped = False
        self._signalled: set[tuple[int, int]] = set()
        self._term_at: float | None = None
        self._kill_at = 0.0
        for number in _STOP_SIGNALS:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # only there to wake the poll

    def run(self) -> Exit:
        """Start the child, keep it until nothing of it is left, write `exit.json`."""
        pid, error = _start(self._argv, self._cwd, self._capture.stdout_end, self._capture.stderr_end)
        self._capture.close_ends()
        self._exit = Exit(pid, time.monotonic(), start_error=error)
        if error:
            self._capture.say(error)
        while not self._over():
            ready = self._poll.poll(self._patience_milliseconds())
            for fd, _ in ready:
                if fd == self._wakeup:
                    os.read(fd, 4096)
                else:
                    self._capture.pump(fd)
            self._capture.work(idle=not ready)
            self._reap()
        self._capture.close()
        self._exit.ended_monotonic = self._exit.ended_monotonic or time.monotonic()
        self._exit.dropped_bytes = self._capture.dropped_bytes
        self._exit_file.write(self._exit)
        return self._exit

    def _patience_milliseconds(self) -> int:
        if self._capture.is_waiting:
            return _QUIET_MILLISECONDS
        return 250 if self._term_at is None else 20

    def _stop(self, number: int, frame: object) -> None:
        self._stopped = True

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (entry := os.waitpid(-1, os.WNOHANG))[0]:
                if entry[0] == self._exit.child_pid and not self._reaped:
                    self._reaped = True
                    self._exit.returncode = os.waitstatus_to_exitcode(entry[1])
                    self._exit.ended_monotonic = time.monotonic()

    def _over(self) -> bool:
        """Whether everything has ended; the one place that decides on who is signalled, and with what."""
        now = time.monotonic()
        if self._term_at is None:
            self._decide(now)
            if self._term_at is None:
                return False
        elif self._stopped and self._exit.by_itself:
            self._term_at = now
        left = processes.descendants(os.getpid())
        if not left:
            self._reap()
            return True
        if now >= self._kill_at + _KILL_SECONDS:
            self._exit.left_alive = len(left)
            return True
        if now >= self._kill_at:
            self._signal(left, signal.SIGKILL)
        elif now >= self._term_at:
            self._signal([s for s in left if (s.pid, s.start_ticks) not in self._signalled], signal.SIGTERM)
        return False

    def _decide(self, now: float) -> None:
        parent_lost = os.getppid() != self._parent
        if self._reaped:
            self._term_at = now + _SETTLE_SECONDS
            self._kill_at = self._term_at + min(self._grace_seconds, _GRACE_AFTER_EXIT_SECONDS)
        elif self._stopped or parent_lost:
            self._exit.by_itself = False
            self._term_at = now
            self._kill_at = now + self._grace_seconds

    def _signal(self, found: list[processes.ProcessStat], number: signal.Signals) -> None:
        for stat in found:
            if stat.pid != self._exit.child_pid and (stat.pid, stat.start_ticks) not in self._signalled:
                self._exit.killed_descendants += 1
                self._name(stat)
            self._signalled.add((stat.pid, stat.start_ticks))
            processes.send_signal(stat, number)

    def _name(self, stat: processes.ProcessStat) -> None:
        """Note what a child that ended by itself left running; how many there were is counted apart."""
        if self._exit.by_itself and len(self._exit.left_behind) < _MOST_NAMES:
            self._exit.left_behind += (f"{processes.command_of(stat.pid)} (pid {stat.pid})",)


def _wakeup_pipe(poll: select.poll) -> int:
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    poll.register(read_end, select.POLLIN)
    return read_end


def _start(argv: Sequence[str], cwd: str, stdout_end: int, stderr_end: int) -> tuple[int, str | None]:
    """Fork and exec the child; its pid, and what kept it from starting if anything did (it then exits 126 or 127)."""
    supervisor = os.getpid()
    error_fd, error_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become(argv, cwd, supervisor, stdout_end, stderr_end, error_end)
    os.close(error_end)
    with os.fdopen(error_fd, "rb") as file:
        error = file.read().decode(errors="replace")
    return pid, error or None


def _become(
    argv: Sequence[str], cwd: str, supervisor: int, stdout_end: int, stderr_end: int, error_end: int
) -> NoReturn:
    """In the forked process, turn into the child; an exec keeps argv, `__file__` and tracebacks as they are."""
    status = 126
    try:
        os.setpgid(0, 0)  # a script's `kill 0` is not meant for the supervisor
        for target, source in enumerate((os.open(os.devnull, os.O_RDONLY), stdout_end, stderr_end)):
            os.dup2(source, target)
        for number in _RESET_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
        os.chdir(cwd)
        processes.set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(143)
        os.execvp(argv[0], list(argv))  # noqa: S606  no shell is the point
    except OSError as error:
        status = 127 if error.errno == errno.ENOENT else 126
        os.write(error_end, f"cannot start {argv[0]} in {cwd}: {error.strerror}"[:500].encode())
    finally:
        os._exit(status)


def _exit_like(outcome: Exit) -> NoReturn:
    """End as the child ended, by its signal too, without a core of our own."""
    code = outcome.returncode
    if code is None:
        sys.exit(137)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code if code >= 0 else 128 - code)


def main() -> NoReturn:
    """Keep the child that argv asks for."""
    parent, folder, cwd, grace_seconds, *argv = sys.argv[1:]
    processes.set_subreaper(True)
    supervisor = Supervisor(int(parent), Path(folder), cwd, argv, float(grace_seconds))
    processes.set_parent_death_signal(signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit(143)
    _exit_like(supervisor.run())


if __name__ == "__main__":
    main()
