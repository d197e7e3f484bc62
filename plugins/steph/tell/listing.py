"""The records on disk, one line each, for `steph list`.

Takes records, gives rows or text for a terminal; newest first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from steph.base import units
from steph.base.terms import RecordKind, StageId
from steph.judge import verdict
from steph.record.values import Record
from steph.tell.columns import columns

_HEADER = ("記録", "種別", "開始(UTC)", "結果", "H-1", "H-2", "H-3", "モデル", "カード", "設定", "容量")
_OVERALL = {
    verdict.Overall.PASSED: "合格",
    verdict.Overall.DEGRADED: "条件付き合格",
    verdict.Overall.FAILED: "不合格",
    verdict.Overall.INCOMPLETE: "未完了",
    verdict.Overall.RUNNING: "実行中",
}
_REHEARSED = {verdict.Overall.PASSED: "通過", verdict.Overall.DEGRADED: "下げて通過", verdict.Overall.FAILED: "失敗"}


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
    newest_first = sorted(records, key=lambda pair: _started_at(pair[0]), reverse=True)
    return tuple(_row(record, size_bytes) for record, size_bytes in newest_first)


def damaged_rows(folders: Iterable[tuple[str, int]]) -> tuple[ListRow, ...]:
    """Give a row for each record that can't be read, by its name with the bytes of its folder, newest first."""
    nothing = units.MISSING
    return tuple(
        ListRow(name, nothing, nothing, "壊れている", (nothing,) * 3, nothing, nothing, nothing, units.size_words(size))
        for name, size in sorted(folders, reverse=True)
    )


def _started_at(record: Record) -> tuple[str, str]:
    return (record.sessions[0].started_at if record.sessions else "", record.id)


def _row(record: Record, size_bytes: int) -> ListRow:
    is_rehearsal = record.context.kind is RecordKind.REHEARSAL
    words = _OVERALL | (_REHEARSED if is_rehearsal else {})
    choice, card = record.model, record.context.environment.device
    h2 = record.stages.get(StageId.H2)
    return ListRow(
        id=record.id,
        kind="予行" if is_rehearsal else "受入",
        started_at=units.moment(_started_at(record)[0]),
        overall=words[verdict.overall(record)],
        verdicts=tuple(_verdict(record, stage) for stage in StageId),
        model=choice.name.rstrip("/").rsplit("/", 1)[-1] if choice else units.MISSING,
        card=card.name if card else "GPU なし",
        settings=h2.last_attempt.label if h2 and h2.last_attempt else units.MISSING,
        size=units.size_words(size_bytes),
    )


def _verdict(record: Record, stage: StageId) -> str:
    if verdict.in_flight(record, stage):
        return "実行中"
    result = record.stages.get(stage)
    return record.verdict_of(stage).value + ("(stale)" if result and result.stale else "")


def as_text(listed: Sequence[ListRow]) -> str:
    """Give the rows for a terminal, or one line where there are none."""
    if not listed:
        return "記録はまだありません。\n"
    cells = [
        (row.id, row.kind, row.started_at, row.overall, *row.verdicts, row.model, row.card, row.settings, row.size)
        for row in listed
    ]
    return "\n".join(columns(_HEADER, cells)) + "\n"
