"""Results of lm-evaluation-harness: `results_<date>.json`, and beside it `samples_<task>_<date>.jsonl` for each task.

Format, as lm_eval 0.4.13 writes it (its `loggers/evaluation_tracker.py`): `results.<task>."<metric>,<filter>"`,
`n-samples.<task>.effective`, `configs.<task>`, `config.model_args` (a table; in older versions a text `a=b,c=d`),
`date` (unix seconds of the start), and `task_hashes.<task>`, the sha256 of all rows' hashes joined, which ties the rows
to the file. A row has `doc`, `target`, `arguments`, `resps`, `filtered_resps`, its filter and its metrics.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steph.base.files import UnreadableError, read_json, read_json_rows
from steph.base.messages import Message, say
from steph.contract.questions import QUESTION_KEYS, plain_label
from steph.contract.results import Config, EvaluationKind, Results, ResultsForm, Row, Score, value_at

KNOWS = frozenset({"question", "expected", "predicted", "response", "correct", "model", "adapter"})
MOST_ROWS_BYTES = 512 << 20
MOST_ANSWER_CHARS = 2000
_REMOTE = re.compile(r"completions|openai|anthropic|api|gguf|textsynth|watsonx", re.IGNORECASE)
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?")
_HASHES = ("doc_hash", "prompt_hash", "target_hash")


def read_results(path: Path, rows_files: Sequence[Path], form: ResultsForm) -> tuple[Results, tuple[Path, ...]]:
    """Read one results file with its samples, which are among `rows_files`; raises UnreadableError."""
    raw = read_json(path, finite=False)
    if not isinstance(raw, dict) or not isinstance(raw.get("results"), dict):
        raise UnreadableError(say("unreadable.no_lm_eval_results"))
    known = [raw[key] for key in ("n-samples", "configs") if isinstance(raw.get(key), dict)]
    tasks = [name for name in raw["results"] if any(name in table for table in known)]  # a group is in neither
    if not tasks:
        raise UnreadableError(say("unreadable.no_lm_eval_tasks"))
    rows: list[Row] = []
    scores, contradictions, used = [], [], []
    for task in tasks:
        score, filter_name = _score(raw, task, form)
        scores.append(score)
        file = _samples_of(path, task, rows_files)
        if file is None:
            if form.rows is not None:
                raise UnreadableError(say("unreadable.no_samples", task=task))
            continue
        used.append(file)
        told = read_json_rows(file, MOST_ROWS_BYTES)
        if not _is_of(raw, task, told):
            contradictions.append(say("results.other_rows", file=file.name))
        kept = [row for row in told if row.get("filter", filter_name) == filter_name]
        rows += [_row(row, task, score.metric, value_at(raw, f"configs.{task}"), form) for row in kept]
    kind: EvaluationKind = "generate" if any(row.response is not None for row in rows) else "loglikelihood"
    return _results(raw, rows, scores, contradictions, kind if rows else None), tuple(used)


def _results(
    raw: Mapping[str, Any],
    rows: Sequence[Row],
    scores: Sequence[Score],
    contradictions: Sequence[Message],
    kind: EvaluationKind | None,
) -> Results:
    arguments = _arguments(value_at(raw, "config.model_args"))
    engine = str(value_at(raw, "config.model") or "")
    config = Config(
        hf_model_name=arguments.get("pretrained") or arguments.get("model"),
        lora_path=arguments.get("peft") or arguments.get("lora_local_path"),
        load_in_4bit=_is_true(arguments["load_in_4bit"]) if "load_in_4bit" in arguments else None,
        backend=engine if engine == "hf" or _REMOTE.search(engine) else None,
    )
    date = raw.get("date")
    return Results(
        config=config,
        results=tuple(rows),
        scores=tuple(scores),
        contradictions=tuple(contradictions),
        kind=kind,
        begun_unix=float(date) if isinstance(date, int | float) and math.isfinite(date) else None,
    )


def _arguments(value: object) -> dict[str, object]:
    if isinstance(value, Mapping):
        return {str(key): one for key, one in value.items()}
    pairs = (part.partition("=") for part in str(value or "").split(","))
    return {key.strip(): told.strip() for key, sign, told in pairs if sign}


def _is_true(value: object) -> bool:
    return value is True or str(value).strip().lower() == "true"


def _score(raw: Mapping[str, Any], task: str, form: ResultsForm) -> tuple[Score, str]:
    """The task's first metric, or the described one, and its filter."""
    figures = raw["results"][task]
    listed = value_at(raw, f"configs.{task}.metric_list")
    metrics = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    described = _described_metric(form, task)
    wanted = described or next((str(one.get("metric")) for one in metrics), "")
    keys = [key for key in figures if "," in key and "_stderr," not in key and type(figures[key]) in (int, float)]
    key = next((key for key in keys if wanted in (key, key.partition(",")[0])), None)
    if key is None and (described or not keys):
        raise UnreadableError(say("unreadable.task_no_score", task=task, metric=wanted or say("unreadable.any_metric")))
    key = key or keys[0]
    metric, _, filter_name = key.partition(",")
    value = float(figures[key])
    if not math.isfinite(value):
        raise UnreadableError(say("unreadable.score_not_finite", task=task, metric=key, value=value))
    how = next((one.get("aggregation", "mean") for one in metrics if one.get("metric") == metric), "mean")
    count = value_at(raw, f"n-samples.{task}.effective")
    return Score(
        task=task, metric=key, value=value, count=count if type(count) is int else None,
        is_mean=True if how == "mean" else None,
    ), filter_name  # fmt: skip


def _described_metric(form: ResultsForm, task: str) -> str | None:
    """The metric of `results.<task>.<metric>`, where the description's path is of this task or of any."""
    place, _, metric = (form.score or "").rpartition(".")
    return metric if metric and place.removeprefix("results.") in (task, "*", "results", "") else None


def _samples_of(path: Path, task: str, rows_files: Sequence[Path]) -> Path | None:
    """The task's samples that were written with these results: their names share the date."""
    date = _DATE.search(path.name)
    names = re.compile(rf"samples_{re.escape(task)}_(.*)\.jsonl")
    fitting = [
        file for file in rows_files if (found := names.fullmatch(file.name)) and (not date or found[1] == date[0])
    ]
    return next((file for file in fitting if file.parent == path.parent), next(iter(fitting), None))


def _is_of(raw: Mapping[str, Any], task: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether rows are those that the results were computed of; True where the versions leave no hashes."""
    wanted = value_at(raw, f"task_hashes.{task}")
    if not isinstance(wanted, str) or not all(isinstance(row.get(key), str) for row in rows for key in _HASHES):
        return True
    joined = "".join(row[key] for row in rows for key in _HASHES)
    return hashlib.sha256(joined.encode()).hexdigest() == wanted


def _row(raw: Mapping[str, Any], task: str, metric: str, config: object, form: ResultsForm) -> Row:
    scored = raw.get(metric.partition(",")[0])
    score = float(scored) if isinstance(scored, int | float) and math.isfinite(scored) else None
    doc = raw.get("doc")
    prompts, continuations = _asked(raw.get("arguments"))
    likelihoods = _likelihoods(raw.get("filtered_resps"))
    texts = [one for one in raw.get("filtered_resps") or () if isinstance(one, str)]
    predicted = expected = ""
    choices: object = None
    if likelihoods:
        choices = _choices(doc, config) or [text.strip() for text in continuations]
        if len(likelihoods) > 1:
            predicted = str(max(range(len(likelihoods)), key=likelihoods.__getitem__))
            # only `acc` is right where the likeliest choice is; others weigh likelihoods by length or otherwise
            expected = _index(raw, choices) if metric.partition(",")[0] == "acc" else ""
    elif texts:
        predicted, expected = plain_label(texts[0]), plain_label(_first(raw.get("target")))
    prompt = next(iter(prompts), "")
    question = value_at(raw, form.row["question"]) if "question" in form.row else _question(doc, prompt)
    return Row(
        question=question if isinstance(question, str) else prompt,
        choices=choices,
        correct_answer=expected[:MOST_ANSWER_CHARS],
        predicted_answer=predicted,
        is_correct=score is not None and score >= 1,
        score=score,
        response=None if likelihoods else _response(raw, texts),
        task=task,
        prompt=prompt or None,
    )


def _asked(arguments: object) -> tuple[list[str], list[str]]:
    """The prompts, and the texts whose likelihood was asked behind them; newer versions name both, older list them."""
    pairs: list[list[object]] = []
    if isinstance(arguments, Mapping):
        pairs = [[one.get("arg_0"), one.get("arg_1")] for one in arguments.values() if isinstance(one, Mapping)]
    elif isinstance(arguments, list):
        pairs = [[*one, None, None][:2] for one in arguments if isinstance(one, list)]
    prompts = [pair[0] for pair in pairs if isinstance(pair[0], str)]
    return prompts, [pair[1] for pair in pairs if isinstance(pair[1], str)]


def _likelihoods(answers: object) -> list[float]:
    """Log-likelihoods of the choices; none where the answers are texts. Newer versions write them as texts."""
    found = []
    for one in answers if isinstance(answers, list) else []:
        if not isinstance(one, list) or len(one) != 2:
            return []
        try:
            found.append(float(one[0]))
        except (TypeError, ValueError):
            return []
    return found


def _choices(doc: object, config: object) -> object:
    """A field of the document, or the same list for all; None where a template makes them."""
    told = config.get("doc_to_choice") if isinstance(config, Mapping) else None
    if isinstance(told, list):
        return told
    return doc.get(told) if isinstance(doc, Mapping) and isinstance(told, str) else None


def _index(raw: Mapping[str, Any], choices: object) -> str:
    """The right choice's number; empty where the target is neither a number nor one of the choices."""
    target = _first(raw.get("target"))
    if target.isdigit():
        return target
    texts = [str(one).strip() for one in choices] if isinstance(choices, list) else []
    return str(texts.index(target.strip())) if texts.count(target.strip()) == 1 else ""


def _question(doc: object, prompt: str) -> str:
    """The document's question where the prompt holds it as it is; else the prompt itself."""
    texts = [doc[key] for key in QUESTION_KEYS if isinstance(doc.get(key), str)] if isinstance(doc, Mapping) else []
    return next((text for text in texts if text.strip() and text.strip() in prompt), prompt)


def _response(raw: Mapping[str, Any], texts: Sequence[str]) -> str:
    """What the model wrote, before a filter took its part of it."""
    resps = raw.get("resps")
    first = resps[0] if isinstance(resps, list) and resps else None
    inner = first[0] if isinstance(first, list) and first else first
    return inner if isinstance(inner, str) else next(iter(texts), "")


def _first(value: object) -> str:
    found = value[0] if isinstance(value, list) and value else value
    return "" if found is None else str(found)
