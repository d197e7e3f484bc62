"""The run history: one row for each session of the records of one kind, newest first.

Takes records and the rows of a report on disk, gives a table; a row whose record is gone is kept as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from steph.base import units
from steph.base.messages import LANGUAGES, text
from steph.record.values import Record, Session
from steph.tell import keep, wording
from steph.tell.markdown import Markdown, code, details, joined, said, table

MOST_OPEN_ROWS = 20
_ROW = re.compile(r"^\| (?P<start>[^|]+) \| (?P<record>[^|]+) \| .*\|$")


def history_rows(record: Record, history: Sequence[Record], old_rows: Sequence[str]) -> Markdown:
    """Give the run history, newest first: every session of this kind of record, and rows that only the old file has."""
    known = {item.id: item for item in (*history, record) if item.context.kind is record.context.kind}
    rows = {
        _row_key(line): line
        for item in known.values()
        for line in (_history_row(item, session) for session in item.sessions)
    }
    kept = {_row_key(line): line for line in old_rows if _row_key(line) not in rows}
    ordered = [line for _, line in sorted({**kept, **rows}.items(), reverse=True)]
    newest, older = ordered[:MOST_OPEN_ROWS], ordered[MOST_OPEN_ROWS:]
    return joined(
        (_table_of(newest), details(said("report.history.older", runs=len(older)), _table_of(older)) if older else "")
    )


def _table_of(lines: Sequence[str]) -> Markdown:
    header = (
        text("report.started"),
        text("report.record"),
        text("report.stages.verdict"),
        text("report.stages.time"),
        text("report.history.exit"),
        text("report.history.command"),
    )
    return Markdown("\n".join([table(header, (), align="lllrrl"), *lines]))


def kept_rows(existing: bytes) -> tuple[str, ...]:
    """Give the history rows of a report on disk as they stand there, whatever language it was written in."""
    headers = tuple(f"| {text('report.started', language)} |" for language in LANGUAGES)
    return tuple(
        line.rstrip()
        for block in keep.blocks_in(existing)
        if block.id == "history"
        for line in block.text.split("\n")
        if _ROW.match(line.rstrip()) and not line.startswith(headers)
    )


def _row_key(line: str) -> tuple[str, str]:
    match = _ROW.match(line)
    return (match["start"].strip(), match["record"].strip()) if match else (line, "")


def _history_row(record: Record, session: Session) -> str:
    verdicts = Markdown("<br>".join(f"{stage} {session.verdicts[stage].value}" for stage in sorted(session.verdicts)))
    cells = (
        units.moment_to_second(session.started_at),
        code(record.id),
        verdicts or text("report.running" if record.live else "report.history.lost"),
        units.clock(wording.seconds_between(session.started_at, session.ended_at)),
        "" if session.exit_status is None else str(session.exit_status),
        code(" ".join(session.command)) if session.command else "",
    )
    return table(("",) * len(cells), [cells]).split("\n")[-1]
