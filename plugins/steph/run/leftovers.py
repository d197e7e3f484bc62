"""What earlier runs left: processes of a killed one, which are ended, and logs, of which the newest are kept.

A killed run's supervisor may still be ending its child, or there are orphans where that was killed too. They are found
by the environment entry that every process of an attempt carries, and only below one folder of records. A child's logs
are capped while they are written: `output` and `stdout` at 20 MiB each (see `output`). Of all attempts below `runs/`
the newest `LOGS_KEPT` keep theirs. Of an older one the child's output goes; what the report is made from stays
(`events.jsonl`, memory samples, probes), and so does what was set aside (`before/`): it may be a person's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from steph.run import output, processes
from steph.run.journal import is_live, record_folders

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


LOGS_KEPT = 60
LOG_PATTERNS = ("output*.log", "stdout*.log", "*.times", "supervisor.log")


def prune_logs(runs: Path, kept: int = LOGS_KEPT) -> None:
    """Delete the logs of all but the newest attempts; a record that is being written, or can't be, is left alone."""
    folders = [folder for record in record_folders(runs) if not is_live(record) for folder in _logged(record)]
    for folder in sorted(folders, key=_written_at, reverse=True)[kept:]:
        for pattern in LOG_PATTERNS:
            for path in folder.glob(pattern):
                with contextlib.suppress(OSError):
                    path.unlink()


def folder_bytes(folder: Path) -> int:
    """The bytes of all files below a folder, links not followed; what vanishes meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
    return total


def _logged(record_folder: Path) -> list[Path]:
    return [path.parent for path in record_folder.glob(f"*/{output.head_path(Path(), 'output')}")]


def _written_at(folder: Path) -> float:
    try:
        return output.head_path(folder, "output").stat().st_mtime
    except OSError:
        return 0.0
