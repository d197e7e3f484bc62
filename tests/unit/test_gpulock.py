"""One run at a time on one GPU."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from steph.base.messages import speaking
from steph.run import gpu as gpulock
from steph.run.gpu import GpuBusyError, GpuLockError, gpu_lock, lock_folder

UUID = "GPU-8f1e6f0a-0000-0000-0000-000000000001"


@pytest.fixture(autouse=True)
def english() -> Iterator[None]:
    """The words that these tests look for are English ones."""
    with speaking("en"):
        yield


def test_second_run_on_one_gpu_is_told_who_holds_it(tmp_path: Path) -> None:
    """A held GPU refuses at once and names the holder's pid, command and time."""
    with gpu_lock(UUID, tmp_path), pytest.raises(GpuBusyError) as caught, gpu_lock(UUID, tmp_path):
        pass
    holder = caught.value.holder
    assert holder is not None
    assert holder.pid == os.getpid()
    assert holder.command
    assert f"pid {os.getpid()} since {holder.since}" in str(caught.value)


def test_lock_is_free_again_after_the_block(tmp_path: Path) -> None:
    """Holding a GPU twice, one after the other, is no conflict."""
    held = 0
    for _ in range(2):
        with gpu_lock(UUID, tmp_path):
            held += 1
    assert held == 2


def test_two_gpus_are_two_locks(tmp_path: Path) -> None:
    """Slices of one card, and two cards, are held independently."""
    with gpu_lock(UUID, tmp_path), gpu_lock("MIG-GPU-0/1/0", tmp_path):
        assert len(list(tmp_path.iterdir())) == 2


def test_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    """After SIGKILL of a holder its file is still there and locks nothing."""
    code = (
        "import sys; from pathlib import Path; from steph.run.gpu import gpu_lock\n"
        "with gpu_lock(sys.argv[1], Path(sys.argv[2])): print('held', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(gpulock.__file__).parents[2])}
    argv = [sys.executable, "-c", code, UUID, str(tmp_path)]
    with subprocess.Popen(argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(GpuBusyError, match=f"pid {holder.pid} "), gpu_lock(UUID, tmp_path):
            pass
        holder.kill()
    assert len(list(tmp_path.iterdir())) == 1
    with gpu_lock(UUID, tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "no json", "[1]", '{"pid": 1}'])
def test_unreadable_holder_is_still_a_holder(tmp_path: Path, content: str) -> None:
    """What the file says decides nothing: with garbage in it the lock holds, and the message names nobody."""
    with gpu_lock(UUID, tmp_path):
        next(tmp_path.iterdir()).write_text(content)
        with pytest.raises(GpuBusyError, match="another process"), gpu_lock(UUID, tmp_path):
            pass


def test_locks_lie_in_the_cache_folder(tmp_path: Path) -> None:
    """The place follows XDG_CACHE_HOME, so that all runs of a user meet there."""
    assert lock_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "steph" / "locks"
    assert lock_folder({}) == Path.home() / ".cache" / "steph" / "locks"


def test_a_place_that_cannot_hold_a_lock_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only cache folder, one that is a file, or no home at all: the line names the variable that mends it."""
    remedy = "set XDG_CACHE_HOME to a folder that can be written"
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "steph" / "locks"
    with pytest.raises(GpuLockError) as caught, gpu_lock(UUID, place):
        pass
    assert str(caught.value) == f"{place}: no place for the card's lock: Not a directory; {remedy}"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(GpuLockError, match=f"home directory.; {remedy}"):
        lock_folder({})


def test_a_file_system_without_locks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some servers' drives know none: no run goes on unlocked, and none ends in a traceback."""

    def refuse(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(GpuLockError, match="No locks available; set XDG_CACHE_HOME"), gpu_lock(UUID, tmp_path):
        pass
