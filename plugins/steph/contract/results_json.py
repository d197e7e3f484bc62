"""An evaluation's own JSON, whose figures the description's dotted paths find."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from steph.base.files import UnreadableError, newest, read_json, read_json_rows
from steph.base.messages import say
from steph.contract.questions import plain_label
from steph.contract.results import NO_ANSWER, Config, Results, ResultsForm, Row, Score, value_at, values_at

MOST_ANSWER_CHARS = 2000
_RIGHT, _WRONG = (
    ("true", "yes", "correct", "right", "1", "正解", "○"),
    ("false", "no", "incorrect", "wrong", "0", "不正解", "×"),
)


def read_results(path: Path, rows_files: Sequence[Path], form: ResultsForm) -> tuple[Results, tuple[Path, ...]]:
    """Read one file, and its rows where they are in a file of their own; raises UnreadableError."""
    rows_file = newest(rows_files, path.stat().st_mtime)
    raw = read_json_rows(path) if path.suffix == ".jsonl" else read_json(path)
    found = _rows_in(raw, rows_file, form)
    rows = tuple(_row(row, n, form) for n, row in enumerate(found or ()))
    value = count = None
    if form.score is not None:
        told = value_at(raw, form.score)
        value = _number(told)
        if value is None:
            raise UnreadableError(say("unreadable.score_no_number", key=form.score, value=str(told)[:60]))
        is_percentage = 1 < value <= 100 or (isinstance(told, str) and told.strip().endswith("%"))
        value /= 100 if is_percentage and form.kind != "metric" else 1  # a metric may be any number
    if form.count is not None:
        counts = values_at(raw, form.count)
        if not counts or any(type(one) is not int or one < 0 for one in counts):
            raise UnreadableError(say("unreadable.count_no_number", key=form.count, value=str(counts)[:60]))
        count = sum(one for one in counts if isinstance(one, int))
    if value is None and rows:
        value = sum(row.counts for row in rows) / len(rows)
    if value is None:
        raise UnreadableError(say("unreadable.no_score" if found is None else "unreadable.no_rows"))
    told_by = {"hf_model_name": form.model, "lora_path": form.adapter}
    config = Config.model_validate({key: value_at(raw, place) for key, place in told_by.items() if place})
    metric = (form.score or "").rpartition(".")[2]
    score = Score(metric=metric, value=value, count=count, is_mean=form.kind != "metric" or None)
    return Results(config=config, results=rows, scores=(score,)), (rows_file,) if rows_file else ()


def _number(value: object) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value.strip().removesuffix("%"))
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _rows_in(raw: object, rows_file: Path | None, form: ResultsForm) -> list[object] | None:
    """The rows; None where the description names none. A table of rows by their ids is a list of its values."""
    if rows_file is not None:
        is_lines = rows_file.suffix == ".jsonl"
        return [*read_json_rows(rows_file)] if is_lines else _listed(read_json(rows_file), rows_file.name)
    if form.rows is None:
        return raw if isinstance(raw, list) and form.row else None
    if "/" in form.rows or form.rows.endswith((".jsonl", ".json")):
        raise UnreadableError(say("unreadable.no_rows_file", path=form.rows))
    return _listed(value_at(raw, form.rows), form.rows)


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
    if "predicted" in form.row and predicted is None:
        answer = NO_ANSWER
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
        response=_text(response) if response is not None else None,
    )


def _flag(value: object) -> float | None:
    """Right or wrong, as a share of 1."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        said = value.strip().lower()
        return 1.0 if said in _RIGHT else 0.0 if said in _WRONG else None
    return _number(value)


def _text(value: object) -> str:
    """A text, also of a number, of one text in a list, or of a chat's messages."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(_text(one.get("content") if isinstance(one, Mapping) else one) for one in value)
    return "" if value is None else str(value)
