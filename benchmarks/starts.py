"""How long a person waits for the first word: commands that import no torch, each as a process of its own.

`python -m benchmarks.starts` prints a table: wall and processor seconds, medians of several starts after one that warms
the disk's cache. It holds no limit: a busy or slow machine is no fault of the code.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

CLONE = Path(__file__).parents[1]
STARTS = 5
FIT = ("fit", "--model", "Qwen/Qwen3-8B", "--trainer", "answer", "--vram", "20GiB")
COMMANDS = {
    "pytest -m gpu, until it says that there is no GPU": ("pytest", "-m", "gpu", "-p", "no:cacheprovider"),
    "pytest -m gpu --co": ("pytest", "-m", "gpu", "--co", "-q", "-p", "no:cacheprovider"),
    "steph --version": ("steph.cli", "--version"),
    "steph fit": ("steph.cli", *FIT),
    "train_qwen_law_ft.py --help": ("pipeline/scripts/train_qwen_law_ft.py", "--help"),
}


def seconds(words: tuple[str, ...]) -> tuple[float, float]:
    """Start it once: wall seconds and processor seconds, its children's included."""
    program = [sys.executable, *(words if words[0].endswith(".py") else ("-m", *words))]
    environment = {**os.environ, "PYTHONPATH": str(CLONE / "plugins")}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(program, cwd=CLONE, env=environment, capture_output=True, check=False)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure all and print the table."""
    print("| command | wall seconds | processor seconds |\n|---|---|---|")
    for name, words in COMMANDS.items():
        seconds(words)
        walls, cpus = zip(*(seconds(words) for _ in range(STARTS)), strict=True)
        print(f"| {name} | {statistics.median(walls):.2f} | {statistics.median(cpus):.2f} |")


if __name__ == "__main__":
    main()
