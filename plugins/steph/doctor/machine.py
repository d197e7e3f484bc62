"""The checks of card, host and disks: pure functions from facts to one line each."""

from __future__ import annotations

from collections.abc import Sequence

from steph.base.messages import Message, phrase, say
from steph.base.terms import Cause
from steph.base.units import size_words
from steph.doctor import kinds
from steph.doctor.facts import Busy, GpuFacts, HostFacts, MemoryUser, ModelFacts, Place
from steph.doctor.lines import Line
from steph.doctor.needs import Needs
from steph.record.settings import Device
from steph.run.hub import SPARE_DISK_BYTES

HELD_SHARE = 0.1


def check_busy(busy: Busy) -> Line:
    """Whether another run is in the way."""
    if busy.gpu:
        return kinds.BUSY.trouble("gpu", busy.gpu)
    if busy.place:
        return kinds.BUSY.trouble("place", busy.place)
    if busy.root:
        return kinds.BUSY.trouble("root", busy.root)
    return kinds.BUSY.ok(say("doctor.busy.free"))


def check_driver(gpu: GpuFacts) -> Line:
    """Whether the driver answers."""
    if not gpu.has_nodes:
        return kinds.DRIVER.trouble("absent", say("doctor.driver.no_nodes"))
    if gpu.error:
        return kinds.DRIVER.trouble("refuses", gpu.error)
    if gpu.device is None:
        return kinds.DRIVER.ok(say("doctor.driver.answers"), _cards(gpu.count))
    device = gpu.device
    return kinds.DRIVER.ok(say("doctor.driver.runs", driver=device.driver_version, cuda=device.cuda_driver_version))


def check_card(gpu: GpuFacts) -> Line:
    """Which card a run would use."""
    if gpu.device is None:
        unset = gpu.visible is None
        hidden = say("doctor.card.unset") if unset else say("doctor.card.set", visible=repr(gpu.visible))
        return kinds.CARD.trouble("hidden", say("doctor.card.none_visible", cards=_cards(gpu.count), why=hidden))
    device = gpu.device
    found = say(
        "doctor.card.mig" if device.is_mig else "doctor.card.whole",
        name=device.name,
        size=size_words(device.total_bytes),
        capability=device.compute_capability or say("doctor.card.unknown"),
    )
    return kinds.CARD.ok(found, say("doctor.card.first", cards=_cards(gpu.count)) if gpu.count > 1 else "")


def check_memory(device: Device, users: Sequence[MemoryUser], needs: Needs) -> Line:
    """Whether enough of the card is free; under a cap, of what the cap leaves."""
    total_bytes = min(device.total_bytes, needs.vram_cap_bytes or device.total_bytes)
    free_bytes = min(device.total_bytes - device.used_bytes, total_bytes)
    said = (say("doctor.memory.free", free=size_words(free_bytes), total=size_words(total_bytes)), _held_by(users))
    if needs.loaded_bytes is not None and free_bytes < needs.loaded_bytes and not needs.is_twin:
        needed = say("doctor.memory.needed", size=size_words(needs.loaded_bytes))
        return kinds.MEMORY.trouble("short", *said, needed)
    if free_bytes < (1 - HELD_SHARE) * total_bytes:
        return kinds.MEMORY.trouble("held", *said)
    return kinds.MEMORY.ok(*said)


def check_bf16(device: Device, needs: Needs) -> Line:
    """Whether the card computes in the profile's type."""
    if needs.compute_dtype != "bfloat16":
        return kinds.BF16.ok(say("doctor.bf16.not_needed", dtype=needs.compute_dtype))
    if device.capability is None:
        return kinds.BF16.trouble("unknown", say("doctor.bf16.unknown.when"))
    if not device.has_bf16:
        return kinds.BF16.trouble("emulated", say("doctor.bf16.lacks", capability=device.compute_capability))
    return kinds.BF16.ok(say("doctor.bf16.has", capability=device.compute_capability))


def check_wsl(host: HostFacts) -> Line:
    """Whether a full card spills into system RAM instead of raising."""
    if host.is_wsl:
        return kinds.WSL.trouble("spills", say("doctor.wsl.unseen"))
    return kinds.WSL.not_applicable(say("doctor.wsl.none"))


def check_ram(host: HostFacts, needs: Needs) -> Line:
    """Whether a loader that does not map the weights finds room for them."""
    said = say("doctor.ram.free", free=size_words(host.available_bytes), total=size_words(host.ram_bytes))
    if needs.weights_bytes is not None and host.available_bytes < needs.weights_bytes:
        weights = say("doctor.ram.weights", model=needs.first, size=size_words(needs.weights_bytes))
        return kinds.RAM.trouble("short", said, weights)
    return kinds.RAM.ok(said)


def check_locale(host: HostFacts, output_encoding: str | None) -> Line:
    """Whether Japanese text and file names can be written; the second is the pipeline's Python, None where unknown."""
    encodings = {"names": host.file_name_encoding, "output": output_encoding}
    other = {what: name for what, name in encodings.items() if name and not _is_utf8(name)}
    if other:
        said = (f"{phrase(f'doctor.locale.{what}')}: {name}" for what, name in other.items())
        return kinds.LOCALE.trouble("ascii", *said)
    return kinds.LOCALE.ok("UTF-8")


def check_disk_model(place: Place, model: ModelFacts | None, needs: Needs) -> Line:
    """Whether the model fits where models go; `model` None: H-1 makes a twin, or its choice is not known."""
    kind = kinds.DISK_MODEL
    full = next((item for item in model.rejected if item.cause is Cause.DISK_FULL), None) if model else None
    if full is not None:
        return kind.trouble("short", f"{full.name}: {full.message}")
    choice = model.choice if model else None
    twins = "twin-" if needs.is_twin else ""
    due_bytes = choice.download_bytes if choice else needs.weights_bytes
    free = _free(place)
    if not due_bytes:
        return kind.ok(free, say("doctor.disk.nothing_due" if choice else "doctor.disk.unknown_due"))
    said = say("doctor.disk.due", size=size_words(due_bytes), free=free)
    if not place.is_writable:
        return kind.trouble(f"{twins}readonly", _locked(place))
    if place.free_bytes < due_bytes + SPARE_DISK_BYTES:
        return kind.trouble(f"{twins}short", say("doctor.disk.spare", due=said, spare=size_words(SPARE_DISK_BYTES)))
    return kind.ok(said)


def check_disk_output(places: Sequence[Place], needs: Needs) -> Line:
    """Whether every attempt's files fit; the pipeline root and the reports may lie on different disks."""
    kind = kinds.DISK_OUTPUT
    for place in places:
        if not place.is_writable:
            return kind.trouble("readonly", f"{phrase(f'doctor.place.{place.role}')}: {_locked(place)}")
    tightest = min(places, key=lambda place: place.free_bytes)
    said = _free(tightest)
    if tightest.free_bytes < needs.output_bytes:
        return kind.trouble("short", said, say("doctor.disk.written", size=size_words(needs.output_bytes)))
    return kind.ok(said)


def _free(place: Place) -> Message:
    return say("doctor.disk.free", size=size_words(place.free_bytes), folder=place.folder)


def _locked(place: Place) -> Message:
    return say("doctor.disk.locked", folder=place.folder)


def _cards(count: int) -> Message:
    return say("doctor.card.one" if count == 1 else "doctor.card.several", count=count)


def _held_by(users: Sequence[MemoryUser]) -> Message | str:
    words = [
        f"pid {user.pid} {user.name}" + ("" if user.used_bytes is None else f" {size_words(user.used_bytes)}")
        for user in users
    ]
    return say("doctor.memory.held_by", users=", ".join(words)) if words else ""


def _is_utf8(name: str) -> bool:
    return name.lower().replace("-", "").replace("_", "") in ("utf8", "utf8sig")
