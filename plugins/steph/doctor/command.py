"""`steph doctor`: asks every question at once, gives lines as soon as their facts are there, and the exit status."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import NoReturn, TypeVar

import pytest

from steph import pytest_options, quiet_start
from steph.base.messages import Message, phrase, say, speaking, text
from steph.contract.options import Options
from steph.contract.settings import Profile, ProfileError
from steph.doctor import checks, reading
from steph.doctor.facts import (
    Busy,
    Checkup,
    DoctorCheck,
    GpuFacts,
    HostFacts,
    Level,
    Line,
    ModelFacts,
    Needs,
    RootFacts,
    Unread,
    needs_of,
)
from steph.doctor.reading import Question
from steph.pytest_options import join_environment, join_values, options_and_profile
from steph.record.settings import Device
from steph.run.inputs import InputError

LOCAL_SECONDS = 20.0  # the first NVML call on a machine with many cards and no persistence mode takes ten
MODEL_SECONDS = 20.0
CHECKUP_SECONDS = 90.0  # importing torch with CUDA from a cold disk takes a minute
REAP_SECONDS = 5.0  # beyond that, for ending it
FIRST_SECONDS = 20.0  # until an interpreter says its version, which takes it a tenth of a second

Known = TypeVar("Known")


def examine(
    options: Options, profile: Profile, *, is_quick: bool, waits_for: Callable[[str], None] = lambda _: None
) -> Iterator[Line]:
    """The lines of all checks in the table's order; `waits_for` is told what it waits for, and how long at most."""
    needs, host = needs_of(options, profile), reading.read_host()
    of_root = Question(lambda: reading.read_root(options, profile), LOCAL_SECONDS)
    of_places = Question(lambda: reading.read_places(options, profile), LOCAL_SECONDS)
    of_hub = None if needs.is_twin else Question(reading.read_hub, 2 * reading.HUB_SECONDS)
    of_model = None if needs.is_twin else Question(lambda: reading.read_model(options, profile), MODEL_SECONDS)
    gpu = Question(reading.read_gpu, LOCAL_SECONDS).answer() if needs.is_gpu else None
    device = gpu.device if isinstance(gpu, GpuFacts) else None
    busy = Question(lambda: reading.read_busy(options.pipeline_root, device), LOCAL_SECONDS).answer()
    root = of_root.answer()
    not_computed: Message | None = None  # why nothing is computed on the device
    if is_quick:
        not_computed = say("doctor.skipped.quick")
    elif needs.is_gpu and device is None:
        not_computed = say("doctor.skipped.no_card")
    elif isinstance(busy, Busy) and busy.gpu:
        not_computed = say("doctor.skipped.busy")
    with ExitStack() as stack:
        checkup = _begun(stack, root, profile, device, is_quick=not_computed is not None)
        yield _judged(checks.PIPELINE, checks.check_pipeline, root)
        yield _judged(checks.BUSY, checks.check_busy, busy)
        yield from _gpu_lines(gpu, host, needs)
        yield checks.check_ram(host, needs)
        model: ModelFacts | Unread | None = None
        if of_hub is None or of_model is None:
            yield from (kind.not_applicable(say("doctor.skipped.twin")) for kind in (checks.HUB, checks.MODEL))
        else:
            waits_for(phrase("doctor.waits.hub", seconds=MODEL_SECONDS))
            model = of_model.answer()
            yield _judged(checks.HUB, checks.check_hub, of_hub.answer())
            yield _judged(checks.MODEL, checks.check_model, model)
        chosen, places = model if isinstance(model, ModelFacts) else None, of_places.answer()
        yield _judged(checks.DISK_MODEL, lambda known: checks.check_disk_model(known[0], chosen, needs), places)
        yield _judged(checks.DISK_OUTPUT, lambda known: checks.check_disk_output(known[1:], needs), places)
        if isinstance(root, RootFacts) and root.python is not None:
            waits_for(phrase("doctor.waits.python", python=root.python, seconds=CHECKUP_SECONDS))
        answer = checkup.answer() if checkup else None
        found = Checkup(returncode=None) if isinstance(answer, Unread) else answer
        yield _judged(checks.PYTHON, lambda known: checks.check_python(known, found), root)
        yield checks.check_locale(host, found.python.output_encoding if found and found.python else None)
        if found is None or found.python is None:
            others = (checks.PACKAGES, checks.TORCH, checks.FOUR_BIT)
            yield from (kind.not_applicable(say("doctor.skipped.python")) for kind in others)
            return
        yield from checks.check_packages(found, needs)
        torch = checks.check_torch(found, needs, device)
        yield torch
        reason = not_computed or (say("doctor.skipped.torch") if torch.level is Level.FAIL else None)
        yield checks.FOUR_BIT.not_applicable(reason) if reason else checks.check_four_bit(found)


def _begun(
    stack: ExitStack, root: RootFacts | Unread, profile: Profile, device: Device | None, *, is_quick: bool
) -> Question[Checkup] | None:
    """Start the checkup in the pipeline's Python; None where there is no such Python."""
    if isinstance(root, Unread) or root.python is None:
        return None
    is_gpu = profile.machine.device == "gpu"
    words = ["--device", "cuda" if is_gpu else "cpu", "--compute-dtype", profile.train.bnb_4bit_compute_dtype]
    words += ["--quant-type", profile.train.bnb_4bit_quant_type]
    words += ["--script", root.train_script] if root.train_script else []
    words += ["--quick"] if is_quick else []
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if device is not None or not is_gpu:
        environment["CUDA_VISIBLE_DEVICES"] = device.uuid if device else ""
    run = partial(reading.run_checkup, root.python, words, environment, CHECKUP_SECONDS, FIRST_SECONDS)
    question = Question(run, CHECKUP_SECONDS + REAP_SECONDS)
    stack.callback(question.end)
    return question


def _judged(kind: DoctorCheck, check: Callable[[Known], Line], facts: Known | Unread) -> Line:
    return kind.trouble("unread", facts.reason) if isinstance(facts, Unread) else check(facts)


def _gpu_lines(gpu: GpuFacts | Unread | None, host: HostFacts, needs: Needs) -> Iterator[Line]:
    of_card = (checks.CARD, checks.MEMORY, checks.BF16)
    if gpu is None:
        every = (checks.DRIVER, *of_card, checks.WSL)
        yield from (kind.not_applicable(say("doctor.skipped.cpu")) for kind in every)
        return
    driver = _judged(checks.DRIVER, checks.check_driver, gpu)
    yield driver
    if isinstance(gpu, Unread) or driver.level is not Level.OK:
        yield from (kind.not_applicable(say("doctor.skipped.no_card")) for kind in of_card)
    else:
        yield checks.check_card(gpu)
        if gpu.device is None:
            yield from (kind.not_applicable(say("doctor.skipped.no_card")) for kind in of_card[1:])
        else:
            yield checks.check_memory(gpu.device, gpu.users, needs)
            yield checks.check_bf16(gpu.device, needs)
    yield checks.check_wsl(host)


UNUSABLE = 2  # exit status for options or a profile that can't be used
CERTAIN_TO_FAIL = 3  # exit status with --gate
LEAVE_SECONDS = 5


Act = Callable[[pytest.Config, Options, Profile], int]


class WithRunOptions:
    """A pytest plugin that acts instead of running: so the options are those of a run, whatever they come from.

    `status` is the exit status, None where the options could not be used.
    """

    def __init__(self, act: Act) -> None:
        self._act = act
        self.status: int | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> int:
        """In place of a session."""
        quiet_start.end()  # from here on Ctrl-C must end what was started, too
        options, profile = options_and_profile(config)
        with speaking(profile.language(options)):
            try:
                self.status = self._act(config, options, profile)
            except (ProfileError, InputError) as error:
                raise pytest.UsageError(*str(error).splitlines()) from error
        return self.status


def with_run_options(words: Sequence[str], act: Act) -> int:
    """Act on the options and the profile of pytest's command line `words`; gives the exit status, 2 where they can't
    be used.
    """
    plugin = WithRunOptions(act)
    # no conftest: those of the folder may load torch, and what they would add is of no use here
    join_environment()
    pytest.main(["-p", "steph.plugin", "--noconftest", *join_values(words)], plugins=[plugin])
    return UNUSABLE if plugin.status is None else plugin.status


def doctor_status(
    words: Sequence[str],
    write: Callable[[str], None],
    *,
    is_quick: bool = False,
    as_json: bool = False,
    is_gate: bool = False,
) -> int:
    """Examine under pytest's words, as `steph doctor` does; the exit status, 2 where options can't be used."""

    def leave(number: int, _: object) -> NoReturn:  # in order, so that no process stays behind; after seconds at most
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LEAVE_SECONDS)
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, leave)

    def examine_run(config: pytest.Config, options: Options, profile: Profile) -> int:
        tell = (lambda _: None) if as_json else write
        pytest_options.furnish(config, options.pipeline_root, lambda line: tell(f"doctor: {line}"))
        tell(phrase("doctor.line.examined", profile=profile.name, root=options.pipeline_root))
        lines = []
        for line in examine(options, profile, is_quick=is_quick, waits_for=lambda what: tell(f"doctor: {what}")):
            tell(as_text(line))
            lines.append(line)
        tell(conclusion(lines))
        if as_json:
            examined = {"profile": profile.name, "pipeline_root": str(options.pipeline_root)}
            write(json.dumps({**examined, "lines": [asdict(x) for x in lines]}, ensure_ascii=False, indent=1))
        return exit_status(lines, is_gate=is_gate)

    return with_run_options(words, examine_run)


def exit_status(lines: Iterable[Line], *, is_gate: bool) -> int:
    """0 where nothing fails, 1 where something does; at the gate 3 where a run is certain to fail, else 0."""
    failed = [line for line in lines if line.level is Level.FAIL]
    if is_gate:
        return CERTAIN_TO_FAIL if any(line.is_certain for line in failed) else 0
    return 1 if failed else 0


def as_text(line: Line) -> str:
    """A check's line, and its remedy below it where there is one."""
    told = text("doctor.line.remedy", values={"remedy": line.remedy}) if line.remedy else ""
    remedy = f"\n{'':19}{told}" if told else ""
    return f"{line.level:4}  {line.check:11}  {line.message}{remedy}"


def conclusion(lines: Iterable[Line]) -> str:
    """How many lines of which level, and what makes a run certain to fail."""
    every = list(lines)
    counts = ", ".join(f"{sum(line.level is level for line in every)} {level}" for level in Level)
    certain = ", ".join(line.check for line in every if line.level is Level.FAIL and line.is_certain)
    return f"doctor: {counts}" + (f"; {phrase('doctor.line.certain', checks=certain)}" if certain else "")
