"""Seconds, and processor seconds, that `steph diagnose` takes for logs of 100 MB, each kind in a process of its own.

`python -m benchmarks.diagnose [MB]`
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

TRACEBACK = (
    'Traceback (most recent call last):\n  File "/w/t.py", line 3, in <module>\n    trainer.train()\n'
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
)
KINDS: dict[str, Callable[[int], str]] = {
    "losses": lambda n: f"{{'loss': {n % 7}.1, 'grad_norm': 0.7, 'learning_rate': 1e-4, 'epoch': 0.5}}\n",
    "stamped lines": lambda n: (
        f"2024-05-01 10:{n % 60:02d}:00,123 [INFO] [trainer.py:12] [RANK:{n % 8}] step {n} loss: 1.2\n"
    ),
    "tracebacks of ranks": lambda n: "".join(f"[rank{n % 8}]: {line}\n" for line in TRACEBACK.splitlines()),
    "progress bars": lambda n: f"\r{n % 100:3d}%|####  | {n % 100}/100 [00:01<00:01,  1.0it/s]",
    "JSON lines": lambda n: f'{{"level": "info", "message": "step {n} loss: 1.{n % 100} out of memory, retried"}}\n',
    "warnings": lambda n: f"WARNING: CUDA error device-side assert killed signal memory nvml status {n}\n",
}


def main(megabytes: int) -> None:
    """Write each log, time the command, print one line for each."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.log"
        for name, line in KINDS.items():
            block = "".join(line(n) for n in range(20_000))
            with path.open("w", encoding="utf-8") as file:
                for _ in range(megabytes * 1_000_000 // len(block) + 1):
                    file.write(block)
                file.write("\n" + TRACEBACK)
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            command = [sys.executable, "-m", "steph.cli", "diagnose", str(path), "--returncode", "1"]
            shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            seconds = time.perf_counter() - started
            after, size = resource.getrusage(resource.RUSAGE_CHILDREN), path.stat().st_size / 1e6
            busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(f"{name}: {seconds:.1f} s, {busy:.1f} s busy, {size:.0f} MB, {shown.splitlines()[0]}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 100)
