"""What one row of the table of checks says, and how a check is made of it; the rows stand beside their checks.

A row's words are the messages `check.<id>.title`, `.reads` and, where there is one, `.note`; what a check found is one
of `check.<id>.<key>`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from steph.base.messages import Message, has_message, say, text
from steph.base.terms import Severity
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
        """What holds where the check does, in the language in use."""
        return text(f"check.{self.id}.title")

    @property
    def reads(self) -> str:
        """What it looks at."""
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
        """This row's check where the description rules it out; never green, never red."""
        if self.core:
            raise ValueError(f"{self.id} is a core check, which no description rules out")
        message = say("check.not_applicable", reason=reason)
        return Check(id=self.id, severity=INFO, holds=None, message=message, trap=self.trap, applies=False)
