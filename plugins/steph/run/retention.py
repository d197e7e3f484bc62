"""Old logs go, records stay: what runs leave on the disk is bounded.

A child's logs are capped while they are written: `output` and `stdout` at 20 MiB each (see `output`). Of all attempts
below `runs/` the newest `LOGS_KEPT` keep theirs. Of an older one the child's output goes; what the report is made from
stays (`events.jsonl`, memory samples, probes), and so does what was set aside (`before/`): it may be a person's.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from steph.run import output
from steph.run.journal import is_live, record_folders

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
