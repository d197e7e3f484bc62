"""An exception that a signal raises while a child starts or is waited for ends it, wherever the suite has one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import pytest
from steph.base.messages import NOTHING
from steph.conduct.fit import LoraOptions
from steph.record.values import ModelChoice
from steph.run.hub import Hub, _fetch
from steph.run.inputs import git_state
from steph.run.processes import Child
from steph.run.runner import ChildSpec, run_child

SILENT = "#!/bin/sh\nexec >&- 2>&-\nexec sleep 1000\n"  # its pipes end at once, and itself does not


def _supervised(program: Path, folder: Path) -> None:
    run_child(ChildSpec((str(program),), folder, folder / "child", limit_seconds=900))


def _download(program: Path, folder: Path) -> None:
    hub = Hub(900, "http://hub.invalid", folder)
    model = ModelChoice(name="a/b", source="hub", revision="0" * 40, reason=NOTHING, download_bytes=1)
    sys.executable = str(program)
    _fetch(hub, model, ("config.json",), time.monotonic() + 900, 900, lambda done, due: None)


def _count(program: Path, folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    LoraOptions(None, 16, (), False, str(program), folder, print).count("a", folder / "config.json")


def _git(program: Path, folder: Path) -> None:
    program.rename(folder / "git")
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    git_state(folder)


def _holds_its_lock(child: subprocess.Popen[bytes]) -> bool:
    """Between the two lines of `Popen._wait` that take the lock and see to it that it is given back."""
    return bool(child._waitpid_lock.locked())  # type: ignore[attr-defined]


def _has_a_process(child: subprocess.Popen[bytes]) -> bool:
    """Before `Popen._execute_child` has returned to who wants the process."""
    return child.pid is not None


@contextlib.contextmanager
def interrupted(
    error: BaseException, function: str, moment: Callable[[subprocess.Popen[bytes]], bool]
) -> Iterator[None]:
    """Raise between two lines of this function of Popen, at the first moment that is meant."""
    before = sys.gettrace()

    def trace(frame: FrameType, event: str, _argument: object) -> Any:  # noqa: ANN401 - as the interpreter has it
        if frame.f_code is not getattr(subprocess.Popen, function).__code__:
            return None
        if event == "line" and moment(frame.f_locals["self"]):
            raise error  # which ends the tracing
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("error", [KeyboardInterrupt("Ctrl-C"), RuntimeError("out of time")], ids=["ctrl-c", "another"])
@pytest.mark.parametrize(
    ("function", "moment"),
    [("_wait", _holds_its_lock), ("_execute_child", _has_a_process)],
    ids=["in a wait", "at the start"],
)
@pytest.mark.parametrize("waits", [_supervised, _download, _count, _git])
@pytest.mark.timeout(60)  # it would wait for ever
def test_an_interrupt_leaves_no_process(
    waits: Callable[[Path, Path], None],
    function: str,
    moment: Callable[[subprocess.Popen[bytes]], bool],
    error: BaseException,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The exception arrives where the wait was called from, and the child is ended and reaped."""
    monkeypatch.setattr(sys, "executable", sys.executable)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    program = tmp_path / "bin" / "program"
    program.parent.mkdir()
    program.write_text(SILENT)
    program.chmod(0o755)
    others = psutil.Process().children()
    with pytest.raises(type(error), match=str(error)), interrupted(error, function, moment):
        waits(program, tmp_path)
    assert psutil.Process().children() == others


def test_a_child_whose_lock_was_left_held_is_seen_to_end() -> None:
    """Both ways of asking, by `wait` and by `poll`."""
    for ended in (Child.wait, Child.poll):
        child = Child[bytes](["sleep", "1000"])
        child._waitpid_lock.acquire()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert ended(child) == -9
