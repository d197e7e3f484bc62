"""Processes as /proc shows them, who descends from whom, and how a child's are waited for, ended and swept up.

Of a supervised child's tree the supervisor does the ending. Where it was killed itself, its orphans come to us, because
we are a subreaper for the time of a child; they are told from other children of ours by having been seen below it, by
its session, or by their environment.

Standard library only, so that the supervisor can load it in an isolated interpreter. Linux (and WSL2) only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, AnyStr, NamedTuple

_PROC = Path("/proc")
_NAME_CHARS = 60
_libc = ctypes.CDLL(None, use_errno=True)


class ProcessStat(NamedTuple):
    """One line of /proc/PID/stat; `pid` and `start_ticks` together name a process for good, a pid alone does not."""

    pid: int
    parent: int
    session: int
    start_ticks: int
    alive: bool


def stat_of(pid: int) -> ProcessStat | None:
    """The process with this pid, by proc_pid_stat(5); None where there is none."""
    try:
        # the command in parentheses may hold anything, `)` too
        fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        # a thread group whose first thread has ended reads as zombie while its other threads run on
        alive = fields[0] not in (b"Z", b"X") or int(fields[17]) > 1
        return ProcessStat(pid, int(fields[1]), int(fields[3]), int(fields[19]), alive)
    except (OSError, IndexError, ValueError):
        return None


def all_processes() -> dict[int, ProcessStat]:
    """Every process that /proc shows at the moment, zombies among them, by pid."""
    stats = (stat_of(int(entry.name)) for entry in _PROC.iterdir() if entry.name.isdigit())
    return {stat.pid: stat for stat in stats if stat is not None}


def descendants(root: int, table: dict[int, ProcessStat] | None = None) -> list[ProcessStat]:
    """Living processes below `root`, through any number of sessions and process groups."""
    children: dict[int, list[ProcessStat]] = {}
    for stat in (all_processes() if table is None else table).values():
        children.setdefault(stat.parent, []).append(stat)
    found: list[ProcessStat] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += [stat for stat in below if stat.alive]
        waiting += [stat.pid for stat in below]
    return found


def send_signal(stat: ProcessStat, number: signal.Signals) -> None:
    """Signal this very process; nothing happens where it has gone or its pid now belongs to another one."""
    now = stat_of(stat.pid)
    if now is not None and now.start_ticks == stat.start_ticks:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(stat.pid, number)


def command_line(pid: int) -> list[str]:
    """The words that a process was started with; empty where they can't be read."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def command_of(pid: int) -> str:
    """The program that a process runs, and of an interpreter its script or module too; arguments may hold secrets."""
    words = command_line(pid) or [""]
    try:
        name = Path(words[0]).name or (_PROC / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return "?"
    if not name.startswith(("python", "pypy", "bash", "sh", "node", "perl", "ruby")):
        return name[:_NAME_CHARS]
    script = next((word for word in words[1:] if word and not word.startswith("-")), "")
    if "-c" in words[1 : words.index(script) if script else None]:
        script = "-c"
    return f"{name} {Path(script).name}".strip()[:_NAME_CHARS]


def environment_of(pid: int) -> frozenset[bytes]:
    """`NAME=value` entries that the process was started with; empty where they can't be read."""
    try:
        return frozenset((_PROC / str(pid) / "environ").read_bytes().split(b"\0"))
    except OSError:
        return frozenset()


def set_parent_death_signal(number: signal.Signals) -> None:
    """Ask for `number` when the thread that forked this process ends; check the parent's pid afterwards."""
    _prctl(1, int(number))  # PR_SET_PDEATHSIG


def set_subreaper(on: bool) -> None:
    """Adopt orphaned descendants from now on, or no longer."""
    _prctl(36, int(on))  # PR_SET_CHILD_SUBREAPER


def is_subreaper() -> bool:
    """Whether this process adopts orphaned descendants."""
    flag = ctypes.c_int(0)
    _prctl(37, ctypes.byref(flag))  # PR_GET_CHILD_SUBREAPER
    return bool(flag.value)


def _prctl(option: int, value: object) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_SNAPSHOT_SECONDS = 1.0
_SWEEP_SECONDS = 5.0


class Child(subprocess.Popen[AnyStr]):
    """A child process that an exception out of a signal handler neither leaves alone nor makes impossible to wait for.

    Inside a wait such an exception can leave Popen's lock held (seen in CPython 3.11 after Ctrl-C). The next wait
    without a limit would never end, one with a limit would use it up, and `poll` would never see the end. While the
    process is started, nobody would have it. No two threads may wait.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - as Popen's
        try:
            super().__init__(*arguments, **named)
        except BaseException:
            if getattr(self, "pid", None) is not None and self.returncode is None:
                self.kill()
                self.wait()
            raise

    def wait(self, timeout: float | None = None) -> int:
        """As Popen's; also what its `communicate` and the end of its `with` block call."""
        self._waitpid_lock = threading.Lock()
        return super().wait(timeout)

    def poll(self) -> int | None:
        """As Popen's; also what its `terminate` and `kill` call."""
        self._waitpid_lock = threading.Lock()
        return super().poll()

    def end(self, grace_seconds: float) -> None:
        """Leave no process: SIGTERM, and SIGKILL where it is not enough for so long."""
        self.terminate()
        try:
            self.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self.wait()


def output_of(
    command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, and kill it at any exception; raises OSError, and TimeoutExpired after `seconds`."""
    with Child(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    ) as child:
        try:
            output, errors = child.communicate(timeout=seconds)
        except BaseException:
            child.kill()
            child.wait()
            raise
    return subprocess.CompletedProcess(command, child.returncode, output, errors)


class ProcessTree:
    """The supervisor, the child and all its descendants, which carry the environment entry `mark`."""

    def __init__(self, supervisor: Child[bytes], mark: str, grace_seconds: float) -> None:
        self._process = supervisor
        self._mark = mark.encode()
        self._grace_seconds = grace_seconds
        self._known: dict[int, int] = {}  # start ticks by pid, of whatever was ever seen below the supervisor
        self._snapshot_at = 0.0
        self.started = time.monotonic()
        self._swept: set[int] = set()
        self.left_alive = 0

    def wait(self, seconds: float) -> bool:
        """Whether the supervisor has ended, waiting for it this long and no longer than it runs."""
        now = time.monotonic()
        if now >= self._snapshot_at:
            self._snapshot_at = now + _SNAPSHOT_SECONDS
            self._remember()
        with contextlib.suppress(OSError):  # a kernel older than 5.3: Popen's own waiting asks every 50 ms
            fd = os.pidfd_open(self._process.pid)
            try:
                poll = select.poll()
                poll.register(fd, select.POLLIN)
                poll.poll(seconds * 1000)
            finally:
                os.close(fd)
            seconds = 0
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    @property
    def swept(self) -> int:
        """How many processes had to be killed from here."""
        return len(self._swept)

    @property
    def returncode(self) -> int:
        """The supervisor's own, once it has ended."""
        return int(self._process.returncode)

    def stop(self) -> None:
        """End everything: SIGTERM to the supervisor, which does the work; SIGKILL where it doesn't in time."""
        try:
            self._process.terminate()
            self._process.wait(self._grace_seconds + 5)
        except BaseException as error:
            self._remember()
            self._process.kill()
            self._process.wait()
            self.sweep()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise

    def _remember(self) -> None:
        self._known.update({stat.pid: stat.start_ticks for stat in descendants(self._process.pid)})

    def sweep(self) -> None:
        """Kill and reap what the supervisor left: its orphans, which are ours by now, and nothing else."""
        end = time.monotonic() + _SWEEP_SECONDS
        while True:
            ours = self._ours()
            for stat in ours:
                if stat.alive:
                    self._swept.add(stat.pid)
                    self._known[stat.pid] = stat.start_ticks
                    send_signal(stat, signal.SIGKILL)
                if stat.parent == os.getpid():
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(stat.pid, os.WNOHANG)
            self.left_alive = sum(stat.alive for stat in ours)
            if not ours or time.monotonic() > end:
                return
            time.sleep(0.02)

    def _ours(self) -> list[ProcessStat]:
        """What was seen below the supervisor, is of its session or carries the mark, and all below that."""
        table, own = all_processes(), os.getpid()
        zombies = [stat for stat in table.values() if stat.parent == own and not stat.alive]
        found: dict[int, ProcessStat] = {}
        for stat in [*descendants(own, table), *zombies]:
            is_known = self._known.get(stat.pid) == stat.start_ticks or stat.session == self._process.pid
            if is_known or self._mark in environment_of(stat.pid):
                found |= {one.pid: one for one in (stat, *descendants(stat.pid, table))}
        return list(found.values())
