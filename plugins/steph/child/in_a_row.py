"""Runs commands one after the other and ends as the last one does; the first that fails is the last.

Started as `python -I -S in_a_row.py COMMANDS` (a JSON list of argument lists); standard library only. No shell reads
the words. The last command takes this process's place.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from typing import NoReturn

CANNOT_START = 127


def main(commands: list[list[str]]) -> NoReturn:
    """Run them; ends with the status of the one that failed, by its signal too."""
    *first, last = commands
    for command in first:
        status = _run(command)
        if status < 0:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(-status, signal.SIG_DFL) if -status not in (signal.SIGKILL, signal.SIGSTOP) else None
            os.kill(os.getpid(), -status)
        if status:
            sys.exit(status)
    sys.stdout.flush()
    try:
        os.execvp(last[0], last)  # noqa: S606  no shell is the point
    except OSError as error:
        _refuse(last, error)


def _run(command: list[str]) -> int:
    try:
        return subprocess.run(command, check=False).returncode
    except OSError as error:
        _refuse(command, error)


def _refuse(command: list[str], error: OSError) -> NoReturn:
    print(f"cannot start {command[0]} in {os.getcwd()}: {error.strerror}", file=sys.stderr)  # noqa: PTH109
    sys.exit(CANNOT_START)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
