"""Pipeline description: where a pipeline root keeps its scripts and files, read from `steph.toml` when it has one.

Without a `steph.toml` the published pipeline's facts hold, which are the defaults here. Paths are relative to the root.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from steph.plan.settings import ProfileError, validation_lines
from steph.record import Value


class Paths(Value):
    """The spec's relative paths, from the pipeline root."""

    train_script: str = "scripts/train_qwen_law_ft.py"
    evaluate_script: str = "scripts/evaluate_multiple_choice.py"
    train_file: str = "results/finetune/ft_direct_full_norag.jsonl"
    train_file_cot: str = "results/finetune/ft_cot_full_norag.jsonl"
    dataset: str = "datasets/lawqa_jp/data/selection.json"
    dataset_fallback: str | None = None
    output_dir: str = "runs/debug_small_model/direct_norag_small_4bit"
    evaluation_output: str = "results/evaluations/small_model_debug_direct.json"


class Build(Value):
    """How the training file is made on demand; `{dataset}`, `{train_file}`, `{mode}`, `{samples}` are filled in.

    Of an index: made anew before each evaluation with retrieval, from `{dataset}`.
    """

    command: tuple[str, ...]


class Description(Value):
    """What the suite may assume of one pipeline beyond its command line.

    `truncation` is "right" where the trainer cuts rows at the end (the answer goes first) and "keeps_answer" where the
    prompt is shortened instead. `trainer` is what its memory follows: "full" casts what is not 4-bit to fp32, computes
    all logits and pads to the maximum; "answer" casts nothing, computes the answers' logits, pads to the longest row.
    None: predicted as "full", but no setting is passed over because of a prediction.
    `optional_flags` lists training flags beyond the spec's; None: ask `--help`.
    """

    truncation: Literal["right", "keeps_answer"] = "right"
    trainer: Literal["full", "answer"] | None = None
    optional_flags: tuple[str, ...] | None = None
    paths: Paths = Paths()
    build: Build | None = None
    index: Build | None = None


class DescriptionError(ProfileError):
    """A `steph.toml` can't be used; the message names file, key, value and what is allowed."""


def load_description(root: Path) -> Description:
    """Read `steph.toml` of a pipeline root, or give the published pipeline's facts where there is none."""
    path = root / "steph.toml"
    if not path.is_file():
        return Description()
    try:
        return Description(**tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise DescriptionError("\n".join(validation_lines(str(path), error))) from error
    except (OSError, ValueError) as error:
        raise DescriptionError(f"{path}: can't be read: {error}") from error
