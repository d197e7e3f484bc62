"""`steph doctor` as a person runs it, and as `make accept` does."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_nvml import FakeNvml, Gpu, Running
from japanese import JAPANESE, english_in
from process_tree import wait_until
from steph.base.messages import speaking
from steph.cli import app
from steph.contract.options import Options
from steph.contract.settings import builtin_profiles, load_profile
from steph.doctor import command, reading
from steph.doctor.checks import CATALOG
from steph.doctor.command import as_text, conclusion, doctor_status, exit_status
from steph.doctor.facts import GpuFacts, Level, Line
from steph.run.gpu import gpu_lock
from suite_runs import CLONE, Bench, clean_environment, make_bench, unignore_signals
from typer.testing import CliRunner

GIB = 1 << 30
# of a report: terms that Japanese writes so, too, and commands
VERBATIM = ("compute capability",)
OK = Line("driver", Level.OK, "580")
FAIL = Line("4-bit", Level.FAIL, "raises", "pip install -U bitsandbytes")
NO_PYTHON = "--pipeline-python=/bin/true"  # one that answers nothing, at once
CERTAIN = Line("torch", Level.FAIL, "no CUDA", "install it", is_certain=True)
no_card = pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has an NVIDIA card")


def doctor(*words: object, folder: Path = CLONE, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder, offline unless told otherwise."""
    path = {"PYTHONPATH": str(CLONE / "plugins"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "steph.cli", "doctor", *map(str, words)],
        cwd=folder,
        env=clean_environment() | path | environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def doctor_here(*words: object) -> subprocess.CompletedProcess[str]:
    """The command in this process, which has its modules loaded; it forks for each question all the same."""
    done = CliRunner().invoke(app, ["doctor", *map(str, words)], env={"HF_HUB_OFFLINE": "1"})
    return subprocess.CompletedProcess([*map(str, words)], done.exit_code, done.stdout, done.stderr)


def of(bench: Bench) -> list[str]:
    """The options that name a bench."""
    return [f"--profile={bench.profile}", f"--pipeline-root={bench.root}", f"--steph-report={bench.reports}"]


def levels(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The level of each check in --json's output."""
    return {line["check"]: line["level"] for line in json.loads(done.stdout)["lines"]}


def test_a_sound_cpu_rehearsal_is_ok_from_end_to_end(tmp_path: Path) -> None:
    """Every check of the table has its line in its order and nothing fails: status 0.

    The 4-bit layer is left out with --quick: pipeline/test_checkup.py computes it, and so does `make accept` as typed.
    """
    bench = make_bench(tmp_path)
    done = doctor(*of(bench), "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if not line.startswith(("doctor:", " "))]
    assert [row[1] for row in rows] == [kind.id for kind in CATALOG]
    told = {row[1]: row[0] for row in rows}
    assert (told["4-bit"], told["torch"], told["model"]) == ("n/a", "ok", "ok")
    assert (told["driver"], told["bf16"], told["wsl"]) == ("n/a", "n/a", "n/a")
    assert not bench.reports.exists()


@no_card
def test_without_a_driver_the_gpu_profile_fails_and_nothing_hangs(tmp_path: Path) -> None:
    """No NVIDIA card: the driver fails, the card's checks do not apply, and the gate is closed with 3."""
    bench = make_bench(tmp_path)
    done = doctor_here("--quick", "--gate", "--json", f"--pipeline-root={bench.root}", NO_PYTHON)
    told = levels(done)
    assert done.returncode == 3, done.stderr
    assert (told["driver"], told["card"], told["4-bit"], told["model"]) == ("fail", "n/a", "n/a", "fail")


def test_a_root_that_a_run_refuses_or_holds_is_a_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    """A missing script and a held root fail in their own lines; the other checks are there all the same."""
    bench = make_bench(tmp_path)
    (bench.root / "scripts/train_qwen_law_ft.py").unlink()
    handle = os.open(bench.root, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    done = doctor_here(*of(bench), NO_PYTHON, "--json")
    os.close(handle)
    told = levels(done)
    assert done.returncode == 1
    assert (told["pipeline"], told["busy"], told["disk-output"], told["python"]) == ("fail", "fail", "ok", "fail")


def test_an_interpreter_that_is_not_there_is_a_line(tmp_path: Path) -> None:
    """A wrong --pipeline-python fails as such, and what would run in it does not apply."""
    done = doctor_here(*of(make_bench(tmp_path)), "--pipeline-python=/no/such/python", "--json")
    told = levels(done)
    assert done.returncode == 1
    assert (told["python"], told["packages"], told["torch"], told["4-bit"]) == ("fail", "n/a", "n/a", "n/a")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--profile", "nowhere"), "プロファイル 'nowhere' がない"),
        (("--jsn",), "unrecognized arguments: --jsn"),
        (("--steph-vram-cap", "lots"), "'lots' は大きさとして読めない"),
        (("--steph-vram-cap", "lots", "--language", "en"), "'lots' is not a size"),
    ],
)
def test_what_can_not_be_used_is_status_2(words: tuple[str, ...], said: str) -> None:
    """An unknown profile, option or value is named on stderr, and nothing is examined."""
    done = doctor_here(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_options_are_those_of_a_run_wherever_they_come_from(tmp_path: Path) -> None:
    """Ini file, environment and PYTEST_ADDOPTS name the profile as they do for pytest; conftest files stay out."""
    bench = make_bench(tmp_path / "bench")
    project = tmp_path / "project"
    project.mkdir()
    (project / "conftest.py").write_text("raise RuntimeError('read')\n")
    (project / "pytest.ini").write_text(f"[pytest]\nsteph_profile = {bench.profile}\n")
    places = {
        "planted": doctor(NO_PYTHON, "--json", folder=project),
        "cpu": doctor(NO_PYTHON, "--json", STEPH_PROFILE="cpu"),
        "a100-20gb": doctor(NO_PYTHON, "--json", PYTEST_ADDOPTS="--steph-profile=a100-20gb"),
    }
    assert {name: json.loads(done.stdout)["profile"] for name, done in places.items()} == {n: n for n in places}


def test_the_doctors_own_process_never_loads_torch(tmp_path: Path) -> None:
    """torch is imported by the pipeline's interpreter alone."""
    bench = make_bench(tmp_path)
    code = (
        "import sys\nfrom steph.cli import app\nfrom typer.testing import CliRunner\n"
        "CliRunner().invoke(app, ['doctor', '--quick', *sys.argv[1:]])\n"
        "print(sorted({'torch', 'transformers', 'bitsandbytes', 'pynvml', 'huggingface_hub'} & set(sys.modules)))"
    )
    environment = clean_environment() | {"PYTHONPATH": str(CLONE / "plugins")}
    done = subprocess.run(
        [sys.executable, "-c", code, *of(bench), NO_PYTHON],
        env=environment,
        cwd=CLONE,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def examined(bench: Bench, monkeypatch: pytest.MonkeyPatch, read_gpu: Callable[[], GpuFacts]) -> dict[str, Line]:
    """An examination under a GPU profile where NVML says this, with an interpreter that answers nothing."""
    monkeypatch.setattr(reading, "read_gpu", read_gpu)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(bench.folder / "cache"))
    options = Options("rtx3080", bench.root, "/bin/true", None, False, None, bench.reports)
    profile = load_profile(builtin_profiles() / "rtx3080.toml")
    with speaking("en"):
        return {line.check: line for line in command.examine(options, profile, is_quick=False)}


def test_a_driver_that_hangs_is_a_line_after_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML that never answers costs its deadline, fails in its own line, and the card's checks do not apply."""
    monkeypatch.setattr(command, "LOCAL_SECONDS", 1.0)

    def hang() -> GpuFacts:
        time.sleep(600)
        return GpuFacts(has_nodes=True)

    told = examined(make_bench(tmp_path), monkeypatch, hang)
    assert told["driver"].level is Level.FAIL
    assert not told["driver"].is_certain
    assert "no answer within 1 s" in told["driver"].message
    assert {told[check].level for check in ("card", "memory", "bf16", "4-bit")} == {Level.NOT_APPLICABLE}


def test_a_card_is_looked_at_and_nothing_runs_on_it_while_another_run_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card's lines are there; a held card fails as busy and is not disturbed by a 4-bit operation."""
    bench = make_bench(tmp_path)
    nvml = FakeNvml(Gpu("GPU-1", used=2 * GIB, processes=[Running(os.getpid(), GIB)]))
    monkeypatch.setattr("steph.run.gpu._load", lambda: nvml)
    monkeypatch.setattr("steph.doctor.reading.has_nvidia_nodes", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with gpu_lock("GPU-1", bench.folder / "cache" / "steph" / "locks"):
        told = examined(bench, monkeypatch, reading.read_gpu)
    assert told["driver"].message == "580.65.06, runs CUDA up to 13.0"
    assert "RTX 3080, card of 10.00 GiB, compute capability 8.6" in told["card"].message
    assert f"8.00 GiB of 10.00 GiB free; held by pid {os.getpid()}" in told["memory"].message
    assert told["bf16"].level is Level.OK
    assert told["busy"].is_certain
    assert f"pid {os.getpid()}" in told["busy"].message
    assert told["4-bit"].level is Level.NOT_APPLICABLE


def test_a_hidden_card_is_said_before_anything_else_about_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_VISIBLE_DEVICES that leaves nothing visible fails in the card's line; memory and bf16 have no card."""
    told = examined(make_bench(tmp_path), monkeypatch, lambda: GpuFacts(has_nodes=True, count=1, visible="3"))
    assert told["driver"].level is Level.OK
    assert told["card"].is_certain
    assert {told["memory"].level, told["bf16"].level} == {Level.NOT_APPLICABLE}


def test_exit_status_and_conclusion_follow_from_the_lines() -> None:
    """1 where anything fails, at the gate 3 where something certain does, else 0; the conclusion names that."""
    assert exit_status([OK], is_gate=False) == 0
    assert exit_status([OK, FAIL], is_gate=False) == 1
    assert exit_status([OK, FAIL], is_gate=True) == 0
    assert exit_status([OK, FAIL, CERTAIN], is_gate=True) == 3
    with speaking("en"):
        assert conclusion([OK, FAIL]) == "doctor: 1 ok, 0 warn, 1 fail, 0 n/a"
        assert conclusion([CERTAIN]).endswith("a run is certain to fail: torch")
        assert as_text(FAIL).splitlines()[1].strip() == "remedy: pip install -U bitsandbytes"


@pytest.mark.parametrize(
    ("words", "examined", "certain"),
    [
        ((), "doctor: プロファイル rtx3080、パイプライン ", "実行は確実に失敗する: "),
        (("--steph-language=en",), "doctor: profile rtx3080, pipeline ", "a run is certain to fail: "),
    ],
)
def test_a_report_is_in_the_language_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], examined: str, certain: str
) -> None:
    """Japanese where nothing is said, English on request: from the first line to the last nothing of the other."""
    bench, said = make_bench(tmp_path), list[str]()
    monkeypatch.setattr(reading, "read_gpu", lambda: GpuFacts(has_nodes=True, count=1, visible="3"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = [f"--steph-pipeline-root={bench.root}", f"--steph-report={bench.reports}"]
    asked += ["--steph-pipeline-python=/bin/true", *words]
    assert doctor_status(asked, said.append) == 1
    text = "\n".join(said)
    assert said[0].startswith(examined)
    assert certain in said[-1]
    assert len(said) > len(CATALOG)
    if words:
        assert JAPANESE.findall(text) == []
    else:
        assert english_in(text, VERBATIM) == []


def accept(folder: Path, doctor_status: int, *words: str, **environment: str) -> tuple[int, str, list[str]]:
    """tools/accept.sh with a fake Python: exit status, output, and the modules and words that it was called with."""
    fakes = folder / ".venv" / "bin"
    fakes.mkdir(parents=True)
    (folder / "tools").mkdir()
    (folder / "tools" / "accept.sh").write_bytes((CLONE / "tools" / "accept.sh").read_bytes())
    fake = f'#!/bin/sh\necho "$2" "$@" >> {folder}/calls\n[ "$2" = steph.cli ] && exit {doctor_status}\nexit 7\n'
    (fakes / "python").write_text(fake)
    (fakes / "python").chmod(0o755)
    done = subprocess.run(
        ["bash", str(folder / "tools" / "accept.sh"), *words],
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    calls = folder / "calls"
    return done.returncode, done.stdout + done.stderr, calls.read_text().splitlines() if calls.exists() else []


def test_accept_starts_nothing_where_a_run_is_certain_to_fail(tmp_path: Path) -> None:
    """The gate's 3 ends it with 4 before pytest, and says how to run all the same."""
    status, output, calls = accept(tmp_path, 3, "--steph-model", "x")
    assert status == 4
    assert "STEPH_SKIP_DOCTOR=1" in output
    (call,) = calls
    assert call.startswith("steph.cli -m steph.cli doctor --gate")
    assert call.endswith("--steph-model x")


@pytest.mark.parametrize("doctor_status", [0, 1, 2])
def test_accept_goes_on_after_everything_else(tmp_path: Path, doctor_status: int) -> None:
    """What the doctor passes, can't read or stumbles over itself, pytest is left to judge: its status is accept's."""
    status, _, calls = accept(tmp_path, doctor_status, "-k", "h1")
    assert status == 7
    assert [call.split()[0] for call in calls] == ["steph.cli", "pytest"]
    assert calls[1].endswith("-k h1")
    assert calls[0].split("--gate")[1] == calls[1].split("-m gpu")[1]


def test_a_doctor_who_is_wrong_can_be_left_out(tmp_path: Path) -> None:
    """STEPH_SKIP_DOCTOR=1 starts pytest at once."""
    status, _, calls = accept(tmp_path, 3, STEPH_SKIP_DOCTOR="1")
    assert status == 7
    assert [call.split()[0] for call in calls] == ["pytest"]


def _hanging(folder: Path) -> Path:
    """An interpreter that answers nothing and starts another process, whose pid it writes down."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\nsleep 600 & echo $! > {folder}/pid\nwait\n")
    path.chmod(0o755)
    return path


def _is_gone(folder: Path) -> bool:
    pid = (folder / "pid").read_text().strip()
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_an_interpreter_that_hangs_fails_after_a_deadline_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor says what it waits for, ends it with what it started, and exits with 1."""
    monkeypatch.setattr(command, "FIRST_SECONDS", 1.0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bench, said = make_bench(tmp_path), list[str]()
    words = [option.replace("--p", "--steph-p") for option in of(bench)]
    words += [f"--steph-pipeline-python={_hanging(tmp_path)}", "--steph-language=en"]
    assert doctor_status(words, said.append) == 1
    assert any(line.startswith(f"doctor: waiting for {tmp_path / 'python'}") and "at most" in line for line in said)
    assert any(line.startswith("fail  python") and "no answer" in line for line in said)
    wait_until(lambda: _is_gone(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_a_doctor_that_is_ended_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    """Whatever signal ends it while it waits, what it started ends with it."""
    bench = make_bench(tmp_path)
    python = _hanging(tmp_path) if number != signal.SIGKILL else tmp_path / "python"
    if number == signal.SIGKILL:  # only the process itself can be ended then
        python.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
        python.chmod(0o755)
    words = [sys.executable, "-m", "steph.cli", "doctor", *map(str, of(bench)), f"--steph-pipeline-python={python}"]
    process = subprocess.Popen(
        words,
        cwd=CLONE,
        env={**clean_environment(), "PYTHONPATH": "plugins"},
        stdout=subprocess.DEVNULL,
        preexec_fn=unignore_signals,
    )
    wait_until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text() != "")
    process.send_signal(number)
    assert process.wait(20) != 0
    wait_until(lambda: _is_gone(tmp_path))
