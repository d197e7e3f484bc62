"""The table of checks: what a row of it is, how a check is made of it, and which rows a pipeline can't be asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import import_module
from typing import Any, TypeAlias

from steph.base.messages import Message, has_message, say, text
from steph.base.terms import Severity
from steph.contract.description import TrainRows
from steph.contract.results import ResultsForm
from steph.contract.results_files import READERS
from steph.record.values import Check

Figures: TypeAlias = dict[str, Any]  # the values of a message, where a check is made in several ways
FAIL, WARN, INFO = Severity.FAIL, Severity.WARN, Severity.INFO
_LABELLED = {"choice", "loglikelihood"}
_ANSWERING = {"generate", "choice"}


class Needs(StrEnum):
    """What a check asks of a pipeline beyond what every one has; a description may rule it out."""

    KEY_LINES = "key_lines"  # the lines that the preset `lawqa` prints
    WORDS = "words"  # printed words that a description asks for
    ROWS = "rows"
    QUESTIONS = "questions"
    LABELS = "labels"  # answers that are labels of choices
    GOLD = "gold"  # right answers beside the given ones
    RESPONSES = "responses"
    PROMPTS = "prompts"
    DATASET = "dataset"
    MODEL_NAME = "model_name"
    ADAPTER_NAME = "adapter_name"
    FINAL_LINE = "final_line"
    TRAINER_STATE = "trainer_state"
    TRAIN_ROWS = "train_rows"
    ANSWER_LABELS = "answer_labels"  # a description that says that the answers alone are learnt


@dataclass(frozen=True)
class CheckKind:
    """One row of the table; `quality` rows are INFO in rehearsals, `optional` rows are INFO where unmeasured.

    `core` rows apply whatever a description says, so they need nothing that one could rule out; others do not apply
    where the pipeline lacks one of their `needs`.
    """

    id: str
    stages: str
    severity: Severity
    trap: int | None = None
    quality: bool = False
    optional: bool = False
    core: bool = False
    needs: tuple[Needs, ...] = ()

    def __post_init__(self) -> None:
        if self.core and (self.needs or self.optional):
            raise ValueError(f"{self.id}: a core check is measured always; it has no needs and is not optional")

    @property
    def title(self) -> str:
        """The statement that the check tests, in the language in use."""
        return text(f"check.{self.id}.title")

    @property
    def reads(self) -> str:
        """The things that the check reads."""
        return text(f"check.{self.id}.reads")

    @property
    def note(self) -> str:
        """What a reader of the table should know besides; empty for most."""
        return text(note) if has_message(note := f"check.{self.id}.note") else ""

    def check(
        self,
        holds: bool | None,
        found: Message | str,
        *,
        rehearsal: bool = False,
        severity: Severity | None = None,
        **values: object,
    ) -> Check:
        """Make this row's check, its severity lowered as the table says; `holds` None: it could not be measured.

        `found` says what was seen: a message, or the last part of one of this row's own ids, with its `values`. Raises
        KeyError where the catalogs lack that id.
        """
        hardness = severity or self.severity
        if (self.quality and rehearsal) or (self.optional and holds is None):
            hardness = INFO
        message = found if isinstance(found, Message) else say(f"check.{self.id}.{found}", **values)
        return Check(id=self.id, severity=hardness, holds=holds, message=message, trap=self.trap)

    def not_applicable(self, reason: Message) -> Check:
        """This row's check where the description or the training rules it out; never green, never red."""
        if self.core:
            raise ValueError(f"{self.id} is a core check, which no description rules out")
        message = say("check.not_applicable", reason=reason)
        return Check(id=self.id, severity=INFO, holds=None, message=message, trap=self.trap, applies=False)


# a module comes before those that take rows from it, so that the page of checks does not depend on imports
_MODULES = (
    *("process", "adapter", "progress", "figures", "training", "seen", "setup", "rows", "row_answers", "witness"),
    *("trained_use", "answers", "evaluation", "prompts", "results", "text", "extended"),
)


@cache
def check_kinds() -> Mapping[str, CheckKind]:
    """The table of all checks by their ids, collected from the modules in which each row stands beside its check."""
    modules = [import_module(f"steph.judge.checks_{name}") for name in _MODULES]
    return {kind.id: kind for module in modules for kind in vars(module).values() if isinstance(kind, CheckKind)}


def without_inapplicable(checks: Sequence[Check], lacks: Mapping[Needs, Message]) -> tuple[Check, ...]:
    """The checks, those that need what the pipeline lacks as not applicable, with the reason."""
    kinds = [check_kinds()[check.id] for check in checks]
    reasons = [[lacks[need] for need in kind.needs if need in lacks] for kind in kinds]
    return tuple(
        kind.not_applicable(why[0]) if why else check for kind, check, why in zip(kinds, checks, reasons, strict=True)
    )


def lacking_in_evaluation(form: ResultsForm, *, has_dataset: bool = True) -> dict[Needs, Message]:
    """What an evaluation of this form lacks, each with the reason."""
    if form.format == "lawqa":
        return {Needs.WORDS: say("lacks.lawqa_lines")} if not form.lines else {}
    reader = READERS[form.format]
    named, kind = {*form.row, *reader.knows}, form.kind
    gold = labels = responses = None
    if kind not in {*_LABELLED, *_ANSWERING}:
        gold = say("lacks.no_gold", kind=kind)
    elif kind == "generate" and reader.own_metric:
        gold = say("lacks.own_metric")
    elif "expected" not in named or not {"predicted", "response"} & named:
        gold = say("lacks.no_expected")
    if kind not in _LABELLED:
        labels = say("lacks.no_labels", kind=kind)
    elif not {"expected", "predicted"} <= named:
        labels = say("lacks.no_predicted")
    if kind not in _ANSWERING:
        responses = say("lacks.no_text", kind=kind)
    elif "response" not in named:
        responses = say("lacks.no_response")
    lacks = {
        Needs.KEY_LINES: say("lacks.no_key_lines"),
        Needs.PROMPTS: say("lacks.no_prompts"),
        Needs.WORDS: None if form.lines else say("lacks.no_lines"),
        Needs.DATASET: None if has_dataset else say("lacks.no_dataset"),
        Needs.MODEL_NAME: None if form.model is not None or "model" in named else say("lacks.no_model_name"),
        Needs.ADAPTER_NAME: None if form.adapter is not None or "adapter" in named else say("lacks.no_adapter_name"),
        Needs.QUESTIONS: None if "question" in named else say("lacks.no_questions"),
        **{Needs.GOLD: gold, Needs.LABELS: labels, Needs.RESPONSES: responses},
    }
    if not reader.has_rows(form):
        of_rows = (Needs.ROWS, Needs.QUESTIONS, Needs.LABELS, Needs.GOLD, Needs.RESPONSES)
        lacks |= dict.fromkeys(of_rows, say("lacks.no_rows"))
    return {need: reason for need, reason in lacks.items() if reason}


def lacking_in_training(rows: TrainRows, *, has_final_line: bool, stateless: Message | None) -> dict[Needs, Message]:
    """What a training lacks: rows in a file, the answers alone learnt, the Trainer's final line, its state in a file.

    `stateless`: why there is no state, where none need be.
    Only the spec's script must print a final line; of another that has none, what the witness saw must tell.
    """
    learns_answers = rows.labels == "answer" and rows.format not in ("text", "none")
    lacks = {
        Needs.TRAIN_ROWS: say("lacks.no_train_rows") if rows.format == "none" else None,
        Needs.ANSWER_LABELS: None if learns_answers else say("lacks.answer_labels"),
        Needs.FINAL_LINE: None if has_final_line else say("lacks.no_final_line"),
        Needs.TRAINER_STATE: stateless,
    }
    return {need: reason for need, reason in lacks.items() if reason}
