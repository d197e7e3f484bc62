"""What a run must know before it starts (profile, description, devices, inputs), and what its stages are given.

Whatever is wrong with these is said here, in one line each, before anything is written or started.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from steph.base.files import UnreadableError, read_json_object
from steph.base.messages import Message, say, words_of
from steph.base.terms import AnyStage, ExtendedId, RecordKind, StageId, TrainerName
from steph.base.units import clock, gib
from steph.contract.commands import Place, applied, own_models, passed_names
from steph.contract.description import FILE_NAME, Description, DescriptionError, Evaluate, Train, load_description
from steph.contract.options import Options
from steph.contract.placeholders import KNOWN_IN_TRAIN, WHEN, filled, unknown_placeholder
from steph.contract.questions import Question, questions_of
from steph.contract.settings import Profile
from steph.memory.shapes import KNOWN, TINY, config_file, config_of, known_shape
from steph.record.settings import MAX_STEPS, Context, DataFile, Device, steps_per_epoch
from steph.run import gpu as driver
from steph.run import inputs
from steph.run.gpu import DeviceError, memory_fraction_for_cap
from steph.run.inputs import InputError, environment, git_state
from steph.run.journal import Journal
from steph.run.runner import Progress

CACHE_ENV = "STEPH_CACHE"


@dataclass(frozen=True)
class Setup:
    """One run's fixed facts; nothing in it changes while stages run."""

    options: Options
    profile: Profile
    description: Description
    python: str
    device: Device | None
    dataset: DataFile | None
    context: Context

    def devices(self, num_processes: int) -> tuple[Device, ...]:
        """The GPUs of so many processes, one each; empty on the CPU."""
        every = (self.device, *self.context.environment.further_devices) if self.device else ()
        return every[:num_processes]

    def questions(self) -> tuple[Question, ...] | None:
        """The data set's questions as they are now; None where there is none, or none that can be read."""
        try:
            return questions_of(self.root / self.dataset.path) if self.dataset else None
        except UnreadableError:
            return None

    @property
    def root(self) -> Path:
        """The pipeline root, absolute."""
        return self.options.pipeline_root

    @property
    def is_rehearsal(self) -> bool:
        """Whether checks on the answers' quality only inform."""
        return self.context.kind is RecordKind.REHEARSAL


def prepare(options: Options, profile: Profile, stages: Sequence[AnyStage]) -> Setup:
    """Check and collect all facts of a run; raises ProfileError or InputError with one line each."""
    found = read_inputs(options, profile, stages)
    description, profile = found.description, found.profile
    devices, device_error = _devices(profile)
    cap_bytes, sizes = options.vram_cap_bytes, {device.total_bytes for device in devices}
    if cap_bytes is not None and sizes:  # a child must be able to honour it
        total_bytes = sizes.pop()
        if sizes:
            raise InputError(say("input.cap_unequal"))
        if cap_bytes > total_bytes:
            raise InputError(say("input.cap_too_large", cap=gib(cap_bytes), card=gib(total_bytes)))
        try:
            memory_fraction_for_cap(cap_bytes, total_bytes)
        except ValueError as error:
            raise InputError(say("input.cap_too_small", error=error)) from error
    root, reasons = options.pipeline_root, list[Message]()
    if profile.machine.device == "cpu":
        reasons.append(say("rehearsal.cpu"))
    if profile.uses_twin(options):
        reasons.append(say("rehearsal.twin"))
    if options.vram_cap_bytes is not None:
        reasons.append(say("rehearsal.cap", cap=gib(options.vram_cap_bytes)))
    of_training = description.model_dump_json(exclude={"evaluate", "index"})
    context = Context(
        kind=RecordKind.REHEARSAL if reasons else RecordKind.ACCEPTANCE,
        profile=profile.name,
        profile_sha256=profile.sha256,
        pipeline_root=str(root),
        pipeline_python=pipeline_python(options, root),
        pipeline_git=git_state(root),
        suite_git=git_state(Path(__file__).resolve().parent),
        trainer=description.trainer or TrainerName.UNDESCRIBED,
        described_sha256=hashlib.sha256(of_training.encode()).hexdigest(),
        environment=environment(devices, device_error),
        vram_cap_bytes=options.vram_cap_bytes,
        twin=profile.uses_twin(options),
        rehearsal_reasons=tuple(reasons),
        production=profile.production,
    )
    device = context.environment.device
    return Setup(options, profile, description, context.pipeline_python, device, found.dataset, context)


@dataclass(frozen=True)
class Inputs:
    """A root's description, the profile as its programs can be asked for it, and its questions where it has some."""

    description: Description
    profile: Profile
    dataset: DataFile | None


def read_inputs(options: Options, profile: Profile, stages: Sequence[AnyStage]) -> Inputs:
    """What a root says of itself, every input file checked; raises ProfileError or InputError."""
    root = options.pipeline_root
    if not root.is_dir():
        raise InputError(say("input.no_root", root=root))
    description = load_description(root)
    try:
        profile = _profile_for(root, description, profile, options)
    except DescriptionError as error:
        raise DescriptionError(say("setting.of", place=root / FILE_NAME, reason=error)) from error
    if StageId.H1 in stages and profile.uses_twin(options):
        twin_source(options.model or profile.model.candidates[0], on_gpu=profile.machine.device == "gpu")
    train, evaluate, file = description.train, description.evaluate, description.train_file
    if {StageId.H2, ExtendedId.COT_TRAINING, ExtendedId.ONE_STEP, ExtendedId.HEART} & {*stages}:
        _require_section(root, train, description.paths.train_script, options)
    is_made = description.build is not None or bool(train.before)
    if StageId.H2 in stages and file is not None and (not is_made or (root / file).is_file()):
        inputs.read_train_file(root, file, row_format=train.rows.format)
    asks = {StageId.H3, ExtendedId.COT, ExtendedId.RAG, ExtendedId.BASE, ExtendedId.HEART} & {*stages}
    if asks and evaluate.none is None:
        _require_section(root, evaluate, description.paths.evaluate_script, options)
    inputs.require_outputs_apart(root, description, options.reports_dir)
    dataset = inputs.read_dataset(root, description)
    if dataset is not None and dataset.rows < profile.evaluate.samples:
        asked = {"samples": profile.evaluate.samples, "profile": profile.path}
        raise InputError(say("input.too_few_questions", path=root / dataset.path, questions=dataset.rows, **asked))
    return Inputs(description, profile, dataset)


def config_template(root: Path, section: Train | Evaluate) -> str | None:
    """The text that a section's file of settings is made of; None without one of its own. Raises InputError."""
    if section.config is None:
        return None
    path = root / section.config.template
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(say("input.config_refused", path=path, file=FILE_NAME, error=error)) from error
    return None if section.config.file is None else text


def place_of(
    root: Path,
    python: str,
    section: Train | Evaluate,
    dataset: DataFile | None,
    folder: Path | None,
    *,
    on_gpu: bool,
    train_file: str | None,
    train_dir: str | None = None,
) -> Place:
    """Where a section's command runs and what it is given; a file of settings goes into `folder`."""
    return Place(
        root=root,
        python=python,
        on_gpu=on_gpu,
        train_file=train_file,
        train_dir=train_dir,
        dataset=dataset.path if dataset else None,
        config=section.config.place(folder) if section.config and folder else None,
        template=config_template(root, section),
    )


def _profile_for(root: Path, description: Description, profile: Profile, options: Options) -> Profile:
    """The profile as these programs can be asked for it; the steps of a training that nothing shortens are its own."""
    train = description.train
    template = config_template(root, train)
    known = {*KNOWN_IN_TRAIN, *(f"{WHEN}{name}" for name in type(train.when).model_fields)}
    if template and (trouble := unknown_placeholder((template,), known)):
        at = say("setting.of", place=train.config.template if train.config else "", reason=trouble)
        raise DescriptionError(say("setting.of", place="train.config.template", reason=at))
    asked, can_pass = applied(profile, description, template), passed_names(train, template)
    if "model" not in can_pass:  # the one that the program has inside: no other can be asked for, and no twin
        if len(description.model.candidates) != 1:
            raise DescriptionError(say("description.no_model"))
        if options.model or options.twin:
            raise DescriptionError(say("description.own_model"))
        asked = asked.changed(model=own_models(asked.model, description).changed(twin=False))
    places = tuple(str((root / name).resolve()) if (root / name).is_dir() else name for name in asked.model.candidates)
    asked = asked.changed(model=asked.model.changed(candidates=places))
    if asked.num_processes > 1 and not {"launch", "num_processes"} & can_pass:
        raise DescriptionError(say("description.no_launch", count=asked.num_processes))
    path = root / (description.train_file or "")
    is_shortened = {"max_steps", "train_file", "train_dir"} & can_pass and "max_steps" not in train.fixed.given
    if is_shortened or description.train_file is None or not path.is_file():
        return asked
    settings, rows = asked.train, inputs.count_rows(path)
    an_epoch = steps_per_epoch(rows, settings)
    if "max_steps" in train.fixed.given:  # as in the Trainer, fixed steps end it whatever the epochs
        return asked.changed(train=settings.changed(num_epochs=max(1, -(-settings.max_steps // an_epoch))))
    steps = an_epoch * settings.num_epochs
    if steps > MAX_STEPS:
        raise DescriptionError(
            say("description.too_long", rows=rows, epochs=settings.num_epochs, steps=steps, most=MAX_STEPS)
        )
    return asked.changed(train=settings.changed(max_steps=max(steps, 1)))


@dataclass(frozen=True)
class TwinSource:
    """Of what a twin is made: a published model's configuration, its own tokenizer's folder where that is there."""

    name: str
    config: Mapping[str, Any]
    tokenizer: Path | None
    shrink: bool  # the architecture in small sizes

    @property
    def title(self) -> str:
        """A folder's name for it."""
        path = PurePath(self.name.rstrip("/"))
        return path.parent.name if path.name == "config.json" else path.name


def twin_source(name: str, *, on_gpu: bool) -> TwinSource:
    """What a model's twin is made of: its config.json, or its shape where the suite has it; raises InputError."""
    try:
        file = config_file(name)
        config = read_json_object(file, finite=False) if file else None
    except (UnreadableError, OSError, RuntimeError) as error:
        raise InputError(say("input.twin_config", model=name, error=error)) from error
    if config is not None and file is not None:
        if not isinstance(config.get("model_type"), str):
            raise InputError(say("input.twin_no_type", file=file))
        own = file.parent if (file.parent / "tokenizer.json").is_file() else None
        return TwinSource(name, config, own, shrink=not on_gpu)
    shape = known_shape(name)
    if shape is None:
        raise InputError(say("input.twin_unknown", model=repr(name), known=sorted(KNOWN)))
    return TwinSource(name, config_of(shape, name), None, shrink=not on_gpu and shape is not TINY)


def cache_dir() -> Path:
    """Where twins are kept: `STEPH_CACHE`, else the user's cache folder; raises InputError where there is none."""
    if CACHE_ENV in os.environ:
        return Path(os.environ[CACHE_ENV])
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "steph"
    except RuntimeError as error:
        raise InputError(say("input.no_twin_place", error=error, variable=CACHE_ENV)) from error


def pipeline_python(options: Options, root: Path) -> str:
    """The interpreter of the pipeline: asked for, else the root's `.venv`, else the suite's; raises InputError."""
    if options.pipeline_python:
        found = shutil.which(str(Path(options.pipeline_python).expanduser()))
        if found is None:
            raise InputError(say("input.no_interpreter", python=options.pipeline_python))
        return os.path.abspath(found)  # noqa: PTH100  not resolved: a virtual environment's interpreter is a link
    own = root / ".venv" / "bin" / "python"
    return str(own) if own.is_file() else sys.executable


def _devices(profile: Profile) -> tuple[tuple[Device, ...], Message | None]:
    """The profile's GPUs, or why none can be used; InputError where there are some, but not one for each process."""
    if profile.machine.device == "cpu":
        return (), None
    try:
        found = driver.visible_devices(os.environ)
    except DeviceError as error:
        return (), words_of(error)
    shown = f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')!r}"
    if not found:
        return (), say("input.no_gpu_visible", shown=shown)
    asked = {"profile": profile.path, "processes": profile.num_processes}
    if len(found) < profile.num_processes:
        raise InputError(say("input.too_few_gpus", **asked, found=len(found), shown=shown))
    if profile.num_processes > 1 and any(device.is_mig for device in found[: profile.num_processes]):
        raise InputError(say("input.one_slice", **asked))
    return found[: profile.num_processes], None


def _require_section(root: Path, section: Train | Evaluate, script: str, options: Options) -> None:
    """Raise InputError where a section's script or its programs are not there."""
    name = "train" if isinstance(section, Train) else "evaluate"
    if f"{name}_script" in passed_names(section):
        inputs.require_script(root, script, f"{name}_script")
        return
    python = pipeline_python(options, root)
    values = {"python": python, "bin": str(Path(python).parent), "root": str(root), "launch": python}
    for command in (*section.before, section.command or (), *section.after):
        word = filled(command[0], values)  # a path, or a name on PATH
        if not ((root / section.cwd / word).is_file() if "/" in word else shutil.which(word)):
            raise InputError(say("input.no_program", section=name, word=word))


HEARTBEAT_SECONDS = 30.0
LIVE_SECONDS = 0.5


@dataclass
class Console:
    """Writes lines through `write`; `is_terminal` chooses between a line that rewrites itself and heartbeats."""

    write: Callable[[str], None]
    is_terminal: bool
    clock: Callable[[], float] = time.monotonic
    _last_shown: float = field(default=-HEARTBEAT_SECONDS, init=False)
    _live_width: int = field(default=0, init=False)
    _said_once: set[str] = field(default_factory=set, init=False)

    def line(self, text: str) -> None:
        """Write one whole line, over the live line where there is one."""
        self.write(f"\r{text.ljust(self._live_width)}\n" if self._live_width else f"{text}\n")
        self._live_width = 0

    def line_once(self, text: str) -> None:
        """Write a line that has not been written so before."""
        if text not in self._said_once:
            self._said_once.add(text)
            self.line(text)

    def progress(self, title: str, shown: Progress) -> None:
        """Show how far a child has come, no oftener than a person can read."""
        if shown.elapsed_seconds >= self._wait_seconds():
            self._show(f"{title}  {progress_text(shown)}")

    def transfer(self, title: str, done_bytes: int, due_bytes: int) -> None:
        """Show how far a download has come."""
        self._show(f"{title}  {gib(done_bytes)} of {gib(due_bytes)}")

    def _wait_seconds(self) -> float:
        return LIVE_SECONDS if self.is_terminal else HEARTBEAT_SECONDS

    def _show(self, text: str) -> None:
        if self.clock() - self._last_shown < self._wait_seconds():
            return
        self._last_shown = self.clock()
        if not self.is_terminal:
            self.line(text)
            return
        self.write(f"\r{text.ljust(self._live_width)}")
        self._live_width = len(text)


def progress_text(shown: Progress) -> str:
    """Elapsed time, step and VRAM, each only where it is known."""
    parts = [clock(int(shown.elapsed_seconds))]
    if shown.step is not None and shown.total_steps is not None:
        parts.append(f"{shown.label or 'step'} {shown.step}/{shown.total_steps}")
    if shown.used_bytes is not None and shown.peak_bytes is not None:
        parts.append(f"VRAM {gib(shown.used_bytes)} (peak {gib(shown.peak_bytes)})")
    return "  ".join(parts)


MIN_ATTEMPT_SECONDS = 5.0  # with less, none is begun


@dataclass(frozen=True)
class StageRun:
    """One stage being run; `ends_at` is the moment when its time is up, in seconds of the monotonic clock."""

    setup: Setup
    journal: Journal
    console: Console
    ends_at: float

    def left_seconds(self, limit_seconds: float = math.inf) -> float:
        """How long a child of it may take: what is left, though a second at least, and no more than `limit_seconds`."""
        return min(max(1.0, self.ends_at - time.monotonic()), limit_seconds)

    @property
    def is_out_of_time(self) -> bool:
        """Whether less is left than an attempt takes."""
        return self.left_seconds() < MIN_ATTEMPT_SECONDS
