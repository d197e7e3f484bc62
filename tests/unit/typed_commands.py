"""What a person types: the commands of both READMEs, a clone and a home to type them in."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path

import pytest
from planted import plant
from shared_folders import run_folder
from suite_runs import CLONE

READMES = ("README.md", "README.ja.md")
NO_GPU = "このマシンに NVIDIA GPU がない。CPU での予行は --steph-profile cpu"
has_card = Path("/dev/nvidia0").exists() or Path("/dev/dxg").exists()
without_card = pytest.mark.skipif(has_card, reason="this machine has an NVIDIA card, and would start the acceptance")
# what the owner of a pipeline may have for pytest; StepH's own run must not read it
CONFIGURATIONS = {
    "pytest.ini": "[pytest]\naddopts = --cov=app\nrequired_plugins = pytest-not-here\ntestpaths = nowhere\n",
    "tox.ini": "[pytest]\naddopts = --cov=app --strict-config\nunheard_of = 1\n",
    "setup.cfg": "[tool:pytest]\naddopts = --cov=app -n 4\n",
    "pyproject.toml": '[project]\nname = "app"\n[tool.pytest.ini_options]\naddopts = "--cov=app"\n',
    "setup.py": "raise SystemExit\n",
}


@dataclass(frozen=True)
class Desk:
    """A folder to type commands in, and the environment of its shell."""

    folder: Path
    environment: dict[str, str]

    def type(self, command: str) -> tuple[int, str]:
        """Give the line to a shell as it stands: exit status and both streams."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            check=False,
        )
        return done.returncode, done.stdout


def commands_of_the_readmes() -> list[str]:
    """Each command of a shell block of either README, once, without its remark."""
    found = []
    for name in READMES:
        for block in re.findall(r"```bash\n(.*?)```", (CLONE / name).read_text(encoding="utf-8"), re.S):
            for line in block.splitlines():
                command = re.split(r"(?:^| +)# ", line, maxsplit=1)[0].rstrip()
                found += [command] if command else []
    return list(dict.fromkeys(found))


def clone_to(folder: Path) -> Path:
    """The files of this clone as git has them, compiled as they are here, and an environment that is ready.

    Skips where this is no clone.
    """
    if not (CLONE / ".git").exists():
        pytest.skip("what belongs to a clone is read from git")
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(words, cwd=CLONE, capture_output=True, encoding="utf-8", check=True).stdout.split("\0")
    for name in names:
        if name and (CLONE / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CLONE / name, folder / name)
            compiled = Path(cache_from_source(str(CLONE / name)))
            if name.endswith(".py") and compiled.is_file():  # it is of the same moment, which the copy keeps
                (folder / name).with_name("__pycache__").mkdir(exist_ok=True)
                shutil.copy2(compiled, (folder / name).with_name("__pycache__"))
    (folder / ".venv").mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.name != ".ready":
            (folder / ".venv" / entry.name).symlink_to(entry)
    (folder / ".venv" / ".ready").touch()
    return folder


def home_with_a_pipeline(folder: Path, configurations: Iterable[str] = CONFIGURATIONS) -> Path:
    """A home with ~/my-pipeline, its own pytest configuration in it, and an interpreter in ~/env."""
    root = plant(folder / "my-pipeline")
    for name in configurations:
        (root / name).write_text(CONFIGURATIONS[name], encoding="utf-8")
    (root / "conftest.py").write_text("raise RuntimeError('a conftest of somebody else')\n", encoding="utf-8")
    for place in (root / ".venv" / "bin", folder / "env" / "bin"):
        place.mkdir(parents=True)
        python = place / "python"
        python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
        python.chmod(0o755)
    return folder


def shared_twins(factory: pytest.TempPathFactory) -> Path:
    """Where the twins of what is typed are kept: the second command that needs one finds it, in whatever worker."""
    return run_folder(factory) / "shared-twins"


def desk(folder: Path, home: Path, **more: str) -> Desk:
    """A shell in this folder: its environment has a home, a path with this interpreter first, and `more`.

    Nothing typed here asks the Hub: the models are tiny ones made on the spot, or there is no card.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return Desk(folder, {"HOME": str(home), "PATH": path} | more)


def with_spaces(command: str) -> str:
    """The same command with its values behind a space."""
    return re.sub(r"(--steph-[a-z-]+)=", r"\1 ", command)
