"""Which tests pytest collects in a clone: the stages alone where `-m` can select no unit test."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from suite_runs import CLONE, clean_environment, run_pytest

UNIT_TESTS = CLONE / "tests" / "unit"
NO_GPU = "このマシンに NVIDIA GPU がない"


def conftest() -> ModuleType:
    """The clone's conftest, under a name of its own."""
    spec = importlib.util.spec_from_file_location("conftest_of_the_clone", CLONE / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("expression", "can"),
    [
        ("gpu", False),
        ("extended", False),
        ("gpu or extended", False),
        ("(gpu and not extended) or steph_stage", False),
        ("gpu and slow", False),
        ("gpu and not slow", False),
        ("extended or (slow and not slow)", False),
        ("steph_stage(stage='H-1')", False),
        ("not gpu", True),
        ("not (gpu or extended)", True),
        ("gpu or slow", True),
        ("parametrize", True),
        ("not gpu and not slow", True),
        ("gpu and (", True),
    ],
)
def test_an_expression_selects_unit_tests_or_can_not(expression: str, can: bool) -> None:
    """Whatever other marks a test has, without the stages' marks it matches or can't; a wrong expression may."""
    assert conftest().can_select_a_unit_test(expression) is can


def test_no_unit_test_has_a_mark_of_the_stages() -> None:
    """What conftest.py takes for granted of every file that it leaves out."""
    marked = set()
    for path in UNIT_TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("pytest.mark."):
                marked |= {(path.name, node.attr)} & {(path.name, mark) for mark in conftest().STAGE_MARKS}
    assert marked == set()


WITHOUT_CARD = {
    ("-m", "gpu"): 9,
    ("-m", "extended"): 9,
    ("-m", "gpu or extended"): 9,
    ("-m", "gpu", "-k", "h2"): 9,
    ("-m", "gpu", "--lf"): 9,
    ("-m", "gpu", "tests"): 9,
    ("-m", "gpu", "--steph-profile", "rtx3080", "-p", "no:order", "-p", "no:timeout", "-p", "no:xdist"): 9,
    ("tests/acceptance/test_steph.py::test_h2_lora_training_completes",): 1,
}


@pytest.fixture(scope="module")
def refused() -> dict[tuple[str, ...], tuple[int, str]]:
    """How pytest ends on each of them, what it prints, and what it has loaded; one process forks for each."""
    code = (
        "import json, os, sys, pytest\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    if (child := os.fork()) == 0:\n"
        "        os.dup2(1, 2)\n"
        "        sys.argv[1:] = sys.orig_argv[3:] = words\n"
        "        status = pytest.main(words)\n"
        "        heavy = {'torch', 'steph.conduct.session', 'jinja2', 'huggingface_hub'}\n"
        "        print('loaded', sorted(heavy & set(sys.modules)), int(status), flush=True)\n"
        "        os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
        "    print('\\f', flush=True)\n"
    )
    asked = [[*(("-p", "no:cacheprovider") if "--lf" not in words else ()), *words] for words in WITHOUT_CARD]
    command = [sys.executable, "-c", code, json.dumps(asked)]
    done = subprocess.run(command, cwd=CLONE, env=clean_environment(), capture_output=True, text=True, check=True)
    texts = done.stdout.split("\f\n")
    return {words: (int(text.split()[-1]), text) for words, text in zip(WITHOUT_CARD, texts, strict=False)}


@pytest.mark.parametrize("words", WITHOUT_CARD, ids=" ".join)
@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has an NVIDIA card")
def test_no_gpu_is_said_before_a_unit_test_is_imported(
    words: tuple[str, ...], refused: dict[tuple[str, ...], tuple[int, str]]
) -> None:
    """Only the stages are collected, and neither their session nor torch is loaded to say that there is no card."""
    status, output = refused[words]
    assert status == 4, output
    assert re.search(rf"collected {WITHOUT_CARD[words]} items?\b", output)
    assert NO_GPU in output
    assert output.splitlines()[-1] == "loaded [] 4"


def test_a_unit_test_that_is_named_is_collected() -> None:
    """`-m gpu` and a path into the unit tests: pytest collects what was named, and deselects it itself."""
    words = ("-m", "gpu", "--co", "-q", "-p", "no:cacheprovider", "tests/unit/test_rooms.py")
    status, output = run_pytest(words)
    assert status == 5, output
    assert "deselected" in output


@pytest.mark.parametrize("plugin", ["terminal", "timeout", "order", "xdist", "cacheprovider", "skipping", "junitxml"])
def test_the_clone_needs_no_plugin_that_can_be_switched_off(plugin: str) -> None:
    """`-p no:PLUGIN` of any of them: the stages are still collected under the clone's strict configuration."""
    words = ("-m", "gpu", "--co", "-p", f"no:{plugin}", "-p", "no:cacheprovider")
    status, output = run_pytest(words)
    assert status == 0, output


def test_no_unit_test_holds_a_limit_on_seconds() -> None:
    """None measures how long the code under test takes: what hangs is pytest-timeout's, speed is benchmarks/'s."""
    clocks = r"perf_counter\(|process_time|thread_time|getrusage|cpu_times|monotonic\(\) -|\btimeout=\d|\.seconds <"
    own = [path for path in UNIT_TESTS.rglob("*.py") if "root" not in path.parts]  # `root`: a pipeline under test
    found = {path.name for path in own if re.search(clocks, path.read_text(encoding="utf-8"))}
    assert found == {Path(__file__).name}
