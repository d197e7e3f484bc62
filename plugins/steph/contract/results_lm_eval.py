"""Results of lm-evaluation-harness: `results_<date>.json`, and beside it `samples_<task>_<date>.jsonl` for each task.

Format, as lm_eval 0.4.13 writes it (its `loggers/evaluation_tracker.py`): `results.<task>."<metric>,<filter>"`,
`n-samples.<task>.{effective,original}`, `configs.<task>`, `config.model_args` (a table; in older versions a text
`a=b,c=d`), `date` (unix seconds of the start), and `task_hashes.<task>`, the sha256 of all rows' hashes joined, which
ties the rows to the file. A row has `doc`, `target`, `arguments`, `resps`, `filtered_resps`, filter and metrics.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steph.base.files import UnreadableError, read_json, read_json_rows
from steph.base.messages import say
from steph.contract.questions import QUESTION_KEYS, plain_label
from steph.contract.results import Config, EvaluationKind, Results, ResultsForm, Row, Score, value_at

KNOWS = frozenset({"question", "expected", "predicted", "response", "correct", "model", "adapter"})
MOST_ROWS_BYTES = 512 << 20
MOST_ANSWER_CHARS = 2000
_REMOTE = re.compile(r"completions|openai|anthropic|api|gguf|textsynth|watsonx", re.IGNORECASE)
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?")
_UNREAD = "[invalid]"  # what its filters leave where they find nothing
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
        hashes = [row.get(key) for row in told for key in _HASHES]
        wanted = value_at(raw, f"task_hashes.{task}")  # older versions leave none
        if isinstance(wanted, str) and all(isinstance(one, str) for one in hashes):
            joined = "".join(map(str, hashes)).encode()
            if hashlib.sha256(joined).hexdigest() != wanted:
                contradictions.append(say("results.other_rows", file=file.name))
        kept = [row for row in told if row.get("filter", filter_name) == filter_name]
        rows += [_row(row, task, score.metric, value_at(raw, f"configs.{task}"), form) for row in kept]
    kind: EvaluationKind = "generate" if any(row.response is not None for row in rows) else "loglikelihood"
    date = raw.get("date")
    whole = [count for task in tasks if type(count := value_at(raw, f"n-samples.{task}.original")) is int and count > 0]
    results = Results(
        config=_config(raw),
        results=tuple(rows),
        scores=tuple(scores),
        contradictions=tuple(contradictions),
        kind=kind if rows else None,
        whole=sum(whole) if len(whole) == len(tasks) else None,
        begun_unix=float(date) if isinstance(date, int | float) and math.isfinite(date) else None,
    )
    return results, tuple(used)


def _config(raw: Mapping[str, Any]) -> Config:
    """What the file says that was evaluated: a table of arguments, in older versions a text `a=b,c=d`."""
    told, engine = value_at(raw, "config.model_args"), str(value_at(raw, "config.model") or "")
    pairs = (part.partition("=") for part in str(told or "").split(","))
    arguments = {key.strip(): value.strip() for key, sign, value in pairs if sign}
    if isinstance(told, Mapping):
        arguments = {str(key): value for key, value in told.items()}
    in_4bit = str(arguments["load_in_4bit"]).strip().lower() == "true" if "load_in_4bit" in arguments else None
    return Config(
        hf_model_name=arguments.get("pretrained") or arguments.get("model"),
        lora_path=arguments.get("peft") or arguments.get("lora_local_path"),
        load_in_4bit=in_4bit,
        backend=engine if engine == "hf" or _REMOTE.search(engine) else None,
    )


def _score(raw: Mapping[str, Any], task: str, form: ResultsForm) -> tuple[Score, str]:
    """The task's first metric, or the described one, and its filter."""
    figures = raw["results"][task]
    listed = value_at(raw, f"configs.{task}.metric_list")
    metrics = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    place, _, described = (form.score or "").rpartition(".")  # `results.<task>.<metric>`, of this task or of any
    if place.removeprefix("results.") not in (task, "*", "results", ""):
        described = ""
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


def _samples_of(path: Path, task: str, rows_files: Sequence[Path]) -> Path | None:
    """The task's samples that were written with these results: their names share the date."""
    date = _DATE.search(path.name)
    names = re.compile(rf"samples_{re.escape(task)}_(.*)\.jsonl")
    fitting = [
        file for file in rows_files if (found := names.fullmatch(file.name)) and (not date or found[1] == date[0])
    ]
    return next((file for file in fitting if file.parent == path.parent), next(iter(fitting), None))


def _row(raw: Mapping[str, Any], task: str, metric: str, config: object, form: ResultsForm) -> Row:
    name, doc = metric.partition(",")[0], raw.get("doc")
    scored = raw.get(name)
    score = float(scored) if isinstance(scored, int | float) and math.isfinite(scored) else None
    prompt, continuations = _asked(raw.get("arguments"))
    value = raw.get("target")
    found = value[0] if isinstance(value, list) and value else value
    answers, target = raw.get("filtered_resps"), "" if found is None else str(found)
    likelihoods = _likelihoods(answers)
    texts = [one for one in answers or () if isinstance(one, str)]
    predicted = expected = ""
    choices: object = None
    if likelihoods:
        told = config.get("doc_to_choice") if isinstance(config, Mapping) else None  # a list, or the document's field
        of_doc = doc.get(told) if isinstance(doc, Mapping) and isinstance(told, str) else None
        choices = (told if isinstance(told, list) else of_doc) or [text.strip() for text in continuations]
        if len(likelihoods) > 1:
            predicted = str(max(range(len(likelihoods)), key=likelihoods.__getitem__))
        if len(likelihoods) > 1 and name == "acc":  # others weigh likelihoods by length or otherwise
            labels = [str(one).strip() for one in choices] if isinstance(choices, list) else []
            is_choice = labels.count(target.strip()) == 1
            expected = target if target.isdigit() else str(labels.index(target.strip())) if is_choice else ""
    elif texts:
        predicted, expected = "unknown" if texts[0] == _UNREAD else plain_label(texts[0]), plain_label(target)
    resps = raw.get("resps")  # what the model wrote, before a filter took its part of it
    first = resps[0] if isinstance(resps, list) and resps else None
    inner = first[0] if isinstance(first, list) and first else first
    response = inner if isinstance(inner, str) else next(iter(texts), "")
    question: object = value_at(raw, form.row["question"]) if "question" in form.row else None
    if "question" not in form.row and isinstance(doc, Mapping):  # the document's, where the prompt holds it as it is
        own = [doc[key] for key in QUESTION_KEYS if isinstance(doc.get(key), str)]
        question = next((text for text in own if text.strip() and text.strip() in prompt), None)
    return Row(
        question=question if isinstance(question, str) else prompt,
        choices=choices,
        correct_answer=expected[:MOST_ANSWER_CHARS],
        predicted_answer=predicted,
        is_correct=score is not None and score >= 1,
        score=score,
        response=None if likelihoods else response,
        task=task,
        prompt=prompt or None,
    )


def _asked(arguments: object) -> tuple[str, list[str]]:
    """The prompt, and the texts whose likelihood was asked behind it; newer versions name both, older list them."""
    pairs: list[list[object]] = []
    if isinstance(arguments, Mapping):
        pairs = [[one.get("arg_0"), one.get("arg_1")] for one in arguments.values() if isinstance(one, Mapping)]
    elif isinstance(arguments, list):
        pairs = [[*one, None, None][:2] for one in arguments if isinstance(one, list)]
    prompt = next((prompt for prompt, _ in pairs if isinstance(prompt, str)), "")
    return prompt, [text for _, text in pairs if isinstance(text, str)]


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
