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
TELLING_GROWTH = 1.5  # where the rows themselves grow more than this, padding can't be told from them

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
    "長さ S と 2S の 5 ステップの試行のステップ時間と、行のトークン数",
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
    short: Attempt | None, long: Attempt | None, seq_length: int, row_growth: float | None = None
) -> Check:
    """Trap 11: at twice the length a step must not take twice the time where the rows are short.

    `row_growth`: how much longer the rows become when they are cut at twice `seq_length`, 1 where none was cut; None:
    unknown, taken as 1.
    """
    growth = 1.0 if row_growth is None else row_growth
    times = _step_seconds(short), _step_seconds(long)
    if times[0] is None or times[1] is None:
        return NO_MAX_PADDING.check(None, "長さを変えた 2 つの試行でステップ時間を測れない。")
    if growth > TELLING_GROWTH:
        return NO_MAX_PADDING.check(None, f"行そのものが {growth:.2f} 倍に伸び、パディングと区別できない。")
    ratio = times[1] / times[0]
    peaks = peaks_bytes(short, long)
    memory = f"、メモリのピーク {peaks[0] / GIB:.2f} → {peaks[1] / GIB:.2f} GiB" if peaks else ""
    return NO_MAX_PADDING.check(
        ratio < (growth + 2) / 2,
        f"max-seq-length {seq_length} → {2 * seq_length}: 1 ステップ {times[0]:.3f} → {times[1]:.3f} 秒"
        f"({ratio:.2f} 倍、行の長さは {growth:.2f} 倍){memory}。",
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


def _torch_peak(attempt: Attempt) -> int | None:
    return max((probe.peak_allocated_bytes or 0 for probe in attempt.probes), default=0) or None


def _step_seconds(attempt: Attempt | None) -> float | None:
    seconds = attempt.training.step_seconds if attempt and attempt.training else ()
    typical = median(seconds) if seconds else 0.0
    return typical if typical >= MEASURABLE_STEP_SECONDS else None
