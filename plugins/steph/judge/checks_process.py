"""Checks of an attempt's processes: how they ended, what libraries said, what ran where; and of the chosen model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from steph.base.messages import Message, say
from steph.base.terms import Severity
from steph.base.text import one_line
from steph.base.units import gib
from steph.contract.lines import missing_weights_in, result_lines_in, tracebacks_in
from steph.diagnose.table import rows_in
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind, Figures
from steph.record.values import Check, ModelChoice, Probe

LEAST_GPU_BYTES = 512 << 20  # a CUDA context and the smallest model; a desktop's windows come and go with less
LEAST_COMPUTED_BYTES = 16 << 20  # of torch's allocator: 2 MiB for one number, 38 for the answers of the tiniest model
CAP_SLACK_BYTES = 256 << 20  # what other programs may take meanwhile
FRACTION_TOLERANCE = 1e-3  # of the card; torch gives back what it was told to the last digits
_LINE_CHARS = 4000

MODEL_AVAILABLE = CheckKind("model_available", "H-1", FAIL)
PARAMETERS_IN_RANGE = CheckKind("parameters_in_range", "H-1", FAIL)
HUB_CONFIRMED = CheckKind("hub_confirmed", "H-1", WARN)
EXIT_ZERO = CheckKind("exit_zero", "H-2・H-3", FAIL, core=True)
NO_TRACEBACK = CheckKind("no_traceback", "H-2・H-3", WARN)
BASE_WEIGHTS_LOADED = CheckKind("base_weights_loaded", "H-2・H-3", WARN)
LIBRARY_WARNINGS = CheckKind("library_warnings", "H-2・H-3", WARN)
RANKS_AS_ASKED = CheckKind("ranks_as_asked", "H-2・H-3", FAIL)
RESULTS_PRINTED_ONCE = CheckKind("results_printed_once", "H-2・H-3", WARN, optional=True)
LIBRARIES_LOADED = CheckKind("libraries_loaded", "H-2・H-3", WARN, optional=True)
GPU_USED = CheckKind("gpu_used", "H-2・H-3", FAIL, optional=True)
VRAM_CAP_HONOURED = CheckKind("vram_cap_honoured", "H-2・H-3", FAIL)
MEMORY_RETURNED = CheckKind("memory_returned", "H-2・H-3", WARN)
NO_PROCESS_LEFT = CheckKind("no_process_left", "H-2・H-3", INFO)


@dataclass(frozen=True)
class LibraryWarning:
    """A row of diagnose/library_warnings.toml, which says what is what."""

    literal: str
    pattern: re.Pattern[str]
    words: str
    severity: Severity
    at_least: int = 1
    gpu_only: bool = False


@cache
def library_warnings() -> tuple[LibraryWarning, ...]:
    """The table of warnings, in the order in which they are told."""
    found = []
    for row in rows_in("library_warnings")["warning"]:
        severity = Severity(row.get("severity", WARN))
        found.append(LibraryWarning(**{**row, "pattern": re.compile(row["pattern"], re.I), "severity": severity}))
    return tuple(found)


@dataclass(frozen=True)
class ProcessEvidence:
    """What an attempt's processes left beside their files.

    `ranks` is how many were asked for. `asked_fraction` is the share of its card that torch's allocator was given in
    each of them so that all its use stays below `cap_bytes`, both None where no cap was emulated. `memory_returned` is
    None where it could not be seen. `device_uuids` are the GPUs that the processes were given, `peak_own_bytes` is what
    NVML saw them take, and `libraries` are those without which nobody can do what was asked. `left_behind` names what
    still ran when the program had ended by itself, `left_alive` counts what could not be ended, and `written_late` are
    files of its output that were written in between.
    """

    ranks: int
    probes: tuple[Probe, ...]
    asked_fraction: float | None = None
    cap_bytes: int | None = None
    memory_returned: bool | None = None
    on_gpu: bool = True
    device_uuids: tuple[str, ...] = ()
    peak_own_bytes: int | None = None
    libraries: tuple[str, ...] = ()
    left_behind: tuple[str, ...] = ()
    left_alive: int = 0
    written_late: tuple[str, ...] = ()


def process_checks(returncode: int | None, output: str, *, on_gpu: bool = True) -> tuple[Check, ...]:
    """Check the exit code, count the tracebacks that were printed, and look for weights that were not read."""
    ended_well = None if returncode is None else returncode == 0
    count, made_up = tracebacks_in(output), missing_weights_in(output)
    return (
        EXIT_ZERO.check(ended_well, "unknown" if returncode is None else "code", code=returncode),
        NO_TRACEBACK.check(count == 0, "counted", tracebacks=count),
        BASE_WEIGHTS_LOADED.check(
            made_up is None, "missing" if made_up else "clean", line=one_line(made_up or "", 200)
        ),
        _library_check(output, on_gpu),
    )


def machine_checks(evidence: ProcessEvidence, stdout: str) -> tuple[Check, ...]:
    """The machine's checks of an attempt that ended well: ranks, cap and memory, each where it was asked for."""
    checks: list[Check] = []
    if evidence.ranks > 1:
        lines, once = result_lines_in(stdout), RESULTS_PRINTED_ONCE.check(None, "none")
        if lines:
            once = RESULTS_PRINTED_ONCE.check(lines == 1, "counted", lines=lines)
        checks += [_ranks_check(evidence), once]
    checks.append(_left_check(evidence))
    if evidence.libraries:
        checks.append(_libraries_check(evidence))
    if evidence.on_gpu:
        checks.append(_gpu_check(evidence))
    if evidence.on_gpu and evidence.asked_fraction is not None:
        checks.append(_cap_check(evidence.asked_fraction, evidence))
    if evidence.on_gpu:
        seen = {True: "returned", False: "kept", None: "unknown"}[evidence.memory_returned]
        checks.append(MEMORY_RETURNED.check(evidence.memory_returned, seen))
    return tuple(checks)


def _ranks_check(evidence: ProcessEvidence) -> Check:
    ranks = [probe for probe in evidence.probes if probe.rank is not None]
    numbers = sorted({probe.rank for probe in ranks if probe.rank is not None})
    if not numbers:
        return RANKS_AS_ASKED.check(None, say("process.no_probe"))
    all_ran = numbers == list(range(evidence.ranks))
    figures: Figures = {"asked": evidence.ranks, "ran": len(numbers), "ranks": str(numbers)}
    if not evidence.on_gpu:
        return RANKS_AS_ASKED.check(all_ran, "counted", **figures)
    gpus = len({probe.device_uuid for probe in ranks if _has_computed(probe)})
    return RANKS_AS_ASKED.check(all_ran and gpus == evidence.ranks, "on_gpus", gpus=gpus, **figures)


def _left_check(evidence: ProcessEvidence) -> Check:
    """What still wrote when the program had ended leaves files that nobody vouches for: cut off, or another's."""
    if not evidence.left_behind and not evidence.left_alive:
        return NO_PROCESS_LEFT.check(True, "none")
    left = evidence.left_behind or say("process.unknown")
    if evidence.written_late:
        return NO_PROCESS_LEFT.check(False, "late", severity=FAIL, files=evidence.written_late, processes=left)
    if evidence.left_alive:
        return NO_PROCESS_LEFT.check(False, "alive", severity=WARN, processes=left, alive=evidence.left_alive)
    return NO_PROCESS_LEFT.check(False, "ended", processes=left)


def _library_check(output: str, on_gpu: bool) -> Check:
    """The warnings of the table that were printed, in its order; as hard as the hardest of them."""
    found: list[tuple[LibraryWarning, list[str]]] = []
    for row in library_warnings():
        if row.literal in output and (on_gpu or not row.gpu_only):
            lines = [line[:_LINE_CHARS] for line in re.split(r"[\r\n]+", output) if row.literal in line]
            said = [line for line in lines if row.pattern.search(line)]
            found += [(row, said)] if len(said) >= row.at_least else []
    if not found:
        return LIBRARY_WARNINGS.check(True, "none")
    severity = next(one for one in Severity if any(row.severity is one for row, _ in found))
    listing = [say("process.warning", warning=say(row.words), lines=len(said)) for row, said in found[:3]]
    example = one_line(found[0][1][0], 160)
    return LIBRARY_WARNINGS.check(False, "warned", severity=severity, warnings=listing, example=example)


def _libraries_check(evidence: ProcessEvidence) -> Check:
    """A process without peft can't have applied an adapter; peft itself loads bitsandbytes wherever it is installed."""
    probes = [probe for probe in evidence.probes if evidence.ranks == 1 or probe.rank is not None]
    if not probes:
        return LIBRARIES_LOADED.check(None, say("process.no_probe"))
    loaded = {name for probe in probes for name in probe.packages}
    missing = [name for name in evidence.libraries if name not in loaded]
    needed, told = evidence.libraries, "missing" if missing else "loaded"
    return LIBRARIES_LOADED.check(not missing, told, needed=needed, missing=missing)


def _gpu_check(evidence: ProcessEvidence) -> Check:
    """By the probes of those that used CUDA; a process that left none is seen by the memory it took."""
    used, given = (
        {probe.device_uuid for probe in evidence.probes if probe.device_uuid is not None},
        evidence.device_uuids,
    )
    strangers = sorted(used - {*given})
    # of a MIG slice torch may give the card's UUID
    if strangers and given and not any(uuid.startswith("MIG-") for uuid in given):
        return GPU_USED.check(False, "strangers", gpus=strangers)
    if any(map(_has_figures, evidence.probes)):
        workers = sum(map(_has_computed, evidence.probes))
        return GPU_USED.check(workers > 0, "computed", processes=workers)
    taken = evidence.peak_own_bytes
    if taken is None and not evidence.probes:
        return GPU_USED.check(None, "unknown")
    grown = say("process.unknown") if taken is None else gib(taken)
    return GPU_USED.check(taken is not None and taken >= LEAST_GPU_BYTES, "grown", taken=grown)


def _cap_check(asked: float, evidence: ProcessEvidence) -> Check:
    """Every process on the card must be held to the fraction; one that shows none may have taken the whole card.

    The fraction binds torch alone: what another library takes (JAX claims three quarters of a card) is seen by NVML.
    """
    cap, taken = evidence.cap_bytes, evidence.peak_own_bytes
    if cap is not None and taken is not None and taken > cap + CAP_SLACK_BYTES:
        return VRAM_CAP_HONOURED.check(False, "beyond", cap=gib(cap), taken=gib(taken))
    # a rank always works on a GPU, a launcher that only imports torch never
    workers = [probe for probe in evidence.probes if probe.rank is not None or _has_figures(probe)]
    fractions = [probe.memory_fraction for probe in workers]
    known = [fraction for fraction in fractions if fraction is not None]
    shown = [say("process.unknown") if fraction is None else fraction for fraction in fractions]
    holds = True if fractions and len(known) == len(fractions) else None
    if asked >= 1 or any(fraction > asked + FRACTION_TOLERANCE for fraction in known):
        holds = False
    return VRAM_CAP_HONOURED.check(holds, "fractions" if shown else "no_process", asked=asked, fractions=shown)


def _has_computed(probe: Probe) -> bool:
    return (probe.peak_reserved_bytes or 0) >= LEAST_COMPUTED_BYTES


def _has_figures(probe: Probe) -> bool:
    figures = (probe.device_uuid, probe.peak_allocated_bytes, probe.peak_reserved_bytes, probe.memory_fraction)
    return any(figure is not None for figure in figures)


@dataclass(frozen=True)
class ModelEvidence:
    """The chosen model, whether its folder is there, the profile's range, and whether a person named the model."""

    model: ModelChoice
    is_there: bool
    min_parameters: int
    max_parameters: int
    is_explicit: bool


def _count_words(parameters: int, decimals: int = 2) -> str:
    """A count that shows more than zeros: 1.84B, 0.49B, 3.20M, 0."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if parameters >= size / 10 or (unit == "K" and parameters):
            return f"{parameters / size:.{decimals}f}{unit}"
    return "0"


def judge_model(evidence: ModelEvidence) -> tuple[Check, ...]:
    """The checks of H-1; a size that is not known is not within the range."""
    model, count = evidence.model, evidence.model.parameters
    in_range = None if count is None else evidence.min_parameters <= count <= evidence.max_parameters
    size = "unknown" if count is None else "within" if in_range else "outside"
    least, most = _count_words(evidence.min_parameters, 1), _count_words(evidence.max_parameters, 1)
    figures: Figures = {"parameters": None if count is None else _count_words(count), "least": least, "most": most}
    there = "there" if evidence.is_there else "missing"
    checks = [
        MODEL_AVAILABLE.check(evidence.is_there, there, model=model.name, source=model.source),
        PARAMETERS_IN_RANGE.check(in_range, size, severity=WARN if evidence.is_explicit else None, **figures),
    ]
    if model.source == "cache":
        checks.append(HUB_CONFIRMED.check(False, "cached"))
    return tuple(checks)


def no_model(reason: Message) -> tuple[Check, ...]:
    """The check where no model can be had, with the reason."""
    return (MODEL_AVAILABLE.check(False, reason),)
