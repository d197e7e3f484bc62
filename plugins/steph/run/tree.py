"""Child processes seen from the process that started them: waiting for them, ending them, sweeping up.

Of a supervised child's tree the supervisor does the ending. Where it was killed itself, its orphans come to us, because
we are a subreaper for the time of a child; they are told from other children of ours by having been seen below it, by
its session, or by their environment.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, AnyStr

from steph.run import processes

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
        self._known.update({stat.pid: stat.start_ticks for stat in processes.descendants(self._process.pid)})

    def sweep(self) -> None:
        """Kill and reap what the supervisor left: its orphans, which are ours by now, and nothing else."""
        end = time.monotonic() + _SWEEP_SECONDS
        while True:
            ours = self._ours()
            for stat in ours:
                if stat.alive:
                    self._swept.add(stat.pid)
                    self._known[stat.pid] = stat.start_ticks
                    processes.send_signal(stat, signal.SIGKILL)
                if stat.parent == os.getpid():
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(stat.pid, os.WNOHANG)
            self.left_alive = sum(stat.alive for stat in ours)
            if not ours or time.monotonic() > end:
                return
            time.sleep(0.02)

    def _ours(self) -> list[processes.ProcessStat]:
        """What was seen below the supervisor, is of its session or carries the mark, and all below that."""
        table, own = processes.all_processes(), os.getpid()
        zombies = [stat for stat in table.values() if stat.parent == own and not stat.alive]
        found: dict[int, processes.ProcessStat] = {}
        for stat in [*processes.descendants(own, table), *zombies]:
            is_known = self._known.get(stat.pid) == stat.start_ticks or stat.session == self._process.pid
            if is_known or self._mark in processes.environment_of(stat.pid):
                found |= {one.pid: one for one in (stat, *processes.descendants(stat.pid, table))}
        return list(found.values())
