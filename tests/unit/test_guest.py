"""A good guest: other people's tests, folders, locales and ways to start pytest are theirs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from steph.base.terms import StageId, Verdict
from steph.run.journal import record_folders
from suite_runs import CLONE, PAGE, Bench, clean_environment, make_bench, run_pytest

H1, H2, H3 = StageId
FOREIGN = """
import atexit
import gc
import sys
import pytest

atexit.register(lambda: print("frozen:", gc.get_freeze_count()))

@pytest.mark.gpu
def test_theirs():
    heavy = {"pydantic", "huggingface_hub", "jinja2", "matplotlib", "steph.conduct.session"}
    assert not heavy & set(sys.modules)
"""


def run_in(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a folder, with the suite on the path and nothing of a surrounding run."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", *arguments],
        cwd=folder,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def run(bench: Bench, *stages: StageId, folder: Path = CLONE, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the stages as a person would, from this folder and in this environment."""
    return run_in(folder, *bench.arguments(*stages), **environment)


def foreign_project(folder: Path) -> dict[str, str]:
    """A project of somebody else's in an environment where the suite is installed: what pytest finds it by."""
    site = folder / "site"
    info = site / "steph-0.2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: steph\nVersion: 0.2.0\n")
    (info / "entry_points.txt").write_text("[pytest11]\nsteph.plugin = steph.plugin\n")
    (site / "steph").symlink_to(CLONE / "plugins" / "steph")
    project = folder / "project"
    project.mkdir()
    (project / "pytest.ini").write_text("[pytest]\nmarkers = gpu: ours\naddopts = --strict-markers\n")
    (project / "test_theirs.py").write_text(FOREIGN)
    return {"PYTHONPATH": str(site)}


@pytest.mark.parametrize("options", [(), ("-m", "gpu"), ("-n", "1"), ("-p", "no:timeout", "-p", "no:order")])
def test_a_foreign_projects_gpu_tests_run_as_ever(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Installed beside it, the suite neither skips nor refuses its tests, loads nothing heavy and writes nothing.

    What pytest does at the end to find garbage, it does.
    """
    environment = foreign_project(tmp_path)
    done = run_in(tmp_path / "project", *options, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "StepH" not in done.stdout
    assert "-n" in options or "frozen: 0" in done.stdout
    assert {path.name for path in (tmp_path / "project").iterdir()} <= {"pytest.ini", "test_theirs.py", "__pycache__"}


def test_installed_and_in_a_clone_the_plugin_is_registered_once(tmp_path: Path) -> None:
    """The entry point and the clone's conftest name the same module, so that both together still start."""
    environment = foreign_project(tmp_path)
    done = run_in(CLONE, "--collect-only", "-q", str(PAGE), **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 tests collected" in done.stdout


def test_a_broken_test_file_beside_the_stages_opens_no_record(tmp_path: Path) -> None:
    """Where the collection fails nothing runs, so no empty record hides the last one from a rerun."""
    bench = make_bench(tmp_path)
    assert bench.run(H1)[0] == 0
    broken = tmp_path / "test_broken.py"
    broken.write_text("import nowhere_to_be_found\n")
    assert run_pytest(bench.arguments(), str(broken))[0] == 2
    assert run_pytest(bench.arguments(), "-m", "gpu and (")[0] == 4
    assert len(record_folders(bench.reports / "runs")) == 1
    assert bench.record().verdict_of(H1) is Verdict.PASS


def test_paths_are_those_of_the_folder_where_they_are_typed(tmp_path: Path) -> None:
    """Relative options start in the person's folder, and the recorded command works from the root of the clone."""
    bench = make_bench(tmp_path)
    options = ("--steph-profile=planted.toml", "--steph-pipeline-root=pipeline", "--steph-report=reports")
    done = run_in(tmp_path, "-m", "gpu", *options, f"{PAGE}::test_h1_model_is_reachable")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"--steph-report={bench.reports}" in bench.record().sessions[-1].command
    assert f"--steph-pipeline-root={bench.root}" in bench.record().sessions[-1].command


def test_what_pytest_addopts_says_is_in_the_recorded_command(tmp_path: Path) -> None:
    """A command that can be pasted names the options that came from PYTEST_ADDOPTS."""
    bench = make_bench(tmp_path)
    options = [option for option in bench.arguments() if option.startswith("--steph-")]
    asked = ("-m", "gpu", "-p", "no:cacheprovider", f"{PAGE}::test_h1_model_is_reachable")
    status, output = run_pytest(asked, PYTEST_ADDOPTS=" ".join(options))
    assert status == 0, output
    assert set(options) <= set(bench.record().sessions[-1].command)


def test_a_locale_that_knows_only_ascii_loses_nothing(tmp_path: Path) -> None:
    """Under LC_ALL=C without UTF-8 mode the stages run, and the report has its name and its Japanese text."""
    bench = make_bench(tmp_path)
    done = run(bench, H1, LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "書けなかった" not in done.stdout
    assert [path.name for path in bench.reports.glob("*.md")] == ["StepH_予行.md"]
    assert "タスクH-1" in bench.report()


def test_a_path_that_the_locale_cannot_spell_is_one_line(tmp_path: Path) -> None:
    """A Japanese root under LC_ALL=C without UTF-8 mode: exit 4 with the option and the remedy, nothing written."""
    (tmp_path / "日本").mkdir()
    bench = make_bench(tmp_path / "日本")
    done = run(bench, H1, LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "UTF-8 で書けない名前" in done.stderr
    assert "PYTHONUTF8=1" in done.stderr
    assert not bench.reports.exists()


def test_odd_names_of_folders_are_only_names(tmp_path: Path) -> None:
    """Spaces, Japanese and a line feed in the root's name reach scripts, record and report unchanged."""
    bench = make_bench(tmp_path)
    root = bench.root.rename(tmp_path / "日本 語\nx")
    status, output = bench.run(options=(f"--steph-pipeline-root={root}",))
    assert status == 0, output
    assert bench.record().context.pipeline_root == os.fspath(root)


def test_without_capture_the_stages_run(tmp_path: Path) -> None:
    """`-p no:capture` takes away the plugin that lines are written around; they are written all the same."""
    bench = make_bench(tmp_path)
    status, output = bench.run(H1, options=("-p", "no:capture"))
    assert status == 0, output
    assert "H-1 PASS" in output
