"""What a killed run may have left running: its supervisor ending the child, or orphans where that was killed too.

They are found by the environment entry that every process of an attempt carries, and only below one folder of records.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from steph.run import processes
from steph.run.journal import is_live

_POLL_SECONDS = 0.05
_KILL_SECONDS = 5.0


def end_leftovers(runs: Path, patience_seconds: float) -> tuple[int, ...]:
    """Leave no process of a dead record below `runs`; the pids of those that can't be ended.

    A supervisor among them gets `patience_seconds` to do it; whatever is left then or has none is killed. A record
    whose conductor lives is left alone.
    """
    kill_at = time.monotonic() + patience_seconds
    while found := _leftovers(runs):
        now = time.monotonic()
        if not any(_is_supervisor(stat) for stat in found):
            kill_at = min(kill_at, now)
        if now > kill_at + _KILL_SECONDS:
            return tuple(stat.pid for stat in found)
        if now >= kill_at:
            for stat in found:
                processes.send_signal(stat, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
    return ()


def _is_supervisor(stat: processes.ProcessStat) -> bool:
    try:
        return b"supervisor.py\0" in Path("/proc", str(stat.pid), "cmdline").read_bytes()
    except OSError:
        return False


def _leftovers(runs: Path) -> list[processes.ProcessStat]:
    prefix = b"STEPH_PROBE_DIR=" + os.fsencode(runs.resolve()) + b"/"
    found = []
    for stat in processes.all_processes().values():
        marks = [entry for entry in processes.environment_of(stat.pid) if entry.startswith(prefix)]
        if (
            stat.alive
            and stat.pid != os.getpid()
            and marks
            and not is_live(Path(os.fsdecode(marks[0].partition(b"=")[2])).parent)
        ):
            found.append(stat)
    return found
