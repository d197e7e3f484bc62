"""Rehearsals of described pipelines with programs as they are: a run of the suite, and its record.

On the CPU with a tiny model; where `STEPH_TEST_GPU` is set, on a card that is made to look like one of 10 GB, with a
random-weight twin of the example's own model.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from steph.base.terms import Severity, StageId
from steph.cli import app
from steph.record.values import Record
from steph.run.journal import read_record, record_folders
from suite_runs import PAGE, clean_environment
from typer.testing import CliRunner

PROGRAMS = os.environ.get("STEPH_TEST_PROGRAMS")  # the folder of an environment's programs
ON_CARD = bool(os.environ.get("STEPH_TEST_GPU"))
CARD = ("--steph-profile=rtx3080", "--steph-twin", "--steph-vram-cap=9.64GiB")
EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
H1_H2 = "test_h1_model_is_reachable or test_h2_lora_training_completes"
Edit = tuple[str, str, str]  # a file of an example, a text in it, and what stands there instead


@dataclass(frozen=True)
class Rehearsed:
    """A run that ended: its exit status, what it printed, its record, and how many lines a person had written."""

    status: int
    output: str
    record: Record
    written: int

    def broken(self, stage: StageId) -> set[str]:
        """The checks of a stage that do not hold, but for those that only inform."""
        return {check.id for check in self.record.stages[stage].findings if check.severity is not Severity.INFO}


def copied(name: str, place: Path) -> Path:
    """A copy of an example's folder."""
    return Path(shutil.copytree(EXAMPLES / name, place / "root", ignore=shutil.ignore_patterns("steph-out", "saves")))


def edit(root: Path, edits: tuple[Edit, ...]) -> None:
    """Change some texts of a pipeline's files, each of which must be there."""
    for file, old, new in edits:
        text = (root / file).read_text(encoding="utf-8")
        assert old in text, (file, old)
        (root / file).write_text(text.replace(old, new, 1), encoding="utf-8")


def rehearse(root: Path, tiny_model: Path, *, only: str = "", by_hand: tuple[tuple[str, str], ...] = ()) -> Rehearsed:
    """`steph init` where there is no description, what a person changes in it by hand, and the rehearsal."""
    path = root / "steph.toml"
    if not path.is_file():
        drafted = CliRunner().invoke(app, ["init", str(root)])
        assert drafted.exit_code == 0, drafted.output
    before = path.read_text(encoding="utf-8")
    text = before
    for pattern, new in by_hand:
        text, found = re.subn(pattern, lambda _, new=new: new, text, count=1, flags=re.M)  # type: ignore[misc]
        assert found, pattern
    path.write_text(text, encoding="utf-8")
    written = len({*text.splitlines()} - {*before.splitlines()})
    reports = root.parent / f"{root.name}-reports"
    model = () if (root / "models").is_dir() else (f"--steph-model={tiny_model}",)
    where = CARD if ON_CARD else ("--steph-profile=cpu", *model)
    command = (
        sys.executable, "-m", "pytest", str(PAGE), "-p", "no:cacheprovider", "-m", "gpu",
        *(("-k", only) if only else ()),
        f"--steph-pipeline-root={root}", f"--steph-report={reports}",
        f"--steph-pipeline-python={PROGRAMS}/python", *where,
    )  # fmt: skip
    done = subprocess.run(
        command, cwd=root.parent, env=clean_environment(), capture_output=True, text=True, check=False
    )
    output = done.stdout + done.stderr
    folders = record_folders(reports / "runs")
    assert folders, output
    return Rehearsed(done.returncode, output, read_record(folders[-1]), written)
