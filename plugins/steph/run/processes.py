"""Processes of this machine as /proc shows them: who descends from whom, and how to end them.

Standard library only, so that the supervisor can load it in an isolated interpreter. Linux (and WSL2) only. Never waits
and never reaps.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_NAME_CHARS = 60
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class ProcessStat:
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
