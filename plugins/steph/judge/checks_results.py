"""Checks of the evaluation's JSON: found, fresh, well-formed, consistent with the lines, of this data set."""

from __future__ import annotations

import math
import re
from collections import Counter

from steph.base.files import UnreadableError, sha256_of
from steph.base.terms import Severity
from steph.base.text import one_line
from steph.contract.lines import EvalLines
from steph.contract.questions import (
    Question,
    as_in_dataset,
    is_among,
    plain_label,
    question_key,
    questions_of,
    without_choices,
)
from steph.contract.results import Results, ResultsFile, Row
from steph.judge.checks_prompts import PROMPTS, prompt_checks
from steph.judge.evidence import EvalEvidence
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind, Needs
from steph.judge.reading import bare, is_exception_text
from steph.judge.witness import Generation
from steph.record.values import Check

BEGUN_SLACK_SECONDS = 2.0  # the files' clock and the program's may differ
SHORT_ANSWER_CHARS = 40  # a longer right answer is a model answer, which a right one need not hold
ROUNDED_DIGITS = 5  # a share with so many decimals is not taken for a rounded one
CONTEXT_STEP = 256  # tokens: the lengths of contexts are multiples of it
_LIMITS = ("max_new_tokens", "max_gen_toks", "max_completion_tokens")
_LIMIT_OPTION = re.compile(r"--max[-_]new[-_]tokens[= ](\d{1,7})\b")
ACCURACY_TOLERANCE = 6e-5  # two digits of a percentage, rounded; a printed one may have fewer

JSON_WRITTEN = CheckKind("json_written", "H-3", FAIL, core=True)
JSON_FRESH = CheckKind("json_fresh", "H-3", FAIL, trap=15, core=True)
JSON_VALID = CheckKind("json_valid", "H-3", FAIL, core=True)
JSON_CONSISTENT = CheckKind("json_consistent", "H-3", FAIL, needs=(Needs.ROWS,))
CONFIG_AS_ASKED = CheckKind("config_as_asked", "H-3", WARN, optional=True, needs=(Needs.KEY_LINES,))
NO_ERROR_ANSWERS = CheckKind("no_error_answers", "H-3", FAIL, trap=2, needs=(Needs.RESPONSES,))
FLAGS_CONSISTENT = CheckKind("flags_consistent", "H-3", FAIL, needs=(Needs.GOLD,))
ROWS_DISTINCT = CheckKind("rows_distinct", "H-3", FAIL, needs=(Needs.QUESTIONS,))
QUESTIONS_OF_DATASET = CheckKind("questions_of_dataset", "H-3", FAIL, needs=(Needs.DATASET, Needs.QUESTIONS))
FIRST_ROWS = CheckKind("first_rows", "H-3", INFO, optional=True, needs=(Needs.DATASET, Needs.QUESTIONS))
TRAIN_OVERLAP = CheckKind("train_overlap", "H-3", WARN, trap=7, optional=True, needs=(Needs.QUESTIONS,))
DATASET_UNCHANGED = CheckKind("dataset_unchanged", "H-3", FAIL, optional=True, needs=(Needs.DATASET,))
RESULTS_AGREE = CheckKind("results_agree", "H-3", WARN)
RESULTS = (
    JSON_WRITTEN,
    JSON_FRESH,
    JSON_VALID,
    JSON_CONSISTENT,
    CONFIG_AS_ASKED,
    NO_ERROR_ANSWERS,
    FLAGS_CONSISTENT,
    ROWS_DISTINCT,
    QUESTIONS_OF_DATASET,
    FIRST_ROWS,
    TRAIN_OVERLAP,
    DATASET_UNCHANGED,
    RESULTS_AGREE,
)
_NEEDS_JSON = (
    CONFIG_AS_ASKED,
    NO_ERROR_ANSWERS,
    FLAGS_CONSISTENT,
    ROWS_DISTINCT,
    QUESTIONS_OF_DATASET,
    FIRST_ROWS,
    TRAIN_OVERLAP,
    *PROMPTS,
)


def file_checks(file: ResultsFile, lines: EvalLines, started_unix: float) -> tuple[Check, ...]:
    """Check that the file is there, young and well-formed, and that all figures of accuracy agree."""
    if file.path is None:
        return (
            JSON_WRITTEN.check(False, f"{one_line(file.name, 150)} がない。"),
            JSON_FRESH.check(None, "JSON がないので測れない。"),
            JSON_VALID.check(None, "JSON がないので測れない。"),
            JSON_CONSISTENT.check(None, "JSON がないので測れない。"),
            _one_result_check(file, lines),
        )
    begun = file.content.begun_unix if file.content else None
    is_replayed = begun is not None and begun < started_unix - BEGUN_SLACK_SECONDS
    age = "試行の開始より後" if file.fresh else "試行の開始より前"
    age += "、評価そのものの開始は試行より前" if is_replayed else ""
    return (
        JSON_WRITTEN.check(True, f"{one_line(file.name, 150)} がある。"),
        JSON_FRESH.check(file.fresh and not is_replayed, f"JSON の更新は{age}。"),
        JSON_VALID.check(file.content is not None, f"JSON は{file.problem or '決まった形'}。"),
        _consistency_check(file.content, lines),
        _one_result_check(file, lines),
    )


def _one_result_check(file: ResultsFile, lines: EvalLines) -> Check:
    """A second block or file of the same run that tells other figures: one of them was made up afterwards."""
    others = [*lines.contradictions, *(f"{one_line(name, 60)} は別の結果" for name in file.others)]
    return RESULTS_AGREE.check(not others, f"食い違う結果: {'、'.join(others) or 'なし'}。")


def _consistency_check(results: Results | None, lines: EvalLines) -> Check:
    if results is None:
        return JSON_CONSISTENT.check(None, "JSON を使えないので測れない。")
    if results.summary is None:
        return _scores_check(results)
    total, correct = len(results.results), sum(row.is_correct for row in results.results)
    recount, summary = (correct / total if total else 0.0), results.summary
    incorrect = total - correct
    wrong = [
        f"{label} {shown}（数え直し {counted}）"
        for label, shown, counted in (
            ("JSON の正解数", summary.correct_count, correct), ("JSON の総数", summary.total_count, total),
            ("表示の総数", lines.total, total), ("表示の正解数", lines.correct, correct),
            ("表示の誤答数", lines.incorrect, incorrect),
        )
        if shown is not None and shown != counted
    ]  # fmt: skip
    wrong += [
        f"{label} {100 * shown:.2f} %（数え直し {100 * recount:.2f} %）"
        for label, shown, tolerance in (
            ("JSON の正解率", summary.accuracy, ACCURACY_TOLERANCE),
            ("表示の正解率", lines.accuracy, max(lines.accuracy_tolerance, ACCURACY_TOLERANCE)),
        )
        if shown is not None and not math.isclose(shown, recount, abs_tol=tolerance)
    ]
    agreed = f"表示・JSON・数え直しとも {total} 問中 {correct} 問正解"
    return JSON_CONSISTENT.check(not wrong, f"食い違い: {'、'.join(wrong)}。" if wrong else f"{agreed}。")


def _scores_check(results: Results) -> Check:
    """Each task's score is the mean of its rows, to the digits that it is given with."""
    wrong, held, unknown = list(results.contradictions), list[str](), list[str]()
    for score in results.scores:
        name = one_line("/".join(filter(None, (score.task, score.metric))) or "スコア", 60)
        rows = [row.counts for row in results.results if row.task == score.task]
        if score.is_mean is None:
            unknown.append(name)
            continue
        if not rows or any(row.score is None for row in results.results if row.task == score.task):
            wrong.append(f"{name} の行に値がない")
            continue
        mean = sum(rows) / len(rows)
        is_same = math.isclose(score.value, mean, abs_tol=max(ACCURACY_TOLERANCE, half_digit(score.value)))
        (held if is_same else wrong).append(f"{name} {score.value:.4g}（{len(rows)} 行の平均 {mean:.4g}）")
        if score.count is not None and score.count != len(rows):
            wrong.append(f"{name} の件数 {score.count}（行は {len(rows)}）")
    if wrong:
        return JSON_CONSISTENT.check(False, f"食い違い: {'、'.join(wrong)}。")
    if not held:
        why = f"行の平均ではない指標なので比べられない: {'、'.join(unknown)}。"
        return JSON_CONSISTENT.check(None, why, severity=WARN)
    return JSON_CONSISTENT.check(True, f"スコアと行が一致する: {'、'.join(held)}。")


def half_digit(value: float) -> float:
    """Half of the last digit that a share was written with; of a rounded percentage the same."""
    digits = len(f"{value:.12g}".partition(".")[2])
    return 0.51 * 10.0**-digits if 0 < digits < ROUNDED_DIGITS else 0.0


def dataset_check(evidence: EvalEvidence) -> Check:
    """An evaluation that writes into its own questions can make any answer right."""
    before = evidence.dataset_sha256
    if before is None or evidence.dataset is None:
        return DATASET_UNCHANGED.check(None, "評価の前のデータセットの sha256 がない。")
    try:
        after = sha256_of(evidence.dataset)
    except OSError:
        return DATASET_UNCHANGED.check(False, "評価のあと、データセットが読めない。")
    return DATASET_UNCHANGED.check(before == after, f"評価の前の sha256 は {before[:12]}、後は {after[:12]}。")


def content_checks(evidence: EvalEvidence, results: Results | None, lines: EvalLines) -> tuple[Check, ...]:
    """Check what the file says row by row."""
    if results is None:
        return tuple(kind.check(None, "JSON を使えないので測れない。") for kind in _NEEDS_JSON)
    keys = tuple(row.task + question_key(row.question, row.choices) for row in results.results)
    dataset, trouble = _dataset_of(evidence)
    return (
        _config_check(evidence, results),
        _error_check(results.results, lines),
        _flags_check(results.results, is_free=evidence.form.kind == "generate"),
        *_dataset_checks(evidence, dataset, trouble, results.results, keys),
        _overlap_check(evidence, results.results),
        *prompt_checks(evidence, results.results, dataset),
    )


def _dataset_of(evidence: EvalEvidence) -> tuple[tuple[Question, ...] | None, str]:
    """The questions as they were before the evaluation, where they were kept; else as they are now."""
    if evidence.questions is not None:
        return evidence.questions, ""
    if evidence.dataset is None:
        return None, "指定がない"
    try:
        return questions_of(evidence.dataset), ""
    except UnreadableError as error:
        return None, str(error)


def _config_check(evidence: EvalEvidence, results: Results) -> Check:
    asked, config = evidence.settings, results.config
    pairs: list[tuple[str, object, object]] = [
        ("rag_enabled", config.rag_enabled, asked.use_rag),
        ("cot_enabled", config.cot_enabled, asked.use_cot),
        ("ensemble_runs", config.ensemble_runs, asked.ensemble),
        ("top_k", config.top_k, asked.top_k),
        ("load_in_4bit", config.load_in_4bit, asked.load_in_4bit),
        ("total_samples", config.total_samples, len(results.results)),
    ]
    if not asked.use_rag and (retrieved := _most_retrieved(results.results)):
        pairs.append(("retrieved_docs_count", retrieved, 0))
    shown = [pair for pair in pairs if pair[1] is not None]
    limit, claimed = _limit_beside(evidence, results)
    if not shown and claimed is None:
        return CONFIG_AS_ASKED.check(None, "JSON の config に設定がない。")
    wrong = [f"{name}={one_line(found, 30)}（依頼では {want}）" for name, found, want in shown if found != want]
    wrong += [f"max_new_tokens={claimed}（実際の上限は {limit}）"] if limit is not None else []
    return CONFIG_AS_ASKED.check(not wrong, f"依頼と違う設定: {'、'.join(wrong) or 'なし'}。")


def _limit_beside(evidence: EvalEvidence, results: Results) -> tuple[int | None, int | None]:
    """The limit of new tokens that cut the answers, where it is another than what was claimed; and the claim.

    A limit that no answer came to has changed none. Where a context ends, or an answer is made piece by piece, a call's
    limit is not the answer's.
    """
    extra, command = results.config.model_extra or {}, " ".join(evidence.description.evaluate.command or ())
    values = [extra.get(name) for name in _LIMITS]
    found = _LIMIT_OPTION.search(command)
    claims = [value for value in (*values, int(found[1]) if found else None) if type(value) is int and value > 0]
    if not claims:
        return None, None
    claimed = claims[0]
    told = [row.new_tokens for row in results.results if type(row.new_tokens) is int]
    calls = [call for call in evidence.witness.of(Generation) if call.limit] if evidence.witness else []
    if calls:
        limits = {call.limit or 0 for call in calls}
        limit = max(limits)
        at_context = {limit + max(call.prompt_tokens or (1,)) for call in calls}
        if claimed in limits or len(limits) > 1 or any(total % CONTEXT_STEP == 0 for total in at_context):
            return None, claimed
        made = max((count for call in calls for count in call.new_tokens or ()), default=0)
        is_cut = limit < claimed and made >= limit >= max(told, default=0)
        return (limit if is_cut or made > claimed else None), claimed
    cut = [
        row.new_tokens
        for row in results.results
        if type(row.new_tokens) is int and row.finish_reason in ("length", "max_tokens", "max_new_tokens")
    ]
    return (max(cut) if cut and 2 * max(cut) <= claimed else None), claimed


def _most_retrieved(rows: tuple[Row, ...]) -> int:
    """The most passages that any question was answered with, as far as the rows say it."""
    return max((row.retrieved_docs_count for row in rows if type(row.retrieved_docs_count) is int), default=0)


def _error_check(rows: tuple[Row, ...], lines: EvalLines) -> Check:
    errors = [row for row in rows if row.predicted_answer == "error" or is_exception_text(row.response or "")]
    printed = lines.timeout_errors + lines.other_errors
    example = f"（例 {one_line(errors[0].response, 120)}）" if errors else ""
    message = f"{len(rows)} 問のうち {len(errors)} 問が例外{example}、表示された例外は {printed} 件。"
    return NO_ERROR_ANSWERS.check(not errors and not printed, message)


def _flags_check(rows: tuple[Row, ...], *, is_free: bool) -> Check:
    """Whether what is called right is the right answer; of free texts, whether a short right answer is in them."""
    if is_free:
        return _free_flags_check(rows)
    told = [row for row in rows if row.correct_answer]
    wrong = sum(row.is_correct != (row.predicted_answer == plain_label(row.correct_answer)) for row in told)
    if rows and not told:
        return FLAGS_CONSISTENT.check(None, "正誤が回答の一致だけでは決まらない指標である。", severity=INFO)
    return FLAGS_CONSISTENT.check(wrong == 0, f"{len(rows)} 問のうち {wrong} 問で is_correct が回答と食い違う。")


def _free_flags_check(rows: tuple[Row, ...]) -> Check:
    told = [
        (row.is_correct, bare(row.correct_answer), bare(row.predicted_answer or row.response or "")) for row in rows
    ]
    short = [(flag, gold, said) for flag, gold, said in told if 0 < len(gold) <= SHORT_ANSWER_CHARS]
    praised = sum(flag and gold not in said for flag, gold, said in short)
    missed = sum(not flag and gold == said for flag, gold, said in short)
    if not short:
        return FLAGS_CONSISTENT.check(None, "正解が短い語でないので比べられない。", severity=INFO)
    message = f"比べた {len(short)} 問のうち、正解のない回答を正しいとした {praised} 問、正解を誤りとした {missed} 問。"
    return FLAGS_CONSISTENT.check(not praised and not missed, message, severity=WARN)


def _dataset_checks(
    evidence: EvalEvidence,
    dataset: tuple[Question, ...] | None,
    trouble: str,
    rows: tuple[Row, ...],
    keys: tuple[str, ...],
) -> tuple[Check, ...]:
    is_exact = evidence.form.format == "lawqa"
    if dataset is None and not is_exact:  # rows alone: a data set may itself have a question twice
        again = len(keys) - len(set(keys))
        told = ROWS_DISTINCT.check(again == 0, f"{len(keys)} 問のうち {again} 問が重複。", severity=WARN)
        return (told, *(kind.check(None, "データセットの指定がない。") for kind in (QUESTIONS_OF_DATASET, FIRST_ROWS)))
    if dataset is None:
        why = f"データセットを読めない: {trouble}。"
        return tuple(kind.check(None, why) for kind in (ROWS_DISTINCT, QUESTIONS_OF_DATASET, FIRST_ROWS))
    if not is_exact:
        keys = as_in_dataset(keys, dataset)
    known = Counter(question.key for question in dataset)
    repeated = sum((Counter(keys) - Counter({key: known.get(key, 1) for key in keys})).values())
    return (
        ROWS_DISTINCT.check(repeated == 0, f"{len(keys)} 問のうち {repeated} 問が重複。"),
        _origin_check(dataset, rows, keys, severity=None if is_exact else WARN),
        _order_check(dataset, keys),
    )


def _order_check(dataset: tuple[Question, ...], keys: tuple[str, ...]) -> Check:
    """Rows of one's own choice or order are another evaluation; a few of the first ones replaced were dropped."""
    first = Counter(question.key for question in dataset[: len(keys)])
    held = (first & Counter(keys)).total()
    in_order = tuple(question.key for question in dataset[: len(keys)]) == keys
    was_refilled = len(keys) / 2 <= held < len(keys)
    message = f"評価した {len(keys)} 問はデータセットの先頭{'から順' if in_order else 'と違う'}"
    if was_refilled:
        message += f"（先頭の {len(keys) - held} 問が別の問題に替わっている）"
    return FIRST_ROWS.check(in_order, f"{message}。", severity=WARN if was_refilled else None)


def _origin_check(
    dataset: tuple[Question, ...], rows: tuple[Row, ...], keys: tuple[str, ...], *, severity: Severity | None
) -> Check:
    answers: dict[str, set[str]] = {}
    for question in dataset:
        answers.setdefault(question.key, set()).add(question.answer)
    foreign = sum(key not in answers for key in keys)
    changed = sum(
        bool(row.correct_answer)
        and plain_label(row.correct_answer) not in answers.get(key, ())
        and key in answers
        and answers[key] != {""}
        for key, row in zip(keys, rows, strict=True)
    )
    message = f"{len(keys)} 問のうち、データセットにない問題が {foreign} 問、正解が違う問題が {changed} 問。"
    return QUESTIONS_OF_DATASET.check(not foreign and not changed, message, severity=severity)


def _overlap_check(evidence: EvalEvidence, rows: tuple[Row, ...]) -> Check:
    """Questions with their choices; scored choices are the answer's texts, so that there the question alone tells."""
    if evidence.train_questions is None:
        return TRAIN_OVERLAP.check(None, "学習データを読めないので測れない。")
    is_free = evidence.form.format != "lawqa"
    keys = [question_key(row.question, None if is_free and row.response is None else row.choices) for row in rows]
    seen = sum(is_among(key, evidence.train_questions) for key in keys)
    alone = sum(is_among(without_choices(key), evidence.train_questions) for key in keys)
    more = f"（問題文だけなら {alone} 問）" if alone > seen else ""
    return TRAIN_OVERLAP.check(seen == 0, f"評価した {len(keys)} 問のうち {seen} 問が学習データにある{more}。")
