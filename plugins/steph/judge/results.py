"""The evaluation's JSON file: where it lies and what it says, with types and ranges checked. Reads, changes nothing."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from steph.base.files import UnreadableError, read_json
from steph.judge.artifacts import is_fresh
from steph.judge.questions import plain_label

MOST_SECONDS = 1e9
MOST_PATH_CHARS = 1000
_DATED = r"\d{8}-\d{4}(?:\d{2})?_"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False, protected_namespaces=())


class Config(_Part):
    """What the evaluation says it ran with; later versions may add keys, which are kept, or leave some out."""

    model_config = ConfigDict(extra="allow")

    rag_enabled: object = None
    cot_enabled: object = None
    ensemble_runs: object = None
    top_k: object = None
    llm_model: object = None
    hf_model_name: object = None
    backend: object = None
    lora_path: object = None
    load_in_4bit: object = None
    total_samples: object = None


class Summary(_Part):
    """The figures that the evaluation sums up; `accuracy` is 0 to 1."""

    accuracy: Annotated[float, Field(ge=0, le=1)]
    correct_count: Annotated[int, Field(ge=0)]
    total_count: Annotated[int, Field(ge=0)]


def _lowered(value: object) -> object:
    return plain_label(value) if isinstance(value, str) else value


class Row(_Part):
    """One answered question; newer pipelines alone have `seconds`, `new_tokens`, `finish_reason` and `prompt`."""

    question: str
    choices: object = None
    correct_answer: Annotated[str, StringConstraints(min_length=1, max_length=20)]
    predicted_answer: Annotated[Literal["a", "b", "c", "d", "unknown", "error"], BeforeValidator(_lowered)]
    is_correct: bool
    response: str | None
    seconds: object = None
    finish_reason: object = None
    prompt: object = None
    retrieved_docs_count: object = None
    new_tokens: object = None

    @property
    def asked(self) -> str | None:
        """The prompt as one text, also where it is a list of a chat's messages; None where the row has none."""
        if isinstance(self.prompt, str):
            return self.prompt or None
        if isinstance(self.prompt, list):
            said = [turn.get("content") if isinstance(turn, dict) else turn for turn in self.prompt]
            return "\n".join(text for text in said if isinstance(text, str)) or None
        return None

    @property
    def is_answered(self) -> bool:
        """Whether a label was read, right or wrong."""
        return self.predicted_answer not in ("unknown", "error")

    @property
    def own_seconds(self) -> float | None:
        """The seconds that it took; None where what is written is no such time."""
        if isinstance(self.seconds, int | float) and 0 <= self.seconds < MOST_SECONDS:
            return float(self.seconds)
        return None


class Results(_Part):
    """The whole file."""

    config: Config = Config()
    summary: Summary
    results: tuple[Row, ...]


@dataclass(frozen=True)
class ResultsFile:
    """The file that was found (None: none), the name the pipeline has for it, and its content or what is wrong.

    `others` are names of files beside it that this attempt wrote under the asked name and that tell other results.
    """

    path: Path | None
    name: str
    fresh: bool = False
    content: Results | None = None
    problem: str | None = None
    others: tuple[str, ...] = ()


def find_results(
    root: Path, asked: str, saved_to: str | None, started_unix: float, *, pattern: str | None = None
) -> ResultsFile:
    """Find and read one attempt's JSON: the file that the script named, else the newest that fits the asked path.

    A file fits by its name, alone or behind a date, or by `pattern`, a name with `*`.
    """
    names = _names(root / asked, pattern)
    path = _locate(root / asked, _named(root, asked, saved_to, names), names, started_unix)
    if path is None:
        return ResultsFile(None, asked)
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    fresh = is_fresh(path, started_unix)
    try:
        content = _parse(path)
    except UnreadableError as error:
        return ResultsFile(path, name, fresh, problem=str(error))
    others = _others(path, content, _names(root / asked, None), started_unix)
    said = root / saved_to if saved_to and "\0" not in saved_to and len(saved_to) <= MOST_PATH_CHARS else path
    if said.suffix == ".json" and said.name not in (path.name, *others) and _is_another(said, content, started_unix):
        others = (*others, said.name)
    return ResultsFile(path, name, fresh, content=content, others=others)


def _others(taken: Path, content: Results, names: re.Pattern[str], started_unix: float) -> tuple[str, ...]:
    """Young files of the asked name, alone or behind a date, that do not tell what the taken one does."""
    beside = [path for path in sorted(taken.parent.iterdir()) if names.fullmatch(path.name) and path != taken]
    return tuple(path.name for path in beside if _is_another(path, content, started_unix))


def _is_another(path: Path, content: Results, started_unix: float) -> bool:
    return path.is_file() and is_fresh(path, started_unix) and not _tells(path, content)


def _tells(path: Path, content: Results) -> bool:
    try:
        other = _parse(path)
    except UnreadableError:
        return False
    if content.config.lora_path and "lora_path" in other.config.model_fields_set and not other.config.lora_path:
        return True  # of the base model, evaluated beside the tuned one
    answers = [
        [(row.question, row.predicted_answer, row.is_correct) for row in one.results] for one in (other, content)
    ]
    return other.summary == content.summary and answers[0] == answers[1]


def read_results(path: Path) -> Results:
    """Read one evaluation's JSON; raises UnreadableError with the reason (Japanese)."""
    return _parse(path)


def _names(target: Path, pattern: str | None) -> re.Pattern[str]:
    alternatives = [f"(?:{_DATED})?{re.escape(target.name)}", *([fnmatch.translate(pattern)] if pattern else [])]
    return re.compile("|".join(alternatives))


def _named(root: Path, asked: str, saved_to: str | None, names: re.Pattern[str]) -> Path | None:
    """The file that the script says it wrote, where it has one of the names and lies in the asked folder."""
    if not saved_to or "\0" in saved_to or len(saved_to) > MOST_PATH_CHARS:
        return None
    path, target = root / saved_to, root / asked
    return path if names.fullmatch(path.name) and path.parent.resolve() == target.parent.resolve() else None


def _locate(target: Path, named: Path | None, names: re.Pattern[str], started_unix: float) -> Path | None:
    if named and named.is_file():
        return named
    folder = target.parent
    found = [p for p in folder.iterdir() if names.fullmatch(p.name) and p.is_file()] if folder.is_dir() else []
    return max(found, key=lambda p: (is_fresh(p, started_unix), p.stat().st_mtime), default=None)


def _parse(path: Path) -> Results:
    raw = read_json(path)
    if isinstance(raw, dict) and isinstance(raw.get("results"), list):
        raw = raw | {"results": tuple(raw["results"])}
    try:
        return Results.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "全体"
        raise UnreadableError(f"{place}: {first['msg']}（ほか {error.error_count() - 1} 件）") from error
