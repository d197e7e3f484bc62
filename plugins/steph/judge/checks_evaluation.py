"""Judges one evaluation attempt (H-3) by its lines and its JSON. Reads files, changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from steph.base.text import one_line
from steph.contract.lines import EvalLines, parse_evaluation
from steph.contract.results import Results, ResultsFile, ResultsForm, Row
from steph.contract.results_files import find_results
from steph.judge.applicability import lacking_in_evaluation, without_inapplicable
from steph.judge.artifacts import MAX_HASHED_BYTES, artifact
from steph.judge.checks_adapter_use import adapter_use_checks
from steph.judge.checks_answers import witnessed_answer_checks
from steph.judge.checks_extended import compared, extended_checks
from steph.judge.checks_lines import line_checks
from steph.judge.checks_process import process_checks
from steph.judge.checks_results import content_checks, dataset_check, file_checks
from steph.judge.checks_text import response_checks
from steph.judge.evidence import EvalEvidence
from steph.judge.names import names_model
from steph.record.values import Artifact, Check, EvalOutcome

MAX_ANSWERS = 1000
MOST_ANSWER_CHARS = 60


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
