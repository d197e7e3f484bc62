"""Checks of an attempt's processes: how they ended, which ranks ran, and what they and the card say of memory. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steph.judge.kinds import FAIL, WARN, CheckKind
from steph.judge.lines import split_lines, tracebacks_in
from steph.record import Check, Probe

FRACTION_TOLERANCE = 1e-3  # of the card; torch gives back what it was told to the last digits
_RESULT_MARKS = ("'train_runtime'", "EVALUATION RESULTS")

EXIT_ZERO = CheckKind("exit_zero", "H-2・H-3", FAIL, "終了コードが 0", "子プロセスの終了コード")
NO_TRACEBACK = CheckKind("no_traceback", "H-2・H-3", WARN, "トレースバックが表示されていない", "stdout と stderr")
RANKS_AS_ASKED = CheckKind(
    "ranks_as_asked",
    "H-2・H-3",
    FAIL,
    "依頼した数のプロセスが、それぞれのGPUで走った",
    "各プロセスの probe（rank と GPU の UUID）",
    note="複数プロセスのとき",
)
RESULTS_PRINTED_ONCE = CheckKind(
    "results_printed_once",
    "H-2・H-3",
    WARN,
    "結果を表示したのは1プロセスだけ",
    "stdout の train_runtime の行、EVALUATION RESULTS の行",
    note="複数プロセスのとき",
)
RANKS = (RANKS_AS_ASKED, RESULTS_PRINTED_ONCE)
VRAM_CAP_HONOURED = CheckKind(
    "vram_cap_honoured",
    "H-2・H-3",
    FAIL,
    "模擬した VRAM 上限がどのプロセスでも守られた",
    "GPU を使った各プロセスの probe（torch のメモリ割合）と、依頼した割合",
    note="--steph-vram-cap のとき",
)
MEMORY_RETURNED = CheckKind(
    "memory_returned",
    "H-2・H-3",
    WARN,
    "終了後に GPU メモリが解放された",
    "NVML のメモリの推移（見えなければ、残ったプロセス）",
    note="GPU のみ。同じ実行の次の段は、戻るまで BLOCKED",
)
MACHINE = (VRAM_CAP_HONOURED, MEMORY_RETURNED)

EXIT_ZERO = CheckKind("exit_zero", "H-2・H-3", FAIL, "終了コードが 0", "子プロセスの終了コード")
NO_TRACEBACK = CheckKind("no_traceback", "H-2・H-3", WARN, "トレースバックが表示されていない", "stdout と stderr")


@dataclass(frozen=True)
class ProcessEvidence:
    """What an attempt's processes left beside their files.

    `ranks` is how many were asked for. `asked_fraction` is the share of its card that torch's allocator was given in
    each of them, None where no cap was emulated. `memory_returned` is None where it could not be seen.
    """

    ranks: int
    probes: tuple[Probe, ...]
    asked_fraction: float | None = None
    memory_returned: bool | None = None
    on_gpu: bool = True


def process_checks(returncode: int | None, output: str) -> tuple[Check, ...]:
    """Check the exit code and count the tracebacks that were printed."""
    ended = "不明" if returncode is None else str(returncode)
    count = tracebacks_in(output)
    return (
        EXIT_ZERO.check(None if returncode is None else returncode == 0, f"終了コードは {ended}。"),
        NO_TRACEBACK.check(count == 0, f"表示されたトレースバックは {count} 件。"),
    )


def machine_checks(evidence: ProcessEvidence, stdout: str) -> tuple[Check, ...]:
    """What the machine says of an attempt that ended well: ranks, cap and memory, each where it was asked for."""
    checks = [*_rank_checks(evidence, stdout)]
    if evidence.on_gpu and evidence.asked_fraction is not None:
        checks.append(_cap_check(evidence.asked_fraction, evidence.probes))
    if evidence.on_gpu:
        shown = {True: "戻った", False: "戻らない", None: "分からない"}[evidence.memory_returned]
        checks.append(MEMORY_RETURNED.check(evidence.memory_returned, f"終了後、GPU メモリは開始前の水準に{shown}。"))
    return tuple(checks)


def _rank_checks(evidence: ProcessEvidence, stdout: str) -> tuple[Check, ...]:
    if evidence.ranks == 1:
        return ()
    lines = sum(any(mark in line for mark in _RESULT_MARKS) for line in split_lines(stdout))
    return (_ranks_check(evidence), RESULTS_PRINTED_ONCE.check(lines == 1, f"結果の行は {lines} 回表示された。"))


def _ranks_check(evidence: ProcessEvidence) -> Check:
    ranks = [probe for probe in evidence.probes if probe.rank is not None]
    numbers = sorted({probe.rank for probe in ranks if probe.rank is not None})
    text = f"{evidence.ranks} プロセスの依頼に対して、走ったのは {len(numbers)}（rank {numbers}）"
    if not numbers:
        return RANKS_AS_ASKED.check(None, "どのプロセスも記録（probe）を残していない。")
    all_ran = numbers == list(range(evidence.ranks))
    if not evidence.on_gpu:
        return RANKS_AS_ASKED.check(all_ran, f"{text}。")
    cards = {probe.device_uuid for probe in ranks if probe.device_uuid is not None}
    return RANKS_AS_ASKED.check(all_ran and len(cards) == evidence.ranks, f"{text}、使われた GPU は {len(cards)} 枚。")


def _cap_check(asked: float, probes: Sequence[Probe]) -> Check:
    """Every process on the card must be held to the fraction; one that shows none may have taken the whole card."""
    fractions = [probe.memory_fraction for probe in probes if _is_on_card(probe)]
    known = [fraction for fraction in fractions if fraction is not None]
    shown = "、".join("不明" if fraction is None else f"{fraction:.4f}" for fraction in fractions) or "なし"
    message = f"依頼したメモリ割合 {asked:.4f} に対して、GPU を使ったプロセスの割合は {shown}。"
    if asked >= 1 or any(fraction > asked + FRACTION_TOLERANCE for fraction in known):
        return VRAM_CAP_HONOURED.check(False, message)
    return VRAM_CAP_HONOURED.check(True if fractions and len(known) == len(fractions) else None, message)


def _is_on_card(probe: Probe) -> bool:
    """Whether a process worked on a GPU: a rank always does, a launcher that only imports torch never."""
    figures = (probe.device_uuid, probe.peak_allocated_bytes, probe.peak_reserved_bytes, probe.memory_fraction)
    return probe.rank is not None or any(figure is not None for figure in figures)
