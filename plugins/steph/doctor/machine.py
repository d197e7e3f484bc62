"""The checks of card, host and disks: pure functions from facts to one line each."""

from __future__ import annotations

from collections.abc import Sequence

from steph.base.terms import Cause
from steph.base.units import size_words
from steph.doctor import kinds
from steph.doctor.facts import Busy, GpuFacts, HostFacts, MemoryUser, ModelFacts, Place
from steph.doctor.lines import Line
from steph.doctor.needs import Needs
from steph.record.environment import Device
from steph.run.hub_query import SPARE_DISK_BYTES

HELD_SHARE = 0.1


def check_busy(busy: Busy) -> Line:
    """Whether another run is in the way."""
    if busy.gpu:
        return kinds.BUSY.trouble("gpu", busy.gpu)
    if busy.place:
        return kinds.BUSY.trouble("place", busy.place)
    if busy.root:
        return kinds.BUSY.trouble("root", busy.root)
    return kinds.BUSY.ok("no other run is in the way")


def check_driver(gpu: GpuFacts) -> Line:
    """Whether the driver answers."""
    if not gpu.has_nodes:
        return kinds.DRIVER.trouble("absent", "no /dev/nvidia* and no /dev/dxg")
    if gpu.error:
        return kinds.DRIVER.trouble("refuses", gpu.error)
    if gpu.device is None:
        return kinds.DRIVER.ok(f"answers; {_cards(gpu.count)}")
    return kinds.DRIVER.ok(f"{gpu.device.driver_version}, runs CUDA up to {gpu.device.cuda_driver_version}")


def check_card(gpu: GpuFacts) -> Line:
    """Which card a run would use."""
    if gpu.device is None:
        visible = "is not set" if gpu.visible is None else f"= {gpu.visible!r}"
        return kinds.CARD.trouble("hidden", f"of {_cards(gpu.count)} none is visible: CUDA_VISIBLE_DEVICES {visible}")
    device = gpu.device
    kind = "MIG slice" if device.is_mig else "card"
    capability = device.compute_capability or "unknown"
    others = f"; the first of {_cards(gpu.count)}" if gpu.count > 1 else ""
    return kinds.CARD.ok(
        f"{device.name}, {kind} of {size_words(device.total_bytes)}, compute capability {capability}{others}"
    )


def check_memory(device: Device, users: Sequence[MemoryUser], needs: Needs) -> Line:
    """Whether enough of the card is free; under a cap, of what the cap leaves."""
    total_bytes = min(device.total_bytes, needs.vram_cap_bytes or device.total_bytes)
    free_bytes = min(device.total_bytes - device.used_bytes, total_bytes)
    said = f"{size_words(free_bytes)} of {size_words(total_bytes)} free{_held_by(users)}"
    if needs.loaded_bytes is not None and free_bytes < needs.loaded_bytes and not needs.is_twin:
        return kinds.MEMORY.trouble("short", f"{said}; {size_words(needs.loaded_bytes)} are needed at the very least")
    if free_bytes < (1 - HELD_SHARE) * total_bytes:
        return kinds.MEMORY.trouble("held", said)
    return kinds.MEMORY.ok(said)


def check_bf16(device: Device, needs: Needs) -> Line:
    """Whether the card computes in the profile's type."""
    if needs.compute_dtype != "bfloat16":
        return kinds.BF16.ok(f"not needed: the profile computes in {needs.compute_dtype}")
    if device.capability is None:
        return kinds.BF16.trouble("unknown", "the driver does not tell the compute capability")
    if not device.has_bf16:
        return kinds.BF16.trouble("emulated", f"compute capability {device.compute_capability} has no bf16")
    return kinds.BF16.ok(f"compute capability {device.compute_capability} has it")


def check_wsl(host: HostFacts) -> Line:
    """Whether a full card spills into system RAM instead of raising."""
    if host.is_wsl:
        return kinds.WSL.trouble("spills", "WSL2: whether Windows spills GPU memory into RAM can't be seen from here")
    return kinds.WSL.not_applicable("not WSL")


def check_ram(host: HostFacts, needs: Needs) -> Line:
    """Whether a loader that does not map the weights finds room for them."""
    said = f"{size_words(host.available_bytes)} of {size_words(host.ram_bytes)} available"
    if needs.weights_bytes is not None and host.available_bytes < needs.weights_bytes:
        weights = f"the weights of {needs.first} have {size_words(needs.weights_bytes)}"
        return kinds.RAM.trouble("short", f"{said}; {weights}")
    return kinds.RAM.ok(said)


def check_locale(host: HostFacts, output_encoding: str | None) -> Line:
    """Whether Japanese text and file names can be written; the second is the pipeline's Python, None where unknown."""
    encodings = {"file names": host.file_name_encoding, "the pipeline's output": output_encoding}
    other = {what: name for what, name in encodings.items() if name and not _is_utf8(name)}
    if other:
        return kinds.LOCALE.trouble("ascii", "; ".join(f"{what}: {name}" for what, name in other.items()))
    return kinds.LOCALE.ok("UTF-8")


def check_disk_model(place: Place, model: ModelFacts | None, needs: Needs) -> Line:
    """Whether the model fits where models go; `model` None: H-1 makes a twin, or its choice is not known."""
    kind = kinds.DISK_MODEL
    full = next((item for item in model.rejected if item.cause is Cause.DISK_FULL), None) if model else None
    if full is not None:
        return kind.trouble("short", f"{full.name}: {full.message}")
    choice = model.choice if model else None
    twins = "twin " if needs.is_twin else ""
    due_bytes = choice.download_bytes if choice else needs.weights_bytes
    free = f"{size_words(place.free_bytes)} free at {place.folder}"
    if not due_bytes:
        return kind.ok(f"{free}; {'nothing is to be fetched' if choice else 'how much is needed is not known here'}")
    said = f"{size_words(due_bytes)} to fetch, {free}"
    if not place.is_writable:
        return kind.trouble(f"{twins}readonly", f"{place.folder} can't be written")
    if place.free_bytes < due_bytes + SPARE_DISK_BYTES:
        return kind.trouble(f"{twins}short", f"{said}, of which {size_words(SPARE_DISK_BYTES)} are to stay free")
    return kind.ok(said)


def check_disk_output(places: Sequence[Place], needs: Needs) -> Line:
    """Whether every attempt's files fit; the pipeline root and the reports may lie on different disks."""
    kind = kinds.DISK_OUTPUT
    for place in places:
        if not place.is_writable:
            return kind.trouble("readonly", f"{place.role}: {place.folder} can't be written")
    tightest = min(places, key=lambda place: place.free_bytes)
    said = f"{size_words(tightest.free_bytes)} free at {tightest.folder}"
    if tightest.free_bytes < needs.output_bytes:
        return kind.trouble("short", f"{said}; up to {size_words(needs.output_bytes)} may be written")
    return kind.ok(said)


def _cards(count: int) -> str:
    return f"{count} card" if count == 1 else f"{count} cards or slices"


def _held_by(users: Sequence[MemoryUser]) -> str:
    words = [
        f"pid {user.pid} {user.name}" + ("" if user.used_bytes is None else f" {size_words(user.used_bytes)}")
        for user in users
    ]
    return f"; held by {', '.join(words)}" if words else ""


def _is_utf8(name: str) -> bool:
    return name.lower().replace("-", "").replace("_", "") in ("utf8", "utf8sig")
