"""The promised figures and what was measured of them: pure computation from the measurements."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.evaluation import LOADED
from benchmarks.points import AUTO, CONFIRM_LABEL, FORCED, RECOMPUTE, SEARCH_LABEL, setting, trl_counterpart
from benchmarks.records import GIB, Measurement, ProcessRun, TrainingRun

OURS, TRL = "ours", "TRL"
LEAST_REPEATS = 3


@dataclass(frozen=True)
class Bar:
    """One promise: what was found in words, and whether it was kept (None: not measured)."""

    what: str
    against: str
    bar: str
    found: str
    met: bool | None


@dataclass(frozen=True)
class Rate:
    """Samples a second of one way to train, medians: whole first runs of a process, steps of later ones, all runs."""

    label: str
    first: float
    first_runs: int
    steady: float
    steady_runs: int
    whole: float
    whole_runs: int


def bars(measured: Sequence[Measurement]) -> list[Bar]:
    """Every promise in the order in which they were made."""
    runs = [item for item in measured if isinstance(item, TrainingRun)]
    processes = [item for item in measured if isinstance(item, ProcessRun)]
    return [
        _memory(runs, "A-qv", "Qwen3-8B, 2 × 1024 full, LoRA on q and v, allocator capped at 8.8 GiB", 7.2, 20),
        _memory(runs, "A-all7", "the same, LoRA on all 7 projections", 8.0, 20),
        _largest(runs, "A-qv"),
        _largest(runs, "A-all7"),
        _both_recompute(runs, "B", "Qwen1.5-1.8B, H-2 settings", 2.0),
        _both_best(runs, "B", "Qwen1.5-1.8B, H-2 settings, inside 8.8 GiB", 4.0),
        _memory(runs, "B", "Qwen1.5-1.8B, H-2 settings, recompute forced on", 2.4, 1),
        _both_recompute(runs, "C", "Qwen3-8B, 2 × 1024", 2.0),
        _both_best(runs, "C", "Qwen3-8B, 2 × 1024, whole card", 3.0),
        _generation(processes),
        *_suite(processes),
    ]


def rate(runs: Iterable[TrainingRun], row: str, side: str, label: str) -> Rate | None:
    """What one side reached with one label; None without a first and a later run."""
    found = [run for run in runs if (run.row, run.side, run.label, run.outcome) == (row, side, label, "ok")]
    first = [run.samples_per_second for run in found if run.repeat == 0 and run.samples_per_second]
    steady = [run.step_samples_per_second for run in found if run.repeat and run.step_samples_per_second]
    if not first or not steady:
        return None
    whole = [run.samples_per_second for run in found if run.samples_per_second]
    return Rate(
        label,
        *(statistics.median(first), len(first)),
        *(statistics.median(steady), len(steady)),
        *(statistics.median(whole), len(whole)),
    )


def best(runs: Sequence[TrainingRun], row: str, side: str) -> Rate | None:
    """The label with the highest steady rate."""
    labels = dict.fromkeys(run.label for run in runs if run.row == row and run.side == side)
    rates = [found for label in labels if (found := rate(runs, row, side, label))]
    return max(rates, key=lambda found: found.steady, default=None)


def _memory(runs: Sequence[TrainingRun], row: str, what: str, limit_gib: float, least_steps: int) -> Bar:
    found = [run for run in runs if run.row == row and run.side == OURS and run.label == FORCED]
    against = f"at least {least_steps} steps; the largest of its runs"
    bar = f"peak reserved ≤ {limit_gib} GiB"
    peaks = [run.peak_reserved_bytes for run in found if run.peak_reserved_bytes is not None]
    failed = [run.outcome for run in found if run.outcome != "ok"]
    if not peaks and not failed:
        return Bar(what, against, bar, "not measured", None)
    if not peaks:
        return Bar(what, against, bar, failed[0][:120], False)
    steps = max(len(run.step_seconds) for run in found)
    allocated = max(run.peak_allocated_bytes or 0 for run in found)
    words = f"{max(peaks) / GIB:.2f} GiB reserved, {allocated / GIB:.2f} allocated, {steps} steps, {len(peaks)} runs"
    kept = max(peaks) <= limit_gib * GIB and steps >= least_steps and not failed
    return Bar(what, against, bar, words, kept)


def _largest(runs: Sequence[TrainingRun], row: str) -> Bar:
    shown = [run for run in runs if run.row == row and run.label == CONFIRM_LABEL and run.outcome == "ok"]
    refused = [run for run in runs if run.row == row and run.label == SEARCH_LABEL and run.outcome.startswith("oom")]
    what, against = f"{row}: largest batch × 1024 that fits", "recompute on, no accumulation"
    if not shown:
        return Bar(what, against, "named", "not measured", None)
    largest = max(shown, key=lambda run: run.batch_size)
    words = f"{largest.batch_size} × {largest.max_seq_length}, {len(largest.step_seconds)} steps"
    if largest.peak_reserved_bytes is not None:
        words += (
            f", {largest.peak_reserved_bytes / GIB:.2f} GiB reserved, {largest.allocator_retries} allocator retries"
        )
    if refused:
        words += f"; {min(run.batch_size for run in refused)} runs out of memory"
    return Bar(what, against, "named", words, True)


def _both_recompute(runs: Sequence[TrainingRun], row: str, what: str, least: float) -> Bar:
    shared = setting("B" if row == "B" else "C", tiny=False)
    theirs = rate(runs, row, TRL, trl_counterpart(shared).label)
    return _ratio(f"{what}: (a) both with recompute", rate(runs, row, OURS, RECOMPUTE), theirs, least)


def _both_best(runs: Sequence[TrainingRun], row: str, what: str, least: float) -> Bar:
    return _ratio(f"{what}: (b) each side's best", rate(runs, row, OURS, AUTO), best(runs, row, TRL), least)


def _ratio(what: str, ours: Rate | None, theirs: Rate | None, least: float) -> Bar:
    against = f"TRL, {theirs.label}" if theirs else "TRL"
    bar = f"≥ {least:g}× samples/s"
    if ours is None or theirs is None:
        return Bar(what, against, bar, "not measured", None)
    steady, first = ours.steady / theirs.steady, ours.first / theirs.first
    processes, later = min(ours.first_runs, theirs.first_runs), min(ours.steady_runs, theirs.steady_runs)
    words = (
        f"a process's first run {ours.first:.1f} to {theirs.first:.1f}: {first:.2f}× ({_count(processes, 'process')} "
        f"each); steady {ours.steady:.1f} to {theirs.steady:.1f}: {steady:.2f}× ({_count(later, 'run')} each)"
    )
    if processes >= LEAST_REPEATS:
        return Bar(what, against, bar, f"{words}; judged by the first", first >= least)
    if later >= LEAST_REPEATS:
        return Bar(what, against, bar, words, steady >= least)
    runs = min(ours.whole_runs, theirs.whole_runs)
    words += f"; all whole runs {ours.whole:.1f} to {theirs.whole:.1f}: {ours.whole / theirs.whole:.2f}× ({runs} each)"
    return Bar(what, against, bar, words, ours.whole / theirs.whole >= least if runs >= LEAST_REPEATS else None)


def _count(number: int, name: str) -> str:
    plural = "es" if name.endswith("s") else "s"
    return f"{number} {name}{'' if number == 1 else plural}"


def _generation(processes: Sequence[ProcessRun]) -> Bar:
    what, against = "3 direct questions, 4-bit + LoRA, whole process", "time of imports + load"
    bar = "the rest adds ≤ 2 s"
    done = [run for run in processes if run.row == "D" and run.returncode == 0 and LOADED in run.marks]
    if len(done) < LEAST_REPEATS:
        return Bar(what, against, bar, "not measured" if not done else f"only {len(done)} runs", None)
    whole = statistics.median(run.seconds for run in done)
    rest = statistics.median(run.seconds - run.marks[LOADED] for run in done)
    words = f"{whole:.2f} s whole, {whole - rest:.2f} s imports + load: {rest:.2f} s more ({len(done)} runs)"
    return Bar(what, against, bar, words, rest <= 2.0)


def _suite(processes: Sequence[ProcessRun]) -> tuple[Bar, Bar]:
    what = "H-1 + H-2 + H-3, whole pytest with a twin already made, 50 steps"
    suite = [run.seconds for run in processes if run.label == "suite" and run.returncode == 0]
    train = [run.seconds for run in processes if run.label == "training by hand" and run.returncode == 0]
    evaluate = [run.seconds for run in processes if run.label == "evaluation by hand" and run.returncode == 0]
    if min(len(suite), len(train), len(evaluate)) < LEAST_REPEATS:
        words = f"not enough runs: suite {len(suite)}, training {len(train)}, evaluation {len(evaluate)}"
        return (
            Bar(what, "the two commands by hand", "overhead ≤ 3 s", words, None),
            Bar(what, "", "all of it ≤ 60 s", words, None),
        )
    whole = statistics.median(suite)
    hand = statistics.median(train) + statistics.median(evaluate)
    beside = [
        run.seconds - sum(run.figures.values()) for run in processes if run.label == "suite" and run.returncode == 0
    ]
    words = f"{whole:.1f} s to {hand:.1f} s: {whole - hand:+.2f} s ({len(suite)} runs or more of each); "
    words += f"by the suite's own record {statistics.median(beside):.2f} s lie outside its processes"
    return (
        Bar(what, "the two commands by hand", "overhead ≤ 3 s", words, whole - hand <= 3.0),
        Bar(what, "", "all of it ≤ 60 s", f"{whole:.1f} s", whole <= 60.0),
    )
