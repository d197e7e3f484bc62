"""Judges one evaluation attempt (H-3) by its lines, its adapter and its results."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path, PurePosixPath

from steph.base.files import sha256_of
from steph.base.messages import Message, say
from steph.base.text import one_line
from steph.contract.lines import (
    EvalLines,
    KeyLine,
    adapter_trouble_in,
    answer_troubles_in,
    parse_evaluation,
    raised_while_answering,
)
from steph.contract.results import Results, ResultsFile, ResultsForm, Row
from steph.contract.results_files import find_results
from steph.contract.training_files import ADAPTER_WEIGHTS_NAME
from steph.judge.checks_adapter import base_check
from steph.judge.checks_answers import witnessed_answer_checks
from steph.judge.checks_extended import compared, extended_checks
from steph.judge.checks_process import process_checks
from steph.judge.checks_results import content_checks, dataset_check, file_checks
from steph.judge.checks_text import response_checks
from steph.judge.evidence import EvalEvidence
from steph.judge.folders import MAX_HASHED_BYTES, artifact, names_model, same_path
from steph.judge.kinds import FAIL, WARN, CheckKind, Needs, lacking_in_evaluation, without_inapplicable
from steph.record.values import Artifact, Check, EvalOutcome

MOST_NAMED = 8  # of addresses and keys
_ON, _OFF = ("enabled", "on", "true", "有効"), ("disabled", "off", "false", "none", "無効")
_MODEL_KEY = re.compile(
    r"(?:[a-z]+_)*(?:model|checkpoint|engine)(?:_(?:name|path|id|dir|name_or_path))?", re.IGNORECASE
)
_OTHER_MODELS = re.compile(
    r"embed|rerank|retriev|tokeniz|judge|lora|adapter|peft|draft|teacher|vision|class|type|cache|max_", re.IGNORECASE
)
_KNOWN_KEYS = ("llm_model", "hf_model_name")  # what `model_names_agree` looks at: the published script's are wrong
_SERVER_KEY = re.compile(
    r"(?!hf_|ollama_)(?:[a-z]+_)*(?:base_url|api_base|api_url|endpoint|endpoint_url|server_url|llm_url)", re.IGNORECASE
)
_ADAPTER_FLAG = re.compile(
    r"use_(?:lora|adapter|peft)|(?:lora|adapter|peft)_(?:loaded|enabled|active|applied|used)", re.IGNORECASE
)
_LOCAL = re.compile(r"(?:hf|hugging ?face|transformers)\b")
_CLASS_NAME = re.compile(r"[A-Z]\w*(?:ForCausalLM|LMHeadModel|ForConditionalGeneration|Model)")
LINE_INITIALIZING = CheckKind("line_initializing", "H-3", FAIL, needs=(Needs.KEY_LINES,))
LINE_RAG_DISABLED = CheckKind("line_rag_disabled", "H-3", FAIL, needs=(Needs.KEY_LINES,))
LINE_RAG_ENABLED = CheckKind("line_rag_enabled", "H-3", FAIL, needs=(Needs.KEY_LINES,))
MODEL_NAMED = CheckKind("model_named", "H-3", FAIL, trap=4, needs=(Needs.MODEL_NAME,))
MODEL_NAMES_AGREE = CheckKind("model_names_agree", "H-3", WARN, trap=4)
MODEL_IN_USE = CheckKind("model_in_use", "H-3", FAIL, trap=4, optional=True)
LINE_BACKEND = CheckKind("line_backend", "H-3", FAIL, optional=True)
LORA_PATH_NAMED = CheckKind("lora_path_named", "H-3", FAIL, needs=(Needs.ADAPTER_NAME,))
LINE_RESULTS = CheckKind("line_results", "H-3", FAIL, needs=(Needs.KEY_LINES,))
TOTAL_SAMPLES = CheckKind("total_samples", "H-3", FAIL, core=True)
LINE_ACCURACY = CheckKind("line_accuracy", "H-3", FAIL, needs=(Needs.KEY_LINES,))
LINES_IN_ORDER = CheckKind("lines_in_order", "H-3", FAIL, optional=True, needs=(Needs.KEY_LINES,))
LINES_PRINTED = CheckKind("lines_printed", "H-3", FAIL, needs=(Needs.WORDS,))
NO_INVOCATION_ERROR = CheckKind("no_invocation_error", "H-3", FAIL, trap=2)
ADAPTER_UNCHANGED = CheckKind("adapter_unchanged", "H-3", FAIL, core=True)
ADAPTER_LOADED = CheckKind("adapter_loaded", "H-3", FAIL)
ADAPTER_LEFT_ALONE = CheckKind("adapter_left_alone", "H-3", WARN, optional=True)
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
MAX_ANSWERS = 1000
MOST_ANSWER_CHARS = 60


def line_checks(evidence: EvalEvidence, lines: EvalLines, results: Results | None) -> tuple[Check, ...]:
    """All checks of the printed lines; the JSON is asked where it names the same thing."""
    return (
        _presence(LINE_INITIALIZING, KeyLine.INITIALIZING, "Initializing RAG pipeline...", lines),
        _rag_check(evidence, lines),
        *_model_checks(evidence, lines, results),
        _in_use_check(evidence, lines, results),
        _backend_check(lines, results),
        *_lora_checks(evidence, lines, results),
        _presence(LINE_RESULTS, KeyLine.RESULTS, "EVALUATION RESULTS", lines),
        _total_check(evidence, lines, results),
        _accuracy_check(lines),
        _order_check(lines),
        _words_check(evidence),
        _invocation_check(evidence, lines, results),
    )


def _presence(kind: CheckKind, key: KeyLine, text: str, lines: EvalLines) -> Check:
    there = key in lines.order
    return kind.check(there, say("lines.there" if there else "lines.missing", line=text))


def _rag_check(evidence: EvalEvidence, lines: EvalLines) -> Check:
    use_rag = evidence.settings.use_rag
    mode = lines.rag_mode
    shown = say("lines.no_rag_mode") if mode is None else say("lines.rag_mode", mode=one_line(mode, 80))
    said = (mode or "").strip().lower()
    if use_rag:
        return LINE_RAG_ENABLED.check(said.startswith(_ON), shown)
    return LINE_RAG_DISABLED.check(said.startswith(_OFF), shown)


def _model_checks(evidence: EvalEvidence, lines: EvalLines, results: Results | None) -> tuple[Check, Check]:
    asked = evidence.model_name
    printed = {"HF Model": lines.hf_model, "LLM Model": lines.llm_model}
    written = (
        {"JSON llm_model": results.config.llm_model, "JSON hf_model_name": results.config.hf_model_name}
        if results
        else {}
    )
    shown = {label: str(value) for label, value in (printed | written).items() if value}
    naming = printed if evidence.form.format == "lawqa" else {**printed, **written}
    named = any(value and _names(evidence, str(value)) for value in naming.values())
    others = [
        say("lines.named", label=label, name=one_line(value, 60))
        for label, value in shown.items()
        if not _names(evidence, value)
    ]
    listing = [f"{label} {one_line(value, 60)}" for label, value in shown.items()]
    return (
        MODEL_NAMED.check(named, "shown" if shown else "none", asked=one_line(asked, 80), shown=listing),
        MODEL_NAMES_AGREE.check(not others, "others" if others else "none", others=others),
    )


def _names(evidence: EvalEvidence, value: str) -> bool:
    """Whether a name is the model's; also a folder that the adapter was seen to be merged into."""
    merged = evidence.merged_folders
    return names_model(value, evidence.model_name) or any(same_path(folder, value) for folder in merged)


def _in_use_check(evidence: EvalEvidence, lines: EvalLines, results: Results | None) -> Check:
    """What a program says it loaded; a folder inside of the root may be the asked model, merged with its adapter."""
    written = {
        key: value.strip()
        for key, value in _more_keys(results).items()
        if isinstance(value, str) and value.strip() and _is_model_key(key)
    }
    shown: list[tuple[str | None, str]] = [*((None, value) for value in lines.loaded_models), *written.items()]
    told = [(key, value) for key, value in shown if re.search(r"[\d/]", value) and not _CLASS_NAME.fullmatch(value)]
    told = [pair for pair in told if pair[0] or "/" in pair[1] or not pair[1].replace(".", "").isdigit()]
    if not told:
        return MODEL_IN_USE.check(None, "unknown")
    others = [_loaded(key, one_line(value, 60)) for key, value in told if not _may_be_asked(evidence, value)]
    asked = one_line(evidence.model_name, 80)
    return MODEL_IN_USE.check(not others, "others" if others else "none", asked=asked, others=others)


def _loaded(key: str | None, name: str) -> Message:
    return say("lines.json_model", key=key, name=name) if key else say("lines.printed_model", name=name)


def _more_keys(results: Results | None) -> Mapping[str, object]:
    return (results.config.model_extra or {}) if results else {}


def _is_model_key(key: str) -> bool:
    return key not in _KNOWN_KEYS and _MODEL_KEY.fullmatch(key) is not None and _OTHER_MODELS.search(key) is None


def _may_be_asked(evidence: EvalEvidence, value: str) -> bool:
    asked, root = evidence.model_name, evidence.root
    if names_model(value, asked) or PurePosixPath(value.rstrip("/")).name == PurePosixPath(asked.rstrip("/")).name:
        return True
    try:
        return (root / value).exists() and (root / value).resolve().is_relative_to(root.resolve())
    except (OSError, ValueError):
        return False


def _backend_check(lines: EvalLines, results: Results | None) -> Check:
    written = results.config.backend if results else None
    shown = [str(value).strip().lower() for value in (lines.backend, written) if value]
    asked = [
        *lines.endpoints,
        *(value for key, value in _more_keys(results).items() if _SERVER_KEY.fullmatch(key) and _is_address(value)),
    ]
    if asked:
        return LINE_BACKEND.check(False, "server", addresses=[one_line(one, 120) for one in asked[:MOST_NAMED]])
    if not shown:
        return LINE_BACKEND.check(None, "unknown")
    backends = [one_line(one, 80) for one in dict.fromkeys(shown)]
    return LINE_BACKEND.check(all(map(_LOCAL.match, shown)), "shown", backends=backends)


def _is_address(value: object) -> bool:
    return isinstance(value, str) and re.match(r"(?:https?|grpc|wss?)://", value.strip()) is not None


def _lora_checks(evidence: EvalEvidence, lines: EvalLines, results: Results | None) -> tuple[Check, ...]:
    asked = evidence.lora_path
    written = results.config.lora_path if results else None
    shown = [str(value).strip() for value in (lines.lora_path, written) if value is not None]
    if results and "lora_path" in results.config.model_fields_set and written is None:
        shown.append("None")
    named = results.config.hf_model_name if results else None
    if asked is not None and named and any(same_path(folder, str(named)) for folder in evidence.merged_folders):
        return (LORA_PATH_NAMED.check(True, "merged", folder=one_line(named, 120)),)
    unused = [key for key, value in _more_keys(results).items() if value is False and _ADAPTER_FLAG.fullmatch(key)]
    if asked is not None and unused:
        return (LORA_PATH_NAMED.check(False, "unused", keys=unused[:MOST_NAMED]),)
    if asked is None:
        used = [one_line(value, 120) for value in shown if value not in ("", "None")]
        return (LORA_PATH_NAMED.check(not used, "unasked" if used else "none", shown=used),)
    if not shown:
        return (LORA_PATH_NAMED.check(None, "unknown"),)
    holds = all(_is_asked(evidence.root, asked, value) for value in shown)
    listing = [one_line(value, 120) for value in dict.fromkeys(shown)]
    return (LORA_PATH_NAMED.check(holds, "compared", asked=one_line(asked, 120), shown=listing),)


def _is_asked(root: Path, asked: str, shown: str) -> bool:
    """Whether a shown path is the asked one; a whole path that is there must lie in this root and no other."""
    if not same_path(asked, shown):
        return False
    path = Path(shown)
    return not path.is_absolute() or not path.exists() or path.resolve() == (root / asked).resolve()


def _total_check(evidence: EvalEvidence, lines: EvalLines, results: Results | None) -> Check:
    asked = evidence.settings.samples
    if evidence.form.format != "lawqa":
        return _counted_check(evidence, results)
    counts = {"lines.no_total" if lines.total is None else "lines.total": lines.total}
    if results and results.summary:
        counts |= {"lines.json_total": results.summary.total_count, "lines.json_rows": len(results.results)}
    shown = [say(label, count=count) for label, count in counts.items()]
    return TOTAL_SAMPLES.check(set(counts.values()) == {asked}, "compared", asked=asked, counts=shown)


def _counted_check(evidence: EvalEvidence, results: Results | None) -> Check:
    """Of each task as many samples as were asked for, by its count and by its rows; one of them must be there."""
    asked = evidence.settings.samples
    if results is None:
        return TOTAL_SAMPLES.check(None, "unusable")
    counts: dict[tuple[str, str], int] = {}
    for score in results.scores:
        rows = sum(row.task == score.task for row in results.results)
        counts |= {("lines.task_count", score.task): score.count} if score.count is not None else {}
        counts |= {("lines.task_rows", score.task): rows} if results.results else {}
    if not counts:
        return TOTAL_SAMPLES.check(None, "none")
    shown = [say(label, task=task, count=count) for (label, task), count in counts.items()]
    return TOTAL_SAMPLES.check(set(counts.values()) == {asked}, "compared", asked=asked, counts=shown)


def _words_check(evidence: EvalEvidence) -> Check:
    """The words of the description, each in a line at or after the one before; a program may print more."""
    printed, at = evidence.output, 0
    for word in evidence.form.lines:
        found = printed.find(word, at)
        if found < 0:
            return LINES_PRINTED.check(False, "missing", word=one_line(word, 80))
        at = found + len(word)
    return LINES_PRINTED.check(True, "printed", words=len(evidence.form.lines))


def _accuracy_check(lines: EvalLines) -> Check:
    if lines.accuracy is None:
        return LINE_ACCURACY.check(False, say("lines.missing", line="Accuracy:"))
    holds = math.isfinite(lines.accuracy) and 0 <= lines.accuracy <= 1
    return LINE_ACCURACY.check(holds, "shown", percent=100 * lines.accuracy)


def _order_check(lines: EvalLines) -> Check:
    # the published script prints its wrong model line before the backend and the right one after: any order will do
    groups = [
        (KeyLine.INITIALIZING,),
        (KeyLine.RAG_MODE,),
        (KeyLine.LLM_MODEL, KeyLine.HF_MODEL, KeyLine.BACKEND),
        (KeyLine.RESULTS,),
        (KeyLine.TOTAL,),
        (KeyLine.ACCURACY,),
    ]
    places = [[lines.order[key] for key in group if key in lines.order] for group in groups]
    there = [place for place in places if place]
    if len(there) < 2:
        return LINES_IN_ORDER.check(None, "too_few")
    holds = all(max(earlier) < min(later) for earlier, later in pairwise(there))
    return LINES_IN_ORDER.check(holds, "in_order" if holds else "out_of_order")


def _invocation_check(evidence: EvalEvidence, lines: EvalLines, results: Results | None) -> Check:
    """Printed exceptions of single questions; as many tracebacks as questions are no accident beside the work."""
    errors, troubles = lines.invocation_errors, answer_troubles_in(evidence.output)
    raised, asked = raised_while_answering(evidence.output), len(results.results) if results else 0
    if raised >= max(asked, 2) and not errors:
        return NO_INVOCATION_ERROR.check(False, "tracebacks", questions=asked, tracebacks=raised)
    told = errors or troubles
    return NO_INVOCATION_ERROR.check(
        not told,
        "told" if told else "clean",
        severity=WARN if troubles and not errors else None,
        errors=len(errors),
        troubles=len(troubles),
        example=one_line(told[0], 160) if told else "",
    )


def adapter_use_checks(evidence: EvalEvidence, lines: EvalLines) -> tuple[Check, ...]:
    """All checks of the adapter's files; none for an evaluation without one."""
    if evidence.lora_path is None:
        return ()
    expected, actual = evidence.adapter_sha256_expected, evidence.adapter_sha256_actual
    same = None if expected is None or actual is None else expected == actual
    none = say("training.none")
    trouble = adapter_trouble_in(evidence.output, besides=lines.of_other_blocks)
    return (
        base_check(evidence.root / evidence.lora_path, evidence.model_name),
        ADAPTER_UNCHANGED.check(
            same,
            "compared",
            recorded=expected[:12] if expected else none,
            now=actual[:12] if actual else none,
        ),
        ADAPTER_LOADED.check(trouble is None, "trouble" if trouble else "clean", line=one_line(trouble or "", 200)),
        _left_alone_check(evidence.adapter_files, evidence.root / evidence.lora_path),
    )


def adapter_files(folder: Path) -> dict[str, str]:
    """The sha256 of each file of an adapter that decides what it does: its configuration and its weights, by name."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file()) if folder.is_dir() else ()
    kept = (path for path in files if path.name.startswith("adapter_") or _is_weights(path))
    return {path.name: sha256_of(path) for path in kept if path.stat().st_size <= MAX_HASHED_BYTES}


def _is_weights(path: Path) -> bool:
    return path.suffix in _WEIGHTS and path.name != "training_args.bin"


def _left_alone_check(before: Mapping[str, str] | None, folder: Path) -> Check:
    """Weights that changed are another check's; a second weights file or a new configuration misleads the next user."""
    if before is None:
        return ADAPTER_LEFT_ALONE.check(None, "not_recorded")
    after = adapter_files(folder)
    names = sorted({*before, *after} - {ADAPTER_WEIGHTS_NAME})
    changed = [one_line(name, 60) for name in names if before.get(name) != after.get(name)]
    return ADAPTER_LEFT_ALONE.check(not changed, "changed" if changed else "same", files=changed)


def judge_evaluation(
    evidence: EvalEvidence, besides: Sequence[Check] = ()
) -> tuple[EvalOutcome, tuple[Check, ...], tuple[Artifact, ...]]:
    """Read what the attempt printed and wrote and check it; missing files are findings, never exceptions.

    `besides` are further checks of it: they come last, and the description rules them out as it does the others.
    """
    lines = parse_evaluation(evidence.stdout)
    file = find_results(
        evidence.root,
        evidence.form,
        evidence.output_path,
        lines.saved_to,
        evidence.attempt_started_unix,
        pattern=evidence.output_pattern,
        with_adapter=evidence.lora_path is not None,
    )
    content = file.content
    form = replace(evidence.form, kind=content.kind) if content and content.kind else evidence.form
    if content and evidence.form.format == "lawqa":  # of several blocks the one that the file counts
        lines = parse_evaluation(
            evidence.stdout, (len(content.results), sum(row.is_correct for row in content.results))
        )
    checks = (
        *process_checks(evidence.returncode, evidence.output, on_gpu=evidence.on_gpu),
        *line_checks(evidence, lines, content),
        *adapter_use_checks(evidence, lines),
        *witnessed_answer_checks(evidence, content),
        *file_checks(file, lines, evidence.attempt_started_unix),
        dataset_check(evidence),
        *content_checks(evidence, content, lines),
        *response_checks(
            _with_responses(content.results, form) if content else None,
            labels=content.labels if content else (),
            kind=form.kind,
            cot=evidence.settings.use_cot,
            ensemble=evidence.settings.ensemble,
            rehearsal=evidence.rehearsal,
            seconds=evidence.seconds,
            random_weights=evidence.random_weights,
            ranks=evidence.settings.num_processes,
        ),
        *extended_checks(evidence, lines, content),
        *besides,
    )
    has_dataset = evidence.dataset is not None and (evidence.questions is not None or form.format == "lawqa")
    lacks = lacking_in_evaluation(form, has_dataset=has_dataset)
    return _outcome(evidence, lines, file), without_inapplicable(checks, lacks), _artifacts(file)


def _outcome(evidence: EvalEvidence, lines: EvalLines, file: ResultsFile) -> EvalOutcome:
    results = file.content
    rows = results.results if results else ()
    first = next(iter(results.scores), None) if results else None
    return EvalOutcome(
        output_path=file.name,
        total=_total(lines, results),
        correct=_correct(lines, results),
        accuracy=_accuracy(lines, results),
        score=first.value if first else None,
        metric="/".join(filter(None, (first.task, first.metric))) if first else None,
        backend=_short(lines.backend or (results.config.backend if results else None)),
        model_name=_short(_model(evidence.model_name, lines) or (results.config.hf_model_name if results else None)),
        lora_path=_short(lines.lora_path or (results.config.lora_path if results else None)),
        key_lines=tuple(one_line(line) for line in lines.key_lines),
        answers=tuple(one_line(row.predicted_answer, MOST_ANSWER_CHARS) for row in rows[:MAX_ANSWERS]),
        answering_seconds=_answering_seconds(rows) if rows else None,
        with_adapter=compared(rows, evidence.beside) if rows and evidence.lora_path is None else None,
    )


def _answering_seconds(rows: tuple[Row, ...]) -> float | None:
    own = [row.own_seconds for row in rows if row.own_seconds is not None]
    return sum(own) if len(own) == len(rows) else None


def _with_responses(rows: tuple[Row, ...], form: ResultsForm) -> tuple[Row, ...]:
    """The rows that an answer was written for, where other tasks of the same evaluation only score texts."""
    return tuple(row for row in rows if row.response is not None) if form.kind == "generate" else rows


def _correct(lines: EvalLines, results: Results | None) -> int | None:
    """How many are right; None where a row may be right in part."""
    rows = results.results if results else ()
    if results is None:
        return lines.correct
    return sum(row.is_correct for row in rows) if all(row.counts in (0, 1) for row in rows) else None


def _total(lines: EvalLines, results: Results | None) -> int | None:
    if results is None:
        return lines.total
    return len(results.results) or sum(score.count or 0 for score in results.scores) or None


def _accuracy(lines: EvalLines, results: Results | None) -> float | None:
    """The share of right answers, by the rows where there are any; None for a score that is no share."""
    if results is not None and results.results:
        return results.mean_counts if all(0 <= row.counts <= 1 for row in results.results) else None
    if results is not None and results.scores:
        value = results.scores[0].value
        return value if 0 <= value <= 1 and results.scores[0].is_mean else None
    return lines.accuracy if lines.accuracy is not None and 0 <= lines.accuracy <= 1 else None


def _model(asked: str, lines: EvalLines) -> str | None:
    printed = (lines.hf_model, lines.llm_model)
    return next((value for value in printed if value and names_model(value, asked)), printed[0] or printed[1])


def _short(value: object) -> str | None:
    return one_line(value) if value is not None else None


def _artifacts(file: ResultsFile) -> tuple[Artifact, ...]:
    paths = [(file.path, file.name)] if file.path else []
    paths += [(path, path.name) for path in file.rows_files]
    return tuple(artifact(path, name) for path, name in paths if path.stat().st_size <= MAX_HASHED_BYTES)
