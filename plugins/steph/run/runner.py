"""One child process from start to the last trace of it: a ChildSpec goes in, a ChildOutcome comes out.

The child runs under `child/supervisor.py`; this module starts that, watches it from the main thread, samples the GPU's
memory, keeps its time limit and reads back what was written. It judges nothing and prints nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from steph.base.messages import say
from steph.base.terms import EndedBy
from steph.contract.lines import is_metrics
from steph.gpu.driver import Driver
from steph.gpu.watch import MemoryWatch
from steph.record.values import DevicePeak, Probe
from steph.run import output, processes
from steph.run.processes import Child, ProcessTree

_CHILD = Path(__file__).parents[1] / "child"
_POLL_SECONDS = 0.2
# a pipeline runs offline on what was downloaded before; it gets a Hub token only where its spec says so
_HUB_TOKENS = (
    "HF_TOKEN",
    "HF_API_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HUGGINGFACE_HUB_TOKEN",
    "HUGGINGFACE_TOKEN",
    "HUGGINGFACEHUB_API_TOKEN",
)
# tqdm's default bar_format: `{desc}: {percentage}%|{bar}| {n}/{total} [{elapsed}<{remaining}, {rate}]`
_BAR = re.compile(
    r"(?:^|[\r\n])(?:(?P<label>[^\r\n|]{1,80}?):)?[ \t]{0,9}\d{1,3}%\|[^|\r\n]{0,400}\|"
    r"[ \t]{0,9}(?P<step>\d{1,18})/(?P<total>\d{1,18})[ \t]{0,9}\["
)


@dataclass(frozen=True)
class ChildSpec:
    """What to run: `argv` in `cwd`; logs and probes go to `folder`, which holds no earlier child's.

    `env` is laid over our own environment, None takes a variable away. After `limit_seconds` the whole tree gets
    SIGTERM and `grace_seconds` later SIGKILL. `device_uuids` name the GPUs to sample; up to `memory_wait_seconds` are
    spent on waiting for their memory to come back.
    """

    argv: tuple[str, ...]
    cwd: Path
    folder: Path
    limit_seconds: float
    env: Mapping[str, str | None] = field(default_factory=dict)
    grace_seconds: float = 10.0
    device_uuids: tuple[str, ...] = ()
    memory_wait_seconds: float = 30.0


@dataclass(frozen=True)
class ChildOutcome:
    """How a child ended and what was seen of it.

    `returncode` is negative for a signal (127 or 126: it could not be started). `memory_returned` is None where no
    device was watched. `memory_samples` are (seconds, used bytes of the fullest device), `timed_lines` (seconds, line)
    of stdout lines that look like a Trainer's dict; seconds count from the child's start. `killed_descendants` counts
    processes that were left over and had to be ended, `left_alive` those that could not be; `left_behind` names those
    that a child which ended by itself left running, the first ones where they are many. `ended_monotonic` is when it
    ended, by CLOCK_MONOTONIC.
    """

    returncode: int
    ended_by: EndedBy
    seconds: float
    probes: tuple[Probe, ...] = ()
    device_peaks: tuple[DevicePeak, ...] = ()
    memory_returned: bool | None = None
    memory_samples: tuple[tuple[float, int], ...] = ()
    timed_lines: tuple[tuple[float, str], ...] = ()
    killed_descendants: int = 0
    left_alive: int = 0
    left_behind: tuple[str, ...] = ()
    ended_monotonic: float = 0.0


@dataclass(frozen=True)
class Progress:
    """Where a running child is; `step` of `total_steps` is its last progress bar, `label` that bar's name if any."""

    elapsed_seconds: float
    step: int | None = None
    total_steps: int | None = None
    label: str = ""
    used_bytes: int | None = None
    peak_bytes: int | None = None


class RunnerError(Exception):
    """A child can't be run from here; the message is one line."""


def run_child(
    spec: ChildSpec, *, on_poll: Callable[[Progress], None] | None = None, cards: Driver | None = None
) -> ChildOutcome:
    """Run one child to its end, and leave no process of it behind.

    Any exception that arrives meanwhile (Ctrl-C, a timeout, one from `on_poll`) ends the whole tree and then goes on.
    Raises RunnerError outside the main thread, because the kernel ties a child's life to the thread that forked it, and
    where `folder` already holds a child's output.
    """
    folder = spec.folder
    if sys.platform != "linux":
        raise RunnerError(say("run.linux_only"))
    if threading.current_thread() is not threading.main_thread():
        raise RunnerError(say("run.main_thread_only"))
    if output.head_path(folder, "output").exists() or output.is_written(folder):
        raise RunnerError(say("run.folder_taken", folder=folder))
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.callback(processes.set_subreaper, processes.is_subreaper())
        processes.set_subreaper(True)
        memory = MemoryWatch(spec.device_uuids, cards, stack)
        asked = (os.getpid(), folder.resolve(), spec.cwd, spec.grace_seconds, *spec.argv)
        with (folder / "supervisor.log").open("wb") as log:
            supervisor = Child[bytes](
                [sys.executable, "-I", "-S", str(_CHILD / "supervisor.py"), *map(str, asked)],
                env=environment_of(os.environ, spec),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C on the terminal is pytest's to handle
            )
        tree = ProcessTree(supervisor, _mark(spec), spec.grace_seconds)
        ended_by = EndedBy.EXIT
        try:
            while not tree.wait(_POLL_SECONDS):
                elapsed = time.monotonic() - tree.started
                memory.sample(elapsed)
                if on_poll is not None:
                    step, total, label = last_bar(output.tail_lines(folder, 20)) or (None, None, "")
                    on_poll(Progress(elapsed, step, total, label, used_bytes=memory.now, peak_bytes=memory.peak))
                if elapsed >= spec.limit_seconds:
                    ended_by = EndedBy.DEADLINE
                    tree.stop()
                    break
            if not output.is_written(folder):
                tree.sweep()
        except BaseException:
            tree.stop()
            tree.sweep()
            raise
        return _outcome(spec, tree, memory, ended_by)


def _outcome(spec: ChildSpec, tree: ProcessTree, memory: MemoryWatch, ended_by: EndedBy) -> ChildOutcome:
    """What the supervisor wrote of the child's end; where it was killed itself, what was seen from here."""
    ended_monotonic = time.monotonic()
    seconds = ended_monotonic - tree.started
    found = output.read_exit(spec.folder)
    if found is None:
        ended_by = EndedBy.SUPERVISOR_LOST if ended_by is EndedBy.EXIT else ended_by
        found = output.Exit(child_pid=0, started_monotonic=0.0)
    elif found.by_itself:
        ended_by = EndedBy.EXIT  # it ended by itself in the moment when its time was up
    if found.ended_monotonic is not None:
        ended_monotonic = found.ended_monotonic
        seconds = ended_monotonic - found.started_monotonic
    left_alive = found.left_alive or tree.left_alive
    returned = memory.returned(spec.memory_wait_seconds)
    if returned is None and spec.device_uuids:
        returned = left_alive == 0
    return ChildOutcome(
        returncode=tree.returncode if found.returncode is None else found.returncode,
        ended_by=ended_by,
        seconds=seconds,
        probes=read_probes(spec.folder),
        device_peaks=memory.device_peaks,
        memory_returned=returned,
        memory_samples=tuple(memory.samples),
        timed_lines=tuple(output.timed_lines(spec.folder, is_metrics)),
        killed_descendants=found.killed_descendants + tree.swept,
        left_alive=left_alive,
        left_behind=found.left_behind,
        ended_monotonic=ended_monotonic,
    )


def read_probes(folder: Path) -> tuple[Probe, ...]:
    """The probes that processes left in this folder, by rank and pid; a file that is no probe is passed over."""
    found = []
    for path in sorted(folder.glob("probe-*.json")):
        with contextlib.suppress(OSError, ValidationError):
            found.append(Probe.model_validate_json(path.read_bytes()))
    return tuple(sorted(found, key=lambda probe: (probe.rank is not None, probe.rank or 0, probe.pid)))


def environment_of(own: Mapping[str, str], spec: ChildSpec) -> dict[str, str]:
    """The child's environment: `own` without Hub tokens, the spec's changes, unbuffered output, the injected probe."""
    environment = {name: value for name, value in own.items() if name not in _HUB_TOKENS}
    environment["PYTHONUNBUFFERED"] = "1"
    for name, value in spec.env.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    inject = str(_CHILD / "inject")
    path = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = f"{inject}{os.pathsep}{path}" if path else inject
    name, _, value = _mark(spec).partition("=")
    return {**environment, name: value}


def _mark(spec: ChildSpec) -> str:
    """The one environment entry that no other child has; its own processes carry it wherever they move."""
    return f"STEPH_PROBE_DIR={spec.folder.resolve()}"


def last_bar(lines: Sequence[str]) -> tuple[int, int, str] | None:
    """The last bar in these lines: its step, its total and its label, which is empty for the Trainer's own."""
    for line in reversed(lines):
        for match in reversed(list(_BAR.finditer(line))):
            return int(match["step"]), int(match["total"]), (match["label"] or "").strip()
    return None
