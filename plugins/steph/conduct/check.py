"""`steph check`: the commands that a description stands for, and what of the core checks can be measured.

Starts nothing and writes nothing. Commands are those of the first rung; where a run would put a file of its own, its
place is in angle brackets.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from steph.base.terms import StageId
from steph.conduct.preparation import Inputs, config_template, pipeline_python, read_inputs
from steph.contract.asked import passed, unsaid_settings
from steph.contract.commands import Call, Place, evaluate_call, train_call
from steph.contract.description import FILE_NAME, Description
from steph.contract.results_files import READERS
from steph.judge.catalog import CATALOG
from steph.judge.checks_answers import WITNESSED_ANSWERS
from steph.judge.checks_witness import WITNESSED_TRAINING
from steph.plan.ladder import settings_at
from steph.plan.options import Options
from steph.plan.settings import Profile
from steph.plan.steps import steps_due, steps_per_epoch
from steph.record.settings import TrainSettings
from steph.run import inputs
from steph.tell.commands import pasteable

RECORD = Path("<record>")
_BLIND = ("docker", "podman", "apptainer", "singularity", "ssh", "srun", "sbatch", "kubectl", "ollama", "vllm")
_SHEBANG_BYTES = 200


def check_lines(options: Options, profile: Profile) -> Iterator[str]:
    """What a run with these options would do, line by line; raises ProfileError or InputError as the run would."""
    found = read_inputs(options, profile, tuple(StageId))
    root, description = options.pipeline_root, found.description
    has_file = (root / FILE_NAME).is_file()
    yield f"{root / FILE_NAME}: {'read' if has_file else 'not there; the preset lawqa holds'}"
    yield f"profile {profile.name}: {found.profile.machine.title}"
    model = options.model or found.profile.model.candidates[0]
    yield f"model: {model}{' (a random-weight twin)' if found.profile.uses_twin(options) else ''}"
    yield from _rows(root, found)
    yield from _settings(root, found)
    python, on_gpu = pipeline_python(options, root), profile.machine.device == "gpu"
    yield ""
    training = _training(root, found, python, model, on_gpu=on_gpu)
    yield "H-2, first rung:"
    yield from _shown(training, root)
    yield ""
    if description.evaluate.none is not None:
        yield f"H-3: NOT_RUN, {description.evaluate.none}; the run exits with 1"
        evaluation = None
    else:
        evaluation = _evaluation(root, found, python, model, on_gpu=on_gpu)
        yield "H-3:"
        yield from _shown(evaluation, root)
    yield ""
    yield from _core_checks(training, evaluation, root, on_gpu=on_gpu)
    if evaluation is not None and not _names_results(description, evaluation):
        yield "  H-3: evaluate.results.file is missing: no result is read, and H-3 can't pass"


def _rows(root: Path, found: Inputs) -> Iterator[str]:
    file, rows = found.description.train_file, found.description.train.rows
    if file is None:
        yield 'rows: the program takes them from elsewhere (rows.format = "none"); none of them is compared'
    elif (root / file).is_file():
        yield f"rows: {file}, {inputs.count_rows(root / file)} rows of {rows.format}"
    else:
        yield f"rows: {file}, of {rows.format}, built when H-2 begins"
    if found.dataset is not None:
        yield f"questions: {found.dataset.path}, {found.dataset.rows}"


def _settings(root: Path, found: Inputs) -> Iterator[str]:
    description, profile = found.description, found.profile
    template = config_template(root, description.train)
    can_pass = passed(description.train, template)
    names = sorted(name for name in TrainSettings.model_fields if name in can_pass)
    yield f"settings that the command passes: {', '.join(names) or 'none'}"
    fixed = description.train.fixed.given
    if fixed:
        yield f"fixed in the program: {', '.join(f'{name} = {value}' for name, value in fixed.items())}"
    if unsaid := sorted(unsaid_settings(description, template)):
        yield f"neither passed nor fixed, so held against nothing: {', '.join(unsaid)}"
    rungs = [settings_at(profile.train, profile.ladder, rung) for rung in range(len(profile.ladder) + 1)]
    yield f"ladder: {' > '.join(settings.short() for settings in rungs)}"


def _training(root: Path, found: Inputs, python: str, model: str, *, on_gpu: bool) -> Call:
    description, settings = found.description, found.profile.train
    train, file = description.train, description.train_file
    rows = inputs.count_rows(root / file) if file and (root / file).is_file() else None
    given = RECORD / "given-1"
    place = Place(
        root=root,
        python=python,
        on_gpu=on_gpu,
        train_file=file,
        train_dir=str(given / "rows"),
        dataset=found.dataset.path if found.dataset else None,
        config=train.config.place(given) if train.config else None,
        template=config_template(root, train),
    )
    is_long = rows is None or steps_per_epoch(rows, settings) * settings.num_epochs > settings.max_steps
    steps = steps_due(rows, settings) if rows else None
    return train_call(description, place, model, settings, cap_steps=is_long, steps=steps)


def _evaluation(root: Path, found: Inputs, python: str, model: str, *, on_gpu: bool) -> Call:
    description, evaluate = found.description, found.description.evaluate
    place = Place(
        root=root,
        python=python,
        on_gpu=on_gpu,
        train_file=description.train_file,
        dataset=found.dataset.path if found.dataset else None,
        config=evaluate.config.place(RECORD / "given-2") if evaluate.config else None,
        template=config_template(root, evaluate),
    )
    settings = found.profile.evaluate
    settings = settings.changed(load_in_4bit=settings.load_in_4bit and found.profile.train.use_4bit)
    return evaluate_call(description, place, model, settings, adapter=description.output_dir)


def _shown(call: Call, root: Path) -> Iterator[str]:
    yield f"  cd {os.path.normpath(root / call.cwd)}"
    yield from (f"  export {name}={value}" for name, value in call.env.items())
    for command in call.commands:
        yield from (f"  {line}" for line in pasteable(command).splitlines())


def _core_checks(training: Call, evaluation: Call | None, root: Path, *, on_gpu: bool) -> Iterator[str]:
    """Each core check, and why it can't be measured where that is known before."""
    calls = {"H-2": training, "H-3": evaluation}
    yield "core checks, which no description switches off:"
    for kind in (kind for kind in CATALOG.values() if kind.core):
        for stage in kind.stages.split("・"):
            call = calls.get(stage)
            if call is None:
                said = "not measured: there is no evaluation"
            elif kind.id == "parameters_on_gpu" and not on_gpu:
                said = "not asked on a CPU"
            else:
                blind = _blind(call, root) if kind in (*WITNESSED_TRAINING, *WITNESSED_ANSWERS) else None
                said = f"can't be measured: {blind}" if blind else "can be measured"
            yield f"  {stage} {kind.id}: {said} ({kind.title})"


def _names_results(description: Description, call: Call) -> bool:
    """Whether it is said where the results are: by a key, or by the `{output}` that the evaluation is given."""
    evaluate = description.evaluate
    if evaluate.results.format not in READERS:  # found by what its script prints
        return True
    if evaluate.results.file or evaluate.output or "evaluation_output" in description.paths.model_fields_set:
        return True
    given = [*(word for command in call.commands for word in command), call.config or ""]
    return any(description.output in word for word in given)


def _blind(call: Call, root: Path) -> str | None:
    """Why nothing is seen in a call's processes, as far as its first words tell; None where Python runs it."""
    for command in call.commands:
        name = Path(command[0]).name
        if name in _BLIND:
            return f"nothing is seen inside {name}"
        if name.startswith("python") and ("-I" in command[1:4] or "-S" in command[1:4]):
            return "python -I and -S load no hooks"
    path = shutil.which(call.argv[0]) or str(root / call.argv[0])
    try:
        head = Path(path).read_bytes()[:_SHEBANG_BYTES]
    except OSError:
        return f"{call.argv[0]} can't be read"
    is_python = Path(path).name.startswith("python") or (head.startswith(b"#!") and b"python" in head)
    return None if is_python or head.startswith(b"#!") else f"{Path(path).name} is no Python program"
