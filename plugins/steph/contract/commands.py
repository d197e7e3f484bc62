"""Descriptions and settings to commands, exactly as a person would type them. Pure: nothing is read or run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from steph.contract.description import Description, Evaluate, Train
from steph.contract.placeholders import WHEN, filled, filled_words, names_in, spelled
from steph.record.settings import EvalSettings, Launcher, TrainSettings

# what a person's own `accelerate config` would decide otherwise is spelled out
ACCELERATE_FLAGS = ("--num_machines", "1", "--gpu_ids", "all", "--mixed_precision", "no", "--dynamo_backend", "no")


@dataclass(frozen=True)
class Call:
    """What one attempt runs: `argv`, with commands before and after it, all in `cwd` from the root with `env`.

    `config` is the text of the file of settings that it is given, `train_file` the rows, `writes` the output that
    `argv` writes, from the root.
    """

    argv: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    after: tuple[tuple[str, ...], ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "."
    config: str | None = None
    train_file: Path | None = None
    writes: str | None = None

    @property
    def commands(self) -> tuple[tuple[str, ...], ...]:
        """All of them, in order."""
        return (*self.before, self.argv, *self.after)


@dataclass(frozen=True)
class Place:
    """Where a pipeline's programs run, and the files that an attempt is given.

    Paths are from the root, or absolute. `train_dir` holds the training file alone; `config` is where the file of
    settings is, `template` the text that it is made of.
    """

    root: Path
    python: str
    on_gpu: bool
    train_file: str | None = None
    train_dir: str | None = None
    dataset: str | None = None
    config: str | None = None
    template: str | None = None

    @property
    def rows(self) -> Path | None:
        """The training file: in `train_dir` where there is one; data sets go by its name there."""
        if self.train_file is None:
            return None
        folder, name = self.train_dir, f"train{Path(self.train_file).suffix}"
        return Path(folder) / name if folder else self.root / self.train_file


def launched(python: str, launcher: Launcher, num_processes: int) -> tuple[str, ...]:
    """What stands before a script: the interpreter alone, or its own torchrun or accelerate with a free port."""
    count = str(num_processes)
    match launcher:
        case "none":
            return (python,)
        case "torchrun":
            return (python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", count)
        case "accelerate":
            several = ("--multi_gpu", "--main_process_port", "0") if num_processes > 1 else ()
            return (python, "-m", "accelerate.commands.launch", *several, "--num_processes", count, *ACCELERATE_FLAGS)


def train_call(
    description: Description,
    place: Place,
    model: str,
    settings: TrainSettings,
    *,
    cap_steps: bool,
    steps: int | None = None,
    output_dir: str | None = None,
    output_only: bool = False,
) -> Call:
    """The training at these settings.

    `cap_steps` adds the words that keep it within `max_steps`; `steps` are those that `{max_steps}` stands for, its own
    where they are not known. `output_dir`: another folder than the description's. `output_only`: the loss on the
    answers alone.
    """
    paths = description.paths
    half = settings.mixed_precision
    conditions = {
        "use_4bit": settings.use_4bit,
        "no_4bit": not settings.use_4bit,
        "bf16": half == "bf16",
        "fp16": half == "fp16",
        "fp32": half is None,
        "target_modules": bool(settings.target_modules),
        "max_steps": cap_steps,
        "output_only": output_only,
    }
    values: dict[str, object] = {
        **settings.model_dump(),
        "max_steps": settings.max_steps if steps is None else steps,
        "model": model,
        "train_script": paths.train_script,
        "train_dir": place.train_dir,
        "output_dir": output_dir or description.output_dir,
    }
    return _call(description.train, place, settings, conditions, values, writes=str(values["output_dir"]))


def evaluate_call(
    description: Description,
    place: Place,
    model: str,
    settings: EvalSettings,
    *,
    adapter: str | None,
    output: str | None = None,
) -> Call:
    """The evaluation; without `adapter` the base model alone. `output`: another place than the description's."""
    conditions = {
        "adapter": adapter is not None,
        "use_4bit": settings.load_in_4bit,
        "use_rag": settings.use_rag,
        "no_rag": not settings.use_rag,
        "use_cot": settings.use_cot,
    }
    values: dict[str, object] = {
        **settings.model_dump(),
        "model": model,
        "evaluate_script": description.paths.evaluate_script,
        "adapter": adapter,
        "output": output or description.output,
    }
    return _call(description.evaluate, place, settings, conditions, values, writes=str(values["output"]))


def _call(
    section: Train | Evaluate,
    place: Place,
    settings: TrainSettings | EvalSettings,
    conditions: Mapping[str, bool],
    values: Mapping[str, object],
    writes: str,
) -> Call:
    given = {
        **values,
        "python": place.python,
        "bin": str(Path(place.python).parent),
        "root": str(place.root),
        "device": "cuda" if place.on_gpu else "cpu",
        "config": place.config,
        "train_file": place.train_file,
        "dataset": place.dataset,
    }
    if section.cwd != ".":
        given |= {name: _absolute(place.root, given.get(name)) for name in _PATHS}
    texts = {name: spelled(value) for name, value in given.items() if value is not None or name == "mixed_precision"}
    holds = {
        **conditions,
        "cpu": not place.on_gpu,
        "gpu": place.on_gpu,
        "launcher": settings.launcher != "none",
    }
    when = {name: tuple(getattr(section.when, name)) for name in type(section.when).model_fields}
    several = {f"{WHEN}{name}": words if holds[name] else () for name, words in when.items()}
    several["launch"] = launched(place.python, settings.launcher, settings.num_processes)
    written = (*(section.command or ()), *section.extra)
    named = {*names_in(written)}
    words = (*written, *(f"{{{name}}}" for name in several if name != "launch" and name not in named))
    return Call(
        argv=filled_words(words, texts, several),
        before=tuple(filled_words(command, texts, several) for command in section.before),
        after=tuple(filled_words(command, texts, several) for command in section.after),
        env={name: filled(value, texts) for name, value in section.env.items()},
        cwd=filled(section.cwd, texts),
        config=filled(place.template, texts) if place.template is not None else None,
        train_file=place.rows,
        writes=writes,
    )


_PATHS = (
    "config",
    "train_file",
    "train_dir",
    "dataset",
    "output_dir",
    "output",
    "adapter",
    "train_script",
    "evaluate_script",
)


def _absolute(root: Path, path: object) -> str | None:
    return str(root / path) if isinstance(path, str) else None


def folder_beside(output_dir: str, name: str) -> str:
    """The folder next to another one that a further training writes to."""
    return f"{output_dir.rstrip('/')}-{name}"


def needed_libraries(argv: Sequence[str]) -> tuple[str, ...]:
    """The libraries without which a command of the preset `lawqa` can't do what it asks: LoRA's and 4-bit's."""
    has_adapter = any(flag in argv for flag in ("--lora-r", "--hf-lora-path"))
    in_4bit = any(flag in argv for flag in ("--use-4bit", "--hf-load-in-4bit"))
    return (*(("peft",) if has_adapter else ()), *(("bitsandbytes",) if in_4bit else ()))


def build_command(python: str, template: Sequence[str], values: Mapping[str, str]) -> tuple[str, ...]:
    """The description's build command with its placeholders filled; an unknown placeholder stays as it is."""
    return (python, *filled_words(template, values, {}))
