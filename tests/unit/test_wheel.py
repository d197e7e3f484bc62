"""The wheel: what is in it, and that it works with no clone around, in other people's folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from japanese import JAPANESE
from planted import plant
from steph import pytest_options
from steph.base.messages import speaking
from steph.base.terms import StageId, Verdict
from steph.run.inputs import InputError
from steph.run.journal import read_record, record_folders
from suite_runs import CLONE, clean_environment, make_bench
from typed_commands import (
    CONFIGURATIONS,
    NO_GPU,
    Desk,
    commands_of_the_readmes,
    desk,
    home_with_a_pipeline,
    shared_twins,
    with_spaces,
    without_card,
)

CARRIED = {"plugins/steph": "steph", **{folder: f"steph/{Path(folder).name}" for folder in ("profiles", "pipeline")}}
CARRIED |= {"tests/acceptance": "steph/acceptance"}
LEFT_BY_RUNS = (
    "pipeline/runs/debug/adapter_model.safetensors",
    "pipeline/results/evaluations/x.json",
    "pipeline/datasets/lawqa_jp/data/selection.json",
    "pipeline/.venv/lib/app.py",
    "pipeline/app/__pycache__/run.cpython-311.pyc",
    "tests/acceptance/__pycache__/test_steph.cpython-311.pyc",
)
SDIST = """
import shutil, sys
from setuptools import build_meta
out = sys.argv[1]
shutil.unpack_archive(f"{out}/{build_meta.build_sdist(out)}", f"{out}/unpacked")
"""
WHEEL = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
ASK = """
import json, os, sys
import pytest
from steph.pytest_options import resolve_options

class Asked:
    def pytest_cmdline_main(self, config):
        options = resolve_options(config)
        self.answer = [str(options.pipeline_root), str(options.report)]
        return 0

class Counted:
    def pytest_collection_finish(self, session):
        self.answer = [item.name for item in session.items]

def answers(plugin, words):
    pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", *words], plugins=[plugin])
    return plugin.answer

print(json.dumps([answers(globals()[kind](), words) for kind, folder, words in json.loads(sys.argv[1])
                  if not os.chdir(folder)]))
"""
FOREIGN = """
import sys
import pytest

@pytest.mark.gpu
def test_theirs(ours):
    heavy = {"pydantic", "huggingface_hub", "jinja2", "matplotlib", "steph.conduct.session", "torch"}
    assert not heavy & set(sys.modules)
    assert ours == 1
"""


# the READMEs' commands for an installed suite: the exit status on a machine without a card, and a word that is printed
TYPED = {
    "pytest --pyargs steph.acceptance -m gpu": (4, NO_GPU),
    "pytest --pyargs steph.acceptance -m gpu --steph-profile=cpu": (0, "(予行, プロファイル cpu)"),
    "pytest --pyargs steph.acceptance -m gpu --steph-pipeline-root=~/my-pipeline": (4, NO_GPU),
    "pytest --pyargs steph.acceptance -m extended": (4, NO_GPU),
    "pytest --pyargs steph.acceptance.test_steph::test_h3_hf_evaluation_runs": (4, NO_GPU),
}


def python(*words: str, folder: Path, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with the unpacked wheel on its path where there is one."""
    path = {"PYTHONPATH": str(site)} if site else {}
    environment = clean_environment() | path
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False
    )


def listed() -> set[str]:
    """The clone's files that the wheel is made of, without what git ignores."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *CARRIED]
    names = subprocess.run(words, cwd=CLONE, capture_output=True, encoding="utf-8", check=True).stdout.split("\0")
    return {name for name in names if name and (CLONE / name).is_file()}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked: built from the sdist of a clone in which a pipeline has run."""
    if not (CLONE / ".git").exists():
        pytest.skip("what belongs to the wheel is read from git")
    folder = tmp_path_factory.mktemp("wheel")
    clone, out = folder / "clone", folder / "out"
    out.mkdir()
    for name in (*listed(), "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CLONE / name, clone / name)
    for name in LEFT_BY_RUNS:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text("not for others")
    for code, place in ((SDIST, clone), (WHEEL, out / "unpacked" / "steph-0.2.0")):
        built = python("-c", code, str(out), folder=place)
        assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = out.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def files(folder: Path) -> set[str]:
    """Everything below a folder but what Python compiled."""
    return {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix != ".pyc" and path.is_file()
    }


def ask(site: Path, *questions: tuple[str, Path, Sequence[str]]) -> list[list[str]]:
    """Put all questions to one process: a kind, the folder to ask in, and pytest's command line."""
    words = json.dumps([(kind, str(folder), [*words]) for kind, folder, words in questions])
    done = python("-c", ASK, words, folder=site, site=site)
    assert done.returncode == 0, done.stdout + done.stderr
    answers: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def test_the_wheel_carries_the_whole_suite_and_nothing_that_a_run_left(site: Path) -> None:
    """Every file of suite, acceptance tests, profiles and pipeline is in it, byte for byte, and no other."""
    inside = {}
    for name in listed():
        folder = next(folder for folder in CARRIED if name.startswith(f"{folder}/"))
        inside[f"{CARRIED[folder]}{name.removeprefix(folder)}"] = CLONE / name
    assert {name for name in files(site) if not name.startswith("steph-0.2.0.dist-info/")} == set(inside)
    assert all((site / name).read_bytes() == source.read_bytes() for name, source in inside.items())


def test_the_stages_are_collected_from_anywhere(site: Path, tmp_path: Path) -> None:
    """By `--pyargs` the three stages come in their order; the extended ones by marker, module or test id alone."""
    page, more = "steph.acceptance", "steph.acceptance.test_steph_extended"
    h1, h2, h3 = ("test_h1_model_is_reachable", "test_h2_lora_training_completes", "test_h3_hf_evaluation_runs")
    cot, extended = "test_h3_evaluates_with_cot", 6
    found = ask(
        site,
        *(
            ("Counted", tmp_path, ["--pyargs", *words.split()])
            for words in (
                f"{page} -m gpu",
                f"{page}",
                f"{page}.test_steph::{h3}",
                f"{page} -m extended",
                f"{more}",
                f"{more}::{cot}",
            )
        ),
    )
    assert found[:3] == [[h1, h2, h3], [h1, h2, h3], [h3]]
    assert [len(names) for names in found[3:]] == [extended, extended, 1]
    assert found[5] == [cot]
    assert not list(tmp_path.iterdir())


def test_defaults_are_those_of_the_current_folder(site: Path, tmp_path: Path) -> None:
    """A copy in ./steph-pipeline is tested and ./reports written, but in a clone its own pipeline, wheel or not."""
    project, clone = tmp_path / "project" / "sub", tmp_path / "clone"
    for folder in (project, clone / "pipeline"):
        folder.mkdir(parents=True)
    for folder in (project.parent, clone):
        (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers --strict-config\n")
    (clone / "pipeline" / "steph.toml").touch()
    places = (tmp_path, project, clone, clone / "pipeline")
    asked = ask(site, *(("Asked", place, []) for place in places), ("Asked", project, ["--steph-pipeline-root=x"]))
    found = [[os.path.relpath(path, tmp_path) for path in answer] for answer in asked]
    assert found == [
        ["steph-pipeline", "reports"],
        ["project/sub/steph-pipeline", "project/sub/reports"],
        ["clone/pipeline", "clone/reports"],
        ["clone/pipeline", "clone/reports"],
        ["project/sub/x", "project/sub/reports"],
    ]


def test_a_stage_runs_in_an_empty_folder(site: Path, tmp_path: Path) -> None:
    """The pipeline is copied, ./reports has the report with a command that works there, the wheel is as it was."""
    before = files(site)
    bench, empty = make_bench(tmp_path), tmp_path / "empty"
    empty.mkdir()
    test = "steph.acceptance.test_steph::test_h1_model_is_reachable"
    words = ("-m", "pytest", "-p", "no:cacheprovider", "--pyargs", test, f"--steph-profile={bench.profile}")
    done = python(*words, folder=empty, site=site)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{empty / 'steph-pipeline'} にコピーした" in done.stdout
    assert files(empty / "steph-pipeline") == files(site / "steph" / "pipeline")
    record = read_record(record_folders(empty / "reports" / "runs")[-1])
    assert (record.verdict_of(StageId.H1), record.context.suite_git.commit) == (Verdict.PASS, None)
    (report,) = (empty / "reports").glob("*.md")
    assert f"--pyargs {test}" in report.read_text(encoding="utf-8")
    assert files(site) == before


def test_a_foreign_project_beside_the_wheel_is_untouched(site: Path, tmp_path: Path) -> None:
    """Its own `gpu` mark, conftest and strict settings hold; nothing is skipped, written or loaded."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: ours\naddopts = --strict-markers --strict-config\n")
    (tmp_path / "conftest.py").write_text("import pytest\n\n@pytest.fixture\ndef ours():\n    return 1\n")
    (tmp_path / "test_theirs.py").write_text(FOREIGN)
    done = python("-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu", folder=tmp_path, site=site)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "StepH" not in done.stdout
    assert files(tmp_path) == {"pytest.ini", "conftest.py", "test_theirs.py"}


@pytest.fixture(scope="module")
def installed_desk(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A folder of one's own where the wheel is installed; its pipeline/ is one that needs no torch."""
    folder = tmp_path_factory.mktemp("project")
    plant(folder / "pipeline")
    (folder / "pipeline" / "steph.toml").write_text('optional_flags = ["--max-steps-override"]\n', encoding="utf-8")
    places = {"PYTHONPATH": str(site), "STEPH_CACHE": str(shared_twins(tmp_path_factory))}
    return desk(folder, home_with_a_pipeline(tmp_path_factory.mktemp("home")), **places)


def test_every_command_for_an_installed_suite_is_typed() -> None:
    """The table above has each of them, of both READMEs."""
    assert {command for command in commands_of_the_readmes() if "--pyargs" in command} == TYPED.keys()


@without_card
@pytest.mark.parametrize("command", TYPED)
def test_a_command_for_an_installed_suite_works_as_it_stands(installed_desk: Desk, command: str) -> None:
    """Typed in a folder without a clone, with a pipeline that has a pytest of its own: status, and what is printed."""
    forms = (command,) if TYPED[command][0] == 0 else (command, with_spaces(command))  # one rehearsal is enough
    for typed in dict.fromkeys(forms):
        status, output = installed_desk.type(typed)
        assert status == TYPED[command][0], output
        assert TYPED[command][1] in output


@pytest.mark.parametrize(
    ("form", "name"), [*(("{} {}", name) for name in CONFIGURATIONS), ("{}={}", "pytest.ini")], ids=str
)
def test_no_value_leads_an_installed_suite_elsewhere(
    installed_desk: Desk, site: Path, tmp_path: Path, form: str, name: str
) -> None:
    """Pipeline, interpreter and reports in a clone with any configuration: the wheel's tests are collected.

    So they are where the interpreter alone is named, a file in a folder below the clone.
    """
    home = home_with_a_pipeline(tmp_path, [name])
    root = home / "my-pipeline"
    (root / "plugins").symlink_to(CLONE / "plugins")
    if name == "pyproject.toml":
        (root / name).write_text('[tool.pytest.ini_options]\npythonpath = ["plugins"]\nminversion = "8"\n', "utf-8")
    (root / "reports").mkdir()
    places = {"pipeline-root": "", "pipeline-python": "/.venv/bin/python", "report": "/reports"}
    words = [form.format(f"--steph-{option}", f"{root}{place}") for option, place in places.items()]
    here = desk(installed_desk.folder, home, PYTHONPATH=str(site))
    for chosen in (words, [words[1]]) if name == "pytest.ini" else (words,):
        status, output = here.type(f"pytest --pyargs steph.acceptance -m gpu --co {' '.join(chosen)}")
        assert status == 0, output
        assert f"rootdir: {installed_desk.folder}\n" in output
        assert "3/9 tests collected" in output


@pytest.fixture
def carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small pipeline as a wheel would carry it, read-only."""
    folder = tmp_path / "package"
    (folder / "scripts" / "__pycache__").mkdir(parents=True)
    (folder / "scripts" / "train.py").write_text("train")
    (folder / "scripts" / "__pycache__" / "train.cpython-311.pyc").write_text("compiled")
    for path in (folder / "scripts" / "train.py", folder / "scripts", folder):
        path.chmod(path.stat().st_mode & ~0o222)
    monkeypatch.setattr(pytest_options, "CARRIED_PIPELINE", folder)
    return folder


def test_the_pipeline_is_copied_once_and_is_then_the_users(carried: Path, tmp_path: Path) -> None:
    """The copy can be written to whatever the package's modes; later runs leave it alone and say where it differs."""
    root, said = tmp_path / "steph-pipeline", list[str]()
    pytest_options.copy_once(root, said.append)
    assert files(root) == files(carried) == {"scripts/train.py"}
    assert all(path.stat().st_mode & 0o200 for path in (root, root / "scripts", root / "scripts" / "train.py"))
    (root / "results").mkdir()
    pytest_options.copy_once(root, said.append)
    assert len(said) == 1
    (root / "scripts" / "train.py").write_text("mine")
    pytest_options.copy_once(root, said.append)
    assert "scripts/train.py" in said[-1]
    assert all(JAPANESE.search(line) for line in said)
    assert (root / "scripts" / "train.py").read_text() == "mine"


@pytest.mark.usefixtures("carried")
def test_a_folder_that_takes_no_copy_is_one_line(tmp_path: Path) -> None:
    """Where the copy can't be made, nothing is left there, and the line names the folder and the remedy."""
    (tmp_path / "file").touch()
    with speaking("en"), pytest.raises(InputError, match=r"steph-pipeline: .*; run in a folder of your own") as raised:
        pytest_options.copy_once(tmp_path / "file" / "steph-pipeline", print)
    assert "\n" not in str(raised.value)
