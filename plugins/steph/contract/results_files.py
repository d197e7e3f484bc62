"""Finds and reads the results that one evaluation attempt wrote, in the format that the description says.

Of the formats it reads two itself: `lawqa`, the JSON of `evaluate_multiple_choice.py` as the published pipeline writes
it (`config`, `summary` and `results`; newer ones add keys), and `json`, a program's own, whose figures are found by the
description's dotted paths.
"""

from __future__ import annotations

import contextlib
import fnmatch
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from steph.base.files import TABLES, UnreadableError, files_at, is_fresh, newest, read_json, read_json_rows
from steph.base.messages import Message, say, words_of
from steph.base.text import one_line
from steph.contract import results_lm_eval
from steph.contract.questions import plain_label
from steph.contract.results import (
    ACCURACY_TOLERANCE,
    FAILED,
    MOST_LABEL_CHARS,
    NO_ANSWER,
    Config,
    Results,
    ResultsFile,
    ResultsForm,
    Row,
    Score,
    half_digit,
    value_at,
    values_at,
    with_labels,
)

MOST_ANSWER_CHARS, MOST_KEYS = 2000, 8
MOST_RATING = 10  # of one row; more is a percentage
_NO_ANSWERS = {
    "n/a", "na", "none", "null", "nan", "invalid", "unparsed", "unparseable", "unparsable", "no answer", "no_answer",
    "not found", "not_found", "unanswered", "refused", "refusal", "-", "?", "不明", "無回答", "回答なし", "該当なし",
}  # fmt: skip
ROWS_ALONE = (".jsonl", *TABLES)  # files of rows and nothing else
_RIGHT = {
    "true", "t", "yes", "y", "correct", "right", "ok", "pass", "passed",
    "正解", "正", "正确", "○", "〇", "◯", "✓", "✔", "✅",
}  # fmt: skip
_WRONG = {
    "false", "f", "no", "n", "incorrect", "wrong", "ng", "fail", "failed",
    "不正解", "誤", "错误", "×", "✕", "✗", "✘", "❌",
}  # fmt: skip


def read_own_json(path: Path, rows_files: Sequence[Path], form: ResultsForm) -> tuple[Results, tuple[Path, ...]]:
    """Read one file, and its rows where they are in a file of their own; raises UnreadableError."""
    rows_file = newest(rows_files, path.stat().st_mtime)
    raw = read_json_rows(path) if path.suffix in ROWS_ALONE else read_json(path)
    found = _rows_in(raw, rows_file, form)
    groups = [[_row(row, n, form) for n, row in enumerate(group)] for group in found or ()]
    rows = tuple(chain.from_iterable(groups))
    if form.kind == "choice":
        rows = _without_refusals(rows)
        rows = with_labels(rows, has_flags="correct" in form.row) if "choices" in form.row else rows
    is_rated = False
    if form.kind == "generate":
        rows = _as_shares(rows)
        is_rated = any(row.counts > 1 for row in rows)
    in_order = iter(rows)
    groups = [[*islice(in_order, len(group))] for group in groups]
    value = count = None
    metric, contradictions = (form.score or "").rpartition(".")[2], list[Message]()
    if form.score is not None:
        each = values_at(raw, form.score) or (None,)
        if len(each) == len(groups) > 1 and rows and form.kind != "metric":  # the score of each group of rows
            contradictions = [
                say("results.mean", score=f"{metric} ({n})", value=own, rows=len(group), mean=mean)
                for n, (told, group) in enumerate(zip(each, groups, strict=True), 1)
                if group and not math.isclose(
                    own := _share(told, form, is_rated=is_rated), mean := _mean(group),
                    abs_tol=max(ACCURACY_TOLERANCE, half_digit(own)),
                )
            ]  # fmt: skip
        else:
            value = _share(each[0], form, is_rated=is_rated)
    if form.count is not None:
        told_counts = values_at(raw, form.count)
        counts = [one for one in map(_count, told_counts) if one is not None]
        if not counts or len(counts) < len(told_counts):
            raise UnreadableError(say("unreadable.count_no_number", key=form.count, value=str(told_counts)[:60]))
        count = sum(counts)
    if value is None and rows:
        value = _mean(rows)
    if value is None:
        raise UnreadableError(say("unreadable.no_score" if found is None else "unreadable.no_rows"))
    told_by = {"hf_model_name": form.model, "lora_path": form.adapter}
    config = Config.model_validate({key: value_at(raw, place) for key, place in told_by.items() if place})
    score = Score(metric=metric, value=value, count=count, is_mean=form.kind != "metric" or None)
    results = Results(config=config, results=rows, scores=(score,), contradictions=tuple(contradictions))
    return results, (rows_file,) if rows_file else ()


def _as_shares(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The rows with shares of 1 where their scores are percentages; ratings, as a judge gives from 1 to 5, stay."""
    if max((row.counts for row in rows), default=0.0) <= MOST_RATING:
        return rows
    shares = [(row, row.counts / 100) for row in rows]
    return tuple(row.model_copy(update={"score": share, "is_correct": share >= 1}) for row, share in shares)


def _without_refusals(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The rows with no answer where a word is recorded that says so, such as `N/A`, unless one is right."""
    words = _NO_ANSWERS - {row.correct_answer for row in rows}
    return tuple(
        row.model_copy(update={"predicted_answer": NO_ANSWER}) if row.predicted_answer in words else row for row in rows
    )


def _share(told: object, form: ResultsForm, *, is_rated: bool = False) -> float:
    """A score as a share of 1, but for a mean of ratings; raises UnreadableError where it is no number."""
    value = _number(told)
    if value is None:
        raise UnreadableError(say("unreadable.score_no_number", key=form.score or "", value=str(told)[:60]))
    is_percentage = 1 < value <= 100 or (isinstance(told, str) and told.strip().endswith(("%", "％")))
    # a metric may be any number
    return value / 100 if is_percentage and form.kind != "metric" and not is_rated else value


def _mean(rows: Sequence[Row]) -> float:
    return sum(row.counts for row in rows) / len(rows)


def _count(value: object) -> int | None:
    """A number of rows, also one that is written as text or with a point."""
    number = _number(value)
    return int(number) if number is not None and number >= 0 and number == int(number) else None


def _number(value: object) -> float | None:
    """A number, also one that is written as text: `66.7 %`, or `2/3`."""
    if isinstance(value, str):
        parts = unicodedata.normalize("NFKC", value).strip().removesuffix("%").split("/")
        try:
            value = float(parts[0]) / float(parts[1]) if len(parts) == 2 else float(parts[0])
        except (ValueError, ZeroDivisionError):
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _rows_in(raw: object, rows_file: Path | None, form: ResultsForm) -> list[list[object]] | None:
    """The rows, a list for each match of their path, a table's values among them; None where none is described."""
    if rows_file is not None:
        is_lines = rows_file.suffix in ROWS_ALONE
        return [_told(read_json_rows(rows_file) if is_lines else _listed(read_json(rows_file), rows_file.name), form)]
    if form.rows is None:
        return [_told(raw, form)] if isinstance(raw, list) and form.row else None
    if is_file_pattern(form.rows):
        raise UnreadableError(say("unreadable.no_rows_file", path=form.rows))
    found = values_at(raw, form.rows)
    if "*" not in form.rows.split("."):
        return [_told(_listed(next(iter(found), None), form.rows), form)]
    if not found:
        keys = [one_line(key, 40) for key in raw][:MOST_KEYS] if isinstance(raw, Mapping) else []
        raise UnreadableError(say("unreadable.no_match", key=form.rows, keys=keys))
    if any(
        isinstance(one, Mapping) and any(value_at(one, at) is not None for at in form.row.values()) for one in found
    ):
        return [[*found]]  # each match is a row itself
    return [_listed(one, form.rows) for one in found]


def _told(lines: Sequence[object], form: ResultsForm) -> list[object]:
    """Those that are rows: what has nothing that a row has heads them, or sums them up."""
    return [one for one in lines if any(value_at(one, place) is not None for place in form.row.values())] or [*lines]


def _listed(value: object, name: str) -> list[object]:
    if isinstance(value, Mapping):
        return list(value.values())
    if not isinstance(value, list):
        raise UnreadableError(say("unreadable.no_list", key=name))
    return value


def _row(raw: object, n: int, form: ResultsForm) -> Row:
    def told(key: str) -> object:
        return value_at(raw, form.row[key]) if key in form.row else None

    expected, predicted, response = told("expected"), told("predicted"), told("response")
    right = plain_label(_text(expected)) if expected is not None else ""
    answer = plain_label(_text(predicted)) if predicted is not None else ""
    if "predicted" in form.row and predicted in (None, ""):  # a table has no other nothing
        answer = NO_ANSWER
    runs = tuple(one for one in response if isinstance(one, str)) if isinstance(response, list) else ()
    score = _flag(told("correct"))
    if score is None:
        if "correct" in form.row:
            raise UnreadableError(say("unreadable.correct", row=n + 1, key=form.row["correct"]))
        if expected is None or predicted is None:
            raise UnreadableError(say("unreadable.no_correct", row=n + 1))
        score = float(right == answer)
    return Row(
        question=_text(told("question")),
        choices=told("choices"),
        correct_answer=right[:MOST_ANSWER_CHARS],
        predicted_answer=answer,
        is_correct=score >= 1,
        score=score,
        also_right=tuple(map(_text, expected)) if isinstance(expected, list) else (),
        response=_text(response) if response is not None else None,
        runs=runs if len(runs) > 1 else (),
    )


def _flag(value: object) -> float | None:
    """Right or wrong, as a share of 1."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        said = value.strip().lower()
        if said in _RIGHT | _WRONG:
            return float(said in _RIGHT)
    return _number(value)


def _text(value: object) -> str:
    """A text, also of a number, of one text in a list, or of a chat's messages."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(_text(one.get("content") if isinstance(one, Mapping) else one) for one in value)
    return "" if value is None else str(value)


def read_lawqa(path: Path) -> Results:
    """Read one evaluation's JSON; raises UnreadableError with the reason."""
    raw = read_json(path)
    if isinstance(raw, dict):
        raw = {key: raw[key] for key in ("config", "summary", "results") if key in raw}
        for key in ("summary", "results"):
            if key not in raw:
                raise UnreadableError(say("unreadable.no_key", key=key))
        if isinstance(raw["results"], list):
            raw["results"] = tuple(map(_as_usual, raw["results"]))
    try:
        results = Results.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or say("unreadable.whole")
        more = error.error_count() - 1
        raise UnreadableError(say("unreadable.invalid", place=place, error=first["msg"], more=more)) from error
    if results.summary is None:
        raise UnreadableError(say("unreadable.no_key", key="summary"))
    known = {*results.labels, NO_ANSWER, FAILED}  # an answer is a label of the data's, or says that there is none
    for n, row in enumerate(results.results):
        if not row.correct_answer or len(row.correct_answer) > MOST_LABEL_CHARS:
            raise UnreadableError(say("unreadable.no_label", key=f"results.{n}.correct_answer"))
        if row.predicted_answer not in known:
            raise UnreadableError(say("unreadable.no_label", key=f"results.{n}.predicted_answer"))
        if "response" not in row.model_fields_set:
            raise UnreadableError(say("unreadable.no_key", key=f"results.{n}.response"))
    return results


def _as_usual(row: object) -> object:
    """A row whose answer was not read, or whose flag is a number, as the published pipeline writes it."""
    if not isinstance(row, dict):
        return row
    answer, flag = row.get("predicted_answer"), row.get("is_correct")
    known = {"predicted_answer": NO_ANSWER} if answer is None and "predicted_answer" in row else {}
    return row | known | ({"is_correct": bool(flag)} if type(flag) is int and flag in (0, 1) else {})


MOST_PATH_CHARS = 1000
_DATED = r"(?:\d{8}-\d{4}(?:\d{2})?_)?"  # what a script may put before the asked name


@dataclass(frozen=True)
class Reader:
    """One format: its reader, which is given the files that hold rows, and what it knows without being told where."""

    read: Callable[[Path, Sequence[Path], ResultsForm], tuple[Results, tuple[Path, ...]]]
    knows: frozenset[str] = frozenset()  # the names of `ResultsRow`, and `model` and `adapter`
    rows_inside: bool = True  # the results file holds the rows where no other place is named
    own_metric: bool = False  # an answer counts as right by the format's own rule, not by the answers beside each other

    def has_rows(self, form: ResultsForm) -> bool:
        """Whether this description's results have rows: said where, or inside and known by what is in them."""
        in_a_row = {*form.row, *self.knows} - {"model", "adapter"}
        return form.rows is not None or (self.rows_inside and bool(in_a_row))


ResultsFormat = Literal["lawqa", "lm_eval", "json"]
# files of the format `lawqa` are found otherwise, by what its script prints, and need no description to be read
READERS: dict[ResultsFormat, Reader] = {
    "lm_eval": Reader(results_lm_eval.read_results, results_lm_eval.KNOWS, rows_inside=False, own_metric=True),
    "json": Reader(read_own_json),
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
        return read_lawqa(path), ()
    beside = files_at(root, form.rows) if form.rows and is_file_pattern(form.rows) else []
    return READERS[form.format].read(path, beside, form)


def _read_or_none(root: Path, path: Path, form: ResultsForm) -> Results | None:
    with contextlib.suppress(UnreadableError):
        return _read(root, path, form)[0]
    return None


def is_file_pattern(text: str) -> bool:
    """Whether the rows are said to be in files of their own, and not at a dotted path."""
    return "/" in text or text.endswith((*ROWS_ALONE, ".json"))


def _tells(root: Path, path: Path, form: ResultsForm, content: Results) -> bool:
    """Whether another file tells the same, or is of another evaluation: without the adapter, or of another model."""
    other = _read_or_none(root, path, form)
    if other is None:
        return False
    one, another = content.config, other.config
    if form.format == "lawqa":
        if one.lora_path and "lora_path" in another.model_fields_set and not another.lora_path:
            return True
        answers = ([(r.question, r.predicted_answer, r.is_correct) for r in each.results] for each in (content, other))
        return content.summary == other.summary and next(answers) == next(answers)
    if (one.lora_path, one.hf_model_name) != (another.lora_path, another.hf_model_name):
        return True
    return other.scores == content.scores


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
