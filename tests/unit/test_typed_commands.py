"""The commands of both READMEs, typed in a clone as they stand, by a person whose pipeline has a pytest of its own."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from planted import plant
from steph.pytest_options import join_values
from typed_commands import (
    CONFIGURATIONS,
    NO_GPU,
    Desk,
    clone_to,
    commands_of_the_readmes,
    desk,
    home_with_a_pipeline,
    shared_twins,
    with_spaces,
    without_card,
)

REHEARSED = "(予行, プロファイル cpu)"
# each command, the exit status on a machine without a card, and a word that it prints
TYPED = {
    "source .venv/bin/activate": (0, ""),
    "make accept": (0, REHEARSED),
    "pytest -m gpu": (4, NO_GPU),
    "pytest -m gpu --steph-profile=cpu": (0, REHEARSED),
    "pytest -m gpu --steph-calibrate": (4, NO_GPU),
    "pytest -m extended": (4, NO_GPU),
    'pytest -m gpu "tests/acceptance/test_steph.py::test_h2_lora_training_completes"': (4, NO_GPU),
    "pytest -m gpu --steph-profile=cpu --steph-pipeline-root=~/my-pipeline": (0, REHEARSED),
    "pytest -m gpu --steph-pipeline-root=~/my-pipeline --steph-pipeline-python=~/env/bin/python": (4, NO_GPU),
    "pytest -m gpu --junitxml=junit.xml": (4, NO_GPU),
    "steph init ~/my-pipeline": (0, 'preset = "lawqa"'),
    "steph check ~/my-pipeline": (0, "中核の検査"),
    "steph doctor": (1, "doctor: "),
    "steph report [RUN]": (0, ".md"),
    "steph report --html [RUN]": (0, ".html"),
    "steph list": (0, "H-2"),
    "steph compare [A] [B]": (0, "H-2"),
    "steph compare FOLDER": (0, "NVIDIA H200"),
    "steph diagnose LOGFILE": (0, "cause: cuda_oom"),
    "steph slow [RUN]": (0, "秒"),
    "steph --version": (0, "steph 0.2.0"),
    "steph fit --model Qwen/Qwen3-8B --trainer reference --vram 20GiB": (0, "GiB"),
    'steph fit --model Qwen2.5-7B --trainer unsloth --card "RTX 4090"': (0, "使えるのは 23.52 GiB(資料による)"),
    "steph fit --model Qwen/Qwen3-8B --vram 20GiB --from-record RUN": (0, "GiB"),
    'steph fit --model gemma-3-4b --card "RTX 3080" --bits 8 --target-modules all-linear': (0, "8 ビット"),
}
NOT_TYPED = {
    'pytest -m "not gpu"': "runs this test",
    "make test": "runs this test",
    "git clone https://github.com/digital-go-jp/lawqa_jp pipeline/datasets/lawqa_jp": "needs a network",
    "make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu": "needs a network",
    "make setup TORCH_INDEX=https://download.pytorch.org/whl/cu126": "needs a network",
    "pip install 'steph-0.2.0-py3-none-any.whl[pipeline]'": "needs a network",
}


def test_every_command_of_the_readmes_is_typed_by_a_test() -> None:
    """A command is in the table above or its neighbour, or is one of an installed suite: test_wheel.py types those."""
    named = {command for command in commands_of_the_readmes() if "--pyargs" not in command}
    assert named == TYPED.keys() | NOT_TYPED.keys()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a pipeline that has every kind of configuration that pytest looks for."""
    return home_with_a_pipeline(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Desk:
    """A clone with an example's record, twice; its reference pipeline is one that needs no torch."""
    folder = clone_to(tmp_path_factory.mktemp("clone") / "steph")
    (record,) = folder.glob("reports/examples/qwen3-8b-on-10gb/runs/*")
    for name in (record.name, f"{record.name[:-4]}ffff"):  # the same again, for `steph compare` to find nothing worse
        shutil.copytree(record, folder / "reports" / "runs" / name)
        journal = folder / "reports" / "runs" / name / "events.jsonl"
        journal.write_text(journal.read_text(encoding="utf-8").replace(record.name, name), encoding="utf-8")
    shutil.rmtree(folder / "pipeline")
    plant(folder / "pipeline")
    (folder / "LOGFILE").write_text("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.16 GiB.\n")
    return desk(folder, home, STEPH_CACHE=str(shared_twins(tmp_path_factory)))


@without_card
@pytest.mark.parametrize("command", TYPED)
def test_a_command_of_the_readmes_works_as_it_stands(clone: Desk, command: str) -> None:
    """Typed in a clone whose owner's pipeline has a pytest of its own: the exit status and what is printed."""
    status, said = TYPED[command]
    (newest,) = clone.folder.glob("reports/examples/qwen3-8b-on-10gb/runs/*")
    typed = command.replace("[RUN]", "").replace("[A] [B]", "").replace(" RUN", f" {newest.name}")
    typed = typed.replace(" FOLDER", " reports/examples")
    found, output = clone.type(f"source .venv/bin/activate && {typed}")
    assert found == status, output
    assert said in output
    if command == "make accept":  # the doctor's longest look: see test_doctor.py for the shorter one
        assert re.search(r"^ok +4-bit +量子化", output, re.MULTILINE)


@without_card
@pytest.mark.parametrize(
    "command", [command for command in TYPED if "--steph-" in command and REHEARSED not in TYPED[command]]
)
def test_a_space_does_as_well_as_an_equals_sign(clone: Desk, command: str) -> None:
    """The READMEs' commands with their values behind a space, whatever lies in the folders that they name."""
    status, output = clone.type(with_spaces(command).replace("pytest", "python -m pytest"))
    assert status == TYPED[command][0], output
    assert f"rootdir: {clone.folder}\nconfigfile: pyproject.toml" in output


OPTIONS = {
    "--steph-pipeline-root": "~/my-pipeline",
    "--steph-pipeline-python": "~/my-pipeline/.venv/bin/python",
    "--steph-report": "~/my-pipeline/reports",
    "--steph-profile": "~/my-pipeline/mine.toml",
    "--steph-model": "~/my-pipeline/model",
}


@pytest.mark.parametrize(
    ("form", "names"),
    [("{} {}", ["pytest.ini"]), ("{} {}", ["pyproject.toml"]), ("{} {}", []), ("{}={}", [*CONFIGURATIONS])],
    ids=["pytest.ini", "pyproject.toml", "none", "equals"],
)
def test_no_value_of_an_option_leads_pytest_elsewhere(clone: Desk, tmp_path: Path, form: str, names: list[str]) -> None:
    """All options at once: with a configuration beside the paths that they name, pytest stays in the clone.

    One that was not joined to its value would lead it elsewhere, whatever the others do. The other kinds of
    configuration are tried with the wheel (test_wheel.py): the same code keeps them out.
    """
    home = home_with_a_pipeline(tmp_path, names)
    for folder in ("reports", "model"):
        (home / "my-pipeline" / folder).mkdir(exist_ok=True)
    shutil.copyfile(clone.folder / "profiles" / "rtx3080.toml", home / "my-pipeline" / "mine.toml")
    here = desk(clone.folder, home)
    words = " ".join(form.format(*item) for item in OPTIONS.items())
    status, output = here.type(f"pytest -m gpu --co {words}")
    assert status == 0, output
    assert f"rootdir: {clone.folder}\nconfigfile: pyproject.toml" in output
    assert "3/9 tests collected" in output


@pytest.mark.parametrize(
    "line",
    [
        "PYTEST_ADDOPTS='--steph-report {0}/reports' pytest -m gpu --co",
        "pytest -m gpu --co @words",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 pytest -m gpu --co tests/acceptance --steph-report {0}/reports",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 pytest -m gpu --co -s tests/acceptance --steph-report {0}/reports",
        "cd tests && pytest -m gpu --co --steph-report {0}/reports",
    ],
)
def test_wherever_the_option_comes_from(clone: Desk, home: Path, line: str) -> None:
    """From the environment, a file of words, another folder, and with the plugin that the clone's conftest names."""
    root = home / "my-pipeline"
    (root / "reports").mkdir(exist_ok=True)
    (clone.folder / "words").write_text(f"--steph-report\n{root / 'reports'}\n", encoding="utf-8")
    status, output = clone.type(line.format(root))
    assert status == 0, output
    assert f"rootdir: {clone.folder}\nconfigfile: pyproject.toml" in output
    assert "3/9 tests collected" in output


@pytest.mark.parametrize(
    ("ini", "said"),
    [
        ("[pytest]\naddopts = -p missing\n", "missing"),
        ("[pytest\nbroken", "pytest.ini"),
        ("[pytest]\nminversion = 99\n", "99"),
    ],
    ids=["plugin", "broken", "version"],
)
def test_what_pytest_refuses_before_any_plugin_is_loaded_needs_the_equals_sign(
    clone: Desk, tmp_path: Path, ini: str, said: str
) -> None:
    """An ini file that ends pytest at once: behind a space pytest's own error names it, with `=` it is not read."""
    root = home_with_a_pipeline(tmp_path, []) / "my-pipeline"
    (root / "pytest.ini").write_text(ini, encoding="utf-8")
    status, output = clone.type(f"pytest -m gpu --co --steph-pipeline-root={root}")
    assert status == 0, output
    status, output = clone.type(f"pytest -m gpu --co --steph-pipeline-root {root}")
    (error,) = (line for line in output.splitlines() if line.startswith("ERROR: "))
    assert (status, said in error) == (4, True), output


def test_a_program_that_calls_pytest_is_told_what_to_write(clone: Desk, home: Path) -> None:
    """Its process can't be started again: one line with the words to use, exit status 4."""
    root = home / "my-pipeline"
    code = f"import pytest, sys; sys.exit(pytest.main(['-m', 'gpu', '--co', '--steph-pipeline-root', {str(root)!r}]))"
    status, output = clone.type(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}")
    assert status == 4, output
    assert output.strip().splitlines()[-1].endswith(f"write --steph-pipeline-root={root}")


@pytest.mark.parametrize(
    ("words", "joined"),
    [
        (["--steph-report", "out", "-m", "gpu"], ["--steph-report=out", "-m", "gpu"]),
        *(([option, place, "x"], [f"{option}={place}", "x"]) for option, place in OPTIONS.items()),
        (["--steph-report=out", "x"], ["--steph-report=out", "x"]),
        (["--steph-twin", "tests"], ["--steph-twin", "tests"]),
        (["--steph-model", "-x"], ["--steph-model", "-x"]),
        (["--steph-model"], ["--steph-model"]),
        (["--", "--steph-model", "x"], ["--", "--steph-model", "x"]),
        (["--steph-model", "a b", "--steph-profile", "cpu"], ["--steph-model=a b", "--steph-profile=cpu"]),
    ],
)
def test_values_are_joined_to_their_options(words: list[str], joined: list[str]) -> None:
    """Only an option that takes a value takes the next word, and never one that is an option or a path behind --."""
    assert join_values(words) == joined


def test_an_ordinary_start_is_not_begun_again(clone: Desk) -> None:
    """Values that lead nowhere else, and names that are no path, cost no second start."""
    (clone.folder / "reports").mkdir(exist_ok=True)
    code = "import os, sys, pytest; os.execv = None; sys.orig_argv = sys.argv; sys.exit(pytest.main(sys.argv[1:]))"
    words = "-m gpu --co --steph-profile cpu --steph-report reports --steph-pipeline-root ./pipeline"
    done = subprocess.run(
        [sys.executable, "-c", code, *words.split()],
        cwd=clone.folder,
        env=clone.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_doctor_reads_a_named_pipeline_and_not_its_pytest(clone: Desk) -> None:
    """`steph doctor` with values behind a space, beside any configuration: it looks, and ends with its own status."""
    words = "--steph-profile cpu --steph-pipeline-root ~/my-pipeline --steph-report ~/my-pipeline"
    words += " --steph-pipeline-python /bin/true"  # it answers nothing, at once
    status, output = clone.type(f"steph doctor --quick {words}")
    assert status == 1, output
    assert "doctor: プロファイル cpu、パイプライン" in output
