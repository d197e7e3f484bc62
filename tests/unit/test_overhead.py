"""What a whole run may not spend on itself: imports, renders, reads of a model's size, waiting past an end."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from steph.run.hub import Hub, choose
from steph.run.processes import Child, ProcessTree
from suite_runs import CLONE, clean_environment, make_bench

MODEL_BYTES = 64 << 30
SPY = """
import gc, json, os, sys
renders = []

def pytest_collection_finish():
    import steph.conduct.session
    real = steph.conduct.session.write_report

    def spied(*values, with_figures=True, **named):
        renders.append(with_figures)
        return real(*values, with_figures=with_figures, **named)

    steph.conduct.session.write_report = spied

def pytest_unconfigure():
    with open(os.environ["SPY_FILE"], "w") as file:
        json.dump({"renders": renders, "modules": list(sys.modules), "frozen": gc.get_freeze_count()}, file)
"""


def test_a_whole_run_renders_four_times_and_loads_nothing_needless(tmp_path: Path) -> None:
    """A report after each stage and one at the end; no torch, no Hub client, no other package's plugin."""
    bench = make_bench(tmp_path)
    (tmp_path / "spy.py").write_text(SPY)
    places = {"PYTHONPATH": str(tmp_path), "SPY_FILE": str(tmp_path / "seen.json")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "spy", *bench.arguments()],
        cwd=CLONE,
        env=clean_environment() | places,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["renders"] == [True, True, False, True], "pictures are drawn beside a stage, and at the end"
    assert seen["frozen"], "pytest looks through everything for garbage, twice"
    needless = {"torch", "transformers", "huggingface_hub.hf_api", "httpx", "hypothesis", "anyio", "markdown_it"}
    assert not needless & set(seen["modules"])


def test_a_model_is_looked_through_by_its_headers_alone(tmp_path: Path) -> None:
    """Choosing a local model of 64 GiB reads less than a megabyte."""
    header = {"w": {"dtype": "BF16", "shape": [MODEL_BYTES // 2], "data_offsets": [0, MODEL_BYTES]}}
    encoded = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + MODEL_BYTES)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    choose(["/nowhere", str(tmp_path)], Hub())  # what is imported on the way is read before the counting
    before = _bytes_read()
    assert choose([str(tmp_path)], Hub()).parameters == MODEL_BYTES // 2
    assert _bytes_read() - before < 1 << 20


def _bytes_read() -> int:
    """Bytes that this process asked of files so far (proc_pid_io(5))."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar:"))


@pytest.mark.parametrize("kernel_is_old", [False, True])
def test_an_end_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch, kernel_is_old: bool) -> None:
    """The kernel wakes who waits for a process; only where it can't does Popen ask for it again and again."""

    def refused(pid: int) -> int:
        raise OSError("no such call")

    if kernel_is_old:
        monkeypatch.setattr(os, "pidfd_open", refused)
    process = Child[bytes](["sleep", "0.2"])
    timeouts: list[float] = []
    waits = process.wait

    def noted(timeout: float) -> int:
        timeouts.append(timeout)
        return waits(timeout)

    monkeypatch.setattr(process, "wait", noted)
    assert ProcessTree(process, "NAME=value", 1.0).wait(30.0)
    assert timeouts == [30.0 if kernel_is_old else 0]


def test_a_childs_keeper_starts_without_what_it_needs_not() -> None:
    """Each attempt and each question to a script starts a supervisor: `dataclasses` alone would be a fifth of that."""
    needless = {"dataclasses", "inspect", "ast", "logging", "tempfile", "shutil"}
    code = f"import steph.child.supervisor, sys; print(sorted({needless!r} & set(sys.modules)))"
    path = f"import sys; sys.path.append({str(CLONE / 'plugins')!r}); "
    done = subprocess.run([sys.executable, "-I", "-S", "-c", path + code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
