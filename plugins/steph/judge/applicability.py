"""Which checks a pipeline can't be asked, by its description alone, and why. Pure.

What is not there though it should be is no matter of this module: a results file without its rows is a finding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steph.base.messages import Message, say
from steph.contract.description import TrainRows
from steph.contract.results import ResultsForm
from steph.contract.results_files import READERS
from steph.judge.kinds import CheckKind, Needs
from steph.record.values import Check

_LABELLED = {"choice", "loglikelihood"}
_ANSWERING = {"generate", "choice"}


def without_inapplicable(checks: Sequence[Check], lacks: Mapping[Needs, Message]) -> tuple[Check, ...]:
    """The checks, those that need what the pipeline lacks as not applicable, with the reason."""
    from steph.judge.catalog import CATALOG  # it collects the rows of the modules that call this one

    def reason(kind: CheckKind) -> Message | None:
        return next((lacks[need] for need in kind.needs if need in lacks), None)

    kinds = [CATALOG[check.id] for check in checks]
    return tuple(
        kind.not_applicable(why) if (why := reason(kind)) else check for kind, check in zip(kinds, checks, strict=True)
    )


def lacking_in_evaluation(form: ResultsForm, *, has_dataset: bool = True) -> dict[Needs, Message]:
    """What an evaluation of this form lacks, each with the reason."""
    if form.format == "lawqa":
        return {Needs.WORDS: say("lacks.lawqa_lines")} if not form.lines else {}
    reader = READERS[form.format]
    named = set(form.row) | reader.knows
    lacks: dict[Needs, Message] = {
        Needs.KEY_LINES: say("lacks.no_key_lines"),
        Needs.PROMPTS: say("lacks.no_prompts"),
    }
    if not form.lines:
        lacks[Needs.WORDS] = say("lacks.no_lines")
    if not has_dataset:
        lacks[Needs.DATASET] = say("lacks.no_dataset")
    if form.model is None and "model" not in named:
        lacks[Needs.MODEL_NAME] = say("lacks.no_model_name")
    if form.adapter is None and "adapter" not in named:
        lacks[Needs.ADAPTER_NAME] = say("lacks.no_adapter_name")
    if not reader.has_rows(form):
        for need in (Needs.ROWS, Needs.QUESTIONS, Needs.LABELS, Needs.GOLD, Needs.RESPONSES):
            lacks[need] = say("lacks.no_rows")
        return lacks
    if "question" not in named:
        lacks[Needs.QUESTIONS] = say("lacks.no_questions")
    if form.kind not in {*_LABELLED, *_ANSWERING}:
        lacks[Needs.GOLD] = say("lacks.no_gold", kind=form.kind)
    elif form.kind == "generate" and reader.own_metric:
        lacks[Needs.GOLD] = say("lacks.own_metric")
    elif "expected" not in named or not {"predicted", "response"} & named:
        lacks[Needs.GOLD] = say("lacks.no_expected")
    if form.kind not in _LABELLED:
        lacks[Needs.LABELS] = say("lacks.no_labels", kind=form.kind)
    elif not {"expected", "predicted"} <= named:
        lacks[Needs.LABELS] = say("lacks.no_predicted")
    if form.kind not in _ANSWERING:
        lacks[Needs.RESPONSES] = say("lacks.no_text", kind=form.kind)
    elif "response" not in named:
        lacks[Needs.RESPONSES] = say("lacks.no_response")
    return lacks


def lacking_in_training(
    rows: TrainRows, *, has_final_line: bool, keeps_state: bool, is_loop: bool = False
) -> dict[Needs, Message]:
    """What a training lacks: rows in a file, the answers alone learnt, the Trainer's final line, its state in a file.

    `is_loop`: a loop of the program's own was seen, which has no Trainer.
    Only the spec's script must print a final line; of another that has none, what the witness saw must tell.
    """
    lacks: dict[Needs, Message] = {}
    if rows.format == "none":
        lacks[Needs.TRAIN_ROWS] = say("lacks.no_train_rows")
    if rows.labels != "answer" or rows.format in ("text", "none"):
        lacks[Needs.ANSWER_LABELS] = say("lacks.answer_labels")
    if not has_final_line:
        lacks[Needs.FINAL_LINE] = say("lacks.no_final_line")
    if not keeps_state:
        lacks[Needs.TRAINER_STATE] = say("lacks.no_state")
    elif is_loop:
        lacks[Needs.TRAINER_STATE] = say("lacks.loop")
    return lacks
