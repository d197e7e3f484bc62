"""The doctor's checks in the order of its table: each row beside the pure function from facts to its line.

What a row looks at, when it does not hold and what to do then stand in the catalogs: `doctor.CHECK.looks_at`,
`doctor.CHECK.TROUBLE.when` and `.remedy`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from steph.base.messages import Message, phrase, say
from steph.base.terms import Cause
from steph.base.units import size_words
from steph.doctor.facts import (
    CERTAIN,
    FAIL,
    WARN,
    Busy,
    Checkup,
    DoctorCheck,
    GpuFacts,
    HostFacts,
    HubFacts,
    Line,
    MemoryUser,
    ModelFacts,
    Needs,
    Place,
    RootFacts,
    TorchStep,
)
from steph.doctor.reading import NOT_STARTED
from steph.record.settings import Device
from steph.run.hub import SPARE_DISK_BYTES

HELD_SHARE = 0.1
REQUIRED = ("transformers", "peft", "accelerate", "bitsandbytes")
CAP_TORCH = (2, 10)  # the first that knows per_process_memory_fraction in PYTORCH_CUDA_ALLOC_CONF
PRODUCT_ERROR = 0.02  # bf16 has 8 significant bits: 0.002 is what a sound product shows
# of a normal weight: 0.092 for nf4, 0.122 for fp4, measured; zeros or noise show 1 and more
DEQUANTISED_ERROR = 0.2
STEPS = ("python", "torch", "product", "libraries", "four_bit")

PIPELINE = DoctorCheck("pipeline", {"refused": CERTAIN, "unread": WARN})


def check_pipeline(root: RootFacts) -> Line:
    """Whether a run would start with this root."""
    if root.error is not None:
        return PIPELINE.trouble("refused", root.error)
    data = root.dataset
    if data is None:
        return PIPELINE.ok(root.root)
    words = "doctor.pipeline.sample" if data.is_sample else "doctor.pipeline.data"
    return PIPELINE.ok(root.root, say(words, rows=data.rows, file=data.path))


BUSY = DoctorCheck("busy", {"gpu": CERTAIN, "place": CERTAIN, "root": CERTAIN})


def check_busy(busy: Busy) -> Line:
    """Whether another run is in the way."""
    for key, who in (("gpu", busy.gpu), ("place", busy.place), ("root", busy.root)):
        if who:
            return BUSY.trouble(key, who)
    return BUSY.ok(say("doctor.busy.free"))


DRIVER = DoctorCheck("driver", {"absent": CERTAIN, "refuses": CERTAIN, "unread": FAIL}, gpu_only=True)


def check_driver(gpu: GpuFacts) -> Line:
    """Whether the driver answers."""
    if not gpu.has_nodes:
        return DRIVER.trouble("absent", say("doctor.driver.no_nodes"))
    if gpu.error:
        return DRIVER.trouble("refuses", gpu.error)
    if gpu.device is None:
        return DRIVER.ok(say("doctor.driver.answers"), _cards(gpu.count))
    device = gpu.device
    return DRIVER.ok(say("doctor.driver.runs", driver=device.driver_version, cuda=device.cuda_driver_version))


CARD = DoctorCheck("card", {"hidden": CERTAIN}, gpu_only=True)


def check_card(gpu: GpuFacts) -> Line:
    """Which card a run would use."""
    if gpu.device is None:
        unset = gpu.visible is None
        hidden = say("doctor.card.unset") if unset else say("doctor.card.set", visible=repr(gpu.visible))
        return CARD.trouble("hidden", say("doctor.card.none_visible", cards=_cards(gpu.count), why=hidden))
    device = gpu.device
    found = say(
        "doctor.card.mig" if device.is_mig else "doctor.card.whole",
        name=device.name,
        size=size_words(device.total_bytes),
        capability=device.compute_capability or say("doctor.card.unknown"),
    )
    return CARD.ok(found, say("doctor.card.first", cards=_cards(gpu.count)) if gpu.count > 1 else "")


def _cards(count: int) -> Message:
    return say("doctor.card.one" if count == 1 else "doctor.card.several", count=count)


MEMORY = DoctorCheck("memory", {"short": FAIL, "held": WARN}, gpu_only=True)


def check_memory(device: Device, users: Sequence[MemoryUser], needs: Needs) -> Line:
    """Whether enough of the card is free; under a cap, of what the cap leaves."""
    total_bytes = min(device.total_bytes, needs.vram_cap_bytes or device.total_bytes)
    free_bytes = min(device.total_bytes - device.used_bytes, total_bytes)
    said: list[Message] = [say("doctor.memory.free", free=size_words(free_bytes), total=size_words(total_bytes))]
    if users:
        sizes = ("" if user.used_bytes is None else f" {size_words(user.used_bytes)}" for user in users)
        named = (f"pid {user.pid} {user.name}{size}" for user, size in zip(users, sizes, strict=True))
        said.append(say("doctor.memory.held_by", users=", ".join(named)))
    if needs.loaded_bytes is not None and free_bytes < needs.loaded_bytes and not needs.is_twin:
        return MEMORY.trouble("short", *said, say("doctor.memory.needed", size=size_words(needs.loaded_bytes)))
    if free_bytes < (1 - HELD_SHARE) * total_bytes:
        return MEMORY.trouble("held", *said)
    return MEMORY.ok(*said)


BF16 = DoctorCheck("bf16", {"emulated": WARN, "unknown": WARN}, gpu_only=True)


def check_bf16(device: Device, needs: Needs) -> Line:
    """Whether the card computes in the profile's type."""
    if needs.compute_dtype != "bfloat16":
        return BF16.ok(say("doctor.bf16.not_needed", dtype=needs.compute_dtype))
    if device.capability is None:
        return BF16.trouble("unknown", say("doctor.bf16.unknown.when"))
    if not device.has_bf16:
        return BF16.trouble("emulated", say("doctor.bf16.lacks", capability=device.compute_capability))
    return BF16.ok(say("doctor.bf16.has", capability=device.compute_capability))


WSL = DoctorCheck("wsl", {"spills": WARN}, gpu_only=True)


def check_wsl(host: HostFacts) -> Line:
    """Whether a full card spills into system RAM instead of raising."""
    if host.is_wsl:
        return WSL.trouble("spills", say("doctor.wsl.unseen"))
    return WSL.not_applicable(say("doctor.wsl.none"))


RAM = DoctorCheck("ram", {"short": WARN})


def check_ram(host: HostFacts, needs: Needs) -> Line:
    """Whether a loader that does not map the weights finds room for them."""
    said = say("doctor.ram.free", free=size_words(host.available_bytes), total=size_words(host.ram_bytes))
    if needs.weights_bytes is not None and host.available_bytes < needs.weights_bytes:
        weights = say("doctor.ram.weights", model=needs.first, size=size_words(needs.weights_bytes))
        return RAM.trouble("short", said, weights)
    return RAM.ok(said)


HUB = DoctorCheck("hub", {"offline": WARN, "unreachable": WARN, "refused": WARN, "unread": WARN})


def check_hub(hub: HubFacts) -> Line:
    """Whether the Hub answers, and as whom."""
    if hub.is_offline:
        return HUB.trouble("offline", say("doctor.hub.not_asked", endpoint=hub.endpoint))
    if hub.error is not None:
        return HUB.trouble("unreachable", hub.error)
    if hub.is_refused:
        return HUB.trouble("refused", say("doctor.hub.unknown_token", endpoint=hub.endpoint))
    answers = say("doctor.hub.answers", endpoint=hub.endpoint)
    if not hub.has_token:
        return HUB.ok(answers, say("doctor.hub.no_token"))
    return HUB.ok(answers, say("doctor.hub.user", user=hub.user) if hub.user else say("doctor.hub.nameless"))


MODEL = DoctorCheck("model", {"none": FAIL, "substitute": WARN, "unconfirmed": WARN, "unread": WARN})


def check_model(model: ModelFacts) -> Line:
    """Which model H-1 would take."""
    choice, names = model.choice, dict[str, list[str]]()
    for item in model.rejected:  # those of one reason together
        names.setdefault(str(item.message), []).append(item.name)
    passed_over = "; ".join(f"{', '.join(found)}: {reason}" for reason, found in names.items())
    if choice is None:
        return MODEL.trouble("none", passed_over)
    if choice.automatic_substitute:
        return MODEL.trouble("substitute", say("doctor.model.because", model=choice.name, why=passed_over))
    if choice.source == "cache":
        return MODEL.trouble("unconfirmed", f"{choice.name}: {choice.reason}")
    due = choice.download_bytes
    size = say("doctor.model.to_download", size=size_words(due)) if due else say("doctor.model.all_here")
    return MODEL.ok(say("doctor.model.found", model=choice.name, source=choice.source, size=size), passed_over)


DISK_MODEL = DoctorCheck(
    "disk-model", {"short": FAIL, "readonly": FAIL, "twin-readonly": FAIL, "twin-short": FAIL, "unread": WARN}
)


def check_disk_model(place: Place, model: ModelFacts | None, needs: Needs) -> Line:
    """Whether the model fits where models go; `model` None: H-1 makes a twin, or its choice is not known."""
    full = next((item for item in model.rejected if item.cause is Cause.DISK_FULL), None) if model else None
    if full is not None:
        return DISK_MODEL.trouble("short", f"{full.name}: {full.message}")
    choice = model.choice if model else None
    twins = "twin-" if needs.is_twin else ""
    due_bytes = choice.download_bytes if choice else needs.weights_bytes
    free = _free(place)
    if not due_bytes:
        return DISK_MODEL.ok(free, say("doctor.disk.nothing_due" if choice else "doctor.disk.unknown_due"))
    said = say("doctor.disk.due", size=size_words(due_bytes), free=free)
    if not place.is_writable:
        return DISK_MODEL.trouble(f"{twins}readonly", say("doctor.disk.locked", folder=place.folder))
    if place.free_bytes < due_bytes + SPARE_DISK_BYTES:
        spare = say("doctor.disk.spare", due=said, spare=size_words(SPARE_DISK_BYTES))
        return DISK_MODEL.trouble(f"{twins}short", spare)
    return DISK_MODEL.ok(said)


def _free(place: Place) -> Message:
    return say("doctor.disk.free", size=size_words(place.free_bytes), folder=place.folder)


DISK_OUTPUT = DoctorCheck("disk-output", {"short": FAIL, "readonly": FAIL, "unread": WARN})


def check_disk_output(places: Sequence[Place], needs: Needs) -> Line:
    """Whether every attempt's files fit; the pipeline root and the reports may lie on different disks."""
    for place in places:
        if not place.is_writable:
            locked = say("doctor.disk.locked", folder=place.folder)
            return DISK_OUTPUT.trouble("readonly", f"{phrase(f'doctor.place.{place.role}')}: {locked}")
    tightest = min(places, key=lambda place: place.free_bytes)
    said = _free(tightest)
    if tightest.free_bytes < needs.output_bytes:
        return DISK_OUTPUT.trouble("short", said, say("doctor.disk.written", size=size_words(needs.output_bytes)))
    return DISK_OUTPUT.ok(said)


PYTHON = DoctorCheck("python", {"missing": CERTAIN, "broken": CERTAIN, "silent": FAIL, "unread": FAIL})


def check_python(root: RootFacts, checkup: Checkup | None) -> Line:
    """Whether the pipeline's interpreter runs; `checkup` None: it was not started."""
    if root.python is None or checkup is None:
        return PYTHON.trouble("missing", root.python_error or say("doctor.python.none"))
    if checkup.python is not None:
        return PYTHON.ok(f"{checkup.python.version} {root.python}")
    if checkup.returncode == NOT_STARTED:
        return PYTHON.trouble("broken", f"{root.python}: {checkup.said}")
    return _unfinished(PYTHON, checkup, "silent", f"{root.python}: ")


def _unfinished(kind: DoctorCheck, checkup: Checkup, ended: str = "crashed", before: str = "") -> Line:
    """The line of a step without an answer: out of time, or the trouble `ended` where the process ended by itself."""
    code = checkup.returncode
    if code is None:
        return kind.trouble("unread", say("doctor.unread.deadline"))
    if code < 0:
        return kind.trouble(ended, before + phrase("doctor.python.signalled", signal=-code, said=checkup.said))
    return kind.trouble(ended, before + phrase("doctor.python.exited", status=code, said=checkup.said))


def _ended_early(checkup: Checkup, step: str) -> bool:
    """Whether the process ended, or was ended, in this very step."""
    reached = [getattr(checkup, name) for name in STEPS[: STEPS.index(step)]]
    return checkup.returncode != 0 and all(reached) and getattr(checkup, step) is None


LOCALE = DoctorCheck("locale", {"ascii": WARN})


def check_locale(host: HostFacts, output_encoding: str | None) -> Line:
    """Whether Japanese text and file names can be written; the second is the pipeline's Python, None where unknown."""
    encodings = {"names": host.file_name_encoding, "output": output_encoding}
    utf8 = ("utf8", "utf8sig")
    other = {
        what: name
        for what, name in encodings.items()
        if name and name.lower().replace("-", "").replace("_", "") not in utf8
    }
    if other:
        return LOCALE.trouble("ascii", *(f"{phrase(f'doctor.locale.{what}')}: {name}" for what, name in other.items()))
    return LOCALE.ok("UTF-8")


PACKAGES = DoctorCheck(
    "packages",
    dict.fromkeys(("missing", "conflict", "import", "unavailable", "arguments", "bnb-cuda", "numpy"), FAIL)
    | dict.fromkeys(("cap", "unread", "crashed"), FAIL)
    | dict.fromkeys(("conflict", "arguments", "numpy"), WARN),  # and stay where they are in the table
)


def check_packages(checkup: Checkup, needs: Needs) -> Iterator[Line]:
    """What is wrong with the packages, a line for each, or one line with their versions."""
    if checkup.python is None:
        return
    troubles = [*_version_troubles(checkup, needs), *_library_troubles(checkup)]
    versions = ", ".join(f"{name} {version}" for name, version in checkup.python.packages.items() if version)
    yield from troubles or [PACKAGES.ok(versions)]


def _version_troubles(checkup: Checkup, needs: Needs) -> Iterator[Line]:
    """Troubles that versions alone show."""
    python, torch = checkup.python, checkup.torch
    assert python is not None  # noqa: S101 - asked before
    missing = [name for name in REQUIRED if python.packages.get(name) is None]
    if missing:
        yield PACKAGES.trouble("missing", say("doctor.packages.not_installed", names=", ".join(missing)))
    if python.conflicts:
        words = (
            say("doctor.packages.requires", package=package, wanted=wanted, version=version)
            for package, wanted, version in python.conflicts
        )
        yield PACKAGES.trouble("conflict", *words)
    if torch is None or torch.error is not None:
        return
    if torch.numpy_error is not None:
        yield PACKAGES.trouble("numpy", f"numpy {python.packages.get('numpy')}: {torch.numpy_error}")
    release = tuple(int(part) for part in torch.version.split("+")[0].split(".")[:2] if part.isdigit())
    if needs.vram_cap_bytes is not None and needs.is_gpu and release < CAP_TORCH:
        yield PACKAGES.trouble("cap", f"torch {torch.version}")
    brought = {int(name[:2]) for name in python.bnb_cuda_libraries if name.isdigit()}
    if needs.is_gpu and torch.cuda and brought and _major(torch.cuda) not in brought:
        has = ", ".join(python.bnb_cuda_libraries)
        bnb = say("doctor.packages.bnb_has", version=python.packages.get("bitsandbytes"), cuda=has)
        built = say("doctor.packages.torch_built", version=torch.version, cuda=torch.cuda)
        yield PACKAGES.trouble("bnb-cuda", bnb, built)


def _library_troubles(checkup: Checkup) -> Iterator[Line]:
    """Troubles that importing the packages showed; none where it was not tried, or torch itself is the trouble."""
    libraries = checkup.libraries
    if libraries is None:
        if _ended_early(checkup, "libraries"):
            yield _unfinished(PACKAGES, checkup)
    elif libraries.error is not None:
        if checkup.torch and checkup.torch.error is None:
            yield PACKAGES.trouble("import", libraries.error)
    else:
        unavailable, unknown = ", ".join(libraries.unavailable), ", ".join(libraries.unknown_arguments)
        if unavailable:
            yield PACKAGES.trouble("unavailable", say("doctor.packages.not_used", names=unavailable))
        if unknown:
            yield PACKAGES.trouble("arguments", say("doctor.packages.unknown", arguments=unknown))


TORCH = DoctorCheck(
    "torch",
    dict.fromkeys(("import", "cpu-build", "driver", "blind"), CERTAIN)
    | dict.fromkeys(("kernels", "product", "wrong", "unread", "crashed"), FAIL),
)


def check_torch(checkup: Checkup, needs: Needs, device: Device | None) -> Line:
    """Whether torch works on the device, which is the CPU where the profile says so."""
    torch, product = checkup.torch, checkup.product
    if torch is None:
        return _unfinished(TORCH, checkup)
    if torch.error is not None:
        return TORCH.trouble("import", torch.error)
    build = f"torch {torch.version}"
    if torch.cuda:
        build = phrase("doctor.torch.build", version=torch.version, cuda=torch.cuda)
    blind = _blind(torch, device, build) if needs.is_gpu else None
    if blind is not None:
        return blind
    if product is None:
        if _ended_early(checkup, "product"):
            return _unfinished(TORCH, checkup)
        return TORCH.ok(build, say("doctor.torch.not_tried"))
    if product.error is not None:
        capability = device.capability if device else None
        if capability and not has_kernels(torch.architectures, capability):
            card, names = f"{capability[0]}.{capability[1]}", " ".join(torch.architectures)
            made_for = say("doctor.torch.made_for", build=build, names=names, card=card, error=product.error)
            return TORCH.trouble("kernels", made_for)
        return TORCH.trouble("product", f"{build}: {product.error}")
    if not _is_within(product.relative_error, PRODUCT_ERROR):
        return TORCH.trouble("wrong", say("doctor.torch.error", build=build, error=str(product.relative_error)))
    where = torch.device_name if device else say("doctor.torch.cpu")
    return TORCH.ok(say("doctor.torch.works", build=build, where=where))


def _blind(torch: TorchStep, device: Device | None, build: str) -> Line | None:
    """Why torch can't use the card; None where it sees it, or where there is none to be seen."""
    if torch.cuda is None:
        return TORCH.trouble("cpu-build", say("doctor.torch.no_cuda", version=torch.version))
    if torch.is_available or device is None:
        return None
    words = "; ".join(torch.said) or phrase("doctor.torch.sees_none")
    if _major(torch.cuda) > _major(device.cuda_driver_version):
        driver = {"driver": device.driver_version, "cuda": device.cuda_driver_version}
        return TORCH.trouble("driver", say("doctor.torch.driver_runs", build=build, **driver, words=words))
    return TORCH.trouble("blind", f"{build}: {words}")


def has_kernels(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code for `sm_86`, `compute_90`, `sm_90a`… runs on a card of this compute capability.

    Binary code runs on the same major version from its minor version on; PTX (`compute_`) on every later card; names
    that end in a letter on their own only (CUDA C++ Programming Guide, application compatibility).
    """
    for name in architectures:
        kind, _, number = name.partition("_")
        digits = number.rstrip("abcdefghijklmnopqrstuvwxyz")
        if not digits.isdigit() or len(digits) < 2:
            continue
        made_for = (int(digits[:-1]), int(digits[-1]))
        is_later = made_for <= capability and (kind == "compute" or made_for[0] == capability[0])
        if made_for == capability or (digits == number and is_later):
            return True
    return False


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _is_within(error: float | None, limit: float) -> bool:
    return error is not None and error <= limit  # NaN is not


FOUR_BIT = DoctorCheck("4-bit", {"fails": FAIL, "wrong": FAIL, "crashed": FAIL, "unread": FAIL})


def check_four_bit(checkup: Checkup) -> Line:
    """Whether a 4-bit layer computes what its dequantised weight would."""
    found = checkup.four_bit
    if found is None:
        return _unfinished(FOUR_BIT, checkup)
    if found.error is not None:
        return FOUR_BIT.trouble("fails", found.error)
    limits = {
        "dequantised": (found.dequantised_error, DEQUANTISED_ERROR),
        "forward": (found.forward_error, PRODUCT_ERROR),
        "backward": (found.backward_error, PRODUCT_ERROR),
        "one_row": (found.single_row_error, PRODUCT_ERROR),
    }
    wrong = {name: error for name, (error, limit) in limits.items() if not _is_within(error, limit)}
    if wrong:
        errors = ", ".join(f"{phrase(f'doctor.error.{name}')} {error}" for name, error in wrong.items())
        return FOUR_BIT.trouble("wrong", say("doctor.4-bit.errors", errors=errors))
    return FOUR_BIT.ok(say("doctor.4-bit.agrees"))


CATALOG: tuple[DoctorCheck, ...] = tuple(kind for kind in vars().values() if isinstance(kind, DoctorCheck))
