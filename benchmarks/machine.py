"""The card under test: its name, its memory, and the two rates that bound everything, as one line of results."""

from __future__ import annotations

import argparse
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.records import Machine, append

_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "datasets", "huggingface_hub")
_MATRIX_SIDE = 8192
_COPY_BYTES = 4 << 30
_REPEATS = 10


def measure_machine(command: str, *, tiny: bool) -> Machine:
    """Name, memory, versions; matrix rate of 8192³ bf16 products and copy rate (read plus written) on a GPU."""
    on_gpu = torch.cuda.is_available()
    return Machine(
        device=torch.cuda.get_device_name() if on_gpu else f"CPU ({platform.machine()})",
        total_bytes=torch.cuda.get_device_properties(0).total_memory if on_gpu else None,
        matrix_flops_per_second=_matrix_flops_per_second() if on_gpu else None,
        copy_bytes_per_second=_copy_bytes_per_second() if on_gpu else None,
        versions=_versions(),
        command=command,
        commit=_commit(),
        tiny=tiny,
    )


def _matrix_flops_per_second() -> float:
    left, right = (torch.randn(_MATRIX_SIDE, _MATRIX_SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        left @ right
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(_REPEATS):
        left @ right
    torch.cuda.synchronize()
    return _REPEATS * 2 * _MATRIX_SIDE**3 / (time.perf_counter() - started)


def _copy_bytes_per_second() -> float:
    source = torch.zeros(_COPY_BYTES, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    target.copy_(source)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(_REPEATS):
        target.copy_(source)
    torch.cuda.synchronize()
    return _REPEATS * 2 * _COPY_BYTES / (time.perf_counter() - started)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    if torch.version.cuda:
        found["cuda"] = str(torch.version.cuda)
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _commit() -> str:
    folder = Path(__file__).resolve().parent
    try:
        asked = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return "unknown"
    return asked.stdout.strip() or "unknown"


def main() -> None:
    """Measure once and append."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--command", required=True)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    append(options.results, measure_machine(options.command, tiny=options.tiny))


if __name__ == "__main__":
    main()
