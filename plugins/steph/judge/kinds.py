"""What one row of the table of checks says, and how a check is made of it; the rows stand beside their checks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from steph.base.terms import Severity
from steph.base.text import one_line
from steph.record.values import Check

FAIL, WARN, INFO = Severity.FAIL, Severity.WARN, Severity.INFO


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


@dataclass(frozen=True)
class CheckKind:
    """One row of the table; `quality` rows are INFO in rehearsals, `optional` rows are INFO where unmeasured.

    `core` rows apply whatever a description says, so they need nothing that one could rule out; others do not apply
    where the pipeline lacks one of their `needs`.
    """

    id: str
    stages: str
    severity: Severity
    title: str
    reads: str
    trap: int | None = None
    quality: bool = False
    optional: bool = False
    note: str = ""
    core: bool = False
    needs: tuple[Needs, ...] = ()

    def __post_init__(self) -> None:
        if self.core and (self.needs or self.optional):
            raise ValueError(f"{self.id}: a core check is measured always; it has no needs and is not optional")

    def check(
        self, holds: bool | None, message: str, *, rehearsal: bool = False, severity: Severity | None = None
    ) -> Check:
        """Make this row's check, its severity lowered as the table says; `holds` None: it could not be measured."""
        hardness = severity or self.severity
        if (self.quality and rehearsal) or (self.optional and holds is None):
            hardness = INFO
        return Check(id=self.id, severity=hardness, holds=holds, message=one_line(message), trap=self.trap)

    def not_applicable(self, reason: str) -> Check:
        """This row's check where the description rules it out; never green, never red."""
        if self.core:
            raise ValueError(f"{self.id} is a core check, which no description rules out")
        message = one_line(f"対象外: {reason}。")
        return Check(id=self.id, severity=INFO, holds=None, message=message, trap=self.trap, applies=False)
