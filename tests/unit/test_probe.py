"""The injected sitecustomize: what it tells of a process, and that the process does not notice it."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from steph.child import supervisor
from steph.record.values import Probe
from steph.run.runner import ChildSpec, read_probes, run_child

INJECT = Path(supervisor.__file__).parent / "inject"

FAKE_TORCH = """
__version__ = "9.9.0+fake"
class OutOfMemoryError(RuntimeError):
    pass
class _Properties:
    uuid = "11111111-2222-3333-4444-555555555555"
class cuda:
    ready = False
    is_initialized = staticmethod(lambda: cuda.ready)
    device_count = staticmethod(lambda: 2)
    get_device_properties = staticmethod(lambda index: _Properties)
    max_memory_allocated = staticmethod(lambda index: 100 + index)
    max_memory_reserved = staticmethod(lambda index: 200 + index)
    memory_stats = staticmethod(lambda index: {"num_alloc_retries": 3})
    get_per_process_memory_fraction = staticmethod(lambda index: 0.5)
"""

SPAWNING = """
import multiprocessing, sys, torch
def work():
    print(sys.argv, sys.path)
if __name__ == "__main__":
    for method in ("spawn", "fork", "forkserver"):
        process = multiprocessing.get_context(method).Process(target=work)
        process.start()
        process.join()
    sys.exit(5)
"""


@dataclass(frozen=True)
class Seen:
    """What a shell would see of a process, and the probes it left."""

    stdout: str
    stderr: str
    returncode: int
    probes: tuple[Probe, ...]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a fake torch to import and scripts to run."""
    (tmp_path / "torch.py").write_text(FAKE_TORCH)
    (tmp_path / "fails.py").write_text("import torch\ndef f():\n    raise torch.OutOfMemoryError('no room')\nf()\n")
    (tmp_path / "tells.py").write_text("import sys, torch\nprint(sys.argv, __file__, sys.path, sys.excepthook)\n")
    (tmp_path / "spawns.py").write_text(SPAWNING)
    return tmp_path


def seen(place: Path, *argv: str, probed: bool = True, python: str = sys.executable, **environment: str) -> Seen:
    """Run Python in this folder, with the probe injected or without."""
    probes = place / "probes"
    shutil.rmtree(probes, ignore_errors=True)
    probes.mkdir()
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
    path = f"{INJECT}{os.pathsep}{place}" if probed else str(place)
    result = subprocess.run(
        [python, *argv],
        cwd=place,
        env={**own, "PYTHONPATH": path, "STEPH_PROBE_DIR": str(probes), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return Seen(result.stdout, result.stderr, result.returncode, read_probes(probes))


@pytest.mark.parametrize(
    "argv",
    [
        ("tells.py", "--x", "a b"),
        ("fails.py",),
        ("-m", "fails"),
        ("-m", "tells", "y"),
        ("-c", "import torch; {}['x']"),
        ("-c", "import torch, sys; sys.exit('words')"),
        ("-c", "import torch, os; os.kill(os.getpid(), 15)"),
        ("-c", "syntax error"),
        ("spawns.py",),
        ("nowhere.py",),
        ("-c", "import sys; sys.excepthook = lambda *a: print('own hook'); import torch; 1 / 0"),
    ],
)
def test_process_does_not_notice_the_probe(place: Path, argv: tuple[str, ...]) -> None:
    """stdout, stderr and exit status are byte for byte those without the probe."""
    plain, probed = seen(place, *argv, probed=False), seen(place, *argv)
    assert (probed.stdout, probed.stderr, probed.returncode) == (plain.stdout, plain.stderr, plain.returncode)


@pytest.mark.parametrize("minor", [9, 10, 12, 13])
def test_probe_works_in_the_pipelines_own_python(place: Path, minor: int) -> None:
    """Interpreters that the suite itself does not run on leave the same probe and the same traceback."""
    python = shutil.which(f"python3.{minor}")
    if python is None or subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip(f"no working python3.{minor} here")
    plain, probed = seen(place, "fails.py", probed=False, python=python), seen(place, "fails.py", python=python)
    assert probed.stderr == plain.stderr
    assert [probe.exception_type for probe in probed.probes] == ["torch.OutOfMemoryError"]


@pytest.mark.parametrize(
    ("name", "minor"),
    [
        ("child/inject/sitecustomize.py", 9),
        ("base/text.py", 9),
        ("child/checkup.py", 9),
        ("child/twin.py", 10),
    ],
)
def test_what_runs_in_the_pipelines_python_is_written_for_older_ones(name: str, minor: int) -> None:
    """What the suite runs in another project's interpreter has no syntax that this interpreter would refuse."""
    path = INJECT.parents[1] / name
    assert ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, minor)).body


def test_uncaught_exception_is_told_by_type_and_message(place: Path) -> None:
    """The exception that ended a process is named as its traceback names it, with the message."""
    (probe,) = seen(place, "fails.py").probes
    assert (probe.exception_type, probe.exception_message) == ("torch.OutOfMemoryError", "no room")
    assert probe.packages == {"torch": "9.9.0+fake"}
    assert probe.peak_rss_bytes is not None
    assert probe.peak_rss_bytes > 1 << 20


def test_exception_is_told_under_a_hook_of_the_scripts_own(place: Path) -> None:
    """A script that replaces sys.excepthook hides nothing from the probe."""
    (probe,) = seen(place, "-c", "import sys, torch; sys.excepthook = lambda *a: None; 1 / 0").probes
    assert probe.exception_type == "ZeroDivisionError"


def test_long_messages_are_cut_and_secrets_are_not_told(place: Path) -> None:
    """A message has at most 2,000 characters and no token."""
    token = "hf_" + "a" * 34
    (probe,) = seen(place, "-c", f"import torch; raise ValueError('{token} ' + 'x' * 9000)").probes
    assert probe.exception_message is not None
    assert len(probe.exception_message) == 2000
    assert token not in probe.exception_message


def test_peaks_are_those_of_the_device_that_worked(place: Path) -> None:
    """With CUDA initialised the peaks, retries, fraction and UUID are those of the device with the highest peak."""
    (probe,) = seen(place, "-c", "import torch; torch.cuda.ready = True", RANK="1").probes
    assert (probe.rank, probe.device_uuid) == (1, "GPU-11111111-2222-3333-4444-555555555555")
    assert (probe.peak_allocated_bytes, probe.peak_reserved_bytes) == (101, 201)
    assert (probe.allocator_retries, probe.memory_fraction) == (3, 0.5)


def test_without_cuda_no_peak_is_told(place: Path) -> None:
    """Where CUDA was never initialised the figures are None, not zero."""
    (probe,) = seen(place, "-c", "import torch").probes
    assert (probe.device_uuid, probe.peak_allocated_bytes, probe.memory_fraction) == (None, None, None)


def test_only_processes_with_torch_leave_a_probe(place: Path) -> None:
    """A Python process that never loaded torch leaves nothing, and torch is not loaded for the probe's sake."""
    assert seen(place, "-c", "import sys; assert 'torch' not in sys.modules").probes == ()


def test_one_figure_that_fails_costs_no_other(place: Path) -> None:
    """A torch whose CUDA questions raise still leaves versions and the exception."""
    code = "import torch; torch.cuda.is_initialized = None; raise KeyError('x')"
    (probe,) = seen(place, "-c", code).probes
    assert (probe.exception_type, probe.packages) == ("KeyError", {"torch": "9.9.0+fake"})


def test_next_sitecustomize_runs(place: Path) -> None:
    """A sitecustomize of the environment's own runs as without the probe, and is the one that can be imported."""
    (place / "sitecustomize.py").write_text("print('own sitecustomize')\nMARK = 1\n")
    code = "import sitecustomize; print(sitecustomize.MARK, sitecustomize.__file__)"
    plain, probed = seen(place, "-c", code, probed=False), seen(place, "-c", code)
    assert plain.stdout.startswith("own sitecustomize\n1 ")
    assert (probed.stdout, probed.stderr) == (plain.stdout, plain.stderr)


def test_unwritable_folder_is_silent(place: Path) -> None:
    """Where the probe can't be written the process ends as if nothing had been asked."""
    outcome = seen(place, "-c", "import torch", STEPH_PROBE_DIR="/proc/nowhere")
    assert (outcome.stdout, outcome.stderr, outcome.returncode) == ("", "", 0)


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
def test_runner_reads_the_probe_of_a_real_torch(tmp_path: Path) -> None:
    """A child with the installed torch comes back with its version and the exception that ended it."""
    argv = (sys.executable, "-c", "import torch; torch.zeros(2) @ torch.zeros(3)")
    outcome = run_child(ChildSpec(argv, tmp_path, tmp_path / "attempt", 120, env={"OMP_NUM_THREADS": "1"}))
    assert outcome.returncode == 1
    (probe,) = outcome.probes
    assert probe.exception_type == "RuntimeError"
    assert probe.exception_message is not None
    assert "inconsistent tensor size" in probe.exception_message
    assert probe.packages["torch"]
