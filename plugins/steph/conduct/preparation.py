"""From options to everything a run needs to know before it starts: profile, pipeline, device, inputs, context.

Whatever is wrong with these is said here, in one line each, before anything is written or started.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steph.base.terms import AnyStage, ExtendedId, RecordKind, StageId
from steph.base.units import gib
from steph.gpu import visible
from steph.gpu.driver import DeviceError
from steph.gpu.visible import memory_fraction_for_cap
from steph.plan.description import Description, load_description
from steph.plan.options import Options
from steph.plan.settings import Profile, load_profile, profile_path
from steph.plan.shapes import BUILT_IN, TINY, TINY_NAME, ModelShape
from steph.record.environment import Device
from steph.record.values import Context, DataFile
from steph.run import inputs
from steph.run.inputs import InputError
from steph.run.machine import environment, git_state

CACHE_ENV = "STEPH_CACHE"


@dataclass(frozen=True)
class Setup:
    """One run's fixed facts; nothing in it changes while stages run."""

    options: Options
    profile: Profile
    description: Description
    python: str
    device: Device | None
    dataset: DataFile
    context: Context

    def devices(self, num_processes: int) -> tuple[Device, ...]:
        """The GPUs of so many processes, one each; empty on the CPU."""
        every = (self.device, *self.context.environment.further_devices) if self.device else ()
        return every[:num_processes]

    @property
    def root(self) -> Path:
        """The pipeline root, absolute."""
        return self.options.pipeline_root

    @property
    def is_rehearsal(self) -> bool:
        """Whether checks on the answers' quality only inform."""
        return self.context.kind is RecordKind.REHEARSAL


def read_profile(options: Options, near: Path) -> Profile:
    """The profile that the options name; raises ProfileError."""
    return load_profile(profile_path(options.profile, near))


def prepare(options: Options, profile: Profile, stages: Sequence[AnyStage]) -> Setup:
    """Check and collect all facts of a run; raises ProfileError or InputError with one line each."""
    description, dataset = read_inputs(options, profile, stages)
    devices, device_error = _devices(profile)
    _require_possible_cap(options.vram_cap_bytes, devices)
    context = _context(options, profile, description, devices, device_error)
    device = context.environment.device
    return Setup(options, profile, description, context.pipeline_python, device, dataset, context)


def read_inputs(options: Options, profile: Profile, stages: Sequence[AnyStage]) -> tuple[Description, DataFile]:
    """The root's description and its data set, every input file checked; raises ProfileError or InputError."""
    root = options.pipeline_root
    if not root.is_dir():
        raise InputError(f"pipeline root {root}: no such folder; give one with --steph-pipeline-root")
    if StageId.H1 in stages and profile.uses_twin(options):
        twin_shape(options.model or profile.model.candidates[0])
    description = load_description(root)
    _require_inputs(root, description, stages)
    inputs.require_outputs_apart(root, description, options.reports_dir)
    dataset = inputs.read_dataset(root, description)
    if dataset.rows < profile.evaluate.samples:
        raise InputError(
            f"{root / dataset.path}: holds {dataset.rows} questions, fewer than evaluate.samples = "
            f"{profile.evaluate.samples} in {profile.path}; lower samples or give a larger data set"
        )
    return description, dataset


def twin_shape(name: str) -> ModelShape:
    """The shape in which a twin of this model is made; raises InputError where it is not known."""
    shape = TINY if name == TINY_NAME else BUILT_IN.get(name)
    if shape is None:
        raise InputError(f"--steph-twin: no built-in shape for {name!r}; known: {', '.join(sorted(BUILT_IN))}")
    return shape


def cache_dir() -> Path:
    """Where twins are kept: `STEPH_CACHE`, else the user's cache folder; raises InputError where there is none."""
    if CACHE_ENV in os.environ:
        return Path(os.environ[CACHE_ENV])
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "steph"
    except RuntimeError as error:
        raise InputError(f"no place for twins: {error}; set {CACHE_ENV} or XDG_CACHE_HOME") from error


def pipeline_python(options: Options, root: Path) -> str:
    """The interpreter of the pipeline's scripts: asked for, else the root's own `.venv`, else the suite's.

    Raises InputError where the one that was asked for is not there.
    """
    if options.pipeline_python:
        found = shutil.which(str(Path(options.pipeline_python).expanduser()))
        if found is None:
            raise InputError(f"--steph-pipeline-python {options.pipeline_python}: no such interpreter")
        return os.path.abspath(found)  # noqa: PTH100  not resolved: a virtual environment's interpreter is a link
    own = root / ".venv" / "bin" / "python"
    return str(own) if own.is_file() else sys.executable


def _devices(profile: Profile) -> tuple[tuple[Device, ...], str | None]:
    """The GPUs that the profile's processes would use, or one line that says why there is none to be used.

    Raises InputError where there are some, but not one for each process.
    """
    if profile.machine.device == "cpu":
        return (), None
    try:
        found = visible.visible_devices(os.environ)
    except DeviceError as error:
        return (), str(error)
    shown = f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')!r}"
    if not found:
        return (), f"no GPU is visible ({shown})"
    asked = f"profile {profile.path}: num_processes = {profile.num_processes} needs a GPU for each process"
    if len(found) < profile.num_processes:
        raise InputError(f"{asked}; visible: {len(found)} ({shown}); lower it")
    if profile.num_processes > 1 and any(device.is_mig for device in found[: profile.num_processes]):
        raise InputError(f"{asked}; CUDA shows a program one MIG slice only; set it to 1")
    return found[: profile.num_processes], None


def _require_possible_cap(cap_bytes: int | None, devices: Sequence[Device]) -> None:
    """Raise InputError where no child could honour the cap: more than the card has, or nothing for its allocator."""
    if cap_bytes is None or not devices:
        return
    sizes = {device.total_bytes for device in devices}
    if len(sizes) > 1:
        raise InputError("--steph-vram-cap: the cards differ in size, and one share of them can't stand for one size")
    (total_bytes,) = sizes
    if cap_bytes > total_bytes:
        asked, there = (gib(size) for size in (cap_bytes, total_bytes))
        raise InputError(f"--steph-vram-cap: {asked} is more than this card's {there}; give less, or leave it out")
    try:
        memory_fraction_for_cap(cap_bytes, total_bytes)
    except ValueError as error:
        raise InputError(f"--steph-vram-cap: {error}; give more") from error


def _require_inputs(root: Path, description: Description, stages: Sequence[AnyStage]) -> None:
    paths = description.paths
    if {StageId.H2, ExtendedId.COT_TRAINING, ExtendedId.ONE_STEP, ExtendedId.HEART} & {*stages}:
        inputs.require_script(root, paths.train_script, "train_script")
    if StageId.H2 in stages and (description.build is None or (root / paths.train_file).is_file()):
        inputs.read_train_file(root, paths.train_file)
    if {StageId.H3, ExtendedId.COT, ExtendedId.RAG, ExtendedId.BASE, ExtendedId.HEART} & {*stages}:
        inputs.require_script(root, paths.evaluate_script, "evaluate_script")


def _context(
    options: Options, profile: Profile, description: Description, devices: Sequence[Device], device_error: str | None
) -> Context:
    root, reasons = options.pipeline_root, []
    if profile.machine.device == "cpu":
        reasons.append("CPUでの実行")
    if profile.uses_twin(options):
        reasons.append("乱数重みのモデル(twin)")
    if options.vram_cap_bytes is not None:
        reasons.append(f"VRAM上限 {gib(options.vram_cap_bytes)} を模擬")
    return Context(
        kind=RecordKind.REHEARSAL if reasons else RecordKind.ACCEPTANCE,
        profile=profile.name,
        profile_sha256=profile.sha256,
        pipeline_root=str(root),
        pipeline_python=pipeline_python(options, root),
        pipeline_git=git_state(root),
        suite_git=git_state(Path(__file__).resolve().parent),
        trainer=description.trainer or "undescribed",
        environment=environment(devices, device_error),
        vram_cap_bytes=options.vram_cap_bytes,
        twin=profile.uses_twin(options),
        rehearsal_reasons=tuple(reasons),
    )
