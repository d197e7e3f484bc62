"""Finds and reads the results that one evaluation attempt wrote, in the format that the description says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steph.base.files import UnreadableError, is_fresh
from steph.base.messages import words_of
from steph.contract import results_json, results_lawqa, results_lm_eval
from steph.contract.globs import files_at, newest
from steph.contract.results import Results, ResultsFile, ResultsForm


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
# the format `lawqa` is found and read otherwise: by what its script prints
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
    if form.format == "lawqa":
        return results_lawqa.find_results(root, asked, saved_to, started_unix, pattern=pattern)
    wanted = form.file or asked
    found = files_at(root, wanted)
    path = _of_the_asked(root, form, found, started_unix, with_adapter=with_adapter)
    if path is None:
        return ResultsFile(None, wanted)
    name = _name(root, path)
    fresh = is_fresh(path, started_unix)
    try:
        content, rows_files = _read(root, path, form)
    except UnreadableError as error:
        return ResultsFile(path, name, fresh, problem=words_of(error))
    others = tuple(
        _name(root, other)
        for other in found
        if other != path and is_fresh(other, started_unix) and not _tells(root, other, form, content)
    )
    return ResultsFile(path, name, fresh, content, others=others, rows_files=rows_files)


def _of_the_asked(
    root: Path, form: ResultsForm, found: Sequence[Path], started_unix: float, *, with_adapter: bool
) -> Path | None:
    """The attempt's newest file, of those that are of an evaluation with or without an adapter where others are not."""
    last = newest(found, started_unix)
    young = [path for path in found if is_fresh(path, started_unix)]
    if len(young) < 2:
        return last
    fitting = [path for path in young if _names_adapter(root, path, form) == with_adapter]
    return newest(fitting, started_unix) or last


def _names_adapter(root: Path, path: Path, form: ResultsForm) -> bool | None:
    try:
        return bool(_read(root, path, form)[0].config.lora_path)
    except UnreadableError:
        return None


def read_results(root: Path, path: Path, form: ResultsForm) -> Results:
    """Read one results file again; raises UnreadableError with the reason."""
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
