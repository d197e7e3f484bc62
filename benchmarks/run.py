"""Runs every row, both sides, on one GPU within a time box: `python -m benchmarks.run --help`.

Each row is a process or a few; what they find is appended to `results.jsonl` as it comes. Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import evaluation, inputs
from benchmarks.points import PROCESSES, ROWS_USED
from benchmarks.records import GIB, Machine, Note, TimeBox, append, read

ALLOCATOR_CAP_BYTES = 8.8 * GIB
ROWS = ("A-qv", "A-all7", "B", "D", "E", "C", "F")
LEAST_SECONDS = 20.0
GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Options:
    """The command line."""

    tokenizer: Path
    data: Path
    out: Path
    work: Path
    seconds: float
    rows: tuple[str, ...]
    tiny: bool


def parse_options() -> Options:
    """Read the command line; argparse exits with 2 on a bad one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of a Qwen tokenizer (tokenizer.json)")
    parser.add_argument("--data", type=Path, required=True, help="the question set's selection.json")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.jsonl and the logs")
    parser.add_argument("--work", type=Path, default=Path("/tmp/steph-benchmarks"), help="twins and runs; kept")  # noqa: S108
    parser.add_argument("--seconds", type=float, default=540.0, help="the time box")
    parser.add_argument("--rows", type=lambda text: tuple(text.split(",")), default=ROWS, help=",".join(ROWS))
    parser.add_argument("--tiny", action="store_true", help="tiny models and a few steps: does everything run?")
    options = Options(**vars(parser.parse_args()))
    unknown = set(options.rows) - set(ROWS)
    if unknown:
        parser.error(f"argument --rows: unknown {', '.join(sorted(unknown))}; known are {', '.join(ROWS)}")
    return options


class Session:
    """One call: the prepared inputs, the time box, and a process for each row."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.box = TimeBox(time.time() + options.seconds)
        self.results = options.out / "results.jsonl"
        (options.work / "logs").mkdir(parents=True, exist_ok=True)
        options.out.mkdir(parents=True, exist_ok=True)
        self.root = inputs.make_root(options.work / "root", options.data.resolve())
        built = inputs.build_train_file(self.root)
        self.real = {row: inputs.some_rows(built, options.work, count) for row, count in ROWS_USED.items()}
        self.full = inputs.full_rows(options.work)
        self.total_bytes: int | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Ours, with the repository, the suite and the pipeline importable and the Hub off."""
        found = [str(inputs.REPOSITORY), str(inputs.REPOSITORY / "plugins"), str(self.root)]
        path = os.pathsep.join([*found, *filter(None, [os.environ.get("PYTHONPATH")])])
        offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"}
        return {**os.environ, "PYTHONPATH": path, **offline}

    def machine(self) -> None:
        """The card's name and rates; what the fraction for a smaller card is a fraction of."""
        command = " ".join(map(shlex.quote, [Path(sys.executable).name, "-m", "benchmarks.run", *sys.argv[1:]]))
        arguments = ["--results", str(self.results), "--command", command, *self._tiny_flag()]
        self._module("benchmarks.machine", arguments, self.environment, "machine")
        machines = [found for found in read(self.results) if isinstance(found, Machine)]
        if machines:
            self.total_bytes = machines[-1].total_bytes

    def twin(self, name: str) -> Path:
        """The row's model, made where it isn't there yet."""
        started = time.perf_counter()
        folder, log = self.options.work / "twins", self.options.work / "logs" / "twin.log"
        made = inputs.make_twin(name, folder, self.options.tokenizer, self.real["B"], log, tiny=self.options.tiny)
        self.note("twin", f"{made.name}: {time.perf_counter() - started:.1f} s to make or to find")
        return made

    def side(self, module: str, row: str, model: str, train_file: Path, *, capped: bool, process: int = 0) -> None:
        """One side of one row in a process of its own."""
        arguments = ["--row", row, "--model", str(self.twin(model)), "--train-file", str(train_file)]
        arguments += ["--results", str(self.results), "--work", str(self.options.work / "trained")]
        arguments += ["--process", str(process)]
        arguments += ["--deadline", str(self.box.deadline_unix - GRACE_SECONDS), *self._tiny_flag()]
        environment = self.environment
        if capped and self.total_bytes:
            fraction = ALLOCATOR_CAP_BYTES / self.total_bytes
            environment["PYTORCH_CUDA_ALLOC_CONF"] = f"per_process_memory_fraction:{fraction:.8f}"
        self._module(module, arguments, environment, f"{row}-{module.rpartition('.')[2]}-{process}")

    def place(self) -> evaluation.Place:
        """Where rows D and E run."""
        environment = {**self.environment, "STEPH_CACHE": str(self.options.work / "suite-cache")}
        environment["STEPH_TOKENIZER"] = str(self.options.tokenizer.resolve())
        model = self.twin(inputs.SMALL)
        return evaluation.Place(
            self.root, model, self.options.work, self.results, self.box, environment, self.options.tiny
        )

    def note(self, row: str, text: str) -> None:
        """A line for the table's notes."""
        append(self.results, Note(row, text))

    def _tiny_flag(self) -> list[str]:
        return ["--tiny"] if self.options.tiny else []

    def _module(self, module: str, arguments: list[str], environment: dict[str, str], name: str) -> None:
        """Run a module of this package from the pipeline root; a failure becomes a note, the log says more."""
        log = self.options.work / "logs" / f"{name}.log"
        with log.open("wb") as output:
            try:
                ended = subprocess.run(
                    [sys.executable, "-m", module, *arguments],
                    cwd=self.root,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=max(self.box.left_seconds, 1.0),
                    check=False,
                )
            except subprocess.TimeoutExpired:
                self.note(name, "ended by the time box; what it had measured is kept")
                return
        if ended.returncode != 0:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or ["no output"]
            self.note(name, f"ended with {ended.returncode}: {last[0][:300]}")


def row_runners(session: Session) -> dict[str, Callable[[], None]]:
    """How each row is run."""

    def ours(row: str, model: str, train_file: Path, *, capped: bool) -> None:
        session.side("benchmarks.training", row, model, train_file, capped=capped)

    def both(row: str, model: str, *, capped: bool) -> None:
        for process in range(1 if session.options.tiny else PROCESSES[row]):
            for module in ("benchmarks.training", "benchmarks.trl_side"):
                session.side(module, row, model, session.real[row], capped=capped, process=process)

    return {
        "A-qv": lambda: ours("A-qv", inputs.LARGE, session.full, capped=True),
        "A-all7": lambda: ours("A-all7", inputs.LARGE, session.full, capped=True),
        "B": lambda: both("B", inputs.SMALL, capped=True),
        "C": lambda: both("C", inputs.LARGE, capped=False),
        "D": lambda: evaluation.row_d(session.place()),
        "E": lambda: evaluation.row_e(session.place()),
        "F": lambda: session.side("benchmarks.launches", "F", inputs.SMALL, session.real["B"], capped=True),
    }


def main() -> None:
    """Run the rows in the order of their worth."""
    options = parse_options()
    session = Session(options)
    session.machine()
    runners = row_runners(session)
    for row in ROWS:
        if row not in options.rows:
            continue
        if session.box.left_seconds < LEAST_SECONDS:
            session.note(row, "skipped: no time left in the time box")
            continue
        started = time.perf_counter()
        try:
            runners[row]()
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            session.note(row, f"failed: {type(error).__name__}: {error}")
        print(f"{row}: {time.perf_counter() - started:.1f} s, {session.box.left_seconds:.0f} s left", flush=True)


if __name__ == "__main__":
    main()
