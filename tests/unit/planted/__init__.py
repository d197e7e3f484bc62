"""Fake pipelines with planted defects: a pipeline root to copy, and a way to run its scripts in this process.

`root/` is the clean pipeline root (standard library only). `plant` copies it and writes `defect.json`; the scripts
may also be run as programs, by any Python. `defects.DEFECTS` and `defects.SOUND` say what each variant must lead to.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType
from unittest import mock

ROOT = Path(__file__).parent / "root"
TRAIN_SCRIPT = "scripts/train_qwen_law_ft.py"
EVALUATE_SCRIPT = "scripts/evaluate_multiple_choice.py"
TRAIN_FILE = "results/finetune/ft_direct_full_norag.jsonl"
DATASET = "datasets/lawqa_jp/data/selection.json"


@dataclass(frozen=True)
class Ran:
    """What running a script in this process gave; `output` is stdout followed by stderr."""

    returncode: int
    stdout: str
    output: str


def plant(target: Path, **knobs: object) -> Path:
    """Copy the pipeline root to `target`, with the given `defect.json` (keys: the scripts name them)."""
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns("__pycache__"))
    if knobs:
        (target / "defect.json").write_text(json.dumps(knobs), encoding="utf-8")
    return target


def run_script(root: Path, script: str, *arguments: str, probe_dir: Path | None = None) -> Ran:
    """Run a script of the root as `python script arguments…` would, with the root as working directory.

    `probe_dir`: the folder, made where it is not there, that what a witness would see is written to.
    """
    stdout, stderr = io.StringIO(), io.StringIO()
    argv = sys.argv
    if probe_dir is not None:
        probe_dir.mkdir(exist_ok=True)
        os.environ["STEPH_PROBE_DIR"] = str(probe_dir)
    with (
        contextlib.chdir(root),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        mock.patch("runpy.run_path", _run_path),
    ):
        sys.argv = [script, *arguments]
        try:
            exec(_compiled(Path(script).read_text(encoding="utf-8"), script), {"__name__": "__main__"})  # noqa: S102
            code: object = 0
        except SystemExit as end:
            code = end.code
        except Exception:
            traceback.print_exc()
            code = 1
        finally:
            sys.argv = argv
            os.environ.pop("STEPH_PROBE_DIR", None)
    if isinstance(code, str):
        stderr.write(code + "\n")
    returncode = code if isinstance(code, int) else int(code is not None)
    return Ran(returncode, stdout.getvalue(), stdout.getvalue() + stderr.getvalue())


def _run_path(path: str, run_name: str = "<run_path>") -> dict[str, object]:
    """As runpy's, with each source compiled once."""
    names: dict[str, object] = {"__name__": run_name}
    exec(_compiled(Path(path).read_text(encoding="utf-8"), path), names)  # noqa: S102
    return names


@cache
def _compiled(source: str, name: str) -> CodeType:
    return compile(source, name, "exec")
