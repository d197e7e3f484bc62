"""Scripts that are hard to end, and ways to see what of them is still alive."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from steph.run import processes

# ignores SIGTERM, and so do a grandchild in a session of its own and a double-forked one whose parent is gone
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
def stay():
    while True:
        time.sleep(60)
if os.fork() == 0:
    os.setsid()
    stay()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        stay()
    os._exit(0)
os.wait()
print("ready", flush=True)
stay()
"""

# as torchrun does: each rank in a session of its own, the launcher waits for them
TWO_RANKS = """
import os, subprocess, sys
code = "import os, time; os.write(1, ('rank ' + os.environ['RANK'] + chr(10)).encode()); time.sleep(600)"
ranks = [
    subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "RANK": str(rank)}, start_new_session=True)
    for rank in range(2)
]
os.write(1, b"ready\\n")
for rank in ranks:
    rank.wait()
"""


def alive_with(mark: str) -> list[int]:
    """Pids of living processes whose environment has the variable STEPH_TEST_MARK at this value."""
    entry = f"STEPH_TEST_MARK={mark}".encode()
    table = processes.all_processes().values()
    return [stat.pid for stat in table if stat.alive and entry in processes.environment_of(stat.pid)]


def children_of(parent: int) -> set[int]:
    """Pids of the direct children of a process, zombies among them."""
    return {stat.pid for stat in processes.all_processes().values() if stat.parent == parent}


def command_line(pid: int) -> str:
    """The process's command line, empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def supervisor_pid(mark: str) -> int:
    """The supervisor among the living processes with this mark."""
    return next(pid for pid in alive_with(mark) if "supervisor.py" in command_line(pid))


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when the condition has come true; where it never does, pytest-timeout ends the test."""
    while not condition():
        time.sleep(0.01)
