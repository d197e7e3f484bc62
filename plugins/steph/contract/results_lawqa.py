"""The JSON of `evaluate_multiple_choice.py`, types and ranges checked: `config`, `summary` and `results`.

That is what the published pipeline writes; newer ones add keys.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from steph.base.files import UnreadableError, read_json
from steph.base.messages import say
from steph.contract.results import FAILED, NO_ANSWER, Results

MOST_LABEL_CHARS = 20


def read_results(path: Path) -> Results:
    """Read one evaluation's JSON; raises UnreadableError with the reason."""
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
    known = {*results.labels, NO_ANSWER, FAILED}  # an answer is a label of the data's, or says that there is none
    for n, row in enumerate(results.results):
        if not row.correct_answer or len(row.correct_answer) > MOST_LABEL_CHARS:
            raise UnreadableError(say("unreadable.no_label", key=f"results.{n}.correct_answer"))
        if row.predicted_answer not in known:
            raise UnreadableError(say("unreadable.no_label", key=f"results.{n}.predicted_answer"))
        if "response" not in row.model_fields_set:
            raise UnreadableError(say("unreadable.no_key", key=f"results.{n}.response"))
    return results


def tell_the_same(one: Results, other: Results) -> bool:
    """Whether two files tell the same, or the second is of the base model, evaluated beside the tuned one."""
    if one.config.lora_path and "lora_path" in other.config.model_fields_set and not other.config.lora_path:
        return True
    mine, theirs = (
        [(row.question, row.predicted_answer, row.is_correct) for row in results.results] for results in (one, other)
    )
    return one.summary == other.summary and mine == theirs
