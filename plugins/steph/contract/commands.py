"""Makes a description and settings into commands, an attempt's or the production run's. Pure.

Also says what of a profile these commands can pass. A setting is *passed* where the description's words hold its
placeholder; *fixed* where the program has it inside and the description says its value; else *unsaid*: nobody asks for
it, and nothing is held against it.

The production run's commands are for another machine: the interpreter is `python` there, programs beside it go by their
names alone, paths are from the pipeline's folder, and what a training writes is put beside the folders of this record.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from steph.base.messages import say
from steph.base.terms import StageId
from steph.base.text import redact_variables
from steph.contract.description import Description, DescriptionError, Evaluate, Train, words_by_key
from steph.contract.placeholders import WHEN, filled, filled_words, names_in, spelled
from steph.contract.settings import Models, Profile, Rung, card_by_name
from steph.record.settings import (
    MAX_PARAMETERS,
    MAX_SAMPLES,
    EvalSettings,
    Launcher,
    ProductionTarget,
    TrainSettings,
    steps_per_epoch,
)
from steph.record.values import EvalOutcome, ProductionCall, Record

MUST_BE_SAID = (
    "batch_size", "gradient_accumulation_steps", "learning_rate", "lora_r", "lora_alpha", "max_seq_length",
    "num_epochs",
)  # fmt: skip
# what a person's own `accelerate config` would decide otherwise is spelled out
ACCELERATE_FLAGS = ("--num_machines", "1", "--gpu_ids", "all", "--mixed_precision", "no", "--dynamo_backend", "no")
# settings that conditions say
_SAID_BY = {
    "use_4bit": ("use_4bit",), "mixed_precision": ("bf16", "fp16", "fp32"), "use_rag": ("use_rag", "no_rag"),
    "use_cot": ("use_cot",),
}  # fmt: skip
_PATHS = (
    "config", "train_file", "train_dir", "dataset", "output_dir", "output", "adapter", "train_script",
    "evaluate_script",
)  # fmt: skip


def passed_names(section: Train | Evaluate, template: str | None = None) -> frozenset[str]:
    """The placeholders that a section's words hold, its conditions' included; `template`: the text of its config."""
    when = {name for name in type(section.when).model_fields if getattr(section.when, name)}
    names = {*names_in(words_of(section, template)), *(when & {"use_4bit", "target_modules", "max_steps"})}
    names |= {setting for setting, conditions in _SAID_BY.items() if when & {*conditions}}
    if when & {"adapter"}:
        names.add("adapter")
    return frozenset(names)


def words_of(section: Train | Evaluate, template: str | None = None) -> tuple[str, ...]:
    """All words of a section, its conditions' included; `template`: the text of its config."""
    return (*(word for words in words_by_key(section).values() for word in words), template or "")


def spellings(section: Train | Evaluate, template: str | None = None) -> dict[str, str]:
    """How a section says each setting: its option, variable or key; empty where the program has the value inside."""
    found: dict[str, str] = {}
    for words in words_by_key(section).values():
        for before, word in pairwise(("", *words)):
            for name in names_in((word,)):
                option = before if before.startswith("-") else ""
                head = option if word == f"{{{name}}}" else word.partition(f"{{{name}}}")[0]
                found.setdefault(name, _key_at_end(head) or name)
    for line in (template or "").splitlines():
        found |= {name: _key_at_end(line.partition(f"{{{name}}}")[0]) or name for name in names_in((line,))}
    for variable, value in section.env.items():
        found |= dict.fromkeys(names_in((value,)), variable)
    for name, conditions in _SAID_BY.items():
        switches = (_switches(getattr(section.when, condition, ())) for condition in conditions)
        if said := " / ".join(filter(None, switches)):
            found[name] = said
    settings = {"model", *TrainSettings.model_fields, *EvalSettings.model_fields}
    return {name: said for name, said in found.items() if name in settings} | dict.fromkeys(section.fixed.given, "")


def _key_at_end(text: str) -> str:
    """The key or option that a text ends with, before the value of it."""
    found = re.search(r"([\w.-]*\w)[\"']?\s*[:=]?\s*[\"']?$", text)
    return found[1] if found else ""


def _switches(words: Sequence[str]) -> str:
    """A condition's words without the options that pass another setting."""
    values = {i for i, word in enumerate(words) if any(names_in((word,)))}
    return " ".join(word for i, word in enumerate(words) if not values & {i, i + 1})


def unsaid_settings(description: Description, template: str | None = None) -> frozenset[str]:
    """The training settings that are neither passed nor fixed."""
    said = {*passed_names(description.train, template), *description.train.fixed.given}
    return frozenset(TrainSettings.model_fields.keys() - said - {"launcher", "num_processes"})


def applied(profile: Profile, description: Description, template: str | None = None) -> Profile:
    """The profile as this pipeline can be asked for it; raises DescriptionError.

    Fixed values take the place of the profile's, rungs lose what can't be turned, and the description's own models are
    the candidates. What is neither passed nor fixed is not asked for: 4-bit, half precision and LoRA's targets.
    """
    can_pass, fixed = passed_names(description.train, template), description.train.fixed.given
    if both := sorted(can_pass & fixed.keys()):
        raise DescriptionError(say("description.fixed_and_passed", name=both[0]))
    lacking = [name for name in MUST_BE_SAID if name not in can_pass and name not in fixed]
    if "num_epochs" in lacking and "max_steps" in {*can_pass, *fixed}:
        lacking.remove("num_epochs")
    if lacking:
        inside = ", ".join(f"{name} = …" for name in lacking)
        raise DescriptionError(say("description.unsaid", names=[f"{{{name}}}" for name in lacking], inside=inside))

    unsaid = unsaid_settings(description, template)
    nothing: dict[str, object] = {"use_4bit": False, "mixed_precision": None, "target_modules": ()}
    turns = (rung.model_dump(exclude_none=True, include=set(can_pass)) for rung in profile.ladder)
    return profile.changed(
        train=profile.train.changed(**{name: nothing[name] for name in nothing.keys() & unsaid}, **fixed),
        evaluate=_evaluation(profile.evaluate, description),
        ladder=tuple(Rung(**changes) for changes in turns if changes),
        # a tiny one stands for whatever a project is made for
        model=profile.model if profile.model.twin else own_models(profile.model, description),
    )


def own_models(models: Models, description: Description) -> Models:
    """The candidates that fit this project: its own, whatever their size.

    Rows that are texts hold one family's chat template: where no candidates are named, there is no substitute.
    """
    own = description.model.candidates
    if own:
        wide = {"min_parameters": 0, "max_parameters": MAX_PARAMETERS}
        return models.changed(candidates=own, preferred=min(models.preferred, len(own)), **wide)
    if description.train.rows.format == "text":
        return models.changed(candidates=models.candidates[:1], preferred=1)
    return models


def _evaluation(asked: EvalSettings, description: Description) -> EvalSettings:
    """The evaluation's settings; 4-bit is asked for where its words can say so."""
    evaluate = description.evaluate
    if evaluate.none is not None:
        return asked
    can_pass = passed_names(evaluate)
    fixed = evaluate.fixed.given
    if "samples" not in can_pass and "samples" not in fixed:
        raise DescriptionError(say("description.no_samples", most=MAX_SAMPLES))
    in_4bit = asked.load_in_4bit and bool({"use_4bit", "load_in_4bit"} & can_pass)
    return asked.changed(**{"load_in_4bit": in_4bit, **fixed})


def evaluated_in_4bit(description: Description, asked: EvalSettings, *, trained_in_4bit: bool) -> bool:
    """Whether the evaluation loads 4-bit weights: as the training did, or because its program has that inside."""
    return asked.load_in_4bit and (trained_in_4bit or "load_in_4bit" in description.evaluate.fixed.given)


@dataclass(frozen=True)
class Call:
    """The commands of one attempt: `argv`, with commands before and after it, all in `cwd` from the root with `env`."""

    argv: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    after: tuple[tuple[str, ...], ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "."
    config: str | None = None  # the text of the file of settings that it is given
    train_file: Path | None = None
    writes: str | None = None  # the output that `argv` writes, from the root

    @property
    def commands(self) -> tuple[tuple[str, ...], ...]:
        """All of them, in order."""
        return (*self.before, self.argv, *self.after)


@dataclass(frozen=True)
class Place:
    """Where a pipeline's programs run, and the files that an attempt is given: paths from the root, or absolute."""

    root: Path
    python: str
    on_gpu: bool
    train_file: str | None = None
    train_dir: str | None = None  # holds the training file alone
    dataset: str | None = None
    config: str | None = None  # the file of settings
    template: str | None = None  # the text that it is made of

    @property
    def rows(self) -> Path | None:
        """The training file: in `train_dir` where there is one; data sets go by its name there."""
        if self.train_file is None:
            return None
        folder, name = self.train_dir, f"train{Path(self.train_file).suffix}"
        return Path(folder) / name if folder else self.root / self.train_file


def launched(python: str, launcher: Launcher, num_processes: int) -> tuple[str, ...]:
    """The words before a script: the interpreter alone, or its own torchrun or accelerate with a free port."""
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
    samples: str | None = None,
) -> Call:
    """The evaluation; without `adapter` the base model alone.

    `output`: another place than the description's. `samples`: other words for how many questions than the settings'.
    """
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
        "samples": samples or settings.samples,
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
        given |= {name: str(place.root / path) for name in _PATHS if isinstance(path := given.get(name), str)}
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


# stand for folders of the other machine until the command is made, and are taken away again
_BIN, _ROOT = "/programs-of-the-other-machine", "/pipeline-of-the-other-machine"
SPEC_QUESTIONS, ALL_QUESTIONS = 140, "<number of all questions>"
LOGGING_STEPS = 10
NO_STEP_LIMIT = -1  # transformers' TrainingArguments.max_steps where the epochs count


@dataclass(frozen=True)
class Files:
    """The files that the commands are given: paths from the root, None where there is none."""

    root: Path
    train_file: str | None = None
    is_alone: bool = False  # whether nothing but the training file is in its folder
    dataset: str | None = None
    template: str | None = None  # the text of the section's file of settings
    rows: int | None = None  # of the training file


def target_settings(here: TrainSettings, target: ProductionTarget, *, has_4bit: bool = True) -> TrainSettings:
    """The production settings: the profile's where `[production]` has them, else what was proven here.

    In 4 bits where the program can be told so (`has_4bit`) or did so here; in fp16 where the rented card has no bf16,
    which torch would emulate many times slower.
    """
    has_bf16 = True
    with contextlib.suppress(ValueError):  # a card that no table knows is taken to have it
        has_bf16 = card_by_name(target.card).computes_bf16
    if not has_bf16:
        is_bf16 = here.bnb_4bit_compute_dtype == "bfloat16"
        here = here.changed(
            bnb_4bit_compute_dtype="float16" if is_bf16 else here.bnb_4bit_compute_dtype,
            mixed_precision="fp16" if here.mixed_precision == "bf16" else here.mixed_precision,
        )
    return here.changed(
        num_epochs=target.num_epochs,
        batch_size=target.batch_size,
        max_seq_length=target.max_seq_length,
        gradient_accumulation_steps=target.gradient_accumulation_steps,
        use_4bit=here.use_4bit or has_4bit,
        logging_steps=max(here.logging_steps, LOGGING_STEPS),
        max_steps=0,
        launcher="none",
        num_processes=1,
    )


def questions_of(record: Record, evaluation: EvalOutcome | None = None) -> int | None:
    """How many questions the production run is asked: the profile's, else those of the record's own data set.

    `evaluation`: H-3's where the record does not have it yet. A sample stands for the 140 of the published pipeline.
    None where nothing tells how many there are.
    """
    if record.context.production.questions is not None:
        return record.context.production.questions
    h3 = record.stages.get(StageId.H3)
    found = evaluation or (h3.last_attempt.evaluation if h3 and h3.last_attempt else None)
    if found is not None and found.questions is not None:
        return found.questions
    datasets = [file for file in record.data if file.role == "dataset"]
    return next((SPEC_QUESTIONS if file.is_sample else file.rows for file in datasets), None)


def production_training(description: Description, files: Files, model: str, settings: TrainSettings) -> ProductionCall:
    """The whole training of `model` at `settings`, no step limit; `to_edit` are settings inside the program."""
    train = description.train
    steps = steps_per_epoch(files.rows, settings) * settings.num_epochs if files.rows else NO_STEP_LIMIT
    call = train_call(
        description,
        _place(train, files),
        model,
        settings,
        cap_steps=False,
        steps=steps,
        output_dir=output_dir(description),
    )
    fixed = {name: value for name, value in train.fixed.given.items() if name != "max_steps"}
    to_edit = [f"{name} = {getattr(settings, name)}" for name, old in fixed.items() if getattr(settings, name) != old]
    return _as_value(train, call, files, tuple(to_edit))


def production_evaluation(
    description: Description, files: Files, model: str, settings: EvalSettings, questions: int | None
) -> ProductionCall:
    """The whole evaluation with the adapter that `production_training` leaves; of `questions`, None: not known."""
    evaluate = description.evaluate
    adapter = filled(description.train.artifacts.adapter, {"output_dir": output_dir(description)})
    call = evaluate_call(
        description,
        _place(evaluate, files),
        model,
        settings.changed(launcher="none", num_processes=1),
        adapter=adapter,
        output=str(Path(description.output).with_stem(f"{Path(description.output).stem}-production")),
        samples=str(questions or ALL_QUESTIONS),
    )
    fixed = evaluate.fixed.samples
    to_edit = (f"samples = {questions or ALL_QUESTIONS}",) if fixed not in (None, questions) else ()
    return _as_value(evaluate, call, files, to_edit)


def output_dir(description: Description) -> str:
    """The folder that the production training writes: a new one, unless the program knows its own and is told none."""
    train = description.train
    is_told = "output_dir" in names_in(words_of(train)) or (train.config is not None and train.config.file is not None)
    return folder_beside(description.output_dir, "production") if is_told else description.output_dir


def _place(section: Train | Evaluate, files: Files) -> Place:
    folder = None
    if files.train_file is not None:
        folder = str(Path(files.train_file).parent) if files.is_alone else f"<a folder with only {files.train_file}>"
    return Place(
        root=Path(_ROOT),
        python=f"{_BIN}/python",
        on_gpu=True,
        train_file=files.train_file,
        train_dir=folder,
        dataset=files.dataset,
        config=_config_file(section),
        template=files.template,
    )


def _config_file(section: Train | Evaluate) -> str | None:
    """Where the file of settings is: one that is made lies beside the pipeline's own, which is given as it is."""
    config = section.config
    return None if config is None else config.template if config.file is None else f"production-{config.file}"


def _as_value(section: Train | Evaluate, call: Call, files: Files, to_edit: tuple[str, ...]) -> ProductionCall:
    cwd = os.path.relpath(call.cwd, _ROOT) if Path(call.cwd).is_absolute() else call.cwd
    up = os.path.relpath(".", cwd)

    def elsewhere(text: str) -> str:
        """Where a folder of programs is meant itself, as in a PATH, the person who pastes it puts theirs there."""
        text = text.replace(f"{_BIN}/", "").replace(_BIN, "<the folder of python>")
        for folder in (_ROOT, str(files.root)):
            text = text.replace(f"{folder}/", "" if up == "." else f"{up}/")
        return text.replace(_ROOT, up)

    return ProductionCall(
        commands=tuple(tuple(map(elsewhere, command)) for command in call.commands),
        env=redact_variables({name: elsewhere(value) for name, value in call.env.items()}),
        cwd=cwd,
        config_file=_config_file(section),
        config=None if call.config is None else elsewhere(call.config),
        to_edit=to_edit,
        said=spellings(section, files.template),
    )
