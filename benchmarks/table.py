"""`benchmarks/README.md` from the measurements.

    PYTHONPATH=plugins python -m benchmarks.table benchmarks/results/*.jsonl --findings benchmarks/findings.md \\
        --output benchmarks/README.md
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from steph.memory.shapes import BUILT_IN, parameter_parts

from benchmarks.bars import bars
from benchmarks.flops import FORMULA
from benchmarks.inputs import SMALL
from benchmarks.records import GIB, Machine, Measurement, Note, ProcessRun, TrainingRun, read

_QUANTISED_BYTES_PER_PARAMETER = 4.127 / 8
_MET = {True: "yes", False: "**no**", None: "–"}


def document(measured: Sequence[Measurement], findings: str = "") -> str:
    """The whole page; `findings` is what people have to say about it."""
    machines = [item for item in measured if isinstance(item, Machine)]
    runs = [item for item in measured if isinstance(item, TrainingRun)]
    processes = [item for item in measured if isinstance(item, ProcessRun)]
    notes = [item for item in measured if isinstance(item, Note)]
    lines = ["# Benchmarks of the reference pipeline", ""]
    if any(machine.tiny for machine in machines):
        lines += ["**A dry run with tiny models: these figures say nothing about any promise.**", ""]
    lines += [*_machine_lines(machines), "", "## Promises", "", *_bar_lines(measured), "", *_method_lines(), ""]
    lines += [findings.strip(), ""] if findings else []
    lines += ["## Training runs", "", *_run_lines(runs, machines), "", "## Whole processes", ""]
    lines += [*_process_lines(processes), "", *_limit_of_generation(processes, machines), "", "## Notes", ""]
    lines += [f"- {note.row}: {note.text}" for note in notes if note.row != "twin"] or ["- none"]
    lines += ["", "## Commands", "", *_command_lines(runs, processes), ""]
    return "\n".join(lines)


def _machine_lines(machines: Sequence[Machine]) -> list[str]:
    lines = []
    for machine in dict.fromkeys(_machine_text(machine) for machine in machines):
        lines += [machine]
    return lines or ["No machine was recorded."]


def _machine_text(machine: Machine) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    memory = f", {machine.total_bytes / GIB:.1f} GiB" if machine.total_bytes else ""
    rates = ""
    if machine.matrix_flops_per_second and machine.copy_bytes_per_second:
        rates = (
            f" Measured here: {machine.matrix_flops_per_second / 1e12:.0f} TFLOP/s (bf16 products of 8192³), "
            f"{machine.copy_bytes_per_second / 1e12:.2f} TB/s (copy, read plus written)."
        )
    return f"- {machine.device}{memory}; {versions}; commit {machine.commit}.{rates} Command: `{machine.command}`"


def _bar_lines(measured: Sequence[Measurement]) -> list[str]:
    tiny = any(item.tiny for item in measured if isinstance(item, Machine))
    rows = ([bar.what, bar.against, bar.bar, bar.found, _MET[None if tiny else bar.met]] for bar in bars(measured))
    return _table(["what", "against", "bar", "measured", "met"], rows)


def _method_lines() -> list[str]:
    return [
        "A speed promise is judged by a process's first run, which is what a user's one run is, where three processes",
        "of each side have made one, else by the steady rate; both are given. *First run*: rows over the Trainer's",
        "`train_runtime`, warm-up, capture and final checkpoint included. *Steady*: rows of a step over the median",
        "step of later runs of the same rows in that process, median of at least 3 runs. TRL runs as it comes: its",
        "cuDNN attention builds a plan for each new width, which only the first run pays. Our pipeline switches that",
        "attention off. Both sides train on the same token ids and labels (compared before each TRL run), each over",
        "all of them, with the same optimizer, logging interval and LoRA settings; TRL keeps its LoRA weights in",
        "bf16, ours are fp32. Ours goes by length, TRL in random order unless its label says so. Measuring for `auto`",
        "lies before the Trainer's clock. Memory rows have exactly the length in every row; speed rows are evenly",
        "spaced ones of the real rows.",
        "Models are random-weight twins with the published shapes.",
        "",
        f"Operations a step: {FORMULA}.",
    ]


def _run_lines(runs: Sequence[TrainingRun], machines: Sequence[Machine]) -> list[str]:
    peak_rate = next((machine.matrix_flops_per_second for machine in machines if machine.matrix_flops_per_second), None)
    heads = ["row", "side", "label", "batch × acc × length", "fused", "runs", "steps", "first run, samples/s"]
    heads += ["steady, samples/s", "median step", "step at the card's matrix rate", "share of it"]
    heads += ["peak allocated", "peak reserved", "outcome"]
    ordered = sorted(runs, key=_key)
    return _table(heads, (_run_cells(list(group), peak_rate) for _, group in groupby(ordered, key=_key)))


def _key(run: TrainingRun) -> tuple[str, str, str, int, str]:
    return run.row, run.side, run.label, run.batch_size, run.outcome.partition(":")[0]


def _run_cells(group: Sequence[TrainingRun], peak_rate: float | None) -> list[str]:
    one = group[0]
    later = [run for run in group if run.repeat] or group
    median_step = _median(seconds for run in later for seconds in run.step_seconds[1:])
    flops = one.model_flops_per_step
    limit = flops / peak_rate if flops and peak_rate else None
    return [
        *(one.row, one.side, one.label),
        f"{one.batch_size} × {one.gradient_accumulation_steps} × {one.max_seq_length}",
        "/".join(map(str, dict.fromkeys(run.fused_micro_batches for run in group))),
        str(len(group)),
        str(max(len(run.step_seconds) for run in group)),
        _number(next((run.samples_per_second for run in group if run.repeat == 0), None), "{:.2f}"),
        _number(_median(run.step_samples_per_second for run in later), "{:.2f}"),
        _number(median_step, "{:.3f} s"),
        _number(limit, "{:.4f} s"),
        _number(limit / median_step if limit and median_step else None, "{:.1%}"),
        _number(_most(run.peak_allocated_bytes for run in group), "{:.2f} GiB", GIB),
        _number(_most(run.peak_reserved_bytes for run in group), "{:.2f} GiB", GIB),
        one.outcome.replace("|", "/")[:60],
    ]


def _process_lines(processes: Sequence[ProcessRun]) -> list[str]:
    rows = (
        [
            run.label,
            str(run.repeat),
            f"{run.seconds:.2f} s",
            str(run.returncode),
            ", ".join(f"{name} {value:.2f}" for name, value in [*run.marks.items(), *run.figures.items()]),
        ]
        for run in processes
    )
    return _table(["process", "run", "whole", "exit", "seen"], rows)


def _limit_of_generation(processes: Sequence[ProcessRun], machines: Sequence[Machine]) -> list[str]:
    """Bytes over bandwidth: each new token of the longest answer reads every weight once."""
    copy_rate = next((machine.copy_bytes_per_second for machine in machines if machine.copy_bytes_per_second), None)
    done = [run for run in processes if "longest_answer_tokens" in run.figures]
    if not copy_rate or not done:
        return []
    parts = parameter_parts(BUILT_IN[SMALL])
    token_bytes = parts.quantised_linear * _QUANTISED_BYTES_PER_PARAMETER + parts.head * 2
    tokens = max(run.figures["longest_answer_tokens"] for run in done)
    seconds = statistics.median(run.figures["generate_seconds"] for run in done)
    return [
        f"Generation took {seconds:.2f} s; reading the weights once for each of the {tokens:.0f} tokens of the longest",
        f"answer ({token_bytes / GIB:.2f} GiB each) would take {tokens * token_bytes / copy_rate:.4f} s",
        "at the copy rate.",
    ]


def _command_lines(runs: Sequence[TrainingRun], processes: Sequence[ProcessRun]) -> list[str]:
    seen: dict[str, str] = {}
    for run in runs:
        seen.setdefault(f"{run.row}, {run.side}, {run.label}", run.command)
    for process in processes:
        seen.setdefault(process.label, process.command)
    return [f"- {name}: `{command}`" for name, command in seen.items()] or ["- none"]


def _median(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _number(value: float | None, text: str, unit: float = 1.0) -> str:
    return "–" if value is None else text.format(value / unit)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return lines + [f"| {' | '.join(cells)} |" for cells in rows]


def main() -> None:
    """Write the page, or print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--findings", type=Path, help="Markdown that is put below the promises")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    findings = options.findings.read_text(encoding="utf-8") if options.findings else ""
    text = document([item for path in options.results if path.is_file() for item in read(path)], findings)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
