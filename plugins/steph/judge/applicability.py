"""Which checks a pipeline can't be asked, by its description alone, and why. Pure.

What is not there though it should be is no matter of this module: a results file without its rows is a finding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steph.base.messages import verbatim
from steph.contract.description import TrainRows
from steph.contract.results import ResultsForm
from steph.contract.results_files import READERS
from steph.judge.kinds import Needs
from steph.record.values import Check

_LABELLED = {"choice", "loglikelihood"}
_ANSWERING = {"generate", "choice"}


def without_inapplicable(checks: Sequence[Check], lacks: Mapping[Needs, str]) -> tuple[Check, ...]:
    """The checks, those that need what the pipeline lacks as not applicable, with the reason (Japanese)."""
    from steph.judge.catalog import CATALOG  # it collects the rows of the modules that call this one

    reasons = {
        check.id: next((lacks[need] for need in CATALOG[check.id].needs if need in lacks), "") for check in checks
    }
    return tuple(
        CATALOG[check.id].not_applicable(verbatim(reason)) if (reason := reasons[check.id]) else check
        for check in checks
    )


def lacking_in_evaluation(form: ResultsForm, *, has_dataset: bool = True) -> dict[Needs, str]:
    """What an evaluation of this form lacks, each with the reason (Japanese)."""
    if form.format == "lawqa":
        return {Needs.WORDS: "lawqa の行は、行ごとの検査が見る"} if not form.lines else {}
    named = set(form.row) | READERS[form.format].knows
    lacks = {
        Needs.KEY_LINES: "決まった行を表示する評価（lawqa）ではない",
        Needs.PROMPTS: "結果にプロンプトを持つ形式（lawqa）ではない",
    }
    if not form.lines:
        lacks[Needs.WORDS] = "evaluate.lines に表示の指定がない"
    if not has_dataset:
        lacks[Needs.DATASET] = "paths.dataset の指定がなく、問題は評価のプログラムだけが知る"
    if form.model is None and "model" not in named:
        lacks[Needs.MODEL_NAME] = "evaluate.results.model の指定がない"
    if form.adapter is None and "adapter" not in named:
        lacks[Needs.ADAPTER_NAME] = "evaluate.results.adapter の指定がない"
    if form.rows is None and not (form.format == "json" and form.row):
        for need in (Needs.ROWS, Needs.QUESTIONS, Needs.LABELS, Needs.GOLD, Needs.RESPONSES):
            lacks[need] = "evaluate.results.rows の指定がなく、問題ごとの結果がない"
        return lacks
    if "question" not in named:
        lacks[Needs.QUESTIONS] = "evaluate.results.row に question がない"
    if form.kind not in {*_LABELLED, *_ANSWERING}:
        lacks[Needs.GOLD] = f"正解と比べる評価ではない（kind = {form.kind}）"
    elif form.kind == "generate" and form.format != "json":
        lacks[Needs.GOLD] = "正誤は評価のプログラムの指標が決める"
    elif "expected" not in named or not {"predicted", "response"} & named:
        lacks[Needs.GOLD] = "evaluate.results.row に expected と、predicted か response がない"
    if form.kind not in _LABELLED:
        lacks[Needs.LABELS] = f"記号で答える評価ではない（kind = {form.kind}）"
    elif not {"expected", "predicted"} <= named:
        lacks[Needs.LABELS] = "evaluate.results.row に expected と predicted がない"
    if form.kind not in _ANSWERING:
        lacks[Needs.RESPONSES] = f"モデルは文を書かない（kind = {form.kind}）"
    elif "response" not in named:
        lacks[Needs.RESPONSES] = "evaluate.results.row に response がない"
    return lacks


def lacking_in_training(rows: TrainRows, *, has_final_line: bool, keeps_state: bool) -> dict[Needs, str]:
    """What a training lacks: rows in a file, the answers alone learnt, the Trainer's final line, its state in a file.

    Only the spec's script must print a final line; of another that has none, what the witness saw must tell.
    """
    lacks = {}
    if rows.format == "none":
        lacks[Needs.TRAIN_ROWS] = "学習データはファイルにない（train.rows.format = none）"
    if rows.labels != "answer" or rows.format in ("text", "none"):
        lacks[Needs.ANSWER_LABELS] = "答えだけを学習するとは書かれていない（train.rows.labels）"
    if not has_final_line:
        lacks[Needs.FINAL_LINE] = "最終行を表示も記録もしないプログラム（lawqa のスクリプトではない）"
    if not keeps_state:
        lacks[Needs.TRAINER_STATE] = "Trainer の状態を残さない学習（train.artifacts.state が空）"
    return lacks
