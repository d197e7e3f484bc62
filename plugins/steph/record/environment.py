"""What a record knows of its machine: card, system, packages, and the state of a checkout. Frozen values only."""

from __future__ import annotations

from pydantic import Field

from steph.base.messages import Message
from steph.base.values import Value

# major compute capability of the first cards with bf16 (CUDA C++ Programming Guide, table of arithmetic instructions)
BF16_SINCE = 8


class Device(Value):
    """One GPU or MIG slice as NVML names it."""

    uuid: str
    name: str
    index: int
    total_bytes: int
    used_bytes: int
    driver_version: str
    cuda_driver_version: str
    compute_capability: str | None = None
    is_mig: bool = False

    @property
    def capability(self) -> tuple[int, int] | None:
        """`8.6` as (8, 6); None where it is not known."""
        if self.compute_capability is None:
            return None
        major, _, minor = self.compute_capability.partition(".")
        return int(major), int(minor or 0)

    @property
    def has_bf16(self) -> bool | None:
        """Whether it computes in bf16; None where its compute capability is not known."""
        return None if self.capability is None else self.capability[0] >= BF16_SINCE

    def usable_bytes(self, cap_bytes: int | None) -> int:
        """What others left of it before the run, and no more than the cap where there is one."""
        free_bytes = self.total_bytes - self.used_bytes
        return free_bytes if cap_bytes is None else min(free_bytes, cap_bytes)


class Environment(Value):
    """The machine and the suite's own packages."""

    os: str
    python: str
    cpu: str
    cpu_count: int
    ram_bytes: int
    is_wsl: bool = False
    device: Device | None = None
    device_error: Message | None = None
    further_devices: tuple[Device, ...] = ()  # beside `device`, where a stage runs in several processes
    packages: dict[str, str] = Field(default_factory=dict)

    @property
    def devices(self) -> tuple[Device, ...]:
        """The run's GPUs, `device` first; empty on the CPU."""
        return (self.device, *self.further_devices) if self.device else ()


class GitState(Value):
    """Branch, commit and cleanliness of a folder; all None where it is no git checkout."""

    branch: str | None = None
    commit: str | None = None
    dirty: bool | None = None
