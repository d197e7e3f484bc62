"""Training rows: read from JSON Lines, checked, and turned into token ids with labels."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.core.errors import PipelineError
from app.core.files import require_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

REMEDY = "build the file with scripts/build_finetune_dataset.py"
IGNORED = -100


@dataclass(frozen=True)
class TrainingRow:
    """One prompt and the answer to learn; `place` names its file and line for error messages."""

    prompt: str
    answer: str
    mode: str | None
    place: str


@dataclass(frozen=True)
class EncodedRows:
    """Rows as the collator takes them (`input_ids`, `labels`), and what shortening took away."""

    rows: list[dict[str, list[int]]]
    shortened_rows: int
    dropped_tokens: int


def read_rows(path: Path, train_mode: str) -> list[TrainingRow]:
    """Every row of a JSON Lines file; raises `PipelineError` naming file, line and key of the first bad one."""
    require_file(path, "--train-file", REMEDY)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: U+2028 and the like end no JSON line
    except UnicodeDecodeError as error:
        raise PipelineError(f"--train-file {path} is not UTF-8 text ({error}); {REMEDY}") from error
    rows = [_row(line, f"{path} line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise PipelineError(f"--train-file {path} has no row; {REMEDY}")
    for row in rows:
        if train_mode != "auto" and row.mode not in (None, train_mode):
            raise PipelineError(f"{row.place} has meta.mode {row.mode!r}, but --train-mode is {train_mode}; {REMEDY}")
    return rows


def _row(line: str, place: str) -> TrainingRow:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise PipelineError(f"{place} is not valid JSON ({error}); {REMEDY}") from error
    if not isinstance(content, dict):
        raise PipelineError(f"{place} is not an object; {REMEDY}")
    for key in ("input", "output"):
        if not isinstance(content.get(key), str) or not content[key].strip():
            raise PipelineError(f"{place} has no text under the key {key!r}; {REMEDY}")
    meta = content.get("meta")
    mode = meta.get("mode") if isinstance(meta, dict) else None
    return TrainingRow(content["input"].strip(), content["output"].strip(), mode, place)


def encode_rows(
    tokenizer: "PreTrainedTokenizerFast", rows: Sequence[TrainingRow], *, max_seq_length: int, loss_on_output_only: bool
) -> EncodedRows:
    """Tokenize every row to at most `max_seq_length` ids; prompts are shortened, answers never.

    Labels are the ids themselves, the prompt's being -100 where the loss is on the answer only. Raises `PipelineError`
    where an answer leaves no room for its question.
    """
    from app.llm.chat_tokens import encode_answer, encode_prompt

    encoded: list[dict[str, list[int]]] = []
    dropped: list[int] = []
    for row in rows:
        answer = encode_answer(tokenizer, row.answer)
        try:
            prompt = encode_prompt(tokenizer, row.prompt, max_seq_length - len(answer))
        except PipelineError as error:
            raise PipelineError(f"{row.place}: beside an answer of {len(answer)} tokens {error}") from error
        ids = prompt.ids + answer
        prompt_labels = [IGNORED] * len(prompt.ids) if loss_on_output_only else prompt.ids
        encoded.append({"input_ids": ids, "labels": prompt_labels + answer})
        dropped.append(prompt.dropped_tokens)
    return EncodedRows(encoded, sum(count > 0 for count in dropped), sum(dropped))
