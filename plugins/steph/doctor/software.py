"""The checks of the pipeline, its interpreter and the Hub: pure functions from facts to lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from steph.base.messages import Message, phrase, say
from steph.base.units import size_words
from steph.doctor import kinds
from steph.doctor.facts import Checkup, FourBitStep, HubFacts, LibrariesStep, ModelFacts, RootFacts, Step, TorchStep
from steph.doctor.interpreter import NOT_STARTED
from steph.doctor.lines import DoctorCheck, Line
from steph.doctor.needs import Needs
from steph.record.settings import Device
from steph.record.values import RejectedCandidate

REQUIRED = ("transformers", "peft", "accelerate", "bitsandbytes")
CAP_TORCH = (2, 10)  # the first that knows per_process_memory_fraction in PYTORCH_CUDA_ALLOC_CONF
PRODUCT_ERROR = 0.02  # bf16 has 8 significant bits: 0.002 is what a sound product shows
# of a normal weight: 0.092 for nf4, 0.122 for fp4, measured; zeros or noise show 1 and more
DEQUANTISED_ERROR = 0.2
STEPS = ("python", "torch", "product", "libraries", "four_bit")


def check_pipeline(root: RootFacts) -> Line:
    """Whether a run would start with this root."""
    if root.error is not None:
        return kinds.PIPELINE.trouble("refused", root.error)
    data = root.dataset
    if data is None:
        return kinds.PIPELINE.ok(root.root)
    words = "doctor.pipeline.sample" if data.is_sample else "doctor.pipeline.data"
    return kinds.PIPELINE.ok(root.root, say(words, rows=data.rows, file=data.path))


def check_hub(hub: HubFacts) -> Line:
    """Whether the Hub answers, and as whom."""
    kind = kinds.HUB
    if hub.is_offline:
        return kind.trouble("offline", say("doctor.hub.not_asked", endpoint=hub.endpoint))
    if hub.error is not None:
        return kind.trouble("unreachable", hub.error)
    if hub.is_refused:
        return kind.trouble("refused", say("doctor.hub.unknown_token", endpoint=hub.endpoint))
    answers = say("doctor.hub.answers", endpoint=hub.endpoint)
    if not hub.has_token:
        return kind.ok(answers, say("doctor.hub.no_token"))
    return kind.ok(answers, say("doctor.hub.user", user=hub.user) if hub.user else say("doctor.hub.nameless"))


def check_model(model: ModelFacts) -> Line:
    """Which model H-1 would take."""
    kind, choice = kinds.MODEL, model.choice
    passed_over = _reasons(model.rejected)
    if choice is None:
        return kind.trouble("none", passed_over)
    if choice.automatic_substitute:
        return kind.trouble("substitute", say("doctor.model.because", model=choice.name, why=passed_over))
    if choice.source == "cache":
        return kind.trouble("unconfirmed", f"{choice.name}: {choice.reason}")
    due = choice.download_bytes
    size = say("doctor.model.to_download", size=size_words(due)) if due else say("doctor.model.all_here")
    return kind.ok(say("doctor.model.found", model=choice.name, source=choice.source, size=size), passed_over)


def check_python(root: RootFacts, checkup: Checkup | None) -> Line:
    """Whether the pipeline's interpreter runs; `checkup` None: it was not started."""
    if root.python is None or checkup is None:
        return kinds.PYTHON.trouble("missing", root.python_error or say("doctor.python.none"))
    if checkup.python is not None:
        return kinds.PYTHON.ok(f"{checkup.python.version} {root.python}")
    if checkup.returncode == NOT_STARTED:
        return kinds.PYTHON.trouble("broken", f"{root.python}: {checkup.said}")
    silent = kinds.PYTHON.trouble("silent", f"{root.python}: {_ending(checkup)}")
    return _unreached(kinds.PYTHON, checkup) or silent


def check_torch(checkup: Checkup, needs: Needs, device: Device | None) -> Line:
    """Whether torch works on the device, which is the CPU where the profile says so."""
    kind, torch = kinds.TORCH, checkup.torch
    if torch is None:
        return _unreached(kind, checkup) or kind.trouble("crashed", _ending(checkup))
    if torch.error is not None:
        return kind.trouble("import", torch.error)
    blind = _blind(torch, device) if needs.is_gpu else None
    if blind is not None:
        return blind
    if checkup.product is None and not _ended_early(checkup, "product"):
        return kind.ok(_build(torch), say("doctor.torch.not_tried"))
    return _product(checkup, torch, device)


def check_packages(checkup: Checkup, needs: Needs) -> Iterator[Line]:
    """What is wrong with the packages, a line for each, or one line with their versions."""
    if checkup.python is None:
        return
    troubles = [*_version_troubles(checkup, needs), *_library_troubles(checkup)]
    versions = ", ".join(f"{name} {version}" for name, version in checkup.python.packages.items() if version)
    yield from troubles or [kinds.PACKAGES.ok(versions)]


def check_four_bit(checkup: Checkup) -> Line:
    """Whether a 4-bit layer computes what its dequantised weight would."""
    kind, found = kinds.FOUR_BIT, checkup.four_bit
    if found is None:
        return _unreached(kind, checkup) or kind.trouble("crashed", _ending(checkup))
    if found.error is not None:
        return kind.trouble("fails", found.error)
    wrong = _wrong(found)
    if wrong:
        return kind.trouble("wrong", say("doctor.4-bit.errors", errors=wrong))
    return kind.ok(say("doctor.4-bit.agrees"))


def has_kernels(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code for `sm_86`, `compute_90`, `sm_90a`… runs on a card of this compute capability.

    Binary code runs on the same major version from its minor version on; PTX (`compute_`) on every later card; names
    that end in a letter on their own only (CUDA C++ Programming Guide, application compatibility).
    """
    return any(_runs_on(name, capability) for name in architectures)


def _runs_on(name: str, capability: tuple[int, int]) -> bool:
    kind, _, number = name.partition("_")
    digits = number.rstrip("abcdefghijklmnopqrstuvwxyz")
    if not digits.isdigit() or len(digits) < 2:
        return False
    made_for = (int(digits[:-1]), int(digits[-1]))
    if digits != number:
        return made_for == capability
    return capability >= made_for if kind == "compute" else made_for[0] == capability[0] and made_for <= capability


def _blind(torch: TorchStep, device: Device | None) -> Line | None:
    """Why torch can't use the card; None where it sees it, or where there is none to be seen."""
    kind = kinds.TORCH
    if torch.cuda is None:
        return kind.trouble("cpu-build", say("doctor.torch.no_cuda", version=torch.version))
    if torch.is_available or device is None:
        return None
    words = "; ".join(torch.said) or phrase("doctor.torch.sees_none")
    if _major(torch.cuda) > _major(device.cuda_driver_version):
        driver = {"driver": device.driver_version, "cuda": device.cuda_driver_version}
        return kind.trouble("driver", say("doctor.torch.driver_runs", build=_build(torch), **driver, words=words))
    return kind.trouble("blind", f"{_build(torch)}: {words}")


def _product(checkup: Checkup, torch: TorchStep, device: Device | None) -> Line:
    kind, product = kinds.TORCH, checkup.product
    if product is None:
        return _unreached(kind, checkup) or kind.trouble("crashed", _ending(checkup))
    if product.error is not None:
        capability = device.capability if device else None
        if capability and not has_kernels(torch.architectures, capability):
            card, names = f"{capability[0]}.{capability[1]}", " ".join(torch.architectures)
            made_for = say("doctor.torch.made_for", build=_build(torch), names=names, card=card, error=product.error)
            return kind.trouble("kernels", made_for)
        return kind.trouble("product", f"{_build(torch)}: {product.error}")
    if not _is_within(product.relative_error, PRODUCT_ERROR):
        return kind.trouble("wrong", say("doctor.torch.error", build=_build(torch), error=str(product.relative_error)))
    where = torch.device_name if device else say("doctor.torch.cpu")
    return kind.ok(say("doctor.torch.works", build=_build(torch), where=where))


def _version_troubles(checkup: Checkup, needs: Needs) -> Iterator[Line]:
    """What versions alone tell."""
    kind, python, torch = kinds.PACKAGES, checkup.python, checkup.torch
    assert python is not None  # noqa: S101 - asked before
    missing = [name for name in REQUIRED if python.packages.get(name) is None]
    if missing:
        yield kind.trouble("missing", say("doctor.packages.not_installed", names=", ".join(missing)))
    if python.conflicts:
        yield kind.trouble("conflict", *map(_conflict, python.conflicts))
    if torch is None or torch.error is not None:
        return
    if torch.numpy_error is not None:
        yield kind.trouble("numpy", f"numpy {python.packages.get('numpy')}: {torch.numpy_error}")
    if needs.vram_cap_bytes is not None and needs.is_gpu and _release(torch.version) < CAP_TORCH:
        yield kind.trouble("cap", f"torch {torch.version}")
    brought = {int(name[:2]) for name in python.bnb_cuda_libraries if name.isdigit()}
    if needs.is_gpu and torch.cuda and brought and _major(torch.cuda) not in brought:
        has = ", ".join(python.bnb_cuda_libraries)
        bnb = say("doctor.packages.bnb_has", version=python.packages.get("bitsandbytes"), cuda=has)
        built = say("doctor.packages.torch_built", version=torch.version, cuda=torch.cuda)
        yield kind.trouble("bnb-cuda", bnb, built)


def _conflict(found: tuple[str, str, str]) -> Message:
    package, wanted, version = found
    return say("doctor.packages.requires", package=package, wanted=wanted, version=version)


def _library_troubles(checkup: Checkup) -> Iterator[Line]:
    """What importing them told; nothing where it was not tried, or where torch itself is the trouble."""
    kind, libraries = kinds.PACKAGES, checkup.libraries
    if libraries is None:
        if _ended_early(checkup, "libraries"):
            yield _unreached(kind, checkup) or kind.trouble("crashed", _ending(checkup))
    elif libraries.error is not None:
        if checkup.torch and checkup.torch.error is None:
            yield kind.trouble("import", libraries.error)
    else:
        yield from _answered(kind, libraries)


def _answered(kind: DoctorCheck, libraries: LibrariesStep) -> Iterator[Line]:
    if libraries.unavailable:
        yield kind.trouble("unavailable", say("doctor.packages.not_used", names=", ".join(libraries.unavailable)))
    if libraries.unknown_arguments:
        yield kind.trouble(
            "arguments", say("doctor.packages.unknown", arguments=", ".join(libraries.unknown_arguments))
        )


def _unreached(kind: DoctorCheck, checkup: Checkup) -> Line | None:
    """The line of a step that the deadline kept from an answer; None where the process ended by itself."""
    return kind.trouble("unread", say("doctor.unread.deadline")) if checkup.returncode is None else None


def _ended_early(checkup: Checkup, step: str) -> bool:
    """Whether the process ended, or was ended, in this very step."""
    if checkup.returncode == 0:
        return False
    reached: list[Step | None] = [getattr(checkup, name) for name in STEPS[: STEPS.index(step)]]
    return all(reached) and getattr(checkup, step) is None


def _ending(checkup: Checkup) -> str:
    code = checkup.returncode
    if code is not None and code < 0:
        return phrase("doctor.python.signalled", signal=-code, said=checkup.said)
    return phrase("doctor.python.exited", status=code, said=checkup.said)


def _wrong(found: FourBitStep) -> str:
    limits = {
        "dequantised": (found.dequantised_error, DEQUANTISED_ERROR),
        "forward": (found.forward_error, PRODUCT_ERROR),
        "backward": (found.backward_error, PRODUCT_ERROR),
        "one_row": (found.single_row_error, PRODUCT_ERROR),
    }
    wrong = {name: error for name, (error, limit) in limits.items() if not _is_within(error, limit)}
    return ", ".join(f"{phrase(f'doctor.error.{name}')} {error}" for name, error in wrong.items())


def _is_within(error: float | None, limit: float) -> bool:
    return error is not None and error <= limit  # NaN is not


def _build(torch: TorchStep) -> str:
    if not torch.cuda:
        return f"torch {torch.version}"
    return phrase("doctor.torch.build", version=torch.version, cuda=torch.cuda)


def _reasons(rejected: Sequence[RejectedCandidate]) -> str:
    """Why candidates were passed over, those of one reason together."""
    names: dict[str, list[str]] = {}
    for item in rejected:
        names.setdefault(str(item.message), []).append(item.name)
    return "; ".join(f"{', '.join(found)}: {message}" for message, found in names.items())


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _release(version: str) -> tuple[int, ...]:
    """Major and minor number of a version such as `2.13.0+cu130`."""
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
