"""What the machine itself says of an attempt that ended well, beside what its files and lines say."""

from __future__ import annotations

from steph.attempts import Finished
from steph.judge.checks_ranks import rank_checks
from steph.preparation import Setup
from steph.record import Check, Severity


def machine_checks(setup: Setup, finished: Finished) -> tuple[Check, ...]:
    """The cap was honoured, every rank ran on a GPU of its own, the memory came back."""
    attempt = finished.attempt
    ranks = attempt.settings.num_processes if attempt.settings else 1
    checks = [*rank_checks(ranks, attempt.probes, finished.stdout, on_gpu=setup.device is not None)]
    if setup.options.vram_cap_bytes is not None and setup.device is not None:
        fractions = [probe.memory_fraction for probe in attempt.probes]
        seen = max((fraction for fraction in fractions if fraction is not None), default=None)
        holds = None if seen is None else seen < 1.0
        shown = "不明" if seen is None else f"{seen:.4f}"
        text = f"模擬したVRAM上限が子プロセスで有効(メモリ割合 {shown})"
        checks.append(Check(id="vram_cap_honoured", severity=Severity.FAIL, holds=holds, message=text))
    if setup.device is not None:
        text = "終了後にGPUメモリが解放された"
        checks.append(Check(id="memory_returned", severity=Severity.WARN, holds=attempt.memory_returned, message=text))
    return tuple(checks)
