"""Finds and reads the results that one evaluation attempt wrote, in the format that the description says."""

from __future__ import annotations

import contextlib
import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steph.base.files import UnreadableError, files_at, is_fresh, newest
from steph.base.messages import words_of
from steph.contract import results_json, results_lawqa, results_lm_eval
from steph.contract.results import Results, ResultsFile, ResultsForm

MOST_PATH_CHARS = 1000
_DATED = r"(?:\d{8}-\d{4}(?:\d{2})?_)?"  # what a script may put before the asked name


@dataclass(frozen=True)
class Reader:
    """One format: its reader, which is given the files that hold rows, and what it knows without being told where.

    `knows`: the names of `ResultsRow`, and `model` and `adapter`. `rows_inside`: the results file holds the rows itself
    where no other place is named. `own_metric`: a written answer counts as right by a rule of the format's own, which
    the answers beside each other don't tell.
    """

    read: Callable[[Path, Sequence[Path], ResultsForm], tuple[Results, tuple[Path, ...]]]
    knows: frozenset[str] = frozenset()
    rows_inside: bool = True
    own_metric: bool = False

    def has_rows(self, form: ResultsForm) -> bool:
        """Whether this description's results have rows: said where, or inside and known by what is in them."""
        in_a_row = {*form.row, *self.knows} - {"model", "adapter"}
        return form.rows is not None or (self.rows_inside and bool(in_a_row))


ResultsFormat = Literal["lawqa", "lm_eval", "json"]
# files of the format `lawqa` are found otherwise, by what its script prints, and need no description to be read
READERS: dict[ResultsFormat, Reader] = {
    "lm_eval": Reader(results_lm_eval.read_results, results_lm_eval.KNOWS, rows_inside=False, own_metric=True),
    "json": Reader(results_json.read_results),
}


def find_results(
    root: Path,
    form: ResultsForm,
    asked: str,
    saved_to: str | None,
    started_unix: float,
    *,
    pattern: str | None = None,
    with_adapter: bool = True,
) -> ResultsFile:
    """Find and read one attempt's results; `asked` is where the evaluation was told to write.

    `saved_to` and `pattern` are of the format `lawqa`: the file that the script named, and a name with `*`. Of several
    files the newest counts, but one that names an adapter before one that does not (`with_adapter`), or after it.
    """
    is_lawqa = form.format == "lawqa"
    if is_lawqa:
        said = root / saved_to if saved_to and "\0" not in saved_to and len(saved_to) <= MOST_PATH_CHARS else None
        wanted, (path, found) = asked, _lawqa_files(root / asked, said, started_unix, pattern)
    else:
        wanted = form.file or asked
        found = files_at(root, wanted)
        path = newest(found, started_unix)
        if sum(is_fresh(one, started_unix) for one in found) > 1:
            fitting = [
                one for one in found
                if is_fresh(one, started_unix) and (other := _read_or_none(root, one, form))
                and bool(other.config.lora_path) == with_adapter
            ]  # fmt: skip
            path = newest(fitting, started_unix) or path
    if path is None:
        return ResultsFile(None, wanted)
    name, fresh = _name(root, path), is_fresh(path, started_unix)
    try:
        content, rows_files = _read(root, path, form)
    except UnreadableError as error:
        return ResultsFile(path, name, fresh, problem=words_of(error))
    others = [
        other for other in found
        if other != path and is_fresh(other, started_unix) and not _tells(root, other, form, content)
    ]  # fmt: skip
    names = tuple(other.name if is_lawqa else _name(root, other) for other in others)
    return ResultsFile(path, name, fresh, content, others=tuple(dict.fromkeys(names)), rows_files=rows_files)


def _lawqa_files(
    target: Path, said: Path | None, started_unix: float, pattern: str | None
) -> tuple[Path | None, list[Path]]:
    """The file of the asked name, alone or behind a date, or of `pattern`, and those beside it that may tell others.

    The one that the script `said` it wrote comes first, where it lies in the asked folder.
    """
    asked = re.compile(_DATED + re.escape(target.name))
    named = re.compile("|".join([asked.pattern, *([fnmatch.translate(pattern)] if pattern else [])]))
    children = sorted(target.parent.iterdir()) if target.parent.is_dir() else []
    fitting = [path for path in children if named.fullmatch(path.name) and path.is_file()]
    path = newest(fitting, started_unix)
    if said and said.is_file() and named.fullmatch(said.name) and said.parent.resolve() == target.parent.resolve():
        path = said
    beside = [other for other in fitting if asked.fullmatch(other.name)]
    beside += [said] if said and said.suffix == ".json" and said.is_file() else []
    return path, [other for other in beside if path is not None and other.name != path.name]


def read_results(root: Path, path: Path, form: ResultsForm) -> Results:
    """Read one results file again; raises UnreadableError with the reason."""
    return _read(root, path, form)[0]


def _read(root: Path, path: Path, form: ResultsForm) -> tuple[Results, tuple[Path, ...]]:
    if form.format == "lawqa":
        return results_lawqa.read_results(path), ()
    beside = files_at(root, form.rows) if form.rows and is_file_pattern(form.rows) else []
    return READERS[form.format].read(path, beside, form)


def _read_or_none(root: Path, path: Path, form: ResultsForm) -> Results | None:
    with contextlib.suppress(UnreadableError):
        return _read(root, path, form)[0]
    return None


def is_file_pattern(text: str) -> bool:
    """Whether the rows are said to be in files of their own, and not at a dotted path."""
    return "/" in text or text.endswith((".jsonl", ".json"))


def _tells(root: Path, path: Path, form: ResultsForm, content: Results) -> bool:
    """Whether another file tells the same, or is of another evaluation: without the adapter, or of another model."""
    other = _read_or_none(root, path, form)
    if other is None:
        return False
    if form.format == "lawqa":
        return results_lawqa.tell_the_same(content, other)
    one, another = content.config, other.config
    if (one.lora_path, one.hf_model_name) != (another.lora_path, another.hf_model_name):
        return True
    return other.scores == content.scores


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
