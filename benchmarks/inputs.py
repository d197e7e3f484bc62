"""What the rows need before anything is timed: a pipeline root of their own, training files, twins."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from steph.memory.shapes import TINY, config_of, model_shape

REPOSITORY = Path(__file__).resolve().parents[1]
TWIN_SCRIPT = REPOSITORY / "plugins" / "steph" / "child" / "twin.py"
SMALL, LARGE = "Qwen/Qwen1.5-1.8B-Chat", "Qwen/Qwen3-8B"
TRAIN_FILE = "results/finetune/ft_direct_full_norag.jsonl"
DATASET = "datasets/lawqa_jp/data/selection.json"
HELD_OUT = 3
FULL_ROWS = 160
_FILLER = "law and order " * 1000
WHOLE_BATCHES_OF = 8


def make_root(folder: Path, data: Path) -> Path:
    """A copy of the pipeline with the data set in its place, so that no checkout is written to; kept if there."""
    if not (folder / "steph.toml").is_file():
        ignore = shutil.ignore_patterns("runs", "results", "lawqa_jp", "__pycache__", ".venv")
        shutil.copytree(REPOSITORY / "pipeline", folder, ignore=ignore, dirs_exist_ok=True)
        (folder / DATASET).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data, folder / DATASET)
    return folder


def build_train_file(root: Path) -> Path:
    """The real rows as the pipeline's own builder makes them, three questions held out; the spec's path."""
    command = ["scripts/build_finetune_dataset.py", "--lawqa-path", DATASET, "--output-path", TRAIN_FILE]
    options = ["--mode", "direct", "--no-rag", "--few-shot", "--holdout", str(HELD_OUT)]
    subprocess.run([sys.executable, *command, *options], cwd=root, check=True, stdout=subprocess.DEVNULL)
    return root / TRAIN_FILE


def some_rows(train_file: Path, folder: Path, count: int) -> Path:
    """`count` of the real rows, evenly spaced, so that every optimizer step of the row's settings is a whole one."""
    lines = train_file.read_text(encoding="utf-8").splitlines(keepends=True)
    count = min(count, len(lines) // WHOLE_BATCHES_OF * WHOLE_BATCHES_OF)
    target = folder / f"real_rows_{count}.jsonl"
    target.write_text("".join(lines[at * len(lines) // count] for at in range(count)), encoding="utf-8")
    return target


def full_rows(folder: Path) -> Path:
    """Rows whose prompts are longer than any length that is measured: shortening fills each to exactly the length.

    Plain ASCII words, whose tokens are whole characters, so that no cut falls inside one.
    """
    target = folder / "full_rows.jsonl"
    rows = ({"input": f"{number} {_FILLER}", "output": "abcd"[number % 4]} for number in range(FULL_ROWS))
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return target


def make_twin(name: str, folder: Path, tokenizer: Path, train_file: Path, log: Path, *, tiny: bool) -> Path:
    """A random-weight twin of `name` with the given tokenizer, or the tiny one with its own; kept if it is there."""
    target = folder / ("tiny" if tiny else name.rpartition("/")[2])
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f"{target.name}-config.json"
    shape = TINY if tiny else model_shape(name)
    config.write_text(json.dumps(config_of(shape, name)), encoding="utf-8")
    is_qwen = shape.model_type.startswith("qwen") and not tiny
    source = ["--tokenizer", str(tokenizer)] if is_qwen else ["--train-tokenizer", str(train_file)]
    with log.open("ab") as output:
        command = [sys.executable, str(TWIN_SCRIPT), "--config", str(config), "--output", str(target), *source]
        subprocess.run(command, check=True, stdout=output, stderr=output)
    return target
