"""The benchmarks' arithmetic: what is searched, counted, kept and judged, without a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from steph.memory.shapes import BUILT_IN, parameter_parts

from benchmarks.bars import bars
from benchmarks.flops import RowSize, flops_per_row, lora_parameters
from benchmarks.points import AUTO, FORCED, largest_fitting, setting, trl_counterpart
from benchmarks.records import GIB, Note, TrainingRun, append, read


def _run(
    side: str, label: str, repeat: int, step_seconds: float, train_seconds: float, row: str = "B", peak_gib: float = 2.0
) -> TrainingRun:
    return TrainingRun(
        row=row,
        side=side,
        label=label,
        repeat=repeat,
        command="",
        batch_size=2,
        gradient_accumulation_steps=2,
        max_seq_length=512,
        recompute=True,
        fused_micro_batches=1,
        outcome="ok",
        train_seconds=train_seconds,
        step_seconds=(step_seconds,) * 20,
        peak_allocated_bytes=int(peak_gib * GIB),
        peak_reserved_bytes=int(peak_gib * GIB),
    )


@pytest.mark.parametrize("guess", [1, 4, 7, 8, 50])
def test_the_search_finds_the_edge_from_any_guess(guess: int) -> None:
    """Whether the guess is low, right or high, the largest count that fits is found and no count is asked twice."""
    asked: list[int] = []

    def fits(count: int) -> bool:
        asked.append(count)
        return count <= 7

    assert largest_fitting(fits, guess, 24) == 7
    assert len(asked) == len(set(asked))


def test_the_search_says_none_where_nothing_fits() -> None:
    """A card too full for one row is no batch of 1."""
    assert largest_fitting(lambda _: False, 3, 24) is None


def test_operations_of_a_long_row_are_mostly_four_a_parameter_and_token() -> None:
    """Frozen weights cost 4 operations a token without recompute and 6 with it; the rest is a few percent at 1024."""
    shape = BUILT_IN["Qwen/Qwen3-8B"]
    lora = lora_parameters(shape, 16, ("q_proj", "v_proj"))
    assert lora == 36 * 16 * (4096 + 4096 + 4096 + 1024)
    frozen = parameter_parts(shape).quantised_linear * 1024
    for recompute, factor in ((False, 4), (True, 6)):
        counted = flops_per_row(shape, lora, [RowSize(1024, 2)], recompute=recompute)
        assert factor < counted / frozen < factor * 1.05


def test_a_line_cut_off_by_a_kill_costs_only_itself(tmp_path: Path) -> None:
    """What was appended before a process died is read back, the half line at the end is left out."""
    path = tmp_path / "results.jsonl"
    append(path, Note("A-qv", "一つ目"))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"kind": "Note", "row": "A-q')
    assert read(path) == [Note("A-qv", "一つ目")]


def test_a_speed_promise_is_judged_by_the_first_runs_of_three_processes() -> None:
    """Twice the steady rate is enough for a promise of four times where three first runs are six times as fast."""
    label = trl_counterpart(setting("B", tiny=False)).label
    for first_seconds, kept in ((10.0, False), (5.0, True)):
        theirs = [_run("TRL", label, n, 1.0, 30.0) for n in (0, 1) * 3]
        ours = [_run("ours", AUTO, n, 0.5, first_seconds) for n in (0, 1) * 3]
        (bar,) = [bar for bar in bars([*theirs, *ours]) if "1.8B" in bar.what and "(b)" in bar.what]
        assert bar.met is kept


def test_one_process_is_judged_by_its_later_runs() -> None:
    """With one first run on each side the steady rate decides."""
    label = trl_counterpart(setting("B", tiny=False)).label
    for step_seconds, kept in ((0.3, False), (0.2, True)):
        theirs = [_run("TRL", label, n, 1.0, 30.0) for n in range(4)]
        ours = [_run("ours", AUTO, n, step_seconds, 1.0) for n in range(4)]
        (bar,) = [bar for bar in bars([*theirs, *ours]) if "1.8B" in bar.what and "(b)" in bar.what]
        assert bar.met is kept


def test_two_runs_are_too_few_to_judge_a_speed() -> None:
    """With one later run on a side all whole runs decide, and two of them neither keep a promise nor break it."""
    label = trl_counterpart(setting("B", tiny=False)).label
    for runs, kept in ((2, None), (3, True)):
        theirs = [_run("TRL", label, n, 1.0, 30.0) for n in range(runs)]
        ours = [_run("ours", AUTO, n, 0.1, 3.0) for n in range(runs)]
        (bar,) = [bar for bar in bars([*theirs, *ours]) if "1.8B" in bar.what and "(b)" in bar.what]
        assert bar.met is kept


def test_memory_is_judged_by_the_worst_run() -> None:
    """One of three runs over the limit breaks the memory promise."""
    for worst, kept in ((7.1, True), (7.3, False)):
        runs = [_run("ours", FORCED, n, 1.0, 20.0, "A-qv", peak) for n, peak in enumerate((7.0, worst, 7.0))]
        assert bars(runs)[0].met is kept
