"""Measure the memory of training runs, each in a process of its own on one of the visible GPUs; a JSON line a point.

    PYTHONPATH=.:plugins python -m benchmarks.vram_grid --work DIR --tokenizer DIR --output points.jsonl --seconds 500
    PYTHONPATH=.:plugins python -m benchmarks.vram_grid --work DIR --output points.jsonl --dry   (CPU, tiny model)

`answer` points run the reference pipeline's training script, `full` points `benchmarks.plain_trainer`. Every row is
exactly as long as its point says. Several runs share a card, for as long as their predicted peaks fit; their own
peaks come from their allocators. The points at the interval's ends come last, since they need the constants that the
calibration points give. Points that the output already has are left out, so that a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from steph.base.terms import TrainerName
from steph.base.units import GIB
from steph.memory.forecast import BUILT_IN_CONSTANTS
from steph.record.settings import Device
from steph.run.gpu import capped_alloc_conf, held_bytes_by_pid, kept_open, visible_devices

from benchmarks.inputs import REPOSITORY, full_rows, make_twin
from benchmarks.vram_points import (
    DRY_MODEL,
    MODELS,
    SFT,
    Point,
    bounds,
    fourth_points,
    points_of,
    reference_points,
    sft_points,
    third_points,
)
from benchmarks.vram_report import constants_from, read_points

PIPELINE = (TrainerName.ANSWER, TrainerName.REFERENCE)  # the second is what stands in pipeline/ today
STEPS = 3  # the optimizer's state is there from the second step on
GRAPHED_STEPS = 6  # a graph is captured in the third
CARD_SHARE = 0.9
INJECT = REPOSITORY / "plugins" / "steph" / "child" / "inject"


@dataclass
class Running:
    """A measurement under way."""

    point: Point
    card: Device | None
    process: subprocess.Popen[bytes]
    folder: Path
    log: IO[bytes]
    started: float
    most_used_bytes: int = 0

    @property
    def due_bytes(self) -> int:
        """What it will take of the card, as far as is known."""
        return self.point.forecast(BUILT_IN_CONSTANTS).peak.peak_bytes


class Grid:
    """Runs points side by side and writes each down as it ends."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._work: Path = options.work.resolve()
        self._output: Path = options.output.resolve()
        self._jobs: int = options.jobs
        self._deadline = time.monotonic() + options.seconds
        self._cards: tuple[Device | None, ...] = (None,) if options.dry else visible_devices(os.environ)
        self._total_bytes = None if options.dry else _torch_total_bytes()
        self._running: list[Running] = []
        self._work.mkdir(parents=True, exist_ok=True)
        self._rows = full_rows(self._work)
        self._tokenizer: Path = options.tokenizer
        self._twins: dict[str, Path] = {}

    def _make_twins(self, names: Iterable[str]) -> None:
        def made(name: str) -> Path:
            folder, log = self._work / "twins", self._work / "twins.log"
            return make_twin(name, folder, self._tokenizer, self._rows, log, tiny=name == DRY_MODEL)

        missing = sorted(set(names) - set(self._twins))
        with ThreadPoolExecutor(4) as pool:
            self._twins |= dict(zip(missing, pool.map(made, missing), strict=True))

    def measure(self, points: Sequence[Point]) -> None:
        """Every point that the output lacks, the largest first, within the time."""
        done = {json.loads(line)["key"] for line in self._lines()}
        waiting = [point for point in points if point.key not in done]
        self._make_twins(point.model for point in waiting)
        waiting.sort(key=lambda point: point.forecast(BUILT_IN_CONSTANTS).peak.peak_bytes, reverse=True)
        while waiting or self._running:
            for card in self._cards:
                while waiting and self._has_room(waiting[0], card):
                    self._running.append(self._start(waiting.pop(0), card))
            if waiting and time.monotonic() > self._deadline:
                print(f"the time is used up: {len(waiting)} points are not measured", file=sys.stderr)
                waiting.clear()
            time.sleep(0.1)
            self._watch_memory()
            for found in [running for running in self._running if running.process.poll() is not None]:
                self._running.remove(found)
                self._write(found)

    def _lines(self) -> list[str]:
        return self._output.read_text(encoding="utf-8").splitlines() if self._output.is_file() else []

    def _has_room(self, point: Point, card: Device | None) -> bool:
        there = [running for running in self._running if running.card == card]
        if time.monotonic() > self._deadline or len(there) >= self._jobs:
            return False
        due = sum(running.due_bytes for running in there) + point.forecast(BUILT_IN_CONSTANTS).peak.peak_bytes
        return card is None or not there or due <= CARD_SHARE * card.total_bytes

    def _start(self, point: Point, card: Device | None) -> Running:
        folder = self._work / "points" / f"{time.monotonic_ns()}"
        folder.mkdir(parents=True)
        log = (folder / "log").open("wb")
        command = [sys.executable, *_script(point), *self._flags(point, folder / "output")]
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY / "pipeline" if point.trainer in PIPELINE else REPOSITORY,
            env=self._environment(point, card, folder),
            stdout=log,
            stderr=log,
        )
        return Running(point, card, process, folder, log, time.monotonic())

    def _environment(self, point: Point, card: Device | None, folder: Path) -> dict[str, str]:
        """The suite's own probe tells the peaks at the end, its cap limits the allocator."""
        found = {**os.environ, "STEPH_PROBE_DIR": str(folder), "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
        found["PYTHONPATH"] = os.pathsep.join([str(INJECT), found.get("PYTHONPATH", "")])
        if card is not None:
            found["CUDA_VISIBLE_DEVICES"] = card.uuid
        if point.allowed_gib is not None and self._total_bytes is not None:
            fraction = point.allowed_gib * GIB / self._total_bytes
            found |= capped_alloc_conf(found, fraction)
        return found

    def _flags(self, point: Point, output: Path) -> list[str]:
        values = {
            "--model-name": self._twins[point.model],
            "--output-dir": output,
            "--batch-size": point.batch,
            "--max-seq-length": point.seq,
            "--gradient-accumulation-steps": point.accumulation,
            "--max-steps-override": GRAPHED_STEPS if point.cuda_graph else STEPS,
            "--lora-r": point.r,
            "--target-modules": ",".join(point.targets),
        }
        if point.trainer in PIPELINE:
            values |= {
                "--train-file": self._rows,
                "--gradient-checkpointing": "on" if point.recompute else "off",
                "--fuse-accumulation": "off",
                "--cuda-graph": "on" if point.cuda_graph else "off",
                "--host-memory": point.host_memory,
                "--lora-dropout": 0.05 if point.dropout else 0,
            }
        more = ["--use-4bit", "--do-train"] if point.trainer in PIPELINE else []
        if point.trainer in SFT:
            more = ["--side", point.trainer, "--answer-tokens", str(point.answer_tokens)]
            more += [] if point.use_4bit or point.use_8bit else ["--no-4bit"]
            flags = {"--8bit": point.use_8bit, "--packing": point.packing, "--dora": point.dora}
            more += [flag for flag, is_on in flags.items() if is_on]
            more += [] if point.recompute else ["--no-recompute"]
        return [*(str(word) for pair in values.items() for word in pair), *more]

    def _watch_memory(self) -> None:
        cards = [card for card in self._cards if card is not None]
        held = {pid: found or 0 for card in cards for pid, found in held_bytes_by_pid(card.uuid).items()}
        for running in self._running:
            running.most_used_bytes = max(running.most_used_bytes, held.get(running.process.pid, 0))

    def _write(self, found: Running) -> None:
        found.log.close()
        line = {**asdict(found.point), "key": found.point.key, "use": found.point.use, **self._measured(found)}
        with self._output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        shown = {name: line[name] for name in ("model", "trainer", "batch", "seq", "peak_reserved", "oom", "error")}
        print(json.dumps(shown), file=sys.stderr)
        if line["error"] is None:
            shutil.rmtree(found.folder)

    def _measured(self, found: Running) -> dict[str, Any]:
        probes = [json.loads(path.read_text(encoding="utf-8")) for path in found.folder.glob("probe-*.json")]
        probe: dict[str, Any] = next((probe for probe in probes if probe["pid"] == found.process.pid), {})
        oom = probe.get("exception_message") if "OutOfMemory" in probe.get("exception_type", "") else None
        failed = found.process.returncode != 0 and oom is None
        reserved = probe.get("peak_reserved_bytes")
        used = found.most_used_bytes
        return {
            "peak_allocated": probe.get("peak_allocated_bytes"),
            "peak_reserved": reserved,
            "allocator_retries": probe.get("allocator_retries"),
            "memory_fraction": probe.get("memory_fraction"),
            "context": used - reserved if used and reserved and oom is None else None,
            "oom": oom,
            "error": (found.folder / "log").read_text(errors="replace")[-2000:] if failed else None,
            "seconds": round(time.monotonic() - found.started, 1),
            "device": found.card.name if found.card else None,
            "versions": probe.get("packages"),
        }


def _torch_total_bytes() -> int:
    """What a memory fraction is a fraction of, which is a little less than the driver's figure."""
    ask = "import torch; print(torch.cuda.get_device_properties(0).total_memory)"
    return int(subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True).stdout)


def _script(point: Point) -> list[str]:
    if point.trainer in PIPELINE:
        return ["scripts/train_qwen_law_ft.py"]
    return ["-m", "benchmarks.sft_trainer" if point.trainer in SFT else "benchmarks.plain_trainer"]


def main() -> int:
    """Measure the grid, then the ends of the intervals that its calibration points give."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for twins and runs; twins are kept")
    parser.add_argument("--tokenizer", type=Path, help="folder of a Qwen tokenizer")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=900.0, help="no point is started later than this")
    parser.add_argument("--jobs", type=int, default=6, help="processes side by side on a card")
    parser.add_argument("--sft", action="store_true", help="only the points of TRL, Liger and Unsloth")
    parser.add_argument("--third", action="store_true", help="only Gemma shapes, packing, 8 and 16 bits, DoRA, caps")
    parser.add_argument("--fourth", action="store_true", help="only those that judge the third series' formulas")
    parser.add_argument("--reference", action="store_true", help="only the reference pipeline's steps as of 0.2.0")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    with kept_open():
        grid = Grid(options)
        series = {"sft": sft_points, "third": third_points, "fourth": fourth_points, "reference": reference_points}
        chosen = [points for name, points in series.items() if getattr(options, name)]
        if chosen:
            grid.measure([point for points in chosen for point in points()])
            return 0
        grid.measure([point for model in ((DRY_MODEL,) if options.dry else MODELS) for point in points_of(model)])
        if not options.dry:
            grid.measure(tuple(bounds(constants_from(read_points(options.output)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
