"""One examination: every question asked at once, every line given as soon as its facts are there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TypeVar

from steph.base.messages import Message, phrase, say
from steph.doctor import hub, kinds, machine, reading, software
from steph.doctor.asking import Asked
from steph.doctor.facts import Busy, Checkup, GpuFacts, HostFacts, HubFacts, ModelFacts, Place, RootFacts, Unread
from steph.doctor.interpreter import begun_checkup
from steph.doctor.lines import DoctorCheck, Level, Line
from steph.doctor.needs import Needs, needs_of
from steph.plan.options import Options
from steph.plan.settings import Profile
from steph.record.settings import Device

LOCAL_SECONDS = 20.0  # the first NVML call on a machine with many cards and no persistence mode takes ten
MODEL_SECONDS = 20.0
CHECKUP_SECONDS = 90.0  # importing torch with CUDA from a cold disk takes a minute
FIRST_SECONDS = 20.0  # until an interpreter says its version, which takes it a tenth of a second

Known = TypeVar("Known")


def examine(
    options: Options, profile: Profile, *, is_quick: bool, waits_for: Callable[[str], None] = lambda _: None
) -> Iterator[Line]:
    """The lines of all checks in the table's order; `waits_for` is told what it waits for, and how long at most."""
    needs, host = needs_of(options, profile), reading.read_host()
    asked_root = Asked(lambda: reading.read_root(options, profile), LOCAL_SECONDS)
    asked_places = Asked(lambda: reading.read_places(options, profile), LOCAL_SECONDS)
    asked_hub = None if needs.is_twin else Asked(hub.read_hub, 2 * hub.HUB_SECONDS)
    asked_model = None if needs.is_twin else Asked(lambda: reading.read_model(options, profile), MODEL_SECONDS)
    gpu = Asked(reading.read_gpu, LOCAL_SECONDS).answer() if needs.is_gpu else None
    device = gpu.device if isinstance(gpu, GpuFacts) else None
    busy = Asked(lambda: reading.read_busy(options.pipeline_root, device), LOCAL_SECONDS).answer()
    root = asked_root.answer()
    no_operation = _no_operation(needs, device, busy, is_quick)
    with ExitStack() as stack:
        checkup = _begun(stack, root, profile, device, is_quick=no_operation is not None)
        yield _judged(kinds.PIPELINE, software.check_pipeline, root)
        yield _judged(kinds.BUSY, machine.check_busy, busy)
        yield from _gpu_lines(gpu, host, needs)
        yield machine.check_ram(host, needs)
        if asked_model:
            waits_for(phrase("doctor.waits.hub", seconds=MODEL_SECONDS))
        model = asked_model.answer() if asked_model else None
        yield from _hub_lines(asked_hub.answer() if asked_hub else None, model)
        yield from _disk_lines(asked_places.answer(), model, needs)
        if isinstance(root, RootFacts) and root.python is not None:
            waits_for(phrase("doctor.waits.python", python=root.python, seconds=CHECKUP_SECONDS))
        yield from _interpreter_lines(root, checkup(), host, needs, device, no_operation)


def _no_operation(needs: Needs, device: Device | None, busy: Busy | Unread, is_quick: bool) -> Message | None:
    """Why nothing is computed on the device; None where it is."""
    if is_quick:
        return say("doctor.skipped.quick")
    if needs.is_gpu and device is None:
        return say("doctor.skipped.no_card")
    if isinstance(busy, Busy) and busy.gpu:
        return say("doctor.skipped.busy")
    return None


def _begun(
    stack: ExitStack, root: RootFacts | Unread, profile: Profile, device: Device | None, *, is_quick: bool
) -> Callable[[], Checkup | None]:
    """Start the checkup in the pipeline's Python; the function waits for it, None where there is no such Python."""
    if isinstance(root, Unread) or root.python is None:
        return lambda: None
    is_gpu = profile.machine.device == "gpu"
    words = ["--device", "cuda" if is_gpu else "cpu", "--compute-dtype", profile.train.bnb_4bit_compute_dtype]
    words += ["--quant-type", profile.train.bnb_4bit_quant_type]
    words += ["--script", root.train_script] if root.train_script else []
    words += ["--quick"] if is_quick else []
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if device is not None or not is_gpu:
        environment["CUDA_VISIBLE_DEVICES"] = device.uuid if device else ""
    return stack.enter_context(begun_checkup(root.python, words, environment, CHECKUP_SECONDS, FIRST_SECONDS))


def _judged(kind: DoctorCheck, check: Callable[[Known], Line], facts: Known | Unread) -> Line:
    return kind.trouble("unread", facts.reason) if isinstance(facts, Unread) else check(facts)


def _gpu_lines(gpu: GpuFacts | Unread | None, host: HostFacts, needs: Needs) -> Iterator[Line]:
    card_kinds = (kinds.CARD, kinds.MEMORY, kinds.BF16)
    if gpu is None:
        yield from (kind.not_applicable(say("doctor.skipped.cpu")) for kind in (kinds.DRIVER, *card_kinds, kinds.WSL))
        return
    driver = _judged(kinds.DRIVER, machine.check_driver, gpu)
    yield driver
    if isinstance(gpu, Unread) or driver.level is not Level.OK:
        yield from (kind.not_applicable(say("doctor.skipped.no_card")) for kind in card_kinds)
    else:
        yield machine.check_card(gpu)
        if gpu.device is None:
            yield from (kind.not_applicable(say("doctor.skipped.no_card")) for kind in card_kinds[1:])
        else:
            yield machine.check_memory(gpu.device, gpu.users, needs)
            yield machine.check_bf16(gpu.device, needs)
    yield machine.check_wsl(host)


def _hub_lines(hub: HubFacts | Unread | None, model: ModelFacts | Unread | None) -> Iterator[Line]:
    if hub is None or model is None:
        yield from (kind.not_applicable(say("doctor.skipped.twin")) for kind in (kinds.HUB, kinds.MODEL))
        return
    yield _judged(kinds.HUB, software.check_hub, hub)
    yield _judged(kinds.MODEL, software.check_model, model)


def _disk_lines(places: tuple[Place, ...] | Unread, model: ModelFacts | Unread | None, needs: Needs) -> Iterator[Line]:
    chosen = model if isinstance(model, ModelFacts) else None
    yield _judged(kinds.DISK_MODEL, lambda known: machine.check_disk_model(known[0], chosen, needs), places)
    yield _judged(kinds.DISK_OUTPUT, lambda known: machine.check_disk_output(known[1:], needs), places)


def _interpreter_lines(
    root: RootFacts | Unread,
    checkup: Checkup | None,
    host: HostFacts,
    needs: Needs,
    device: Device | None,
    no_operation: Message | None,
) -> Iterator[Line]:
    yield _judged(kinds.PYTHON, lambda known: software.check_python(known, checkup), root)
    encoding = checkup.python.output_encoding if checkup and checkup.python else None
    yield machine.check_locale(host, encoding)
    if checkup is None or checkup.python is None:
        others = (kinds.PACKAGES, kinds.TORCH, kinds.FOUR_BIT)
        yield from (kind.not_applicable(say("doctor.skipped.python")) for kind in others)
        return
    yield from software.check_packages(checkup, needs)
    torch = software.check_torch(checkup, needs, device)
    yield torch
    reason = no_operation or (say("doctor.skipped.torch") if torch.level is Level.FAIL else None)
    yield kinds.FOUR_BIT.not_applicable(reason) if reason else software.check_four_bit(checkup)
