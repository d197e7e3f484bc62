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
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":
    # last on the path: nothing that lies beside the package may shadow the standard library
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from steph.base.text import StreamRedactor
from steph.run import output, processes
from steph.run.output import Exit, ExitFile

_TIMES_KEPT = 100_000
_CHUNK_BYTES = 1 << 20
_DRAIN_BYTES = 64 << 20
_DRAIN_SECONDS = 60.0
_WAITING_BYTES = 2 * output.TAIL_BYTES
_LONGEST_SECRET_BYTES = 64 << 10
_BAR_SECONDS = 0.2
_LINE_END = re.compile(rb"[\r\n]")
_SETTLE_SECONDS = 0.3  # resource trackers and the like end by themselves when their parent has
_GRACE_AFTER_EXIT_SECONDS = 2.0
_KILL_SECONDS = 4.0  # who is still there then sits in the kernel and dies when it leaves it
_QUIET_MILLISECONDS = 5
_MOST_NAMES = 12  # of processes that were left behind
_OOM_SCORE = 300  # where the host runs out of memory, the script goes before those who record it
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_RESET_SIGNALS = (*_STOP_SIGNALS, signal.SIGCHLD, signal.SIGPIPE, signal.SIGQUIT)


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
                if self._fd is None:
                    self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
                count = os.write(self._fd, view[stored : stored + self._room])
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

    def _start_tail(self) -> None:
        self.close()
        tails = self._tails
        if self._path != output.head_path(self._folder, self._name):
            tails.append((self._path, self._written))
        # the oldest go first: on a full disk their room is what the next one is written into
        while tails and (not tails[-1][1] or sum(size for _, size in tails[1:]) >= output.TAIL_BYTES):
            path, _ = tails.pop(0 if tails[-1][1] else -1)
            with contextlib.suppress(OSError):
                path.unlink()
        self._path = output.tail_path(self._folder, self._name, self.position)
        self._room = output.TAIL_BYTES
        self._written = 0


class ArrivalTimes:
    """When a log's bytes arrived: one `seconds offset` line per chunk, the first hundred thousand."""

    def __init__(self, folder: Path, name: str) -> None:
        self._left = 0
        with contextlib.suppress(OSError):
            path = output.times_path(folder, name)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            self._left = _TIMES_KEPT

    def add(self, seconds: float, position: int) -> None:
        """Note that the log reached `position` bytes at this second after the child's start."""
        if not self._left:
            return
        self._left -= 1
        line = b"%.3f %d\n" % (seconds, position)
        try:
            if os.write(self._fd, line) < len(line):  # the disk is full: what follows would be one line with it
                self._left = 0
        except OSError:
            self._left = 0


class _Pipe:
    """One of the child's two streams, and what is known of it between two chunks."""

    def __init__(self, fd: int, redactor: StreamRedactor) -> None:
        self.fd = fd
        self.redactor = redactor
        self.is_open = True
        self.skipped_bytes = 0  # thrown away unread, between what was kept and the next chunk that waits
        self.bar_at: float | None = None  # since when an unfinished line stands that ends as a progress bar does


class Capture:
    """The child's two pipes: stdout into its own log, both into one, in the order of arrival and without secrets.

    Looking for secrets is far slower than a child may write. Past the head of the log, where most of a flood is thrown
    away anyhow, chunks therefore wait in memory, and of these only the newest are looked through and kept.
    """

    def __init__(self, folder: Path, poll: select.poll) -> None:
        self._poll = poll
        self.both = CappedLog(folder, "output")
        self._stdout = CappedLog(folder, "stdout")
        self._times = ArrivalTimes(folder, "stdout")
        self._started = time.monotonic()
        self._pipes: dict[int, _Pipe] = {}
        self._waiting: deque[tuple[_Pipe, bytes, float]] = deque()
        self._waiting_bytes = 0
        self._work_at = 0.0
        self._last_fd = -1  # of what was kept last; the supervisor's own lines have none
        self._mid_line = False
        ends = []
        for _ in range(2):
            read_end, write_end = os.pipe()
            os.set_blocking(read_end, False)
            with contextlib.suppress(OSError):  # a user's quota of pipe pages may be used up
                fcntl.fcntl(read_end, fcntl.F_SETPIPE_SZ, _CHUNK_BYTES)
            poll.register(read_end, select.POLLIN)
            self._pipes[read_end] = _Pipe(read_end, StreamRedactor())
            ends.append(write_end)
        self.stdout_end, self.stderr_end = ends
        self._stdout_fd = next(iter(self._pipes))

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
            self._pipes[fd].is_open = False
            return 0
        self._waiting.append((self._pipes[fd], data, time.monotonic() - self._started))
        self._waiting_bytes += len(data)
        while self.both.position >= output.HEAD_BYTES and self._waiting_bytes > _WAITING_BYTES:
            pipe, oldest, _ = self._waiting.popleft()
            self._waiting_bytes -= len(oldest)
            pipe.skipped_bytes += len(oldest)
        return len(data)

    def work(self, idle: bool, limit_seconds: float = 0.02) -> None:
        """Bring waiting chunks to the disk: while `idle` for so long, past the head else for a tenth of the time."""
        started = time.monotonic()
        if not idle and started < self._work_at and self.both.position >= output.HEAD_BYTES:
            return
        while self._waiting and time.monotonic() - started < limit_seconds:
            pipe, data, seconds = self._waiting.popleft()
            self._waiting_bytes -= len(data)
            if pipe.skipped_bytes:
                self._keep(pipe.fd, pipe.redactor.flush(), seconds)
                line_end = _LINE_END.search(data)
                # behind a gap a secret may begin in its middle: the rest of that line goes as well
                cut = line_end.end() if line_end else min(len(data), _LONGEST_SECRET_BYTES)
                for log in (self.both, self._stdout) if pipe.fd == self._stdout_fd else (self.both,):
                    log.skip(pipe.skipped_bytes + cut)
                data, pipe.skipped_bytes, self._mid_line = data[cut:], 0, False
            self._keep(pipe.fd, pipe.redactor.feed(data), seconds)
            pipe.bar_at = seconds if data.endswith(b"]") else None
        now = time.monotonic()
        self._work_at = now + 9 * (now - started)
        for pipe in self._pipes.values() if idle else ():
            # a bar that stands still is let out: its line's end comes with the next one
            if pipe.bar_at is not None and now - self._started - pipe.bar_at > _BAR_SECONDS:
                self._keep(pipe.fd, pipe.redactor.flush(), pipe.bar_at)
                pipe.bar_at = None

    def say(self, line: str) -> None:
        """Put a line of the supervisor's own into the log of both streams."""
        self._keep(-1, line.encode(errors="replace") + b"\n", 0.0)

    def close(self) -> None:
        """Take what still lies in the pipes, without waiting for an end that some other process may withhold."""
        for pipe in self._pipes.values():
            taken = 0
            while pipe.is_open and taken < _DRAIN_BYTES and (count := self.pump(pipe.fd)):
                taken += count
        self.work(idle=True, limit_seconds=_DRAIN_SECONDS)
        for pipe in self._pipes.values():
            self._keep(pipe.fd, pipe.redactor.flush(), time.monotonic() - self._started)

    def _keep(self, fd: int, data: bytes, seconds: float) -> None:
        if not data:
            return
        if self._mid_line and fd != self._last_fd and data[:1] not in b"\r\n":
            self.both.write(b"\n")  # a progress bar on stderr must not swallow a line of stdout
        self.both.write(data)
        self._last_fd = fd
        self._mid_line = data[-1:] not in b"\r\n"
        if fd == self._stdout_fd:
            self._stdout.write(data)
            self._times.add(seconds, self._stdout.position)


class Supervisor:
    """One child from its start to the end of its last descendant."""

    def __init__(self, parent: int, folder: Path, cwd: str, argv: Sequence[str], grace_seconds: float) -> None:
        self._parent, self._cwd, self._argv, self._grace_seconds = parent, cwd, argv, grace_seconds
        self._exit_file = ExitFile(folder)
        self._poll = select.poll()
        self._wakeup, write_end = os.pipe()
        for end in (self._wakeup, write_end):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        self._poll.register(self._wakeup, select.POLLIN)
        self._capture = Capture(folder, self._poll)
        self._stopped = False
        self._reaped = False
        self._signalled: set[tuple[int, int]] = set()
        self._term_at: float | None = None  # nothing is to be ended yet
        self._kill_at = 0.0
        for number in _STOP_SIGNALS:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # only there to wake the poll

    def run(self) -> Exit:
        """Start the child, keep it until nothing of it is left, write `exit.json`."""
        pid, error = _start(self._argv, self._cwd, self._capture.stdout_end, self._capture.stderr_end)
        self._capture.close_ends()
        self._exit = Exit(pid, time.monotonic())
        if error:
            self._capture.say(error)
        while not self._has_ended_all():
            patience = 250 if self._term_at is None else 20
            ready = self._poll.poll(_QUIET_MILLISECONDS if self._capture.is_waiting else patience)
            for fd, _ in ready:
                if fd == self._wakeup:
                    os.read(fd, 4096)
                else:
                    self._capture.pump(fd)
            self._capture.work(idle=not ready)
            self._reap()
        self._capture.close()
        self._exit.ended_monotonic = self._exit.ended_monotonic or time.monotonic()
        self._exit.dropped_bytes = self._capture.both.dropped_bytes
        self._exit_file.write(self._exit)
        return self._exit

    def _stop(self, number: int, frame: object) -> None:
        self._stopped = True

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (entry := os.waitpid(-1, os.WNOHANG))[0]:
                if entry[0] == self._exit.child_pid and not self._reaped:
                    self._reaped = True
                    self._exit.returncode = os.waitstatus_to_exitcode(entry[1])
                    self._exit.ended_monotonic = time.monotonic()

    def _has_ended_all(self) -> bool:
        """Signal who is to end by now, decided here alone; whether nothing is left."""
        now = time.monotonic()
        if self._term_at is None and self._reaped:
            self._term_at = now + _SETTLE_SECONDS
            self._kill_at = self._term_at + min(self._grace_seconds, _GRACE_AFTER_EXIT_SECONDS)
        elif self._term_at is None and (self._stopped or os.getppid() != self._parent):
            self._exit.by_itself = False
            self._term_at = now
            self._kill_at = now + self._grace_seconds
        elif self._term_at is not None and self._stopped and self._exit.by_itself:
            self._term_at = now
        if self._term_at is None:
            return False
        left = processes.descendants(os.getpid())
        if not left:
            self._reap()
            return True
        if now >= self._kill_at + _KILL_SECONDS:
            self._exit.left_alive = len(left)
            return True
        for stat in left:
            is_first = (stat.pid, stat.start_ticks) not in self._signalled
            if now >= self._kill_at or (now >= self._term_at and is_first):
                if is_first and stat.pid != self._exit.child_pid:
                    self._exit.killed_descendants += 1
                    if self._exit.by_itself and len(self._exit.left_behind) < _MOST_NAMES:
                        self._exit.left_behind += (f"{processes.command_of(stat.pid)} (pid {stat.pid})",)
                self._signalled.add((stat.pid, stat.start_ticks))
                processes.send_signal(stat, signal.SIGKILL if now >= self._kill_at else signal.SIGTERM)
        return False


def _start(argv: Sequence[str], cwd: str, stdout_end: int, stderr_end: int) -> tuple[int, str | None]:
    """Fork and exec the child; its pid, and what kept it from starting if anything did (it then exits 126 or 127).

    An exec keeps argv, `__file__` and tracebacks as they are.
    """
    supervisor = os.getpid()
    error_fd, error_end = os.pipe()
    pid = os.fork()
    if pid:
        os.close(error_end)
        with os.fdopen(error_fd, "rb") as file:
            error = file.read().decode(errors="replace")
        return pid, error or None
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


def main() -> NoReturn:
    """Keep the child that argv asks for, and end as it ended, by its signal too, without a core of our own."""
    parent, folder, cwd, grace_seconds, *argv = sys.argv[1:]
    processes.set_subreaper(True)
    supervisor = Supervisor(int(parent), Path(folder), cwd, argv, float(grace_seconds))
    processes.set_parent_death_signal(signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit(143)
    code = supervisor.run().returncode
    if code is None:
        sys.exit(137)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
