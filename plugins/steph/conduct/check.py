"""`steph check`: prints the commands that a description stands for, and which core checks can be measured.

Starts nothing and writes nothing. Commands are those of the first rung; where a run would put a file of its own, its
place is in angle brackets.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from steph.base.messages import Message, phrase, say
from steph.base.terms import StageId
from steph.conduct.preparation import Inputs, config_template, pipeline_python, place_of, read_inputs
from steph.conduct.training import settings_at
from steph.contract.commands import Call, evaluate_call, evaluated_in_4bit, passed_names, train_call, unsaid_settings
from steph.contract.description import FILE_NAME, Description
from steph.contract.options import Options
from steph.contract.results_files import READERS
from steph.contract.settings import Profile
from steph.judge.checks_answers import WITNESSED_ANSWERS
from steph.judge.checks_witness import WITNESSED_TRAINING
from steph.judge.kinds import check_kinds
from steph.record.settings import TrainSettings, steps_due, steps_per_epoch
from steph.run import inputs
from steph.tell.attempts import pasteable

RECORD = Path("<record>")
_BLIND = ("docker", "podman", "apptainer", "singularity", "ssh", "srun", "sbatch", "kubectl", "ollama", "vllm")
_SHEBANG_BYTES = 200


def check_lines(options: Options, profile: Profile) -> Iterator[str]:
    """What a run with these options would do, line by line; raises ProfileError or InputError as the run would."""
    found = read_inputs(options, profile, tuple(StageId))
    root, description = options.pipeline_root, found.description
    yield phrase("described.read" if (root / FILE_NAME).is_file() else "described.preset_holds", path=root / FILE_NAME)
    yield phrase("described.profile", profile=profile.name, title=found.profile.machine.title)
    model = options.model or found.profile.model.candidates[0]
    yield phrase("described.twin" if found.profile.uses_twin(options) else "described.model", model=model)
    yield from _rows_and_settings(root, found)
    python, on_gpu = pipeline_python(options, root), profile.machine.device == "gpu"
    train, evaluate, rows = description.train, description.evaluate, description.train_file
    count = inputs.count_rows(root / rows) if rows and (root / rows).is_file() else None
    given, settings = RECORD / "given-1", found.profile.train
    training = train_call(
        description,
        place_of(
            root, python, train, found.dataset, given, on_gpu=on_gpu, train_file=rows, train_dir=str(given / "rows")
        ),
        model,
        settings,
        cap_steps=count is None or steps_per_epoch(count, settings) * settings.num_epochs > settings.max_steps,
        steps=steps_due(count, settings) if count else None,
    )
    yield ""
    yield phrase("described.h2")
    yield from _shown(training, root)
    yield ""
    evaluation = None
    if evaluate.none is not None:
        yield phrase("described.no_h3", reason=evaluate.none)
    else:
        asked = found.profile.evaluate
        evaluation = evaluate_call(
            description,
            place_of(root, python, evaluate, found.dataset, RECORD / "given-2", on_gpu=on_gpu, train_file=rows),
            model,
            asked.changed(load_in_4bit=evaluated_in_4bit(description, asked, trained_in_4bit=settings.use_4bit)),
            adapter=description.output_dir,
        )
        yield "H-3:"
        yield from _shown(evaluation, root)
    yield ""
    yield from _core_checks(training, evaluation, root, on_gpu=on_gpu)
    if evaluation is not None and not _names_results(description, evaluation):
        yield f"  {phrase('described.no_results')}"


def _rows_and_settings(root: Path, found: Inputs) -> Iterator[str]:
    description, profile = found.description, found.profile
    file, rows = description.train_file, description.train.rows
    if file is None:
        yield phrase("described.rows_elsewhere")
    elif (root / file).is_file():
        yield phrase("described.rows", file=file, rows=inputs.count_rows(root / file), format=rows.format)
    else:
        yield phrase("described.rows_to_build", file=file, format=rows.format)
    if found.dataset is not None:
        yield phrase("described.questions", path=found.dataset.path, questions=found.dataset.rows)
    template = config_template(root, description.train)
    can_pass = passed_names(description.train, template)
    names = sorted(name for name in TrainSettings.model_fields if name in can_pass)
    yield phrase("described.passed", names=names) if names else phrase("described.none_passed")
    fixed = description.train.fixed.given
    if fixed:
        yield phrase("described.fixed", settings=[f"{name} = {value}" for name, value in fixed.items()])
    if unsaid := sorted(unsaid_settings(description, template)):
        yield phrase("described.unsaid", names=unsaid)
    rungs = [settings_at(profile.train, profile.ladder, rung) for rung in range(len(profile.ladder) + 1)]
    yield phrase("described.ladder", rungs=" > ".join(settings.short() for settings in rungs))


def _shown(call: Call, root: Path) -> Iterator[str]:
    yield f"  cd {os.path.normpath(root / call.cwd)}"
    yield from (f"  export {name}={value}" for name, value in call.env.items())
    for command in call.commands:
        yield from (f"  {line}" for line in pasteable(command).splitlines())


def _core_checks(training: Call, evaluation: Call | None, root: Path, *, on_gpu: bool) -> Iterator[str]:
    """Each core check, and why it can't be measured where that is known before."""
    calls = {"H-2": training, "H-3": evaluation}
    yield phrase("described.core")
    for kind in (kind for kind in check_kinds().values() if kind.core):
        for stage in kind.stages.split("・"):
            call = calls.get(stage)
            if call is None:
                said = say("described.core.no_evaluation")
            elif kind.id == "parameters_on_gpu" and not on_gpu:
                said = say("described.core.not_on_cpu")
            else:
                blind = _blind(call, root) if kind in (*WITNESSED_TRAINING, *WITNESSED_ANSWERS) else None
                said = say("described.core.blind", why=blind) if blind else say("described.core.seen")
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


def _blind(call: Call, root: Path) -> Message | None:
    """Why nothing is seen in a call's processes, as far as its first words tell; None where Python runs it."""
    for command in call.commands:
        name = Path(command[0]).name
        if name in _BLIND:
            return say("described.core.inside", name=name)
        if name.startswith("python") and ("-I" in command[1:4] or "-S" in command[1:4]):
            return say("described.core.no_hooks")
    path = shutil.which(call.argv[0]) or str(root / call.argv[0])
    try:
        head = Path(path).read_bytes()[:_SHEBANG_BYTES]
    except OSError:
        return say("described.core.unreadable", name=call.argv[0])
    is_script = Path(path).name.startswith("python") or head.startswith(b"#!")
    return None if is_script else say("described.core.no_python", name=Path(path).name)
