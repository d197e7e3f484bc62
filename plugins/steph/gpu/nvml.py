"""What NVML says of the GPUs; the only module that imports pynvml (nvidia-ml-py), and not before the first question."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from steph.base.messages import say, verbatim
from steph.gpu.driver import DeviceError
from steph.record.environment import Device

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


class NvmlDriver:
    """The driver as NVML shows it: a GPU in MIG mode is its slices, each with a UUID and memory of its own."""

    def devices(self) -> tuple[Device, ...]:
        """Return all GPUs and slices in NVML's order, which is that of the PCI bus; raises DeviceError."""
        with _started() as nvml:
            found: list[Device] = []
            for index in range(nvml.nvmlDeviceGetCount()):
                gpu = nvml.nvmlDeviceGetHandleByIndex(index)
                capability = _compute_capability(nvml, gpu)
                if _in_mig_mode(nvml, gpu):
                    found += [_device(nvml, part, index, capability, True) for part in _slices(nvml, gpu)]
                else:
                    found.append(_device(nvml, gpu, index, capability, False))
            return tuple(found)

    def used_bytes(self, uuid: str) -> int:
        """Return the used memory of this GPU or slice, of all processes together; raises DeviceError."""
        with _started() as nvml:
            return int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(uuid)).used)

    def held_bytes_by_pid(self, uuid: str) -> dict[int, int | None]:
        """Return what each process holds, None where the driver hides it (as on WSL2); raises DeviceError."""
        with _started() as nvml:
            running = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByUUID(uuid))
            return {int(process.pid): process.usedGpuMemory for process in running}

    @contextlib.contextmanager
    def kept_open(self) -> Iterator[None]:
        """NVML counts its users: while this one stays, no question starts it. If it fails, the question says so."""
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


def _in_mig_mode(nvml: Any, gpu: object) -> bool:  # noqa: ANN401
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(gpu)
    except nvml.NVMLError:  # every card that knows no MIG
        return False
    return bool(current)


def _slices(nvml: Any, gpu: object) -> list[object]:  # noqa: ANN401
    found = []
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        with contextlib.suppress(nvml.NVMLError):  # an empty place
            found.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, place))
    return found


def _compute_capability(nvml: Any, gpu: object) -> str | None:  # noqa: ANN401
    try:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(gpu)
    except nvml.NVMLError:
        return None
    return f"{major}.{minor}"


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
