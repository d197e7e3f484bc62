"""Judges pairs of short trainings that differ in one flag (`--steph-deep`): figures in, checks out. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from steph.judge.kinds import INFO, WARN, CheckKind
from steph.record import Attempt, Check
from steph.units import GIB

SAME_LOSS = 1e-4  # relative: the Trainer of transformers 4 logs a loss with four digits
LEAST_SAVING = 0.05  # of the peak without 4-bit; NVML's peaks of two equal runs differ by less
MEASURABLE_STEP_SECONDS = 0.01  # below this a line's arrival says more about the pipe than about the step
MOST_PADDING = 0.05  # of the peak: the same rows of the same seed take the same memory
SLOWER_BY_PADDING = 1.5  # half of what twice the tokens cost at most

LOSS_FLAG_WORKS = CheckKind(
    "loss_flag_works",
    "H-2",
    WARN,
    "--loss-on-output-only が損失を変える",
    "1 ステップの試行 2 回の損失",
    trap=9,
    optional=True,
    note="--steph-deep のみ",
)
FOUR_BIT_AS_ASKED = CheckKind(
    "four_bit_as_asked",
    "H-2",
    WARN,
    "--use-4bit がメモリを減らす",
    "1 ステップの試行 2 回のピーク（torch の確保、なければ NVML）",
    trap=5,
    optional=True,
    note="--steph-deep のみ",
)
NO_MAX_PADDING = CheckKind(
    "no_max_padding",
    "H-2",
    INFO,
    "行を最大長までパディングしていない",
    "どの行も収まる長さ S と 2S の 5 ステップの試行のピーク（torch の確保）、なければステップ時間",
    trap=11,
    optional=True,
    note="--steph-deep のみ",
)
DEEP_RUNS_COMPLETE = CheckKind(
    "deep_runs_complete",
    "H-2",
    WARN,
    "詳しい検査の試行がすべて終わった",
    "--steph-deep の試行の終了コードと原因",
    optional=True,
    note="--steph-deep のみ",
)
DEEP = (LOSS_FLAG_WORKS, FOUR_BIT_AS_ASKED, NO_MAX_PADDING, DEEP_RUNS_COMPLETE)


def loss_flag_check(with_flag: float | None, without_flag: float | None) -> Check:
    """Trap 9: the first step's loss on the outputs alone must differ from that on all tokens."""
    if with_flag is None or without_flag is None or not (math.isfinite(with_flag) and math.isfinite(without_flag)):
        return LOSS_FLAG_WORKS.check(None, "--loss-on-output-only の有無で損失を比べられない。")
    differs = not math.isclose(with_flag, without_flag, rel_tol=SAME_LOSS)
    return LOSS_FLAG_WORKS.check(
        differs,
        f"1 ステップ目の損失: --loss-on-output-only あり {with_flag:.6g}、なし {without_flag:.6g}。",
    )


def four_bit_check(with_4bit: Attempt | None, without_4bit: Attempt | None, *, ran_out: bool = False) -> Check:
    """Trap 5: training without 4-bit must take more memory; `ran_out`: it took more than there is."""
    peaks = peaks_bytes(with_4bit, without_4bit)
    if ran_out:
        return FOUR_BIT_AS_ASKED.check(True, "4bit なしでは CUDA OOM になり、4bit ありでは収まる。")
    if peaks is None:
        return FOUR_BIT_AS_ASKED.check(None, "4bit の有無でメモリのピークを比べられない。")
    used, full = peaks
    return FOUR_BIT_AS_ASKED.check(
        used < full * (1 - LEAST_SAVING),
        f"メモリのピーク: 4bit あり {used / GIB:.2f} GiB、なし {full / GIB:.2f} GiB。",
    )


def padding_check(
    short: Attempt | None, long: Attempt | None, seq_length: int, *, rows_fit: bool, ran_out: bool = False
) -> Check:
    """Trap 11: rows that fit `seq_length` take no more memory or time at twice the length, unless they are padded.

    `rows_fit`: whether they are known to; else time alone tells, and that the rows are short is assumed. `ran_out`: the
    longer one took more memory than there is.
    """
    asked = f"max-seq-length {seq_length} → {2 * seq_length}"
    if ran_out and rows_fit:
        return NO_MAX_PADDING.check(False, f"{asked}: 行はどれも収まるのに、長い方だけ CUDA OOM になる。")
    peaks = _torch_peak(short), _torch_peak(long)
    if rows_fit and peaks[0] and peaks[1]:
        holds = peaks[1] < peaks[0] * (1 + MOST_PADDING)
        shown = f"{peaks[0] / GIB:.2f} → {peaks[1] / GIB:.2f} GiB"
        return NO_MAX_PADDING.check(holds, f"{asked}: 行はどれも収まり、メモリのピークは {shown}。")
    times = _step_seconds(short), _step_seconds(long)
    if times[0] is None or times[1] is None:
        return NO_MAX_PADDING.check(None, "長さを変えた 2 つの試行でステップ時間を測れない。")
    ratio = times[1] / times[0]
    return NO_MAX_PADDING.check(
        ratio < SLOWER_BY_PADDING,
        f"{asked}: 1 ステップ {times[0]:.3f} → {times[1]:.3f} 秒（{ratio:.2f} 倍）。",
    )


def deep_runs_check(ran: int, trouble: Sequence[str]) -> Check:
    """Whether every deep attempt could be run to its end; `trouble` says in words which could not."""
    if trouble:
        return DEEP_RUNS_COMPLETE.check(False, f"--steph-deep の試行が終わらなかった: {'、'.join(trouble)}。")
    return DEEP_RUNS_COMPLETE.check(True if ran else None, f"--steph-deep の試行 {ran} 回が正常終了した。")


def peaks_bytes(one: Attempt | None, other: Attempt | None) -> tuple[int, int] | None:
    """The two attempts' peaks in bytes, both as torch counted them, else both by NVML; None where not comparable."""
    if one is None or other is None:
        return None
    for first, second in ((_torch_peak(one), _torch_peak(other)), (one.peak_own_bytes, other.peak_own_bytes)):
        if first and second:
            return first, second
    return None


def _torch_peak(attempt: Attempt | None) -> int | None:
    probes = attempt.probes if attempt else ()
    return max((probe.peak_allocated_bytes or 0 for probe in probes), default=0) or None


def _step_seconds(attempt: Attempt | None) -> float | None:
    seconds = attempt.training.step_seconds if attempt and attempt.training else ()
    typical = median(seconds) if seconds else 0.0
    return typical if typical >= MEASURABLE_STEP_SECONDS else None
