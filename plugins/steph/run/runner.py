"""One child process from start to its last trace, and the GPU memory in use from before it until that is back.

A ChildSpec goes in, a ChildOutcome comes out. The child runs under `child/supervisor.py`; this module starts that,
watches it from the main thread, samples the GPUs' memory, keeps its time limit and reads back what was written. It
judges nothing and prints nothing. A device that can't be read is left out.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from steph.base.messages import say
from steph.base.terms import EndedBy
from steph.base.units import highest
from steph.contract.lines import is_metrics
from steph.record.values import DevicePeak, Probe
from steph.run import gpu, output, processes
from steph.run.gpu import DeviceError
from steph.run.processes import Child, ProcessTree

NAME = "vram.txt"  # one `unix_seconds used_bytes` line a sample
SLACK_BYTES = 256 << 20
_SAMPLES_KEPT = 2000
_RETURN_POLL_SECONDS = 0.05


class _Device:
    """One device: what was used before, what is now, and the most in between; None where it can't be read.

    What a process that was there before takes more, or gives back, meanwhile is no growth of the child's: `own_peak`
    is without it, as far as the driver shows what each process holds.
    """

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        self._others = {pid: held for pid, held in (self._held() or {}).items() if held is not None}
        self.before = self.now = self.peak = self.own_peak = self._read()

    def sample(self) -> int | None:
        """The used bytes of this moment."""
        used = self._read()
        if used is not None:
            self.now = used
            self.peak = max(used, self.peak or 0)
            self.own_peak = max(self._without_others(used), self.own_peak or 0)
        return used

    def has_returned(self) -> bool | None:
        """Whether used memory is what it was within the slack; None where it can't be read."""
        used = self._read()
        if used is None or self.before is None:
            return None
        return self._without_others(used) <= self.before + SLACK_BYTES

    @property
    def peaks(self) -> DevicePeak:
        """The highest figures so far."""
        own = None if self.own_peak is None or self.before is None else self.own_peak - self.before
        return DevicePeak(
            uuid=self.uuid, peak_device_bytes=self.peak, peak_own_bytes=own, used_before_bytes=self.before
        )

    def _without_others(self, used: int) -> int:
        held = self._held() if self._others else None
        if held is None:
            return used
        now = {pid: held.get(pid, 0) for pid in self._others}  # 0: that process has ended
        return used - sum(now_held - self._others[pid] for pid, now_held in now.items() if now_held is not None)

    def _held(self) -> dict[int, int | None] | None:
        with contextlib.suppress(DeviceError):
            return gpu.held_bytes_by_pid(self.uuid)
        return None

    def _read(self) -> int | None:
        with contextlib.suppress(DeviceError):
            return gpu.used_bytes(self.uuid)
        return None


class MemoryWatch:
    """Used memory of some devices over the time of a child; `stack` keeps the driver open as long as it is itself."""

    def __init__(self, uuids: Sequence[str], stack: contextlib.ExitStack) -> None:
        if uuids:
            stack.enter_context(gpu.kept_open())
        self._devices = [_Device(uuid) for uuid in uuids]
        self.samples: list[tuple[float, int]] = []

    @property
    def now(self) -> int | None:
        """Used bytes of the fullest device as last seen."""
        return highest(device.now for device in self._devices)

    @property
    def peak(self) -> int | None:
        """The highest used bytes of any device."""
        return highest(device.peak for device in self._devices)

    @property
    def device_peaks(self) -> tuple[DevicePeak, ...]:
        """The peaks of each device that could be read."""
        return tuple(device.peaks for device in self._devices if device.peak is not None)

    def sample(self, seconds: float) -> None:
        """Note the used bytes of this moment."""
        used = highest([device.sample() for device in self._devices])
        if used is None:
            return
        self.samples.append((round(seconds, 2), used))
        if len(self.samples) > _SAMPLES_KEPT:
            # halved by keeping the higher one of each pair: a peak must not be thinned away
            self.samples = [max(self.samples[i : i + 2], key=lambda s: s[1]) for i in range(0, len(self.samples), 2)]

    def returned(self, wait_seconds: float) -> bool | None:
        """Whether every device's memory comes back to what it was within the slack; None where one can't be read."""
        end = time.monotonic() + wait_seconds
        while True:
            answers = [device.has_returned() for device in self._devices]
            if not answers or None in answers:
                return None
            if all(answers):
                return True
            if time.monotonic() >= end:
                return False
            time.sleep(_RETURN_POLL_SECONDS)


def is_back(peaks: Iterable[DevicePeak]) -> bool | None:
    """Whether these devices' use is what it was before, within the slack; None where that can't be told."""
    answers = []
    for peak in peaks:
        if peak.uuid is None or peak.peak_device_bytes is None or peak.peak_own_bytes is None:
            return None
        before = peak.used_before_bytes
        if before is None:  # in older records, where nothing else was left out of the attempt's own
            before = peak.peak_device_bytes - peak.peak_own_bytes
        try:
            answers.append(gpu.used_bytes(peak.uuid) <= before + SLACK_BYTES)
        except DeviceError:
            return None
    return all(answers) if answers else None


def write_samples(folder: Path, started_unix: float, samples: Iterable[tuple[float, int]]) -> None:
    """Keep samples of (seconds since the start, used bytes); a full disk costs the picture, not the attempt."""
    lines = [f"{started_unix + seconds:.2f} {used}\n" for seconds, used in samples]
    if lines:
        with contextlib.suppress(OSError):
            (folder / NAME).write_text("".join(lines), encoding="ascii")


def read_samples(record_folder: Path) -> list[tuple[float, int]]:
    """All samples of a record as (unix seconds, used bytes), in time's order; what can't be read is passed over."""
    found = []
    for path in record_folder.glob(f"*/{NAME}"):
        with contextlib.suppress(OSError):
            for line in path.read_text(encoding="ascii", errors="replace").splitlines():
                moment, _, used = line.partition(" ")
                with contextlib.suppress(ValueError):
                    found.append((float(moment), int(used)))
    return sorted(sample for sample in found if math.isfinite(sample[0]))


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
    """One child process to start: `argv` in `cwd`; logs and probes go to `folder`, which holds no earlier child's."""

    argv: tuple[str, ...]
    cwd: Path
    folder: Path
    limit_seconds: float  # then the whole tree gets SIGTERM
    env: Mapping[str, str | None] = field(default_factory=dict)  # over our own; None takes a variable away
    grace_seconds: float = 10.0  # from there to SIGKILL
    device_uuids: tuple[str, ...] = ()  # GPUs to sample
    memory_wait_seconds: float = 30.0  # at most, for their memory to come back


@dataclass(frozen=True)
class ChildOutcome:
    """How a child ended and what was seen of it; seconds count from its start."""

    returncode: int  # negative for a signal; 127 or 126: it could not be started
    ended_by: EndedBy
    seconds: float
    probes: tuple[Probe, ...] = ()
    device_peaks: tuple[DevicePeak, ...] = ()
    memory_returned: bool | None = None  # None where no device was watched
    memory_samples: tuple[tuple[float, int], ...] = ()  # with the used bytes of the fullest device
    timed_lines: tuple[tuple[float, str], ...] = ()  # of stdout, those that look like a Trainer's dict
    killed_descendants: int = 0  # left over, and had to be ended
    left_alive: int = 0  # could not be
    left_behind: tuple[str, ...] = ()  # the first that a child left running which ended by itself
    ended_monotonic: float = 0.0  # by CLOCK_MONOTONIC


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


def run_child(spec: ChildSpec, *, on_poll: Callable[[Progress], None] | None = None) -> ChildOutcome:
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
        memory = MemoryWatch(spec.device_uuids, stack)
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
    """The child's end as its supervisor wrote it; where that was killed itself, as it was seen from here."""
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
