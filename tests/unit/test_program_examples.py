"""The example folders of docs/examples: `steph init` drafts what they say, and `steph check` shows their commands."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest
from steph.cli import app
from steph.contract.commands import unsaid_settings
from steph.contract.description import UNKNOWN, load_description
from steph.contract.draft import draft, survey
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
NAMES = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
PROGRAMS = ("llamafactory-cli", "axolotl", "lm_eval", "trl")
MOST_CHANGED = 15  # that a person writes or changes


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of an environment that has all of these programs."""
    folder = tmp_path / "environment" / "bin"
    folder.mkdir(parents=True)
    for name in ("python", *PROGRAMS):
        (folder / name).write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder / "python"


def copied(name: str, place: Path) -> Path:
    """An example as a folder of its own, without what runs left there."""
    return Path(shutil.copytree(EXAMPLES / name, place / name, ignore=shutil.ignore_patterns("steph-out")))


def test_there_are_examples_of_all_programs() -> None:
    """Nothing below is green because there is no folder."""
    assert NAMES == ["axolotl", "llamafactory", "plain", "trl", "unsloth"]


@pytest.mark.parametrize("name", NAMES)
def test_check_shows_the_commands_of_an_example(name: str, tmp_path: Path, python: Path) -> None:
    """Nothing is missing in it, and each of its rows is read."""
    root = copied(name, tmp_path)
    shown = CliRunner().invoke(
        app,
        ["check", str(root), "--language=en", "--steph-profile=cpu", f"--steph-pipeline-python={python}"],
        env={"COLUMNS": "400"},
    )
    assert shown.exit_code == 0, shown.output
    assert "24 rows in the format " in shown.output
    program = {
        "llamafactory": "llamafactory-cli train train_lora.yaml",
        "axolotl": "axolotl train",
        "unsloth": "train.py",
        "plain": "train.py",
        "trl": "trl sft",
    }
    assert program[name] in shown.output
    assert "can't be measured" not in shown.output
    assert not unsaid_settings(load_description(root)) & {"batch_size", "learning_rate", "lora_r", "use_4bit"}


@pytest.mark.parametrize("name", NAMES)
def test_the_page_has_the_whole_description_of_an_example(name: str) -> None:
    """What a reader copies from docs/bring-your-pipeline.en.md is what was tried."""
    page = (EXAMPLES.parent / "bring-your-pipeline.en.md").read_text(encoding="utf-8")
    assert f"```toml\n{(EXAMPLES / name / 'steph.toml').read_text(encoding='utf-8')}```" in page


def leaves(table: object, way: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    """A description's values by their keys from the top."""
    if not isinstance(table, dict):
        return {way: table}
    return {key: value for name, inner in table.items() for key, value in leaves(inner, (*way, name)).items()}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "plain"])  # its options have names of its own
def test_init_drafts_the_description_of_an_example(name: str, tmp_path: Path) -> None:
    """Nothing in the draft is left to be said; at most fifteen of its values are not the example's."""
    root = copied(name, tmp_path)
    mine = leaves(tomllib.loads((root / "steph.toml").read_text(encoding="utf-8")))
    (root / "steph.toml").unlink()
    text = draft(survey(root))
    drafted = leaves(tomllib.loads(text))
    assert UNKNOWN not in text
    changed = {key for key in mine.keys() | drafted.keys() if mine.get(key) != drafted.get(key)}
    assert len(changed) <= MOST_CHANGED, changed
    assert not changed & {
        ("train", "preset"),
        ("train", "config"),
        ("train", "rows", "file"),
        ("train", "rows", "format"),
    }


def test_the_options_of_unsloths_example_are_those_of_the_preset(tmp_path: Path) -> None:
    """What `steph init` reads off its text is what the preset calls, so that the preset may stand alone."""
    root = copied("unsloth", tmp_path)
    command = load_description(root).train.command
    (root / "steph.toml").unlink()
    drafted = tomllib.loads(draft(survey(root)))["train"]["command"]
    assert command is not None
    assert json.dumps(sorted(drafted)) == json.dumps(sorted(command))
