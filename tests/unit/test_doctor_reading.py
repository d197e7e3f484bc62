"""How the doctor comes to its facts: questions with a deadline, the checkup in another Python, the Hub, the locks."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from fake_hub import FakeHub, FakeModel, answer, hang
from fake_nvml import FakeNvml, Gpu, Running
from planted import plant
from process_tree import wait_until
from steph.base.messages import speaking
from steph.base.units import GIB
from steph.contract.options import Options
from steph.contract.settings import Profile, builtin_profiles, load_profile
from steph.doctor import reading
from steph.doctor.facts import Checkup, GpuFacts, HubFacts, Unread
from steph.doctor.reading import NOT_STARTED, SCRIPT, Question, read_checkup
from steph.run.gpu import gpu_lock, lock_folder


def unignorable() -> int:
    """A child that a SIGTERM does not end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
    return 1


def raises() -> int:
    """A question that fails."""
    raise OSError("the disk is gone")


def crashes() -> int:
    """A library that takes its process along."""
    os.kill(os.getpid(), signal.SIGKILL)
    return 1


def speaks() -> int:
    """A library that prints."""
    print("noise")
    os.write(2, b"noise")
    return 7


def children() -> set[int]:
    """This process's children, ended ones that nobody waited for too; other tests may have left a helper running."""
    return {child.pid for child in psutil.Process().children()}


@pytest.mark.parametrize(
    ("ask", "reason"),
    [(unignorable, "no answer within 0.3 s"), (raises, "OSError: the disk is gone"), (crashes, "without an answer")],
)
def test_a_question_without_an_answer_says_why_and_leaves_no_process(ask: Callable[[], int], reason: str) -> None:
    """A hang ends at the deadline, an error and a crash are told, and no child is left."""
    before = children()
    with speaking("en"):
        found = Question(ask, 0.3 if ask is unignorable else 250).answer()
    assert isinstance(found, Unread)
    assert reason in found.reason
    assert children() == before


def test_an_answer_of_any_size_comes_back_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """Megabytes pass the pipe whole; what the child prints stays with it."""
    assert Question(lambda: "x" * 3_000_000, 250).answer() == "x" * 3_000_000
    assert Question(speaks, 250).answer() == 7
    assert capfd.readouterr() == ("", "")


def test_questions_are_asked_at_the_same_time() -> None:
    """Four that wait for one another are all answered: each of them runs while the others do."""
    all_four = multiprocessing.get_context("fork").Barrier(4)
    asked = [Question(lambda: all_four.wait(250), 250) for _ in range(4)]
    assert {question.answer() for question in asked} == {0, 1, 2, 3}


def run_checkup(python: str, *words: str, deadline_seconds: float = 250, **environment: str) -> Checkup:
    """The checkup of a Python, on the CPU."""
    words = ("--device", "cpu", *words)
    own = {**os.environ, **environment}
    run = partial(reading.run_checkup, python, words, own, deadline_seconds, deadline_seconds)
    found = Question(run, 250).answer()
    assert isinstance(found, Checkup)
    return found


def shell_script(folder: Path, text: str) -> str:
    """A program that is called a Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_python_without_packages_says_so_in_every_step(tmp_path: Path) -> None:
    """An interpreter that has no site-packages still answers each step, with the error's own words."""
    found = run_checkup(shell_script(tmp_path, f'exec "{sys.executable}" -S -E "$@"'))
    assert found.python
    assert found.python.packages["torch"] is None
    for step in (found.torch, found.product, found.libraries, found.four_bit):
        assert step
        assert "No module named" in (step.error or "")


def test_quick_ends_after_torch() -> None:
    """With --quick neither libraries nor a 4-bit layer are loaded."""
    found = run_checkup(sys.executable, "--quick")
    assert found.torch
    assert found.torch.version
    assert (found.product, found.libraries, found.four_bit) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "returncode"), [("kill -9 $$", -9), ("echo no steps; exit 3", 3), ('echo "[1]"; echo "{}"', 0)]
)
def test_an_interpreter_that_answers_nothing_has_no_steps(tmp_path: Path, text: str, returncode: int) -> None:
    """A crash, a failing wrapper and output of another kind leave every step out, with the exit status."""
    found = run_checkup(shell_script(tmp_path, text))
    assert found == Checkup(returncode=returncode)


def test_a_hanging_interpreter_ends_at_the_deadline_with_its_children(tmp_path: Path) -> None:
    """What came before the hang is kept, the return code is None, and the whole group is gone."""
    pid_file = tmp_path / "pid"
    hanging = shell_script(
        tmp_path, f'echo \'{{"step": "python", "version": "3"}}\'; sleep 600 & echo $! > {pid_file}; wait'
    )
    found = run_checkup(hanging, deadline_seconds=1)
    assert found.returncode is None
    assert found.python
    assert found.python.version == "3"
    executable = Path("/proc") / pid_file.read_text().strip() / "exe"
    wait_until(lambda: not executable.exists())  # killed, but the kernel takes a moment


def test_an_interpreter_that_can_not_be_started_is_a_fact(tmp_path: Path) -> None:
    """A file without the right to run is no exception but an exit status, with the system's words."""
    (tmp_path / "python").write_text("")
    found = run_checkup(str(tmp_path / "python"))
    assert found.returncode == NOT_STARTED
    assert "ermission" in found.said


def test_steps_of_a_wrong_shape_are_told_not_raised() -> None:
    """A step whose facts have other types than ours is an answer that can't be read."""
    with speaking("en"):
        found = read_checkup('{"step": "python", "version": {"a": 1}}\n', "", 0)
    assert found.python is None
    assert f"{SCRIPT.name} printed something else" in found.said


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub for children of this process; no token, an empty cache."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    from huggingface_hub import constants

    with FakeHub({"Qwen/Qwen1.5-1.8B-Chat": FakeModel()}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def test_the_hub_is_asked_who_we_are(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token, a good one and a refused one are told apart; none of them is in a message."""
    hub.break_on("whoami", answer(401), times=1)
    assert reading.read_hub() == HubFacts(hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_planted0000000000")
    hub.break_on("whoami", answer(200, b'{"name": "somebody"}'), times=1)
    assert reading.read_hub() == HubFacts(hub.url, has_token=True, user="somebody")
    hub.break_on("whoami", answer(401))
    assert reading.read_hub() == HubFacts(hub.url, has_token=True, is_refused=True)
    assert [request.authorization for request in hub.asked("whoami")] == [None, *["Bearer hf_planted0000000000"] * 2]


def test_a_broken_or_silent_hub_is_a_fact(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of order, silence and an address where nobody listens are each one line."""
    monkeypatch.setattr(reading, "HUB_SECONDS", 0.5)
    with speaking("en"):
        hub.break_on("whoami", answer(503), times=1)
        assert "out of order (503)" in (reading.read_hub().error or "")
        hub.break_on("whoami", hang)
        assert "did not answer within 0.5 s" in (reading.read_hub().error or "")


def test_offline_variables_are_respected(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """With HF_HUB_OFFLINE nothing is asked, neither for the login nor for a model."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert reading.read_hub().is_offline
    assert reading.read_model(options(Path("/r")), profile()).choice is None
    assert hub.requests == []


def test_the_model_is_h1s_choice_and_nothing_of_it_is_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    """The first candidate that the Hub has is named with what is to be fetched; no file of it is asked for."""
    found = reading.read_model(options(Path("/r")), profile())
    assert found.choice
    assert found.choice.name == "Qwen/Qwen1.5-1.8B-Chat"
    assert found.choice.download_bytes
    assert hub.asked("/resolve/") == []
    assert not (tmp_path / "cache").exists()


def options(root: Path, python: str | None = None) -> Options:
    """Options that name a root."""
    return Options("rtx3080", root, python, None, False, None, root / "reports")


def profile() -> Profile:
    """The default profile."""
    return load_profile(builtin_profiles() / "rtx3080.toml")


def test_a_held_card_and_a_held_root_name_their_holders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both locks are looked at from another process, as another run would hold them, and are free afterwards."""
    import record_factory

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    device = record_factory.device()
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with gpu_lock(device.uuid, lock_folder()):
        found = reading.read_busy(tmp_path, device)
    assert f"pid {os.getpid()}" in (found.gpu or "")
    assert f"pid {os.getpid()}" in (found.root or "")
    os.close(handle)
    free = reading.read_busy(tmp_path, device)
    assert (free.gpu, free.root) == (None, None)


def test_the_root_is_judged_as_a_run_would(tmp_path: Path) -> None:
    """A missing root, and an interpreter that is not there, are the run's own one-line refusals."""
    with speaking("en"):
        found = reading.read_root(options(tmp_path / "nowhere", "/no/such/python"), profile())
    assert "no such folder" in (found.error or "")
    assert "no such interpreter" in (found.python_error or "")


def test_a_sound_root_has_its_data_and_its_script(tmp_path: Path) -> None:
    """What a run would read is named with its path and its rows."""
    found = reading.read_root(options(plant(tmp_path / "root")), profile())
    assert (found.error, found.python_error) == (None, None)
    assert found.dataset is not None
    assert found.dataset.rows > 0
    assert found.train_script == str(tmp_path / "root" / "scripts/train_qwen_law_ft.py")


def _with_cards(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml, visible: str | None = None) -> GpuFacts:
    monkeypatch.setattr("steph.doctor.reading.has_nvidia_nodes", lambda: True)
    monkeypatch.setattr("steph.run.gpu._load", lambda: nvml)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    return reading.read_gpu()


def test_the_card_that_a_run_would_use_is_told_with_who_holds_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """By CUDA_VISIBLE_DEVICES the second of two; a process that is gone or hidden has no name, and no figure either."""
    users = (Running(os.getpid(), 3 * GIB), Running(2**22 + 1, None))
    found = _with_cards(monkeypatch, FakeNvml(Gpu("GPU-a"), Gpu("GPU-b", processes=users)), visible="GPU-b")
    assert (found.has_nodes, found.count, found.error) == (True, 2, None)
    assert found.device is not None
    assert found.device.uuid == "GPU-b"
    assert [(user.pid, user.used_bytes) for user in found.users] == [(os.getpid(), 3 * GIB), (2**22 + 1, None)]
    assert "python" in found.users[0].name or "pytest" in found.users[0].name
    assert found.users[1].name == "?"


def test_no_visible_card_and_a_broken_driver_are_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither raises: the one leaves no device, the other its line."""
    hidden = _with_cards(monkeypatch, FakeNvml(Gpu("GPU-a")), visible="")
    assert (hidden.count, hidden.device, hidden.users) == (1, None, ())
    with speaking("en"):
        broken = _with_cards(monkeypatch, FakeNvml(failure=18))
    assert broken.has_nodes
    assert "reboot" in (broken.error or "")


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has an NVIDIA card")
def test_without_a_driver_the_gpus_are_a_fact() -> None:
    """No device node: nothing is loaded, nothing raises."""
    assert not reading.read_gpu().has_nodes


def test_a_containers_limit_bounds_the_ram(tmp_path: Path) -> None:
    """cgroup v2: limit and use without what the kernel can drop; no limit where the file says max."""
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 250\n")
    assert reading._cgroup_memory_bytes(tmp_path) == (1000, 450)
    (tmp_path / "memory.max").write_text("max\n")
    assert reading._cgroup_memory_bytes(tmp_path) == (sys.maxsize, 0)


def test_places_that_do_not_exist_yet_are_those_of_the_nearest_folder(tmp_path: Path) -> None:
    """Free room and the right to write are told for a folder that a run would make."""
    places = {place.role: place for place in reading.read_places(options(tmp_path / "a" / "b"), profile())}
    assert places["reports"].free_bytes > 0
    assert places["reports"].is_writable
    assert places["reports"].folder == str(tmp_path / "a" / "b" / "reports")
