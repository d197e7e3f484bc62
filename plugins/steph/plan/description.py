"""Pipeline description: where a pipeline root keeps its scripts and files, read from `steph.toml` when it has one.

Without a `steph.toml` the published pipeline's facts hold, which are the defaults here. Paths are relative to the root.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from steph.plan.settings import ProfileError, strictly, validation_lines
from steph.record import Value
from steph.terms import TrainerName


def _inside(path: str) -> str:
    """The path of an output; a link in it may lead anywhere, its text may not."""
    lexical = Path(os.path.normpath(path))
    if lexical.is_absolute() or lexical.parts[:1] == (os.pardir,):
        raise ValueError("an output lies below the pipeline root; a symbolic link in it may lead elsewhere")
    return path


Output = Annotated[str, AfterValidator(_inside)]


class Paths(Value):
    """The spec's relative paths, from the pipeline root."""

    train_script: str = "scripts/train_qwen_law_ft.py"
    """The training script."""
    evaluate_script: str = "scripts/evaluate_multiple_choice.py"
    """The evaluation script."""
    train_file: str = "results/finetune/ft_direct_full_norag.jsonl"
    """The training rows, JSON Lines with `input` and `output`; H-2 trains on it."""
    train_file_cot: str = "results/finetune/ft_cot_full_norag.jsonl"
    """The same with reasoned answers."""
    dataset: str = "datasets/lawqa_jp/data/selection.json"
    """The questions, JSON with a list `samples`; H-3 asks its first ones."""
    dataset_fallback: str | None = None
    """Used where `dataset` is not there; the record then says that it was a sample."""
    output_dir: Output = "runs/debug_small_model/direct_norag_small_4bit"
    """What H-2 passes as `--output-dir`, below the root; what lies there is moved into the record before each attempt.
    A symbolic link in it may lead elsewhere."""
    evaluation_output: Output = "results/evaluations/small_model_debug_direct.json"
    """What H-3 passes as `--output`, below the root; moved away likewise."""
    evaluation_output_pattern: Annotated[str, Field(pattern=r"^[^/]+$")] | None = None
    """A file name with `*` that the script may write beside `evaluation_output` in its place, such as
    `"results_*.json"`; a date before the asked name (`20260131-1200_NAME`) is understood without it."""


class Builder(Value):
    """A command that makes an input on demand, with the pipeline's Python and from its root."""

    command: tuple[str, ...]


class Description(Value):
    """What the suite may assume of one pipeline beyond its command line."""

    truncation: Literal["right", "keeps_answer"] = "right"
    """Where a row that is too long is cut: `"right"` (its answer goes first) or `"keeps_answer"` (its prompt is
    shortened). Where most answers would be lost, a length is skipped."""
    trainer: TrainerName | None = None
    """What the trainer's memory follows: `"full"` casts what is not 4-bit to fp32, computes all logits and pads to the
    maximum; `"answer"` casts nothing, computes the answers' logits only and pads to the longest row. Not given:
    predicted as `"full"`, and no setting is passed over because of a prediction."""
    optional_flags: tuple[str, ...] | None = None
    """What the training script takes beyond the flags that every such script has, `--max-steps-override` above all.
    Not given: read off its `--help`, where the script's own text shows a command line (argparse, click, typer, fire,
    tyro, absl, docopt or the like); a script without one is never started to be asked."""
    paths: Paths = Paths()
    build: Builder | None = None
    """The builder of the training rows and its arguments, run where `paths.train_file` is missing or was built from
    other data. `{dataset}`, `{train_file}`, `{mode}` and `{samples}` are filled in."""
    index: Builder | None = None
    """The builder of the index, run before each evaluation with retrieval. `{dataset}` is filled in."""


class DescriptionError(ProfileError):
    """A `steph.toml` can't be used; the message names file, key, value and what is allowed."""


def load_description(root: Path) -> Description:
    """Read `steph.toml` of a pipeline root, or give the published pipeline's facts where there is none."""
    path = root / "steph.toml"
    if not path.is_file():
        return Description()
    try:
        return strictly(Description, tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except ValidationError as error:
        raise DescriptionError("\n".join(validation_lines(str(path), error))) from error
    except UnicodeDecodeError as error:
        raise DescriptionError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DescriptionError(f"{path}: can't be read: {error}") from error
