"""Short commands of the pipeline beside its attempts: its builders, and what its scripts say of themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from steph.base.files import read_source
from steph.base.messages import say
from steph.conduct.attempts import child_environment
from steph.conduct.stage_run import StageRun
from steph.contract.asked import passed
from steph.contract.command_line import answers_help
from steph.contract.commands import build_command, folder_beside
from steph.contract.placeholders import filled
from steph.record.values import DataFile
from steph.run import inputs, output
from steph.run.aside import kept_safe, put_back, set_aside
from steph.run.inputs import InputError
from steph.run.runner import ChildSpec, run_child

HELPER_SECONDS = 180.0


def side_folder(run: StageRun, name: str) -> Path:
    """A new folder in the record for one side command."""
    record_folder = run.journal.folder
    taken = len(list(record_folder.glob(f"{name}-*")))
    folder = record_folder / f"{name}-{taken + 1}"
    folder.mkdir(parents=True)
    return folder


def run_side_command(run: StageRun, argv: tuple[str, ...], folder: Path) -> int | None:
    """Run a command from the pipeline root without the GPU; its exit status, None where it had none.

    Whatever the command does, the outputs of the stages are what they were: what it writes there goes to `folder`.
    """
    spec = ChildSpec(
        argv=argv,
        cwd=run.setup.root,
        folder=folder,
        env={**child_environment(run.setup, {}, on_gpu=False), "CUDA_VISIBLE_DEVICES": ""},
        limit_seconds=run.left_seconds(HELPER_SECONDS),
    )
    with kept_safe(_stage_outputs(run), folder):
        return run_child(spec).returncode


def _stage_outputs(run: StageRun) -> tuple[Path, ...]:
    root, description = run.setup.root, run.setup.description
    output_dir = description.output_dir
    return (root / output_dir, root / folder_beside(output_dir, "cot"), root / description.output)


def script_flags(run: StageRun) -> frozenset[str] | None:
    """What a training script of the preset `lawqa` takes beyond the spec's flags; None for every other program.

    The description says so, else its `--help`. A script whose text shows no command line is not asked: it would not
    print its flags, it would train.
    """
    if "train_script" not in passed(run.setup.description.train):
        return None
    known, script = run.setup.description.optional_flags, run.setup.description.paths.train_script
    if known is not None:
        return frozenset(known)
    if not answers_help(read_source(run.setup.root / script)):
        return frozenset()
    folder = side_folder(run, "help")
    run_side_command(run, (run.setup.python, script, "--help"), folder)
    return frozenset(re.findall(r"--[\w-]+", output.stdout_text(folder)))


def require_built(run: StageRun, argv: tuple[str, ...], folder: Path, what: str) -> None:
    """Run a builder; raises InputError with its last lines where it fails."""
    status = run_side_command(run, argv, folder)
    if status != 0:
        last = " / ".join(output.tail_lines(folder, 3)) or say("input.no_output", seconds=HELPER_SECONDS)
        raise InputError(say("input.not_built", what=what, command=" ".join(argv[1:]), status=status, last=last))


def training_rows(run: StageRun, relative: str, mode: Literal["direct", "cot"]) -> DataFile:
    """The training file, built first where it is missing or of other data and the description says how."""
    setup, description, root = run.setup, run.setup.description, run.setup.root
    samples, row_format = setup.profile.evaluate.samples, description.train.rows.format
    if description.train.before and not (root / relative).is_file():
        _run_before(run)
    if description.build and setup.dataset and inputs.needs_build(root, relative, setup.dataset, samples):
        values = {"dataset": setup.dataset.path, "train_file": relative, "mode": mode, "samples": str(samples)}
        argv = build_command(setup.python, description.build.command, values)
        run.console.line(str(say("console.building", file=relative, dataset=str(setup.dataset.path))))
        folder = side_folder(run, "build")
        before = set_aside(root / relative, folder / "before")
        try:
            require_built(run, argv, folder, str(root / relative))
            return inputs.read_train_file(root, relative, mode, row_format)
        except BaseException:  # half a file must not pass for a whole one in the next run
            set_aside(root / relative, folder / "failed")
            put_back(root / relative, before)
            raise
    return inputs.read_train_file(root, relative, mode, row_format)


def _run_before(run: StageRun) -> None:
    """Run what the description runs before a training, so that there are rows to count; raises InputError."""
    setup, train = run.setup, run.setup.description.train
    python = setup.python
    values = {"python": python, "bin": str(Path(python).parent), "root": str(setup.root), "launch": python}
    values |= {"train_file": setup.description.train_file or "", "dataset": setup.dataset.path if setup.dataset else ""}
    for command in train.before:
        argv = tuple(filled(word, values) for word in command)
        require_built(run, argv, side_folder(run, "build"), f"train.before of {setup.root}")


def build_index(run: StageRun) -> None:
    """Have the pipeline build its retrieval index anew, where its description says how; raises InputError."""
    setup, index = run.setup, run.setup.description.index
    if index is None or setup.dataset is None:
        return
    argv = build_command(setup.python, index.command, {"dataset": setup.dataset.path})
    run.console.line(str(say("console.building_index", dataset=str(setup.dataset.path))))
    require_built(run, argv, side_folder(run, "index"), f"retrieval index of {setup.root}")
