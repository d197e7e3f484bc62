"""The JSON of `evaluate_multiple_choice.py`: where it lies and what it says, types and ranges checked.

Format: `config`, `summary` and `results`, as the published pipeline writes them; newer ones add keys.
"""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

from pydantic import ValidationError

from steph.base.files import UnreadableError, is_fresh, read_json
from steph.base.messages import say, words_of
from steph.contract.results import FAILED, NO_ANSWER, Results, ResultsFile

MOST_PATH_CHARS = 1000
MOST_LABEL_CHARS = 20
_DATED = r"\d{8}-\d{4}(?:\d{2})?_"


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
        return ResultsFile(path, name, fresh, problem=words_of(error))
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
    """Read one evaluation's JSON; raises UnreadableError with the reason."""
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
    if isinstance(raw, dict):
        raw = {key: raw[key] for key in ("config", "summary", "results") if key in raw}
        for key in ("summary", "results"):
            if key not in raw:
                raise UnreadableError(say("unreadable.no_key", key=key))
        if isinstance(raw["results"], list):
            raw["results"] = tuple(raw["results"])
    try:
        results = Results.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or say("unreadable.whole")
        more = error.error_count() - 1
        raise UnreadableError(say("unreadable.invalid", place=place, error=first["msg"], more=more)) from error
    if results.summary is None:
        raise UnreadableError(say("unreadable.no_key", key="summary"))
    _refuse_labels(results)
    return results


def _refuse_labels(results: Results) -> None:
    """An answer is a label of the data's, or says that there is none."""
    known = {*results.labels, NO_ANSWER, FAILED}
    for n, row in enumerate(results.results):
        if not row.correct_answer or len(row.correct_answer) > MOST_LABEL_CHARS:
            raise UnreadableError(say("unreadable.no_label", key=f"results.{n}.correct_answer"))
        if row.predicted_answer not in known:
            raise UnreadableError(say("unreadable.no_label", key=f"results.{n}.predicted_answer"))
        if "response" not in row.model_fields_set:
            raise UnreadableError(say("unreadable.no_key", key=f"results.{n}.response"))
