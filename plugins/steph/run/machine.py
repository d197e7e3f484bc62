"""The machine and the checkouts that a record was made on."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import psutil

from steph.base.messages import Message
from steph.record.environment import Device, Environment, GitState
from steph.run.tree import output_of

SUITE_PACKAGES = ("steph", "pytest", "pytest-timeout", "pytest-order", "huggingface-hub", "pydantic", "nvidia-ml-py")


def environment(devices: Sequence[Device], device_error: Message | None = None) -> Environment:
    """This machine: operating system, processor, memory, the GPUs in use and the suite's own packages."""
    return Environment(
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        cpu=_cpu_name(),
        cpu_count=psutil.cpu_count() or 1,
        ram_bytes=psutil.virtual_memory().total,
        is_wsl=is_wsl(),
        device=devices[0] if devices else None,
        further_devices=tuple(devices[1:]),
        device_error=device_error,
        packages={name: version for name in SUITE_PACKAGES if (version := _version(name))},
    )


def is_wsl() -> bool:
    """Whether this Linux runs inside Windows."""
    return "microsoft" in platform.release().lower()


def git_state(folder: Path) -> GitState:
    """Branch, commit and cleanliness of the checkout that `folder` is a part of; empty where there is none.

    A folder that only lies in one, as a `.venv` does, is no part of it.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or not _git(folder, "ls-files", "--", "."):
        return GitState()
    branch = _git(folder, "symbolic-ref", "--short", "-q", "HEAD")
    status = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return GitState(branch=branch, commit=commit, dirty=None if status is None else bool(status))


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = output_of(["git", "-C", str(folder), *arguments], seconds=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
