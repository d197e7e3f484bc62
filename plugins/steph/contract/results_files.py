"""Finds and reads the results that one evaluation attempt wrote, in the format that the description says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from steph.base.files import UnreadableError, is_fresh
from steph.contract import results_json, results_lawqa, results_lm_eval
from steph.contract.globs import files_at, newest
from steph.contract.results import Results, ResultsFile, ResultsForm


@dataclass(frozen=True)
class Reader:
    """One format: its reader, which is given the files that hold rows, and what it knows without being told where.

    `knows`: the names of `ResultsRow`, and `model` and `adapter`.
    """

    read: Callable[[Path, Sequence[Path], ResultsForm], tuple[Results, tuple[Path, ...]]]
    knows: frozenset[str] = frozenset()


# the format `lawqa` is found and read otherwise: by what its script prints
READERS = {
    "lm_eval": Reader(results_lm_eval.read_results, results_lm_eval.KNOWS),
    "json": Reader(results_json.read_results),
}


def find_results(
    root: Path, form: ResultsForm, asked: str, saved_to: str | None, started_unix: float, *, pattern: str | None = None
) -> ResultsFile:
    """Find and read one attempt's results; `asked` is where the evaluation was told to write.

    `saved_to` and `pattern` are of the format `lawqa`: the file that the script named, and a name with `*`.
    """
    if form.format == "lawqa":
        return results_lawqa.find_results(root, asked, saved_to, started_unix, pattern=pattern)
    wanted = form.file or asked
    found = files_at(root, wanted)
    path = newest(found, started_unix)
    if path is None:
        return ResultsFile(None, wanted)
    name = _name(root, path)
    fresh = is_fresh(path, started_unix)
    try:
        content, rows_files = _read(root, path, form)
    except UnreadableError as error:
        return ResultsFile(path, name, fresh, problem=str(error))
    others = tuple(
        _name(root, other)
        for other in found
        if other != path and is_fresh(other, started_unix) and not _tells(root, other, form, content)
    )
    return ResultsFile(path, name, fresh, content, others=others, rows_files=rows_files)


def read_results(root: Path, path: Path, form: ResultsForm) -> Results:
    """Read one results file again; raises UnreadableError with the reason (Japanese)."""
    return results_lawqa.read_results(path) if form.format == "lawqa" else _read(root, path, form)[0]


def _read(root: Path, path: Path, form: ResultsForm) -> tuple[Results, tuple[Path, ...]]:
    beside = files_at(root, form.rows) if form.rows and is_file_pattern(form.rows) else []
    return READERS[form.format].read(path, beside, form)


def is_file_pattern(text: str) -> bool:
    """Whether the rows are said to be in files of their own, and not at a dotted path."""
    return "/" in text or text.endswith((".jsonl", ".json"))


def _tells(root: Path, path: Path, form: ResultsForm, content: Results) -> bool:
    """Whether another file tells the same, or is of another evaluation: without the adapter, or of another model."""
    try:
        other, _ = _read(root, path, form)
    except UnreadableError:
        return False
    one, another = content.config, other.config
    if (one.lora_path, one.hf_model_name) != (another.lora_path, another.hf_model_name):
        return True
    return other.scores == content.scores


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
