"""An NVML over made-up cards, for whatever takes the module `pynvml`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steph.base.units import GIB


class FakeNvmlError(Exception):
    """An NVML error with NVML's number."""

    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


@dataclass
class Figures:
    """nvmlMemory_t."""

    total: int
    used: int


@dataclass
class Running:
    """nvmlProcessInfo_t."""

    pid: int
    usedGpuMemory: int | None  # noqa: N815


@dataclass
class Gpu:
    """One card or slice."""

    uuid: str
    name: str = "NVIDIA GeForce RTX 3080"
    used: int = GIB
    slices: Sequence[Gpu | None] | None = None  # None: knows no MIG
    processes: Sequence[Running] = ()


def _gpu(handle: object) -> Gpu:
    assert isinstance(handle, Gpu)
    return handle


class FakeNvml:
    """An NVML over a list of cards; `failure` is the number of the error that every start gives."""

    NVMLError: type[Exception] = FakeNvmlError

    def __init__(self, *gpus: Gpu, failure: int | None = None) -> None:
        self.gpus = gpus
        self.failure = failure
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802
        """Start, or fail."""
        if self.failure is not None:
            raise FakeNvmlError(self.failure)
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        """End what nvmlInit began."""
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        """A driver."""
        return "580.65.06"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        """CUDA 13.0 as NVML writes it."""
        return 13000

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        """How many cards."""
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:  # noqa: N802
        """A card by place."""
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Gpu:  # noqa: N802
        """A card or slice by UUID."""
        everything = [*self.gpus, *(part for gpu in self.gpus for part in gpu.slices or () if part)]
        for gpu in everything:
            if gpu.uuid == uuid:
                return gpu
        raise FakeNvmlError(6)

    def nvmlDeviceGetUUID(self, handle: object) -> str:  # noqa: N802
        """Its UUID."""
        return _gpu(handle).uuid

    def nvmlDeviceGetName(self, handle: object) -> str:  # noqa: N802
        """Its name."""
        return _gpu(handle).name

    def nvmlDeviceGetMemoryInfo(self, handle: object) -> Figures:  # noqa: N802
        """Its memory, 10 GiB in total."""
        return Figures(10 * GIB, _gpu(handle).used)

    def nvmlDeviceGetCudaComputeCapability(self, handle: object) -> tuple[int, int]:  # noqa: N802
        """Ampere."""
        return (8, 6)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: object) -> Sequence[Running]:  # noqa: N802
        """Who computes on it."""
        return _gpu(handle).processes

    def nvmlDeviceGetMigMode(self, handle: object) -> tuple[int, int]:  # noqa: N802
        """Current and pending MIG mode."""
        if _gpu(handle).slices is None:
            raise FakeNvmlError(3)
        return (int(bool(_gpu(handle).slices)), int(bool(_gpu(handle).slices)))

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: object) -> int:  # noqa: N802
        """Places for slices."""
        return len(_gpu(handle).slices or ())

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: object, index: int) -> Gpu:  # noqa: N802
        """A slice by place, NOT_FOUND for an empty one."""
        part = (_gpu(handle).slices or ())[index]
        if part is None:
            raise FakeNvmlError(6)
        return part
