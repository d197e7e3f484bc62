"""What the report's section on the extended stages shows.

Takes a record, gives Markdown rows and tables; the words around them are in `templates/extended.md.j2`.
"""

from __future__ import annotations

from steph.base.messages import text
from steph.base.terms import AnyStage, ExtendedId
from steph.record.settings import TrainSettings
from steph.record.values import AnswerComparison, Attempt, Record, StageResult
from steph.tell import views, wording
from steph.tell.markdown import Markdown
from steph.tell.pieces import facts


def extended_results(record: Record) -> list[tuple[ExtendedId, StageResult]]:
    """Give the extended stages that have run, in their order."""
    return [(stage, record.extended[stage]) for stage in ExtendedId if stage in record.extended]


def title(stage: AnyStage) -> str:
    """Give a stage's id and title."""
    return f"{stage} {wording.stage_title(stage)}"


def attempt_facts(record: Record, attempt: Attempt | None) -> Markdown:
    """Give what a stage's last attempt came to, by what it was: a training or an evaluation."""
    if attempt is not None and isinstance(attempt.settings, TrainSettings):
        return views.training_facts(record, attempt)
    return views.evaluation_facts(record, attempt)


def comparison_facts(attempt: Attempt | None) -> Markdown:
    """Give what the adapter changes; empty for an evaluation that is not held against another."""
    found = attempt.evaluation.with_adapter if attempt and attempt.evaluation else None
    return facts(_comparison_rows(found)) if found else Markdown()


def _comparison_rows(found: AnswerComparison) -> list[tuple[str, str]]:
    return [
        (text("report.compared.questions"), f"{found.questions:,}"),
        (text("report.compared.same"), f"{found.same_responses:,}"),
        (text("report.compared.changed"), f"{found.changed_answers:,}"),
        (text("report.compared.right_to_wrong"), f"{found.right_to_wrong:,}"),
        (text("report.compared.wrong_to_right"), f"{found.wrong_to_right:,}"),
    ]
