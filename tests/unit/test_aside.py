"""What an output path held is moved whole or not at all, and comes back from a helper's run."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_training import ScriptedTraining
from steph.base.messages import speaking
from steph.conduct.attempts import script_flags
from steph.contract.description import Description
from steph.run.inputs import InputError, kept_safe, put_back, set_aside

TRAINS_AT_ONCE = """
import pathlib
for place in ("adapter", "answers.json"):
    pathlib.Path(place).unlink(missing_ok=True)
pathlib.Path("adapter").mkdir(exist_ok=True)
(pathlib.Path("adapter") / "weights").write_text("of today")
pathlib.Path("answers.json").write_text("of today")
"""
PARSER = "\nimport argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--twice')\nparser.parse_args()\n"


def _files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def _asked(folder: Path, script: str) -> tuple[ScriptedTraining, frozenset[str] | None]:
    """A stage whose root holds yesterday's outputs, and what asking this script for its flags gave."""
    stage = ScriptedTraining(folder)
    root = stage.setup.root
    (root / "adapter").mkdir()
    (root / "adapter" / "weights").write_text("of yesterday")
    (root / "answers.json").write_text("of yesterday")
    (root / "train.py").write_text(script)
    paths = {"train_script": "train.py", "output_dir": "adapter", "evaluation_output": "answers.json"}
    description = Description.model_validate({"paths": paths})
    run = replace(stage.run, setup=replace(stage.setup, description=description))
    return stage, script_flags(run)


def _outputs(stage: ScriptedTraining) -> tuple[str, str]:
    root = stage.setup.root
    return (root / "adapter" / "weights").read_text(), (root / "answers.json").read_text()


def test_a_script_without_a_command_line_is_not_started_for_its_flags(tmp_path: Path) -> None:
    """A notebook's export that trains when it is started: nothing runs, its outputs are untouched, it has no flags."""
    stage, flags = _asked(tmp_path, TRAINS_AT_ONCE)
    assert flags == frozenset()
    assert _outputs(stage) == ("of yesterday", "of yesterday")
    assert not list(stage.journal.folder.glob("help-*"))


def test_a_script_that_trains_although_it_was_asked_overwrites_nothing(tmp_path: Path) -> None:
    """It trains before it parses: yesterday's outputs are what they were, and what it wrote is kept in the record."""
    stage, flags = _asked(tmp_path, TRAINS_AT_ONCE.replace(".unlink(missing_ok=True)", ".exists()") + PARSER)
    assert flags is not None
    assert "--twice" in flags
    assert _outputs(stage) == ("of yesterday", "of yesterday")
    (helped,) = stage.journal.folder.glob("help-*")
    assert _files(helped / "written") == {"adapter/weights": "of today", "answers.json": "of today"}
    assert not (helped / "before").exists()


def test_outputs_that_were_not_there_are_not_there_after_a_helper(tmp_path: Path) -> None:
    """An adapter that a helper wrote must not pass for one of a training."""
    with kept_safe([tmp_path / "output"], tmp_path / "record"):
        (tmp_path / "output").write_text("by a helper")
    assert not (tmp_path / "output").exists()
    assert _files(tmp_path / "record") == {"written/output": "by a helper"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_helper_that_is_interrupted_gives_everything_back(tmp_path: Path, error: type[BaseException]) -> None:
    """Ctrl-C while a script is asked: what was moved is put back, a linked folder included."""
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "weights").write_text("old")
    (tmp_path / "linked").symlink_to("big")
    (tmp_path / "file").write_text("old")

    def interrupted() -> None:
        with kept_safe([tmp_path / "linked", tmp_path / "file"], tmp_path / "record"):
            (tmp_path / "linked" / "half").write_text("new")
            raise error

    with pytest.raises(error):
        interrupted()
    assert (tmp_path / "linked").is_symlink()
    assert _files(tmp_path / "linked") == {"weights": "old"}
    assert (tmp_path / "file").read_text() == "old"
    assert _files(tmp_path / "record") == {"written/linked/half": "new"}


def test_outputs_of_one_name_do_not_meet(tmp_path: Path) -> None:
    """Two outputs called alike in different folders each come back to their own place."""
    paths = [tmp_path / "a" / "out", tmp_path / "b" / "out"]
    for path in paths:
        path.parent.mkdir()
        path.write_text(str(path))
    places = [set_aside(path, tmp_path / "before") for path in paths]
    assert len({*places}) == 2
    for path, place in zip(paths, places, strict=True):
        put_back(path, place)
        assert path.read_text() == str(path)


SMALL_DISK = """
import pathlib, sys
from steph.run.inputs import set_aside
from steph.run.inputs import InputError
source, disk, report = map(pathlib.Path, sys.argv[1:])
try:
    set_aside(source, disk / "H-2-1" / "before")
except InputError as error:
    report.write_text(str(error))
left = sorted(str(path.relative_to(disk)) for path in disk.rglob("*"))
sys.exit(f"left: {left}" if left != ["H-2-1"] * report.exists() else 0)
"""


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_full_disk_leaves_no_half_backup(tmp_path: Path, kind: str) -> None:
    """An output that does not fit on the record's disk stays whole where it is; nothing looks like a copy of it."""
    source, disk, report = tmp_path / "output", tmp_path / "disk", tmp_path / "report"
    disk.mkdir()
    if kind == "folder":
        source.mkdir()
        for number in range(20):
            (source / f"{number}.bin").write_bytes(bytes(50_000))
    else:
        source.write_bytes(bytes(1_000_000))
    script = 'mount -t tmpfs -o size=200k tmpfs "$2" && exec "$3" -c "$4" "$1" "$2" "$5"'
    unshared = ["unshare", "-rm", "bash", "-c", script, "bash"]
    if subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("no mount namespaces here")
    command = [*unshared, str(source), str(disk), sys.executable, SMALL_DISK, str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in report.read_text()
    assert len(report.read_text()) < 400
    held = [path.stat().st_size for path in source.glob("*")] if kind == "folder" else [source.stat().st_size]
    assert held == ([50_000] * 20 if kind == "folder" else [1_000_000])


def test_another_disk_gets_a_whole_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where renaming is no way, the copy has all files and links, and the source is gone."""
    source = tmp_path / "output"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "weights").write_text("w")
    (source / "link").symlink_to("sub")
    rename = Path.rename

    def other_disk(path: Path, target: Path) -> Path:
        if path == source:
            raise OSError(18, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", other_disk)
    assert set_aside(source, tmp_path / "before") == tmp_path / "before" / "output"
    assert not source.exists()
    assert (tmp_path / "before" / "output" / "link").is_symlink()
    assert _files(tmp_path / "before") == {"output/sub/weights": "w"}
    assert [path.name for path in (tmp_path / "before").iterdir()] == ["output"]


def test_a_copy_that_is_interrupted_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of copying: no part of it stays, and the source is whole."""
    source = tmp_path / "output"
    source.mkdir()
    (source / "weights").write_text("w")

    def other_disk(path: Path, target: Path) -> Path:
        raise OSError(18, "Invalid cross-device link")

    def interrupted(source: Path, target: Path, **options: object) -> None:
        target.mkdir()
        (target / "weights").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", other_disk)
    monkeypatch.setattr("shutil.copytree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        set_aside(source, tmp_path / "before")
    assert _files(source) == {"weights": "w"}
    assert _files(tmp_path / "before") == {}


def test_what_cannot_be_put_back_says_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that filled up meanwhile: the message names both places."""
    (tmp_path / "output").write_text("w")
    place = set_aside(tmp_path / "output", tmp_path / "before")

    def full(path: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with (
        speaking("en"),
        pytest.raises(InputError, match=r"output: cannot be put back from .*before/output: .*No space left"),
    ):
        put_back(tmp_path / "output", place)
