"""Short commands of the pipeline beside its attempts: its builders, and what its scripts say of themselves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

from steph.conduct.attempts import child_environment
from steph.conduct.console import Console
from steph.conduct.preparation import Setup
from steph.plan.commands import build_command
from steph.record import DataFile
from steph.run import inputs, output
from steph.run.inputs import InputError
from steph.run.journal import Journal
from steph.run.runner import ChildSpec, run_child

HELPER_SECONDS = 180.0


def side_folder(journal: Journal, name: str) -> Path:
    """A new folder in the record for one side command."""
    taken = len(list(journal.folder.glob(f"{name}-*")))
    folder = journal.folder / f"{name}-{taken + 1}"
    folder.mkdir(parents=True)
    return folder


def run_side_command(setup: Setup, argv: tuple[str, ...], folder: Path, deadline: float) -> int | None:
    """Run a command from the pipeline root without the GPU; its exit status, None where it had none."""
    spec = ChildSpec(
        argv=argv,
        cwd=setup.root,
        folder=folder,
        env={**child_environment(setup, {}, on_gpu=False), "CUDA_VISIBLE_DEVICES": ""},
        deadline_seconds=min(HELPER_SECONDS, max(1.0, deadline - time.monotonic())),
    )
    return run_child(spec).returncode


def require_built(setup: Setup, argv: tuple[str, ...], folder: Path, deadline: float, what: str) -> None:
    """Run a builder; raises InputError with its last lines where it fails."""
    status = run_side_command(setup, argv, folder, deadline)
    if status != 0:
        last = " / ".join(output.tail_lines(folder, 3)) or f"no output within {HELPER_SECONDS:.0f} s"
        raise InputError(f"{what}: could not be built ({' '.join(argv[1:])}): exit status {status}: {last}")


def training_rows(
    setup: Setup, journal: Journal, console: Console, deadline: float, relative: str, mode: Literal["direct", "cot"]
) -> DataFile:
    """The training file, built first where it is missing or of other data and the description says how."""
    description, root = setup.description, setup.root
    samples = setup.profile.evaluate.samples
    if description.build and inputs.needs_build(root, relative, setup.dataset, samples):
        values = {"dataset": setup.dataset.path, "train_file": relative, "mode": mode, "samples": str(samples)}
        argv = build_command(setup.python, description.build.command, values)
        console.line(f"building {relative} from {setup.dataset.path}")
        folder = side_folder(journal, "build")
        inputs.set_aside(root / relative, folder / "before")
        try:
            require_built(setup, argv, folder, deadline, str(root / relative))
            return inputs.read_train_file(root, relative, mode)
        except BaseException:  # half a file must not pass for a whole one in the next run
            inputs.set_aside(root / relative, folder / "failed")
            inputs.put_back(root / relative, folder / "before")
            raise
    return inputs.read_train_file(root, relative, mode)


def build_index(setup: Setup, journal: Journal, console: Console, deadline: float) -> None:
    """Have the pipeline build its retrieval index anew, where its description says how; raises InputError."""
    index = setup.description.index
    if index is None:
        return
    argv = build_command(setup.python, index.command, {"dataset": setup.dataset.path})
    console.line(f"building the retrieval index from {setup.dataset.path}")
    require_built(setup, argv, side_folder(journal, "index"), deadline, f"retrieval index of {setup.root}")
