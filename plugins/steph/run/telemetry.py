"""What NVML knows of the GPUs: which there are, how much memory is used, and by whom.

The library (nvidia-ml-py) is loaded at the first question. Every function takes the NVML module as `nvml`, None for the
real one, so that any object with the same names can stand in. Sizes are bytes.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, cast

from steph.record.environment import Device
from steph.run.visible import visible_among

_ERRORS = {
    1: "NVML was not initialised",
    3: "this GPU or driver does not support the question",
    4: "no permission to ask the driver; check the access rights of /dev/nvidia*",
    6: "no GPU with this UUID",
    9: "the NVIDIA driver is not loaded; load it (modprobe nvidia) or reboot",
    12: "the NVIDIA driver's library libnvidia-ml.so.1 is not installed or not found",
    15: "the GPU has fallen off the bus; reboot",
    16: "the GPU needs a reset",
    17: "the operating system blocks the GPU; check cgroups or the container's device settings",
    18: "driver and library versions differ; reboot or reload the driver",
    23: "the GPU is out of memory for this question",
    999: "unknown NVML error",
}

Answer = TypeVar("Answer")


class MemoryFigures(Protocol):
    """NVML's nvmlMemory_t."""

    total: int
    used: int


class RunningProcess(Protocol):
    """NVML's nvmlProcessInfo_t."""

    pid: int
    usedGpuMemory: int | None  # noqa: N815  NVML's name


class Nvml(Protocol):
    """The part of the module `pynvml` that is used here."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...  # noqa: N802
    def nvmlShutdown(self) -> None: ...  # noqa: N802
    def nvmlSystemGetDriverVersion(self) -> str: ...  # noqa: N802
    def nvmlSystemGetCudaDriverVersion_v2(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetHandleByIndex(self, index: int) -> object: ...  # noqa: N802
    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> object: ...  # noqa: N802
    def nvmlDeviceGetUUID(self, handle: object) -> str: ...  # noqa: N802
    def nvmlDeviceGetName(self, handle: object) -> str: ...  # noqa: N802
    def nvmlDeviceGetMemoryInfo(self, handle: object) -> MemoryFigures: ...  # noqa: N802
    def nvmlDeviceGetCudaComputeCapability(self, handle: object) -> tuple[int, int]: ...  # noqa: N802
    def nvmlDeviceGetComputeRunningProcesses(self, handle: object) -> Sequence[RunningProcess]: ...  # noqa: N802
    def nvmlDeviceGetMigMode(self, handle: object) -> tuple[int, int]: ...  # noqa: N802
    def nvmlDeviceGetMaxMigDeviceCount(self, handle: object) -> int: ...  # noqa: N802
    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: object, index: int) -> object: ...  # noqa: N802


class DeviceError(Exception):
    """NVML or the GPU can't answer; the message is one line for a person, `code` NVML's own number where it has one."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


def list_devices(nvml: Nvml | None = None) -> tuple[Device, ...]:
    """All GPUs in NVML's order (PCI bus), a GPU in MIG mode as its slices; raises DeviceError."""

    def ask(library: Nvml) -> tuple[Device, ...]:
        found: list[Device] = []
        for index in range(library.nvmlDeviceGetCount()):
            gpu = library.nvmlDeviceGetHandleByIndex(index)
            capability = _compute_capability(library, gpu)
            if _in_mig_mode(library, gpu):
                found += [_device(library, part, index, capability, True) for part in _slices(library, gpu)]
            else:
                found.append(_device(library, gpu, index, capability, False))
        return tuple(found)

    return _asked(nvml, ask)


@contextlib.contextmanager
def kept_loaded(nvml: Nvml | None = None) -> Iterator[None]:
    """Keep NVML started for the time of the block, so that no question in it has to start NVML anew.

    Where it can't be started, nothing is kept, and the first question says why.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(DeviceError):
            library = _load() if nvml is None else nvml
            with _one_line_errors(library):
                library.nvmlInit()
            stack.callback(library.nvmlShutdown)
        yield


class MemoryGauge:
    """Reads one device's used memory again and again over one NVML session; a context manager, raises DeviceError."""

    def __init__(self, uuid: str, nvml: Nvml | None = None) -> None:
        self._uuid = uuid
        self._library = _load() if nvml is None else nvml

    def __enter__(self) -> MemoryGauge:
        with _one_line_errors(self._library):
            self._library.nvmlInit()
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(self._library.NVMLError):
            self._library.nvmlShutdown()

    def used_bytes(self) -> int:
        """Used memory at this moment, of all processes together."""
        with _one_line_errors(self._library):
            return int(self._library.nvmlDeviceGetMemoryInfo(_handle(self._library, self._uuid)).used)


def used_bytes(uuid: str, nvml: Nvml | None = None) -> int:
    """Used memory of this GPU or slice, of all processes together; raises DeviceError."""
    with MemoryGauge(uuid, nvml) as gauge:
        return gauge.used_bytes()


def held_bytes_by_pid(uuid: str, nvml: Nvml | None = None) -> dict[int, int | None]:
    """What each process that computes on this GPU holds, None where the driver hides the figure (as on WSL2).

    As far as the driver shows them: often none in a container. Raises DeviceError.
    """

    def ask(library: Nvml) -> dict[int, int | None]:
        running = library.nvmlDeviceGetComputeRunningProcesses(_handle(library, uuid))
        return {int(process.pid): process.usedGpuMemory for process in running}

    return _asked(nvml, ask)


def visible_devices(environ: Mapping[str, str] | None = None, nvml: Nvml | None = None) -> tuple[Device, ...]:
    """The GPUs that a CUDA program started with this environment (ours if None) would see, `cuda:0` first.

    Raises DeviceError. See `visible_among` for how the choice is made.
    """
    found = list_devices(nvml)
    return visible_among((os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES"), found)


def has_nvidia_nodes(dev: Path = Path("/dev")) -> bool:
    """Whether the system shows an NVIDIA GPU at all (on WSL2 the paravirtual one), without asking any library."""
    return (dev / "dxg").exists() or any(True for _ in dev.glob("nvidia[0-9]*"))


def _asked(nvml: Nvml | None, ask: Callable[[Nvml], Answer]) -> Answer:
    library = _load() if nvml is None else nvml
    with _one_line_errors(library):
        library.nvmlInit()
        try:
            return ask(library)
        finally:
            library.nvmlShutdown()


@contextlib.contextmanager
def _one_line_errors(library: Nvml) -> Iterator[None]:
    try:
        yield
    except library.NVMLError as error:
        code = int(getattr(error, "value", 999))
        raise DeviceError(f"NVML error {code}: {_ERRORS.get(code, str(error))}", code) from error


def _load() -> Nvml:
    try:
        return cast("Nvml", importlib.import_module("pynvml"))
    except ImportError as error:
        raise DeviceError("the package nvidia-ml-py is not installed; pip install nvidia-ml-py") from error


def _handle(library: Nvml, uuid: str) -> object:
    return library.nvmlDeviceGetHandleByUUID(uuid)


def _in_mig_mode(library: Nvml, gpu: object) -> bool:
    try:
        current, _ = library.nvmlDeviceGetMigMode(gpu)
    except library.NVMLError:  # every card that knows no MIG
        return False
    return bool(current)


def _slices(library: Nvml, gpu: object) -> list[object]:
    found = []
    for place in range(library.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            found.append(library.nvmlDeviceGetMigDeviceHandleByIndex(gpu, place))
        except library.NVMLError:  # an empty place
            continue
    return found


def _compute_capability(library: Nvml, gpu: object) -> str | None:
    try:
        major, minor = library.nvmlDeviceGetCudaComputeCapability(gpu)
    except library.NVMLError:
        return None
    return f"{major}.{minor}"


def _device(library: Nvml, handle: object, index: int, capability: str | None, is_mig: bool) -> Device:
    memory = library.nvmlDeviceGetMemoryInfo(handle)
    cuda = library.nvmlSystemGetCudaDriverVersion_v2()
    return Device(
        uuid=library.nvmlDeviceGetUUID(handle),
        name=library.nvmlDeviceGetName(handle),
        index=index,
        total_bytes=int(memory.total),
        used_bytes=int(memory.used),
        driver_version=library.nvmlSystemGetDriverVersion(),
        cuda_driver_version=f"{cuda // 1000}.{cuda % 1000 // 10}",
        compute_capability=capability,
        is_mig=is_mig,
    )
