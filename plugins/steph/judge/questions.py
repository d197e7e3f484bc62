"""The questions of the data set and of the training file, in a form in which they can be compared. Reads files only."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from steph.judge.artifacts import UnreadableError, read_json
from steph.plan.rows import rows_in

MAX_DATASET_BYTES = 512 << 20
REPEATED_CHARS = 40  # a shorter question and its choices may well stand in an answer
FRAME_CHARS = 12  # a shorter common beginning or end of all prompts says nothing
_LABEL = re.compile(r"^\s*[a-d](?:[\s.、:)]+)", re.IGNORECASE)
_PART = "\x1f"


@dataclass(frozen=True)
class Question:
    """One question of the data set: its comparable key and its right letter."""

    key: str
    answer: str


def question_key(question: str, choices: object) -> str:
    """Reduce question and choices to text without spacing, width and labels; many questions differ in choices only."""
    return _squeeze(question) + _PART + _PART.join(_choices(choices))


def _choices(choices: object) -> list[str]:
    if isinstance(choices, Mapping):
        parts = [str(value) for _, value in sorted(choices.items(), key=lambda item: str(item[0]))]
    elif isinstance(choices, list):
        parts = [str(choice) for choice in choices]
    else:
        parts = [line for line in str(choices or "").splitlines() if line.strip()]
    return [_squeeze(_LABEL.sub("", unicodedata.normalize("NFKC", part), count=1)) for part in parts]


def _squeeze(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def repeats_question(text: str, question: str, choices: object) -> bool:
    """Whether a text has the question and then every choice in order, word for word, as a prompt has them."""
    parts = [_squeeze(question), *_choices(choices)]
    if sum(map(len, parts)) < REPEATED_CHARS or not all(parts):
        return False
    squeezed, at = _squeeze(text), 0
    for part in parts:
        found = squeezed.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return True


def questions_of(dataset: Path) -> tuple[Question, ...]:
    """The data set's questions in order (lawqa_jp's keys); UnreadableError where it has no `samples`."""
    raw = read_json(dataset, MAX_DATASET_BYTES)
    samples = raw.get("samples") if isinstance(raw, Mapping) else None
    if not isinstance(samples, list):
        raise UnreadableError("samples がない")
    return tuple(
        Question(
            question_key(str(row.get("問題文", "")), row.get("選択肢")), str(row.get("output", "")).strip().lower()
        )
        for row in samples
        if isinstance(row, Mapping)
    )


def questions_in(train_file: Path) -> frozenset[str]:
    """Keys of the questions in a training file; rows without `meta.question` give their whole prompt instead.

    Raises OSError where the file can't be read; rows that are no JSON objects are skipped.
    """
    return frozenset(_row_key(row) for row in rows_in(train_file))


def frame_in(train_file: Path) -> tuple[str, str] | None:
    """The beginning and the end that all prompts of a training file share, cut at line ends; None below two rows."""
    prompts = [str(row.get("input", "")) for row in rows_in(train_file)]
    if len(prompts) < 2:
        return None
    head = _common_beginning(prompts)
    tail = _common_beginning([prompt[::-1] for prompt in prompts])[::-1]
    head = head[: head.rfind("\n") + 1]
    tail = tail[tail.find("\n") + 1 :] if "\n" in tail else ""
    return (_squeeze(head), _squeeze(tail))


def _common_beginning(texts: list[str]) -> str:
    first, last = min(texts), max(texts)
    return first[: next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def frame_agrees(frame: tuple[str, str], prompt: str) -> bool | None:
    """Whether an evaluation prompt carries the training prompts' frame; None where the frame is too short to tell."""
    parts = [part for part in frame if len(part) >= FRAME_CHARS]
    if not parts:
        return None
    squeezed = _squeeze(prompt)
    return all(part in squeezed for part in parts)


def is_among(key: str, train_questions: frozenset[str]) -> bool:
    """Whether a question is in the training file, by its own key or inside a whole prompt."""
    if key in train_questions:
        return True
    parts = [part for part in key.split(_PART) if part]
    prompts = (text for text in train_questions if _PART not in text)
    return any(all(part in text for part in parts) for text in prompts) if parts else False


def _row_key(row: Mapping[str, object]) -> str:
    meta = row.get("meta")
    if isinstance(meta, Mapping) and meta.get("question"):
        return question_key(str(meta["question"]), meta.get("choices"))
    return _squeeze(str(row.get("input", "")))
