"""The production run's settings, and its two commands, made of a description as the attempts' commands are. Pure.

They are for another machine: the interpreter is `python` there, programs beside it go by their names alone, paths are
from the pipeline's folder, and what a training writes is put beside the folders of this record.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from steph.contract.commands import Call, Place, evaluate_call, folder_beside, train_call
from steph.contract.description import Description, Evaluate, Train
from steph.contract.placeholders import filled
from steph.plan.cards import card_by_name
from steph.record.settings import EvalSettings, ProductionTarget, TrainSettings, steps_per_epoch
from steph.record.values import ProductionCall, Record

# stand for folders of the other machine until the command is made, and are taken away again
_BIN, _ROOT = "/programs-of-the-other-machine", "/pipeline-of-the-other-machine"
SPEC_QUESTIONS = 140
LOGGING_STEPS = 10
NO_STEP_LIMIT = -1  # transformers' TrainingArguments.max_steps where the epochs count


@dataclass(frozen=True)
class Files:
    """What the commands are given: paths from the root, None where there is none.

    `is_alone`: whether nothing but the training file is in its folder. `template`: the text of the section's file of
    settings. `rows`: of the training file.
    """

    root: Path
    train_file: str | None = None
    is_alone: bool = False
    dataset: str | None = None
    template: str | None = None
    rows: int | None = None


def target_settings(here: TrainSettings, target: ProductionTarget) -> TrainSettings:
    """Give the production settings: the profile's where `[production]` has them, else what was proven here.

    In fp16 where the rented card has no bf16, which torch would emulate many times slower.
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
        use_4bit=True,
        logging_steps=max(here.logging_steps, LOGGING_STEPS),
        max_steps=0,
        launcher="none",
        num_processes=1,
    )


def questions_of(record: Record) -> int:
    """How many questions the production run is asked: the profile's, else the record's own data set's, else 140."""
    if record.context.production.questions is not None:
        return record.context.production.questions
    real = [file.rows for file in record.data if file.role == "dataset" and not file.is_sample]
    return real[0] if real else SPEC_QUESTIONS


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
    return _as_value(train, call, files.root, tuple(to_edit))


def production_evaluation(
    description: Description, files: Files, model: str, settings: EvalSettings, questions: int
) -> ProductionCall:
    """The whole evaluation with the adapter that `production_training` leaves."""
    evaluate = description.evaluate
    adapter = filled(description.train.artifacts.adapter, {"output_dir": output_dir(description)})
    call = evaluate_call(
        description,
        _place(evaluate, files),
        model,
        settings.changed(samples=questions, launcher="none", num_processes=1),
        adapter=adapter,
        output=str(Path(description.output).with_stem(f"{Path(description.output).stem}-production")),
    )
    fixed = evaluate.fixed.samples
    return _as_value(evaluate, call, files.root, (f"samples = {questions}",) if fixed not in (None, questions) else ())


def output_dir(description: Description) -> str:
    """The folder that the production training writes."""
    return folder_beside(description.output_dir, "production")


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


def _as_value(section: Train | Evaluate, call: Call, root: Path, to_edit: tuple[str, ...]) -> ProductionCall:
    cwd = os.path.relpath(call.cwd, _ROOT) if Path(call.cwd).is_absolute() else call.cwd
    up = os.path.relpath(".", cwd)

    def elsewhere(text: str) -> str:
        """Where a folder of programs is meant itself, as in a PATH, the person who pastes it puts theirs there."""
        text = text.replace(f"{_BIN}/", "").replace(_BIN, "<the folder of python>")
        for folder in (_ROOT, str(root)):
            text = text.replace(f"{folder}/", "" if up == "." else f"{up}/")
        return text.replace(_ROOT, up)

    return ProductionCall(
        commands=tuple(tuple(map(elsewhere, command)) for command in call.commands),
        env={name: elsewhere(value) for name, value in call.env.items()},
        cwd=cwd,
        config_file=_config_file(section),
        config=None if call.config is None else elsewhere(call.config),
        to_edit=to_edit,
    )
