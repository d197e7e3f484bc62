"""Checks of an attempt in several processes: each one ran, on a GPU of its own, and only the first one told results."""

from __future__ import annotations

from collections.abc import Sequence

from steph.judge.catalog import finding
from steph.judge.lines import split_lines
from steph.record import Check, Probe

_RESULT_MARKS = ("'train_runtime'", "EVALUATION RESULTS")


def rank_checks(num_processes: int, probes: Sequence[Probe], stdout: str, *, on_gpu: bool) -> tuple[Check, ...]:
    """Check the processes by what each one left at its end; nothing to check where one was asked for."""
    if num_processes == 1:
        return ()
    lines = sum(any(mark in line for mark in _RESULT_MARKS) for line in split_lines(stdout))
    return (
        _ranks_check(num_processes, [probe for probe in probes if probe.rank is not None], on_gpu),
        finding("results_printed_once", lines == 1, f"結果の行は {lines} 回表示された。"),
    )


def _ranks_check(num_processes: int, ranks: Sequence[Probe], on_gpu: bool) -> Check:
    numbers = sorted({probe.rank for probe in ranks if probe.rank is not None})
    text = f"{num_processes} プロセスの依頼に対して、走ったのは {len(numbers)}（rank {numbers}）"
    if not numbers:
        return finding("ranks_as_asked", None, "どのプロセスも記録（probe）を残していない。")
    all_ran = numbers == list(range(num_processes))
    if not on_gpu:
        return finding("ranks_as_asked", all_ran, f"{text}。")
    cards = {probe.device_uuid for probe in ranks if probe.device_uuid is not None}
    return finding(
        "ranks_as_asked", all_ran and len(cards) == num_processes, f"{text}、使われた GPU は {len(cards)} 枚。"
    )
