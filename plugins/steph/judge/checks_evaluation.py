"""Judges one evaluation attempt (H-3) by its lines, its adapter and its results."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from statistics import median

from steph.base.files import sha256_of
from steph.base.messages import say
from steph.base.text import one_line
from steph.contract.lines import (
    EvalLines,
    KeyLine,
    adapter_trouble_in,
    answer_troubles_in,
    parse_evaluation,
    raised_while_answering,
)
from steph.contract.questions import NUMBERINGS, plain_label, rows_with
from steph.contract.results import Results, ResultsFile, Row
from steph.contract.results_files import find_results
from steph.contract.training_files import ADAPTER_WEIGHTS_NAME
from steph.judge.checks_adapter import base_check
from steph.judge.checks_answers import as_asked, witnessed_answer_checks
from steph.judge.checks_extended import compared, extended_checks
from steph.judge.checks_process import process_checks
from steph.judge.checks_results import content_checks, dataset_check, file_checks
from steph.judge.checks_text import response_checks
from steph.judge.checks_trained_use import Answering
from steph.judge.evidence import MAX_HASHED_BYTES, EvalEvidence, artifact, names_model, same_path
from steph.judge.kinds import FAIL, WARN, CheckKind, Figures, Needs, lacking_in_evaluation, without_inapplicable
from steph.judge.witness import Generation, Witness
from steph.record.values import Artifact, Check, EvalOutcome

MOST_NAMED = 8  # of addresses and keys
MAX_ANSWERS, MOST_ANSWER_CHARS = 1000, 60  # in the record
_ON, _OFF = ("enabled", "on", "true", "有効"), ("disabled", "off", "false", "none", "無効")
_MODEL_KEY = re.compile(r"(?i)(?:[a-z]+_)*(?:model|checkpoint|engine)(?:_(?:name|path|id|dir|name_or_path))?")
_OTHER_MODELS = re.compile(
    r"(?i)embed|rerank|retriev|tokeniz|judge|lora|adapter|peft|draft|teacher|vision|class|type|cache|max_"
)
_KNOWN_KEYS = ("llm_model", "hf_model_name")  # what `model_names_agree` looks at: the published script's are wrong
_SERVER_KEY = re.compile(
    r"(?i)(?!hf_|ollama_)(?:[a-z]+_)*(?:base_url|api_base|api_url|endpoint|endpoint_url|server_url|llm_url)"
)
_ADDRESS = re.compile(r"(?:https?|grpc|wss?)://")
_ADAPTER_FLAG = re.compile(
    r"(?i)use_(?:lora|adapter|peft)|(?:lora|adapter|peft)_(?:loaded|enabled|active|applied|used)"
)
_LOCAL = re.compile(r"(?:hf|hugging ?face|transformers)\b")
_CLASS_NAME = re.compile(r"[A-Z]\w*(?:ForCausalLM|LMHeadModel|ForConditionalGeneration|Model)")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
# the published script prints its wrong model line before the backend and the right one after: any order will do
_ORDER = (
    *((KeyLine.INITIALIZING,), (KeyLine.RAG_MODE,), (KeyLine.LLM_MODEL, KeyLine.HF_MODEL, KeyLine.BACKEND)),
    *((KeyLine.RESULTS,), (KeyLine.TOTAL,), (KeyLine.ACCURACY,)),
)

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


def line_checks(evidence: EvalEvidence, lines: EvalLines, results: Results | None) -> tuple[Check, ...]:
    """All checks of the printed lines; the JSON is asked where it names the same thing."""
    mode, use_rag = lines.rag_mode, evidence.settings.use_rag
    shown = say("lines.no_rag_mode") if mode is None else say("lines.rag_mode", mode=one_line(mode, 80))
    rag = LINE_RAG_ENABLED if use_rag else LINE_RAG_DISABLED
    accuracy = LINE_ACCURACY.check(False, say("lines.missing", line="Accuracy:"))
    if lines.accuracy is not None:
        holds = math.isfinite(lines.accuracy) and 0 <= lines.accuracy <= 1
        accuracy = LINE_ACCURACY.check(holds, "shown", percent=100 * lines.accuracy)
    places = [[lines.order[key] for key in group if key in lines.order] for group in _ORDER]
    there = [place for place in places if place]
    order = LINES_IN_ORDER.check(None, "too_few")
    if len(there) > 1:
        holds = all(max(earlier) < min(later) for earlier, later in pairwise(there))
        order = LINES_IN_ORDER.check(holds, "in_order" if holds else "out_of_order")
    return (
        _presence(LINE_INITIALIZING, KeyLine.INITIALIZING, "Initializing RAG pipeline...", lines),
        rag.check((mode or "").strip().lower().startswith(_ON if use_rag else _OFF), shown),
        *_model_checks(evidence, lines, results),
        _in_use_check(evidence, lines, results),
        _backend_check(lines, results),
        _lora_check(evidence, lines, results),
        _presence(LINE_RESULTS, KeyLine.RESULTS, "EVALUATION RESULTS", lines),
        _total_check(evidence, lines, results),
        accuracy,
        order,
        _words_check(evidence),
        _invocation_check(evidence, lines, results),
    )


def _presence(kind: CheckKind, key: KeyLine, text: str, lines: EvalLines) -> Check:
    there = key in lines.order
    return kind.check(there, say("lines.there" if there else "lines.missing", line=text))


def _model_checks(evidence: EvalEvidence, lines: EvalLines, results: Results | None) -> tuple[Check, Check]:
    """The asked model is named, and no other is; a folder that the adapter was seen to be merged into is it too."""
    config, merged = results.config if results else None, evidence.merged_folders
    printed = {"HF Model": lines.hf_model, "LLM Model": lines.llm_model}
    written = {"JSON llm_model": config.llm_model, "JSON hf_model_name": config.hf_model_name} if config else {}
    shown = {label: str(value) for label, value in (printed | written).items() if value}
    right = {
        label
        for label, value in shown.items()
        if names_model(value, evidence.model_name) or any(same_path(folder, value) for folder in merged)
    }
    named = right & printed.keys() if evidence.form.format == "lawqa" else right
    others = [
        say("lines.named", label=label, name=one_line(value, 60))
        for label, value in shown.items()
        if label not in right
    ]
    asked, listing = one_line(evidence.model_name, 80), [f"{one} {one_line(value, 60)}" for one, value in shown.items()]
    return (
        MODEL_NAMED.check(bool(named), "shown" if shown else "none", asked=asked, shown=listing),
        MODEL_NAMES_AGREE.check(not others, "others" if others else "none", others=others),
    )


def _in_use_check(evidence: EvalEvidence, lines: EvalLines, results: Results | None) -> Check:
    """What a program says it loaded; a folder inside of the root may be the asked model, merged with its adapter."""
    shown: list[tuple[str | None, str]] = [(None, value) for value in lines.loaded_models]
    for key, value in _more_keys(results).items():
        is_model = key not in _KNOWN_KEYS and _MODEL_KEY.fullmatch(key) and not _OTHER_MODELS.search(key)
        if is_model and isinstance(value, str) and value.strip():
            shown.append((key, value.strip()))
    told = [(key, value) for key, value in shown if re.search(r"[\d/]", value) and not _CLASS_NAME.fullmatch(value)]
    told = [pair for pair in told if pair[0] or "/" in pair[1] or not pair[1].replace(".", "").isdigit()]
    if not told:
        return MODEL_IN_USE.check(None, "unknown")
    others = []
    for label, value in told:
        if not _may_be_asked(evidence, value):
            name = one_line(value, 60)
            one = say("lines.json_model", key=label, name=name) if label else say("lines.printed_model", name=name)
            others.append(one)
    asked = one_line(evidence.model_name, 80)
    return MODEL_IN_USE.check(not others, "others" if others else "none", asked=asked, others=others)


def _more_keys(results: Results | None) -> Mapping[str, object]:
    return (results.config.model_extra or {}) if results else {}


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
    keys = [(key, value) for key, value in _more_keys(results).items() if isinstance(value, str)]
    servers = [value for key, value in keys if _SERVER_KEY.fullmatch(key) and _ADDRESS.match(value.strip())]
    asked = [one_line(one, 120) for one in (*lines.endpoints, *servers)]
    if asked:
        return LINE_BACKEND.check(False, "server", addresses=asked[:MOST_NAMED])
    if not shown:
        return LINE_BACKEND.check(None, "unknown")
    backends = [one_line(one, 80) for one in dict.fromkeys(shown)]
    return LINE_BACKEND.check(all(map(_LOCAL.match, shown)), "shown", backends=backends)


def _lora_check(evidence: EvalEvidence, lines: EvalLines, results: Results | None) -> Check:
    """The asked adapter is named, and none where none was asked for; a folder may be the adapter, merged."""
    asked, config = evidence.lora_path, results.config if results else None
    written, named = (config.lora_path, config.hf_model_name) if config else (None, None)
    shown = [str(value).strip() for value in (lines.lora_path, written) if value is not None]
    if config and "lora_path" in config.model_fields_set and written is None:
        shown.append("None")
    if asked is None:
        used = [one_line(value, 120) for value in shown if value not in ("", "None")]
        return LORA_PATH_NAMED.check(not used, "unasked" if used else "none", shown=used)
    if named and any(same_path(folder, str(named)) for folder in evidence.merged_folders):
        return LORA_PATH_NAMED.check(True, "merged", folder=one_line(named, 120))
    unused = [key for key, value in _more_keys(results).items() if value is False and _ADAPTER_FLAG.fullmatch(key)]
    if unused:
        return LORA_PATH_NAMED.check(False, "unused", keys=unused[:MOST_NAMED])
    if not shown:
        return LORA_PATH_NAMED.check(None, "unknown")

    def is_asked(value: str) -> bool:  # a whole path that is there must lie in this root and no other
        path = Path(value)
        is_elsewhere = path.is_absolute() and path.exists() and path.resolve() != (evidence.root / asked).resolve()
        return same_path(asked, value) and not is_elsewhere

    listing = [one_line(value, 120) for value in dict.fromkeys(shown)]
    return LORA_PATH_NAMED.check(all(map(is_asked, shown)), "compared", asked=one_line(asked, 120), shown=listing)


def _total_check(evidence: EvalEvidence, lines: EvalLines, results: Results | None) -> Check:
    """As many samples as were asked for, by every count; of each task, by its count and its rows, where there are any.

    One of the counts must be there.
    """
    asked = evidence.settings.samples
    counts: dict[tuple[str, str | None], int | None] = {}  # by what is counted, and the task
    if evidence.form.format == "lawqa":
        counts["lines.no_total" if lines.total is None else "lines.total", None] = lines.total
        if results and results.summary:
            counts["lines.json_total", None] = results.summary.total_count
            counts["lines.json_rows", None] = len(results.results)
    elif results is None:
        return TOTAL_SAMPLES.check(None, "unusable")
    else:
        for score in results.scores:
            rows = sum(row.task == score.task for row in results.results)
            counts |= {("lines.task_count", score.task): score.count} if score.count is not None else {}
            counts |= {("lines.task_rows", score.task): rows} if results.results else {}
        if not counts:
            return TOTAL_SAMPLES.check(None, "none")
    shown = [say(what, task=task, count=count) for (what, task), count in counts.items()]
    return TOTAL_SAMPLES.check({*counts.values()} == {asked}, "compared", asked=asked, counts=shown)


def _words_check(evidence: EvalEvidence) -> Check:
    """The words of the description, each in a line at or after the one before; a program may print more."""
    printed, at = evidence.output, 0
    for word in evidence.form.lines:
        found = printed.find(word, at)
        if found < 0:
            return LINES_PRINTED.check(False, "missing", word=one_line(word, 80))
        at = found + len(word)
    return LINES_PRINTED.check(True, "printed", words=len(evidence.form.lines))


def _invocation_check(evidence: EvalEvidence, lines: EvalLines, results: Results | None) -> Check:
    """Printed exceptions of single questions; as many tracebacks as questions are no accident beside the work."""
    errors, troubles = lines.invocation_errors, answer_troubles_in(evidence.output)
    raised, asked = raised_while_answering(evidence.output), len(results.results) if results else 0
    if raised >= max(asked, 2) and not errors:
        return NO_INVOCATION_ERROR.check(False, "tracebacks", questions=asked, tracebacks=raised)
    told = errors or troubles
    counts: Figures = {"errors": len(errors), "troubles": len(troubles)}
    severity, example = WARN if troubles and not errors else None, one_line(told[0], 160) if told else ""
    found = "told" if told else "clean"
    return NO_INVOCATION_ERROR.check(not told, found, severity=severity, example=example, **counts)


def adapter_use_checks(evidence: EvalEvidence, lines: EvalLines) -> tuple[Check, ...]:
    """All checks of the adapter's files; none for an evaluation without one."""
    if evidence.lora_path is None:
        return ()
    folder, none = evidence.root / evidence.lora_path, say("training.none")
    expected, actual = evidence.adapter_sha256_expected, evidence.adapter_sha256_actual
    same = None if expected is None or actual is None else expected == actual
    hashes: Figures = {"recorded": expected[:12] if expected else none, "now": actual[:12] if actual else none}
    trouble = adapter_trouble_in(evidence.output, besides=lines.of_other_blocks)
    # weights that changed are another check's; a second weights file or a new configuration misleads the next user
    before = evidence.adapter_files
    left = ADAPTER_LEFT_ALONE.check(None, "not_recorded")
    if before is not None:
        after = adapter_files(folder)
        names = sorted({*before, *after} - {ADAPTER_WEIGHTS_NAME})
        changed = [one_line(name, 60) for name in names if before.get(name) != after.get(name)]
        left = ADAPTER_LEFT_ALONE.check(not changed, "changed" if changed else "same", files=changed)
    return (
        base_check(folder, evidence.model_name),
        ADAPTER_UNCHANGED.check(same, "compared", **hashes),
        ADAPTER_LOADED.check(trouble is None, "trouble" if trouble else "clean", line=one_line(trouble or "", 200)),
        left,
    )


def adapter_files(folder: Path) -> dict[str, str]:
    """The sha256 of each file of an adapter that decides what it does: its configuration and its weights, by name."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file()) if folder.is_dir() else ()
    return {
        path.name: sha256_of(path)
        for path in files
        if (path.name.startswith("adapter_") or (path.suffix in _WEIGHTS and path.name != "training_args.bin"))
        and path.stat().st_size <= MAX_HASHED_BYTES
    }


def judge_evaluation(
    evidence: EvalEvidence, further: Sequence[Check] = ()
) -> tuple[EvalOutcome, tuple[Check, ...], tuple[Artifact, ...]]:
    """Read what the attempt printed and wrote and check it; missing files are findings, never exceptions.

    `further` checks of it come last, and the description rules them out as it does the others.
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
        right = sum(row.is_correct for row in content.results)
        lines = parse_evaluation(evidence.stdout, (len(content.results), right))
    rows = content.results if content else None
    if rows and form.kind == "generate":  # other tasks of the same evaluation only score texts
        rows = tuple(row for row in rows if row.response is not None)
    checks = (
        *process_checks(evidence.returncode, evidence.output, on_gpu=evidence.on_gpu),
        *line_checks(evidence, lines, content),
        *adapter_use_checks(evidence, lines),
        *witnessed_answer_checks(evidence, content),
        *file_checks(file, lines, evidence.attempt_started_unix, evidence.stdout if form.format == "json" else ""),
        dataset_check(evidence),
        *content_checks(evidence, content, lines),
        *response_checks(
            rows and as_asked(Answering(evidence, evidence.witness or Witness()), rows)[0],
            labels=content.labels if content else (),
            kind=form.kind,
            cot=evidence.settings.use_cot,
            ensemble=evidence.settings.ensemble,
            rehearsal=evidence.rehearsal,
            seconds=evidence.seconds,
            random_weights=evidence.random_weights,
            ranks=evidence.settings.num_processes,
            row_seconds=_row_seconds(evidence.witness or Witness()),
        ),
        *extended_checks(evidence, lines, content),
        *further,
    )
    has_dataset = evidence.dataset is not None and (evidence.questions is not None or form.format == "lawqa")
    lacks = lacking_in_evaluation(form, has_dataset=has_dataset)
    if form.kind == "generate" and rows and _are_letters(rows):  # whatever the description calls it
        lacks.pop(Needs.LABELS, None)
    files = [(file.path, file.name)] if file.path else []
    files += [(path, path.name) for path in file.rows_files]
    artifacts = (artifact(path, name) for path, name in files if path.stat().st_size <= MAX_HASHED_BYTES)
    return _outcome(evidence, lines, file), without_inapplicable(checks, lacks), tuple(artifacts)


def _are_letters(rows: Sequence[Row]) -> bool:
    """Whether each right answer is a letter of a choice, and each answer such a letter read out of a response."""
    given = [row.predicted_answer for row in rows if row.is_answered]
    told = {*given, *(plain_label(row.correct_answer) for row in rows)}
    return bool(given) and told <= {*NUMBERINGS[0]} and all(row.response is not None for row in rows)


def _row_seconds(witness: Witness) -> float | None:
    """What a call of `generate` took for one of its rows, in the median: a first one may warm up."""
    taken = [call.seconds / call.rows for call in witness.of(Generation) if call.seconds and call.rows]
    return median(taken) if taken else None


def _outcome(evidence: EvalEvidence, lines: EvalLines, file: ResultsFile) -> EvalOutcome:
    results = file.content
    rows, config = (results.results, results.config) if results else ((), None)
    first = next(iter(results.scores), None) if results else None
    own = [row.own_seconds for row in rows if row.own_seconds is not None]
    total, correct, accuracy = lines.total, lines.correct, lines.accuracy
    if results:
        total = len(rows) or sum(score.count or 0 for score in results.scores) or None
        # None where a row may be right in part
        correct = sum(row.is_correct for row in rows) if all(row.counts in (0, 1) for row in rows) else None
    if results and rows:
        accuracy = results.mean_counts
        is_share = all(0 <= row.counts <= 1 for row in rows)
    else:
        accuracy = first.value if first else accuracy
        is_share = accuracy is not None and 0 <= accuracy <= 1 and (first is None or bool(first.is_mean))
    printed = (lines.hf_model, lines.llm_model)
    whole = results.whole if results else None
    if rows and whole is None and evidence.dataset is None:
        whole = rows_with(evidence.root, [row.question for row in rows], [*filter(None, (file.path, *file.rows_files))])
    model = next((one for one in printed if one and names_model(one, evidence.model_name)), printed[0] or printed[1])

    def short(value: object) -> str | None:
        return one_line(value) if value is not None else None

    return EvalOutcome(
        output_path=file.name,
        total=total,
        correct=correct,
        accuracy=accuracy if is_share else None,
        score=first.value if first else None,
        metric="/".join(filter(None, (first.task, first.metric))) if first else None,
        backend=short(lines.backend or (config.backend if config else None)),
        model_name=short(model or (config.hf_model_name if config else None)),
        lora_path=short(lines.lora_path or (config.lora_path if config else None)),
        key_lines=tuple(one_line(line) for line in lines.key_lines),
        answers=tuple(one_line(row.predicted_answer, MOST_ANSWER_CHARS) for row in rows[:MAX_ANSWERS]),
        questions=whole,
        answering_seconds=sum(own) if rows and len(own) == len(rows) else None,
        with_adapter=compared(rows, evidence.h3_rows) if rows and evidence.lora_path is None else None,
    )
