"""What a record says of the checkouts that it was made on."""

from __future__ import annotations

import subprocess
from pathlib import Path

from steph.record.settings import GitState
from steph.run.inputs import git_state


def git(folder: Path, *words: str) -> None:
    """Run git as somebody."""
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words], cwd=folder, check=True)


def test_a_folder_that_only_lies_in_a_checkout_is_no_part_of_it(tmp_path: Path) -> None:
    """A package in a project's `.venv` and a copied pipeline don't take that project's commit for their own."""
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    git(tmp_path, "init", "-q", "-b", "work")
    git(tmp_path, "add", "ours")
    git(tmp_path, "commit", "-qm", "one")
    assert git_state(tmp_path / "theirs") == GitState()
    assert (git_state(tmp_path / "ours").branch, git_state(tmp_path / "ours").dirty) == ("work", False)
