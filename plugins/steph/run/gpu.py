"""The GPUs: what their driver says, which of them a child sees, and the lock by which one run at a time has one.

This is the one port through which the suite sees cards, the only module that imports pynvml (nvidia-ml-py), and not
before the first question. What a child sees follows from devices and the environment's variables alone.

The lock is flock(2) on a small file in the user's cache folder, one for each UUID; its content is only there for a
message to a person, so a file that outlived its process locks nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steph.base.messages import Message, say, verbatim
from steph.base.units import GIB, gib
from steph.record.settings import Device


class DeviceError(Exception):
    """The driver or the GPU can't answer; the message is one line for a person, `code` the driver's own number."""

    def __init__(self, message: Message, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


def has_nvidia_nodes(dev: Path = Path("/dev")) -> bool:
    """Whether the system shows an NVIDIA GPU at all (on WSL2 the paravirtual one), without asking any library."""
    return (dev / "dxg").exists() or any(True for _ in dev.glob("nvidia[0-9]*"))


_ERRORS = {
    1: "nvml.not_initialised",
    3: "nvml.not_supported",
    4: "nvml.no_permission",
    6: "nvml.no_such_gpu",
    9: "nvml.no_driver",
    12: "nvml.no_library",
    15: "nvml.off_the_bus",
    16: "nvml.needs_reset",
    17: "nvml.blocked",
    18: "nvml.versions_differ",
    23: "nvml.no_memory",
    999: "nvml.unknown",
}


def devices() -> tuple[Device, ...]:
    """Return all GPUs in the order of the PCI bus; one in MIG mode is its slices. Raises DeviceError."""
    with _started() as nvml:
        found: list[Device] = []
        for index in range(nvml.nvmlDeviceGetCount()):
            gpu = nvml.nvmlDeviceGetHandleByIndex(index)
            capability, is_mig, parts = None, False, [gpu]
            with contextlib.suppress(nvml.NVMLError):
                capability = "{}.{}".format(*nvml.nvmlDeviceGetCudaComputeCapability(gpu))
            with contextlib.suppress(nvml.NVMLError):  # every card that knows no MIG
                is_mig = bool(nvml.nvmlDeviceGetMigMode(gpu)[0])
            if is_mig:
                parts = []
                for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
                    with contextlib.suppress(nvml.NVMLError):  # an empty place
                        parts.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, place))
            found += [_device(nvml, part, index, capability, is_mig) for part in parts]
        return tuple(found)


def used_bytes(uuid: str) -> int:
    """Return the used memory of this GPU or slice, of all processes together; raises DeviceError."""
    with _started() as nvml:
        return int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(uuid)).used)


def held_bytes_by_pid(uuid: str) -> dict[int, int | None]:
    """Return what each process there holds, as far as shown, None where it is hidden (WSL2); raises DeviceError."""
    with _started() as nvml:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByUUID(uuid))
        return {int(process.pid): process.usedGpuMemory for process in running}


@contextlib.contextmanager
def kept_open() -> Iterator[None]:
    """Spare questions from starting NVML anew: it counts its users. If it fails here, the questions say so."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(DeviceError):
            stack.enter_context(_started())
        yield


@contextlib.contextmanager
def _started() -> Iterator[Any]:
    """Start NVML for the time of the block; its errors become DeviceError in one line."""
    nvml = _load()
    try:
        nvml.nvmlInit()
        try:
            yield nvml
        finally:
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        code = int(getattr(error, "value", 999))
        what = say(_ERRORS[code]) if code in _ERRORS else verbatim(error)
        raise DeviceError(say("nvml.error", code=code, error=what), code) from error


def _load() -> Any:  # noqa: ANN401 - pynvml has no types
    try:
        return importlib.import_module("pynvml")
    except ImportError as error:
        raise DeviceError(say("nvml.not_installed")) from error


def _device(nvml: Any, handle: object, index: int, capability: str | None, is_mig: bool) -> Device:  # noqa: ANN401
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    cuda = nvml.nvmlSystemGetCudaDriverVersion_v2()
    return Device(
        uuid=nvml.nvmlDeviceGetUUID(handle),
        name=nvml.nvmlDeviceGetName(handle),
        index=index,
        total_bytes=int(memory.total),
        used_bytes=int(memory.used),
        driver_version=nvml.nvmlSystemGetDriverVersion(),
        cuda_driver_version=f"{cuda // 1000}.{cuda % 1000 // 10}",
        compute_capability=capability,
        is_mig=is_mig,
    )


# a training process's memory beside its allocator (context, cuBLAS, bitsandbytes: 0.74 GiB measured) and 0.1 kept free
OUTSIDE_ALLOCATOR_BYTES = int(0.84 * GIB)
OLD_ALLOC_CONF = "PYTORCH_CUDA_ALLOC_CONF"
ALLOC_CONF = ("PYTORCH_ALLOC_CONF", OLD_ALLOC_CONF)
_FRACTION_KEY = "per_process_memory_fraction"


def visible_devices(environ: Mapping[str, str]) -> tuple[Device, ...]:
    """The GPUs that a CUDA program sees in this environment (`visible_among`), `cuda:0` first; raises DeviceError."""
    return visible_among(environ.get("CUDA_VISIBLE_DEVICES"), devices())


def visible_among(value: str | None, devices: tuple[Device, ...]) -> tuple[Device, ...]:
    """The devices that CUDA_VISIBLE_DEVICES = `value` leaves visible, in its order (CUDA C++ Programming Guide).

    Entries are indices, (shortened) GPU UUIDs or MIG UUIDs; CUDA stops at the first invalid one. An index counts in
    NVML's PCI order: CUDA counts so under CUDA_DEVICE_ORDER=PCI_BUS_ID, and by default only where all GPUs are alike.
    """
    if value is None:
        return devices
    found: list[Device] = []
    for entry in map(str.strip, value.split(",")):
        matches = []
        if entry.isdigit():
            matches = [device for device in devices if device.index == int(entry)][:1]
        elif entry.startswith(("GPU-", "MIG-")):
            matches = [device for device in devices if device.uuid.lower().startswith(entry.lower())]
        if len(matches) != 1 or matches[0] in found:
            break
        found += matches
    return tuple(found)


def memory_fraction_for_cap(cap_bytes: int, device_total_bytes: int) -> float:
    """Share of the device for torch's allocator that makes it act as a card of `cap_bytes`: (cap - 0.84 GiB) / total.

    At most 1; raises ValueError for a cap that leaves the allocator nothing.
    """
    allocator_bytes = cap_bytes - OUTSIDE_ALLOCATOR_BYTES
    if allocator_bytes <= 0:
        raise ValueError(say("input.cap_leaves_nothing", cap=gib(cap_bytes), beside=gib(OUTSIDE_ALLOCATOR_BYTES)))
    return min(1.0, allocator_bytes / device_total_bytes)


def capped_alloc_conf(existing: Mapping[str, str], fraction: float) -> dict[str, str]:
    """The variables that configure torch's allocator, with the memory fraction put in.

    torch since 2.9 reads PYTORCH_ALLOC_CONF before the older name where it is set; what is set under one stays there.
    """
    asked = {name: existing.get(name, "") for name in ALLOC_CONF if name == OLD_ALLOC_CONF or name in existing}
    changed = {}
    for name, conf in asked.items():
        # `key:value,…`, whose values may hold `[…,…]`
        entries = filter(None, map(str.strip, re.findall(r"(?:\[[^\]]*\]|[^,])+", conf)))
        kept = [entry for entry in entries if entry.partition(":")[0].strip() != _FRACTION_KEY]
        changed[name] = ",".join([*kept, f"{_FRACTION_KEY}:{fraction:.6f}"])
    return changed


@dataclass(frozen=True)
class Holder:
    """Who holds a GPU: a pid, its command line, and since when (ISO 8601, UTC)."""

    pid: int
    command: str
    since: str


class GpuLockError(Exception):
    """This GPU can't be held for a run; the message is one line."""


class GpuBusyError(GpuLockError):
    """Another run holds this GPU; the message is one line, `holder` is None where it could not be read."""

    def __init__(self, uuid: str, holder: Holder | None) -> None:
        who = say("lock.holder", **asdict(holder)) if holder else say("lock.process")
        super().__init__(say("lock.gpu", uuid=uuid, who=who))
        self.uuid = uuid
        self.holder = holder


@contextlib.contextmanager
def gpu_lock(uuid: str, folder: Path | None = None) -> Iterator[None]:
    """Hold this GPU or slice for the time of the block; raises GpuBusyError at once where another run holds it.

    `folder` defaults to `lock_folder()`. Children do not inherit the lock. Raises GpuLockError where no lock can be
    kept there.
    """
    place = lock_folder() if folder is None else folder
    try:
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"{re.sub(r'[^A-Za-z0-9-]', '_', uuid)}.lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _no_place(place, error) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = None
            with contextlib.suppress(OSError, ValueError, TypeError):
                holder = Holder(**json.loads(os.pread(fd, 4096, 0)))
            raise GpuBusyError(uuid, holder) from error
        except OSError as error:
            raise _no_place(place, error) from error
        own = Holder(os.getpid(), shlex.join(sys.orig_argv)[:500], datetime.now(UTC).isoformat(timespec="seconds"))
        with contextlib.suppress(OSError):  # a full disk takes the message, not the lock
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(asdict(own), ensure_ascii=False).encode(), 0)
        yield
    finally:
        # the file stays: deleting it would let a third run lock a new file while a second one still waits for this
        os.close(fd)


def _no_place(place: Path, error: OSError) -> GpuLockError:
    return GpuLockError(say("lock.no_place", place=place, error=error.strerror))


def lock_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Where locks lie: `steph/locks` below `$XDG_CACHE_HOME`, else below `~/.cache`; GpuLockError without a home."""
    # not below XDG_RUNTIME_DIR: cron jobs and containers lack it, and two folders would be two locks
    cache = (os.environ if environ is None else environ).get("XDG_CACHE_HOME")
    try:
        return (Path(cache) if cache else Path.home() / ".cache") / "steph" / "locks"
    except RuntimeError as error:
        raise GpuLockError(say("lock.no_home", error=error)) from error
