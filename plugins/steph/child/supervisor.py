"""Keeps one child: captures its output, ends everything that descends from it, and tells how it ended.

Started as `python -I -S supervisor.py PARENT FOLDER CWD GRACE_SECONDS ARGV...`; standard library only. It is the
subreaper of all that the child starts, whatever sessions and groups they move to, and leaves none of them behind: not
when the child exits, not on SIGTERM, not when the process PARENT (a pid) is gone. Logs and `exit.json` go to FOLDER:
capped logs that a full disk can't stop. What a log was given is written at once, so it outlives a SIGKILL of the
supervisor; only a flood's newest chunks and a line without its end wait in memory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import resource
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":
    # last on the path: nothing that lies beside the package may shadow the standard library
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from steph.base.redact import StreamRedactor
from steph.run import output, processes
from steph.run.output import Exit, ExitFile

_SETTLE_SECONDS = 0.3  # resource trackers and the like end by themselves when their parent has
_GRACE_AFTER_EXIT_SECONDS = 2.0
_KILL_SECONDS = 4.0  # who is still there then sits in the kernel and dies when it leaves it
_QUIET_MILLISECONDS = 5
_MOST_NAMES = 12  # of processes that were left behind
_OOM_SCORE = 300  # where the host runs out of memory, the script goes before those who record it
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_RESET_SIGNALS = (*_STOP_SIGNALS, signal.SIGCHLD, signal.SIGPIPE, signal.SIGQUIT)


_TIMES_KEPT = 100_000
_CHUNK_BYTES = 1 << 20
_DRAIN_BYTES = 64 << 20
_DRAIN_SECONDS = 60.0
_WAITING_BYTES = 2 * output.TAIL_BYTES
_LONGEST_SECRET_BYTES = 64 << 10
_BAR_SECONDS = 0.2
_LINE_END = re.compile(rb"[\r\n]")


class CappedLog:
    """One log of bounded size: a head file, then tail files of which only the newest are kept.

    What can't be written (disk full, quota, file limit) is left out and counted, never an error: a child must not die
    or stall because its log has no room.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.position = 0  # bytes of the log so far, those left out or deleted included
        self.dropped_bytes = 0
        self._folder = folder
        self._name = name
        self._fd: int | None = None
        self._path = output.head_path(folder, name)
        self._room = output.HEAD_BYTES
        self._written = 0
        self._tails: list[tuple[Path, int]] = []  # finished ones and their sizes, oldest first

    def write(self, data: bytes) -> None:
        """Append `data`, as far as there is room on the disk."""
        view = memoryview(data)
        stored = 0
        try:
            while stored < len(view):
                if self._room == 0:
                    self._start_tail()
                count = os.write(self._open(), view[stored : stored + self._room])
                stored += count
                self._room -= count
                self._written += count
                self.position += count
        except OSError:
            self.dropped_bytes += len(view) - stored
            self.skip(len(view) - stored)

    def skip(self, count: int) -> None:
        """Leave `count` bytes of the log out; what comes next goes to a new file, named by its place."""
        self.position += count
        self._room = 0

    def close(self) -> None:
        """Close the file being written."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int:
        if self._fd is None:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        return self._fd

    def _start_tail(self) -> None:
        self.close()
        if self._path != output.head_path(self._folder, self._name):
            self._tails.append((self._path, self._written))
        # the oldest go first: on a full disk their room is what the next one is written into
        while self._tails and (not self._tails[-1][1] or self._kept_without_oldest() >= output.TAIL_BYTES):
            path, _ = self._tails.pop(-1 if not self._tails[-1][1] else 0)
            with contextlib.suppress(OSError):
                path.unlink()
        self._path = output.tail_path(self._folder, self._name, self.position)
        self._room = output.TAIL_BYTES
        self._written = 0

    def _kept_without_oldest(self) -> int:
        return sum(size for _, size in self._tails[1:])


class ArrivalTimes:
    """When a log's bytes arrived: one `seconds offset` line per chunk, the first hundred thousand."""

    def __init__(self, folder: Path, name: str) -> None:
        self._left = _TIMES_KEPT
        self._fd: int | None = None
        with contextlib.suppress(OSError):
            path = output.times_path(folder, name)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def add(self, seconds: float, position: int) -> None:
        """Note that the log reached `position` bytes at this second after the child's start."""
        if self._fd is None or not self._left:
            return
        self._left -= 1
        line = b"%.3f %d\n" % (seconds, position)
        try:
            if os.write(self._fd, line) < len(line):  # the disk is full: what follows would be one line with it
                self._left = 0
        except OSError:
            self._left = 0


@dataclass(frozen=True)
class Chunk:
    """Bytes as they came out of a pipe, still with their secrets."""

    fd: int
    data: bytes
    seconds: float


class Capture:
    """The child's two pipes: stdout into its own log, both into one, in the order of arrival and without secrets.

    Looking for secrets is far slower than a child may write. Past the head of the log, where most of a flood is thrown
    away anyhow, chunks therefore wait in memory, and of these only the newest are looked through and kept.
    """

    def __init__(self, folder: Path, poll: select.poll) -> None:
        self._poll = poll
        self._both = CappedLog(folder, "output")
        self._stdout = CappedLog(folder, "stdout")
        self._times = ArrivalTimes(folder, "stdout")
        self._started = time.monotonic()
        self._redactors: dict[int, StreamRedactor] = {}
        self._open: set[int] = set()
        self._waiting: deque[Chunk] = deque()
        self._waiting_bytes = 0
        self._skipped: dict[int, int] = {}
        self._work_at = 0.0
        self._bar_at: dict[int, float] = {}
        self._last_fd = -1
        self._mid_line = False
        self.stdout_fd, self.stdout_end = self._pipe()
        _, self.stderr_end = self._pipe()

    @property
    def dropped_bytes(self) -> int:
        """Bytes of both streams together that found no room on the disk."""
        return self._both.dropped_bytes

    @property
    def is_waiting(self) -> bool:
        """Whether there are chunks that are not on the disk yet."""
        return bool(self._waiting)

    def close_ends(self) -> None:
        """Close the child's ends of the pipes, once it has them."""
        os.close(self.stdout_end)
        os.close(self.stderr_end)
        self._started = time.monotonic()

    def pump(self, fd: int) -> int:
        """Take one chunk out of this pipe; how many bytes it had, 0 for none or the end."""
        try:
            data = os.read(fd, _CHUNK_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            self._poll.unregister(fd)
            os.close(fd)
            self._open.discard(fd)
            return 0
        self._waiting.append(Chunk(fd, data, time.monotonic() - self._started))
        self._waiting_bytes += len(data)
        while self._both.position >= output.HEAD_BYTES and self._waiting_bytes > _WAITING_BYTES:
            oldest = self._waiting.popleft()
            self._waiting_bytes -= len(oldest.data)
            self._skipped[oldest.fd] = self._skipped.get(oldest.fd, 0) + len(oldest.data)
        return len(data)

    def work(self, idle: bool, limit_seconds: float = 0.02) -> None:
        """Bring waiting chunks to the disk: while `idle` for so long, past the head else for a tenth of the time."""
        started = time.monotonic()
        if not idle and started < self._work_at and self._both.position >= output.HEAD_BYTES:
            return
        while self._waiting and time.monotonic() - started < limit_seconds:
            chunk = self._waiting.popleft()
            self._waiting_bytes -= len(chunk.data)
            self._redact(chunk)
        now = time.monotonic()
        self._work_at = now + 9 * (now - started)
        if idle:
            self._show_bars()

    def say(self, line: str) -> None:
        """Put a line of the supervisor's own into the log of both streams."""
        self._keep(-1, line.encode(errors="replace") + b"\n", 0.0)

    def close(self) -> None:
        """Take what still lies in the pipes, without waiting for an end that some other process may withhold."""
        for fd in list(self._open):
            taken = 0
            while taken < _DRAIN_BYTES and (count := self.pump(fd)):
                taken += count
        self.work(idle=True, limit_seconds=_DRAIN_SECONDS)
        for fd, redactor in self._redactors.items():
            self._keep(fd, redactor.flush(), time.monotonic() - self._started)

    def _pipe(self) -> tuple[int, int]:
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        with contextlib.suppress(OSError):  # a user's quota of pipe pages may be used up
            fcntl.fcntl(read_end, fcntl.F_SETPIPE_SZ, _CHUNK_BYTES)
        self._poll.register(read_end, select.POLLIN)
        self._redactors[read_end] = StreamRedactor()
        self._open.add(read_end)
        return read_end, write_end

    def _redact(self, chunk: Chunk) -> None:
        redactor, data = self._redactors[chunk.fd], chunk.data
        skipped = self._skipped.pop(chunk.fd, 0)
        if skipped:
            self._keep(chunk.fd, redactor.flush(), chunk.seconds)
            line_end = _LINE_END.search(data)
            # behind a gap a secret may begin in its middle: the rest of that line goes as well
            cut = line_end.end() if line_end else min(len(data), _LONGEST_SECRET_BYTES)
            self._both.skip(skipped + cut)
            if chunk.fd == self.stdout_fd:
                self._stdout.skip(skipped + cut)
            self._mid_line = False
            data = data[cut:]
        self._keep(chunk.fd, redactor.feed(data), chunk.seconds)
        self._bar_at.pop(chunk.fd, None)
        if data.endswith(b"]"):
            self._bar_at[chunk.fd] = chunk.seconds

    def _show_bars(self) -> None:
        """Let out an unfinished line that stands still and ends as a progress bar does: its end comes with the next."""
        now = time.monotonic() - self._started
        for fd, since in list(self._bar_at.items()):
            if now - since > _BAR_SECONDS:
                del self._bar_at[fd]
                self._keep(fd, self._redactors[fd].flush(), since)

    def _keep(self, fd: int, data: bytes, seconds: float) -> None:
        if not data:
            return
        if self._mid_line and fd != self._last_fd and data[:1] not in b"\r\n":
            self._both.write(b"\n")  # a progress bar on stderr must not swallow a line of stdout
        self._both.write(data)
        self._last_fd = fd
        self._mid_line = data[-1:] not in b"\r\n"
        if fd == self.stdout_fd:
            self._stdout.write(data)
            self._times.add(seconds, self._stdout.position)


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
