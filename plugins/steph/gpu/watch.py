"""Used memory of the GPUs of one child, from before its start until it is back, and its samples beside the logs.

Comes in: UUIDs and the moments at which to look. Goes out: the fullest device's figures over time, each device's peak,
and whether the memory came back. A device that can't be read is left out.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from steph.base.units import highest
from steph.gpu.driver import DeviceError, Driver, driver
from steph.record.values import DevicePeak

NAME = "vram.txt"  # one `unix_seconds used_bytes` line a sample
SLACK_BYTES = 256 << 20
_SAMPLES_KEPT = 2000
_POLL_SECONDS = 0.05


class _Device:
    """One device: what was used before, what is now, and the most in between; None where it can't be read.

    What a process that was there before takes more, or gives back, meanwhile is no growth of the child's: `own_peak`
    is without it, as far as the driver shows what each process holds.
    """

    def __init__(self, uuid: str, cards: Driver) -> None:
        self.uuid = uuid
        self._cards = cards
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
        try:
            return self._cards.held_bytes_by_pid(self.uuid)
        except DeviceError:
            return None

    def _read(self) -> int | None:
        try:
            return self._cards.used_bytes(self.uuid)
        except DeviceError:
            return None


class MemoryWatch:
    """Used memory of some devices over the time of a child; `stack` keeps the driver open as long as it is itself."""

    def __init__(self, uuids: Sequence[str], cards: Driver | None, stack: contextlib.ExitStack) -> None:
        cards = cards or driver()
        if uuids:
            stack.enter_context(cards.kept_open())
        self._devices = [_Device(uuid, cards) for uuid in uuids]
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
            time.sleep(_POLL_SECONDS)


def is_back(peaks: Iterable[DevicePeak], cards: Driver | None = None) -> bool | None:
    """Whether these devices' use is now what it was before the child that left these peaks, within the slack.

    None where a device can't be read or its use was not seen then.
    """
    answers = []
    for peak in peaks:
        if peak.uuid is None or peak.peak_device_bytes is None or peak.peak_own_bytes is None:
            return None
        before = peak.used_before_bytes
        if before is None:  # in older records, where nothing else was left out of the attempt's own
            before = peak.peak_device_bytes - peak.peak_own_bytes
        try:
            answers.append((cards or driver()).used_bytes(peak.uuid) <= before + SLACK_BYTES)
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
