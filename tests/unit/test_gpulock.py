"""One run at a time on one GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from steph.run import gpulock
from steph.run.gpulock import GpuBusyError, gpu_lock, lock_folder

UUID = "GPU-8f1e6f0a-0000-0000-0000-000000000001"


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
    for _ in range(2):
        with gpu_lock(UUID, tmp_path):
            pass


def test_two_gpus_are_two_locks(tmp_path: Path) -> None:
    """Slices of one card, and two cards, are held independently."""
    with gpu_lock(UUID, tmp_path), gpu_lock("MIG-GPU-0/1/0", tmp_path):
        assert len(list(tmp_path.iterdir())) == 2


def test_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    """After SIGKILL of a holder its file is still there and locks nothing."""
    code = (
        "import sys; from pathlib import Path; from steph.run.gpulock import gpu_lock\n"
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
