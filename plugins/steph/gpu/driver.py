"""What a GPU's driver can be asked: the one port through which the suite sees cards."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from steph.base.messages import Message
from steph.record.environment import Device


class DeviceError(Exception):
    """The driver or the GPU can't answer; the message is one line for a person, `code` the driver's own number."""

    def __init__(self, message: Message, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class Driver(Protocol):
    """A driver's answers; sizes are bytes, and each question may raise DeviceError."""

    def devices(self) -> tuple[Device, ...]:
        """Return all GPUs in the order of the PCI bus, a partitioned one as its partitions."""

    def used_bytes(self, uuid: str) -> int:
        """Return the used memory of this GPU at this moment, of all processes together."""

    def held_bytes_by_pid(self, uuid: str) -> dict[int, int | None]:
        """Return what each process that computes on this GPU holds, None where the driver hides the figure.

        As far as the driver shows them: often none in a container.
        """

    def kept_open(self) -> AbstractContextManager[None]:
        """Spare the questions asked meanwhile from starting the driver's library anew; raises nothing."""


def driver() -> Driver:
    """Return the driver of this machine's cards."""
    from steph.gpu.nvml import NvmlDriver

    return NvmlDriver()


def has_nvidia_nodes(dev: Path = Path("/dev")) -> bool:
    """Whether the system shows an NVIDIA GPU at all (on WSL2 the paravirtual one), without asking any library."""
    return (dev / "dxg").exists() or any(True for _ in dev.glob("nvidia[0-9]*"))
