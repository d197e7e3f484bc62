"""What a child sees of the GPUs: which of them, in which order, and how much of one's memory torch may take.

In: devices and the environment's variables. Out: devices, and values for these variables. Pure but for the question
which devices there are.
"""

from __future__ import annotations

from collections.abc import Mapping

from steph.base.messages import say
from steph.base.units import GIB, gib
from steph.gpu.driver import Driver, driver
from steph.record.environment import Device

# a training process's memory beside its allocator (context, cuBLAS, bitsandbytes: 0.74 GiB measured) and 0.1 kept free
OUTSIDE_ALLOCATOR_BYTES = int(0.84 * GIB)
OLD_ALLOC_CONF = "PYTORCH_CUDA_ALLOC_CONF"
ALLOC_CONF = ("PYTORCH_ALLOC_CONF", OLD_ALLOC_CONF)
_FRACTION_KEY = "per_process_memory_fraction"


def visible_devices(environ: Mapping[str, str], cards: Driver | None = None) -> tuple[Device, ...]:
    """Return the GPUs that a CUDA program started with this environment would see, `cuda:0` first; raises DeviceError.

    See `visible_among` for how the choice is made.
    """
    return visible_among(environ.get("CUDA_VISIBLE_DEVICES"), (cards or driver()).devices())


def first_visible(value: str | None, devices: tuple[Device, ...]) -> Device | None:
    """What `cuda:0` is under CUDA_VISIBLE_DEVICES = `value`, None where nothing is visible."""
    return next(iter(visible_among(value, devices)), None)


def visible_among(value: str | None, devices: tuple[Device, ...]) -> tuple[Device, ...]:
    """The devices that CUDA_VISIBLE_DEVICES = `value` leaves visible, in its order (CUDA C++ Programming Guide).

    Entries are indices, (shortened) GPU UUIDs or MIG UUIDs; CUDA stops at the first invalid one. An index counts in
    NVML's PCI order: CUDA counts so under CUDA_DEVICE_ORDER=PCI_BUS_ID, and by default only where all GPUs are alike.
    """
    if value is None:
        return devices
    found: list[Device] = []
    for entry in value.split(","):
        device = _named_by(entry.strip(), devices)
        if device is None or device in found:
            break
        found.append(device)
    return tuple(found)


def _named_by(entry: str, devices: tuple[Device, ...]) -> Device | None:
    if entry.isdigit():
        matches = [device for device in devices if device.index == int(entry)]
        return matches[0] if matches else None
    if not entry.startswith(("GPU-", "MIG-")):
        return None
    matches = [device for device in devices if device.uuid.lower().startswith(entry.lower())]
    return matches[0] if len(matches) == 1 else None


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
    return {name: _with_fraction(conf, fraction) for name, conf in asked.items()}


def _with_fraction(conf: str, fraction: float) -> str:
    """`conf` (`key:value,…`, values may hold `[…,…]`) with this fraction in place of its own."""
    kept = [entry for entry in _conf_entries(conf) if entry.partition(":")[0].strip() != _FRACTION_KEY]
    return ",".join([*kept, f"{_FRACTION_KEY}:{fraction:.6f}"])


def _conf_entries(conf: str) -> list[str]:
    entries = [""]
    depth = 0
    for character in conf:
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            entries.append("")
        else:
            entries[-1] += character
    return [entry.strip() for entry in entries if entry.strip()]
