"""The records on disk, one line each, for `steph list`.

Takes records, gives rows or text for a terminal; newest first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from steph.base import units
from steph.base.messages import has_message, text
from steph.base.terms import RecordKind, StageId
from steph.judge import verdict
from steph.record.values import Record
from steph.tell import summary
from steph.tell.markdown import columns


@dataclass(frozen=True)
class ListRow:
    """One record in a listing, every field in words."""

    id: str
    kind: str
    started_at: str
    overall: str
    verdicts: tuple[str, ...]  # of H-1, H-2, H-3
    model: str
    card: str
    settings: str
    size: str


def rows(records: Iterable[tuple[Record, int]]) -> tuple[ListRow, ...]:
    """Give a row for each record with the bytes of its folder, newest first."""
    began = [(record.sessions[0].started_at if record.sessions else "", record, size) for record, size in records]
    newest_first = sorted(began, key=lambda each: (each[0], each[1].id), reverse=True)
    return tuple(_row(record, started_at, size_bytes) for started_at, record, size_bytes in newest_first)


def damaged_rows(folders: Iterable[tuple[str, int]]) -> tuple[ListRow, ...]:
    """Give a row for each record that can't be read, by its name with the bytes of its folder, newest first."""
    nothing, damaged = units.MISSING, text("report.list.damaged")
    return tuple(
        ListRow(name, nothing, nothing, damaged, (nothing,) * 3, nothing, nothing, nothing, units.size_words(size))
        for name, size in sorted(folders, reverse=True)
    )


def _row(record: Record, started_at: str, size_bytes: int) -> ListRow:
    is_rehearsal = record.context.kind is RecordKind.REHEARSAL
    state = verdict.overall(record)
    rehearsed = f"report.rehearsal_overall.{state}"
    choice, card = record.model, record.context.environment.device
    h2 = record.stages.get(StageId.H2)
    return ListRow(
        id=record.id,
        kind=text("report.list.rehearsal" if is_rehearsal else "report.list.acceptance"),
        started_at=units.moment(started_at),
        overall=text(rehearsed if is_rehearsal and has_message(rehearsed) else f"report.overall.{state}"),
        verdicts=tuple(
            text("report.running") if verdict.in_flight(record, stage) else summary.verdict_code(record, stage)
            for stage in StageId
        ),
        model=choice.name.rstrip("/").rsplit("/", 1)[-1] if choice else units.MISSING,
        card=card.name if card else text("report.no_gpu"),
        settings=str(h2.last_attempt.label) if h2 and h2.last_attempt else units.MISSING,
        size=units.size_words(size_bytes),
    )


def as_text(listed: Sequence[ListRow]) -> str:
    """Give the rows for a terminal, or one line where there are none."""
    if not listed:
        return text("report.list.none") + "\n"
    header = (
        text("report.record"),
        text("report.list.kind"),
        text("report.started"),
        text("report.list.overall"),
        *StageId,
        text("report.list.model"),
        text("report.list.card"),
        text("report.list.settings"),
        text("report.list.size"),
    )
    cells = [
        (row.id, row.kind, row.started_at, row.overall, *row.verdicts, row.model, row.card, row.settings, row.size)
        for row in listed
    ]
    return "\n".join(columns(header, cells)) + "\n"
