"""What NVML says of the GPUs; the only module that imports pynvml (nvidia-ml-py), and not before the first question."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from steph.gpu.driver import DeviceError
from steph.record.environment import Device

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
        raise DeviceError(f"NVML error {code}: {_ERRORS.get(code, str(error))}", code) from error


def _load() -> Any:  # noqa: ANN401 - pynvml has no types
    try:
        return importlib.import_module("pynvml")
    except ImportError as error:
        raise DeviceError("the package nvidia-ml-py is not installed; pip install nvidia-ml-py") from error


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
