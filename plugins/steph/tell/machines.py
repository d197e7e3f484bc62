"""Records of many machines side by side: one row a machine, and which of them are slower or fuller than the rest.

Takes records with the folders that they came from, gives rows as Markdown or for a terminal. Only machines that ran
the same thing are held against each other: the same card, model and H-2 settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from statistics import median

from steph.base import units
from steph.base.messages import Message, phrase, say, text
from steph.base.terms import StageId
from steph.base.units import MISSING
from steph.judge.verdict import Overall, overall
from steph.record.values import Record
from steph.tell import compare, summary
from steph.tell.markdown import Markdown, columns, inline, joined, table

LEAST_OTHERS = 2  # machines that ran the same thing, for one to be called slower or fuller than they are


@dataclass(frozen=True)
class Machine:
    """One machine by its newest record; figures are None where they were not measured, or H-2 is not green.

    `outliers` says by how much it is slower or fuller than the median of the others that ran the same.
    """

    name: str
    record: Record
    tokens_per_second: float | None
    peak_bytes: float | None
    outliers: tuple[Message, ...] = ()

    @property
    def ran(self) -> tuple[str | None, ...]:
        """What was run, and on which kind of card: machines with the same are comparable."""
        card, model = self.record.context.environment.device, self.record.model
        h2 = self.record.stages.get(StageId.H2)
        label = str(h2.last_attempt.label) if h2 and h2.last_attempt else None
        return (card.name if card else None, model.name if model else None, label)

    @property
    def is_green(self) -> bool:
        """Whether its record passed, with conditions or without."""
        return overall(self.record) in (Overall.PASSED, Overall.DEGRADED)


def machines(found: Iterable[tuple[PurePath, Record]], threshold_ratio: float) -> tuple[Machine, ...]:
    """Give a row for each machine, by name; `found` are records with their folders, from the folder asked about.

    A machine is known by its cards, without one by the folder. It is an outlier where its tokens a second are below the
    median of the others, or its process's peak above theirs, by more than the threshold's share of that median.
    """
    newest: dict[tuple[str, ...], Machine] = {}
    for folder, record in sorted(found, key=lambda pair: (pair[1].id, pair[0])):
        name = "/".join(part for part in folder.parts[:-1] if part not in ("runs", "reports")) or record.id
        uuids = tuple(sorted(device.uuid for device in record.context.environment.devices))
        figures = compare.figures_of(record)
        newest[uuids or (name,)] = Machine(name, record, figures.get("h2_speed"), figures.get("h2_own_peak"))
    rows = sorted(newest.values(), key=lambda machine: machine.name)
    return tuple(replace(row, outliers=_outliers(row, rows, threshold_ratio)) for row in rows)


def _outliers(machine: Machine, rows: Sequence[Machine], threshold_ratio: float) -> tuple[Message, ...]:
    others = [row for row in rows if row is not machine and row.ran == machine.ran]
    speeds = [row.tokens_per_second for row in others if row.tokens_per_second]
    peaks = [row.peak_bytes for row in others if row.peak_bytes]
    found = []
    if machine.tokens_per_second is not None and len(speeds) >= LEAST_OTHERS:
        share = 1 - machine.tokens_per_second / median(speeds)
        if share > threshold_ratio:
            found.append(say("machines.slower", share=share))
    if machine.peak_bytes is not None and len(peaks) >= LEAST_OTHERS:
        share = machine.peak_bytes / median(peaks) - 1
        if share > threshold_ratio:
            found.append(say("machines.fuller", share=share))
    return tuple(found)


def exit_status(rows: Sequence[Machine]) -> int:
    """1 where a machine did not pass, or is an outlier; else 0."""
    return int(any(row.outliers or not row.is_green for row in rows))


def _header() -> tuple[str, ...]:
    names = ("machine", "card", "result", "settings", "speed", "peak", "outlier")
    return tuple(text(f"machines.column.{name}") for name in names)


def _cells(row: Machine) -> tuple[str, ...]:
    card = row.record.context.environment.device
    return (
        row.name,
        card.name if card else text("compare.no_gpu"),
        summary.headline(row.record),
        row.ran[2] or MISSING,
        MISSING if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
        units.gib(row.peak_bytes),
        phrase("list.of", items=row.outliers) if row.outliers else "",
    )


def _conclusion(rows: Sequence[Machine], threshold_ratio: float) -> str:
    named = [row.name for row in rows if row.outliers]
    red = [row.name for row in rows if not row.is_green]
    outliers = say("machines.outliers", machines=named) if named else say("machines.no_outlier")
    failed = say("machines.failed", machines=red) if red else say("machines.all_passed", count=len(rows))
    rule = say("machines.rule", threshold=threshold_ratio, least=LEAST_OTHERS + 1)
    return phrase("machines.conclusion", failed=failed, outliers=outliers, rule=rule)


def as_text(rows: Sequence[Machine], threshold_ratio: float) -> str:
    """Give the rows for a terminal, with what they come to and the rule."""
    lines = columns(_header(), [_cells(row) for row in rows])
    return "\n".join([*lines, "", _conclusion(rows, threshold_ratio)]) + "\n"


def as_markdown(rows: Sequence[Machine], threshold_ratio: float) -> str:
    """Give the rows as Markdown."""
    made = table(_header(), [_cells(row) for row in rows], align="llllrrl")
    title = Markdown(f"# {text('machines.title')}")
    return joined((title, Markdown(f"**{inline(_conclusion(rows, threshold_ratio))}**"), made)) + "\n"
