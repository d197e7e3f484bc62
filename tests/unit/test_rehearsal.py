"""The whole rehearsal on the CPU: the three stages on the reference pipeline, 4-bit included, as in `make accept`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from steph.judge.verdict import Overall, overall
from steph.record import StageId
from steph.run.journal import read_record, record_folders
from suite_runs import CLONE, PAGE, clean_environment


def test_the_reference_pipeline_rehearses_green_on_the_cpu(tmp_path: Path) -> None:
    """A tiny Qwen2 made on the spot trains in 4-bit, is evaluated, and the report is written."""
    # a copy: the pipeline's own folders hold what a person's last acceptance left there
    root = shutil.copytree(CLONE / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("runs", "results"))
    environment = clean_environment() | {"STEPH_CACHE": str(tmp_path / "cache")}
    places = (f"--steph-pipeline-root={root}", f"--steph-report={tmp_path / 'reports'}")
    options = ("--steph-profile=cpu", *places, "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", str(PAGE), *options],
        cwd=CLONE,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    record = read_record(record_folders(tmp_path / "reports" / "runs")[-1])
    assert overall(record) is Overall.PASSED
    training = record.stages[StageId.H2].attempts[-1]
    assert "bitsandbytes" in training.probes[0].packages
    assert "予行・受入ではない" in (tmp_path / "reports" / "StepH_予行.md").read_text(encoding="utf-8")
