"""Records in a list, and records side by side: two of them, or the newest of each of many machines.

As Markdown or for a terminal. Of two, `a` is the older or the one to hold against. Of machines, only those that ran the
same thing are held against each other: the same card, model and H-2 settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from statistics import median
from typing import NamedTuple

from steph.base import units
from steph.base.messages import NOTHING, Message, has_message, phrase, say, text
from steph.base.terms import AnyStage, ExtendedId, RecordKind, StageId, Verdict
from steph.base.units import MISSING
from steph.judge import verdict
from steph.record.values import Record
from steph.tell import wording
from steph.tell.markdown import Markdown, code, columns, inline, joined, table

DEFAULT_THRESHOLD_RATIO = 0.10
NOISE_SECONDS = 10.0  # starting a process alone takes some seconds more or less, by what the disk cache holds
LEAST_OTHERS = 2  # machines that ran the same thing, for one to be called slower or fuller than they are
_RANKS = {Verdict.PASS: 0, Verdict.PASS_DEGRADED: 1}  # everything else is red alike


@dataclass(frozen=True)
class Compared:
    """One compared figure, as words; `change_ratio` is (b - a) / a, None where either is missing or a is zero."""

    name: str
    a: str
    b: str
    change_ratio: float | None = None
    is_regression: bool = False

    @property
    def is_one_sided(self) -> bool:
        """Whether only one of the records has this figure."""
        return MISSING in (self.a, self.b) and self.a != self.b

    @property
    def change(self) -> str:
        """The change in percent, with a mark where it is a regression over the threshold."""
        if self.is_one_sided:
            return text("compare.unmeasured")
        words = "" if self.change_ratio is None else f"{self.change_ratio:+.1%}"
        return phrase("compare.worse", change=words) if self.is_regression else words or MISSING


@dataclass(frozen=True)
class Comparison:
    """Two records compared."""

    a: str
    b: str
    threshold_ratio: float
    rows: tuple[Compared, ...]
    versions: tuple[Compared, ...]
    differences: tuple[Compared, ...]  # circumstances that make the figures hard to compare
    same: tuple[str, ...] = ()  # names of those that both have
    is_other_card: bool = False

    @property
    def regressions(self) -> tuple[Compared, ...]:
        """The rows in which `b` is worse than `a` by more than the threshold."""
        return tuple(row for row in self.rows if row.is_regression)

    @property
    def exit_status(self) -> int:
        """1 with a regression, else 0."""
        return int(bool(self.regressions))


class _Figure(NamedTuple):
    """How a figure is said and judged; a difference of at most `noise`, in the figure's own unit, is none."""

    say: Callable[[float], str]
    noise: float = 0.0
    more_is_better: bool = False


_FIGURES = {
    "h2_seconds": _Figure(units.duration, NOISE_SECONDS),
    "h2_attempts": _Figure("{:.0f}".format),
    "h2_last": _Figure(units.duration, NOISE_SECONDS),
    "h2_speed": _Figure("{:,.0f}".format, more_is_better=True),
    "h2_peak": _Figure(units.gib),
    "h2_torch": _Figure(units.gib),
    "h2_loss": _Figure("{:.4f}".format),
    "h3_seconds": _Figure(units.duration, NOISE_SECONDS),
    "h3_peak": _Figure(units.gib),
}


def figures_of(record: Record) -> dict[str, float | None]:
    """Figures that the green stages measured, by name; `h2_own_peak` is the process's own, in bytes like all memory."""
    h2, h3 = (
        result if (result := record.stages.get(stage)) and result.verdict.is_green else None
        for stage in (StageId.H2, StageId.H3)
    )
    found: dict[str, float | None] = {}
    if h2:
        found |= {"h2_seconds": h2.seconds, "h2_attempts": len(h2.attempts)}
    if h2 and (last := h2.last_attempt):
        torch = [probe.peak_reserved_bytes for probe in last.probes if probe.peak_reserved_bytes]
        found |= {"h2_last": last.seconds, "h2_torch": max(torch, default=None)}
        found |= {"h2_peak": last.peak_device_bytes, "h2_own_peak": last.peak_own_bytes}
        if last.training:
            found |= {"h2_speed": last.training.tokens_per_second, "h2_loss": last.training.train_loss}
    if h3:
        found |= {"h3_seconds": h3.seconds, "h3_peak": wording.peak_bytes(h3)}
    return found


def _circumstances(record: Record) -> dict[str, str]:
    """The circumstances that the figures depend on."""
    context, choice, h2 = record.context, record.model, record.stages.get(StageId.H2)
    card = context.environment.device
    last = h2.last_attempt if h2 and h2.verdict.is_green else None
    commit = (context.pipeline_git.commit or MISSING)[:12]
    files = [say("compare.data", role=file.role, rows=file.rows, sha=file.sha256[:12]) for file in record.data]
    return {
        "kind": context.kind.value,
        "profile": f"{context.profile} {context.profile_sha256[:12]}",
        "pipeline": context.pipeline_root,
        "commit": phrase("compare.changed_commit", commit=commit) if context.pipeline_git.dirty else commit,
        "card": f"{card.name} {units.gib(card.total_bytes)}" if card else text("compare.no_gpu"),
        "cap": units.gib(context.vram_cap_bytes),
        "model": f"{choice.name}@{(choice.revision or MISSING)[:12]}" if choice else MISSING,
        "files": phrase("list.of", items=files) if files else MISSING,
        "settings": str(last.label) if last else MISSING,
    }


def _versions(record: Record) -> dict[str, str]:
    machine = record.context.environment
    found = {phrase("compare.suite_package", package=name): version for name, version in machine.packages.items()}
    for result in record.stages.values():
        for attempt in result.attempts:
            for probe in attempt.probes:
                found.update(probe.packages)
    if machine.device:
        found |= {text("compare.driver"): machine.device.driver_version, "CUDA": machine.device.cuda_driver_version}
    return found | {"Python": machine.python, "OS": machine.os}


def compare(a: Record, b: Record, threshold_ratio: float = DEFAULT_THRESHOLD_RATIO) -> Comparison:
    """Compare two records: worse are a verdict, and a green stage's figure beyond threshold and `NOISE_SECONDS`."""
    order = list(verdict.Overall)
    left, right = verdict.overall(a), verdict.overall(b)
    is_worse = left in order[:2] and order.index(right) > order.index(left)
    rows = [Compared(text("compare.overall"), wording.headline(a), wording.headline(b), is_regression=is_worse)]
    rows += [_verdict_row(stage, a, b) for stage in StageId]
    rows += [_verdict_row(stage, a, b) for stage in ExtendedId if stage in (a.extended | b.extended)]
    was, now = figures_of(a), figures_of(b)
    figures = [_figure_row(name, was.get(name), now.get(name), threshold_ratio) for name in _FIGURES]
    there, here = _circumstances(a), _circumstances(b)
    circumstances = [Compared(text(f"compare.circumstance.{name}"), there[name], here[name]) for name in there]
    old, new = _versions(a), _versions(b)
    versions = [Compared(name, old.get(name, MISSING), new.get(name, MISSING)) for name in sorted(old.keys() | new)]
    return Comparison(
        a=a.id,
        b=b.id,
        threshold_ratio=threshold_ratio,
        rows=(*rows, *(row for row in figures if (row.a, row.b) != (MISSING, MISSING))),
        versions=tuple(row for row in versions if row.a != row.b),
        differences=tuple(row for row in circumstances if row.a != row.b),
        same=tuple(row.name for row in circumstances if row.a == row.b != MISSING),
        is_other_card=there["card"] != here["card"],
    )


def _verdict_row(stage: AnyStage, a: Record, b: Record) -> Compared:
    left, right = a.verdict_of(stage), b.verdict_of(stage)
    is_worse = _RANKS.get(right, 2) > _RANKS.get(left, 2)
    if isinstance(stage, ExtendedId):  # one that only one of the two was asked for is no worse there
        is_worse = is_worse and stage in a.extended and stage in b.extended
    was, now = wording.verdict_code(a, stage), wording.verdict_code(b, stage)
    return Compared(phrase("compare.verdict", stage=stage), was, now, is_regression=is_worse)


def _figure_row(name: str, left: float | None, right: float | None, threshold_ratio: float) -> Compared:
    figure, title = _FIGURES[name], text(f"compare.figure.{name}")
    was, now = (MISSING if value is None else figure.say(value) for value in (left, right))
    if not left or right is None:
        return Compared(title, was, now)
    worse_by = left - right if figure.more_is_better else right - left
    is_worse = worse_by > max(threshold_ratio * abs(left), figure.noise)
    return Compared(title, was, now, (right - left) / left, is_worse)


def _conclusion(comparison: Comparison) -> str:
    unmeasured = [row.name for row in comparison.rows if row.is_one_sided]
    worse = [row.name for row in comparison.regressions]
    return phrase(
        "compare.regressions" if worse else "compare.fine",
        count=len(worse),
        threshold=comparison.threshold_ratio,
        noise=NOISE_SECONDS,
        figures=worse,
        one_sided=say("compare.one_sided", figures=unmeasured) if unmeasured else NOTHING,
    )


def _carried_over(comparison: Comparison) -> str:
    """Say what both have, and of two cards that their figures are their own; empty where nothing is the same."""
    same = phrase("compare.same", names=comparison.same) if comparison.same else ""
    return " ".join(filter(None, (same, text("compare.other_card") if comparison.is_other_card else "")))


def as_markdown(comparison: Comparison) -> str:
    """The comparison as Markdown."""
    head = (text("compare.column.item"), f"A: {comparison.a}", f"B: {comparison.b}")
    parts = [
        Markdown(f"# {say('compare.title', a=code(comparison.a), b=code(comparison.b))}"),
        Markdown(f"**{inline(_conclusion(comparison))}**"),
        table(
            (*head, text("compare.column.change")),
            [(row.name, row.a, row.b, row.change) for row in comparison.rows],
            align="lrrr",
        ),
    ]
    for title, rows in (("differences", comparison.differences), ("versions", comparison.versions)):
        if rows:
            parts += [
                Markdown(f"## {text(f'compare.{title}')}"),
                table(head, [(row.name, row.a, row.b) for row in rows]),
            ]
    return joined((*parts, inline(_carried_over(comparison)))) + "\n"


def as_text(comparison: Comparison) -> str:
    """The comparison for a terminal, columns aligned by the width of the characters."""
    lines = columns(
        ("", comparison.a, comparison.b, text("compare.column.change")),
        [(row.name, row.a, row.b, row.change) for row in comparison.rows],
    )
    for title, rows in (("differences", comparison.differences), ("versions", comparison.versions)):
        if rows:
            body = columns(
                (text(f"compare.{title}"), comparison.a, comparison.b), [(row.name, row.a, row.b) for row in rows]
            )
            lines += ["", *body]
    return "\n".join([*lines, "", *filter(None, [_carried_over(comparison)]), _conclusion(comparison)]) + "\n"


@dataclass(frozen=True)
class Machine:
    """One machine by its newest record; figures are None where they were not measured, or H-2 is not green."""

    name: str
    record: Record
    tokens_per_second: float | None
    peak_bytes: float | None
    outliers: tuple[Message, ...] = ()  # by how much slower or fuller than the median of the others that ran the same

    @property
    def ran(self) -> tuple[str | None, ...]:
        """The work and the kind of card: machines with the same are comparable."""
        card, model = self.record.context.environment.device, self.record.model
        h2 = self.record.stages.get(StageId.H2)
        label = str(h2.last_attempt.label) if h2 and h2.last_attempt else None
        return (card.name if card else None, model.name if model else None, label)

    @property
    def is_green(self) -> bool:
        """Whether its record passed, with conditions or without."""
        return verdict.overall(self.record) in (verdict.Overall.PASSED, verdict.Overall.DEGRADED)


def machines(found: Iterable[tuple[PurePath, Record]], threshold_ratio: float) -> tuple[Machine, ...]:
    """A row for each machine, by name; `found` are records with their folders, from the folder asked about.

    A machine is known by its cards, without one by the folder. It is an outlier where its tokens a second are below the
    median of the others, or its process's peak above theirs, by more than the threshold's share of that median.
    """
    newest: dict[tuple[str, ...], Machine] = {}
    for folder, record in sorted(found, key=lambda pair: (pair[1].id, pair[0])):
        name = "/".join(part for part in folder.parts[:-1] if part not in ("runs", "reports")) or record.id
        uuids = tuple(sorted(device.uuid for device in record.context.environment.devices))
        figures = figures_of(record)
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


def _cells(row: Machine) -> tuple[str, ...]:
    card = row.record.context.environment.device
    return (
        row.name,
        card.name if card else text("compare.no_gpu"),
        wording.headline(row.record),
        row.ran[2] or MISSING,
        MISSING if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
        units.gib(row.peak_bytes),
        phrase("list.of", items=row.outliers) if row.outliers else "",
    )


def _machines_conclusion(rows: Sequence[Machine], threshold_ratio: float) -> str:
    named = [row.name for row in rows if row.outliers]
    red = [row.name for row in rows if not row.is_green]
    outliers = say("machines.outliers", machines=named) if named else say("machines.no_outlier")
    failed = say("machines.failed", machines=red) if red else say("machines.all_passed", count=len(rows))
    rule = say("machines.rule", threshold=threshold_ratio, least=LEAST_OTHERS + 1)
    return phrase("machines.conclusion", failed=failed, outliers=outliers, rule=rule)


def machines_told(rows: Sequence[Machine], threshold_ratio: float, *, as_markdown: bool) -> str:
    """The rows with what they come to and the rule, as Markdown or for a terminal."""
    names = ("machine", "card", "result", "settings", "speed", "peak", "outlier")
    titles, cells = [text(f"machines.column.{name}") for name in names], [_cells(row) for row in rows]
    conclusion = _machines_conclusion(rows, threshold_ratio)
    if not as_markdown:
        return "\n".join([*columns(titles, cells), "", conclusion]) + "\n"
    title, made = Markdown(f"# {text('machines.title')}"), table(titles, cells, align="llllrrl")
    return joined((title, Markdown(f"**{inline(conclusion)}**"), made)) + "\n"


# a listing's columns by the ids of their titles; of a record that can't be read most are empty
_LISTED = ("record", "list.kind", "started", "list.overall", *StageId)
_LISTED += ("list.model", "list.card", "list.settings", "list.size")


def listing_rows(records: Iterable[tuple[Record, int]]) -> list[dict[str, str]]:
    """A row for each record with the bytes of its folder, newest first, every field in words."""
    began = [(record.sessions[0].started_at if record.sessions else "", record, size) for record, size in records]
    newest_first = sorted(began, key=lambda each: (each[0], each[1].id), reverse=True)
    return [_row(record, started_at, size_bytes) for started_at, record, size_bytes in newest_first]


def damaged_rows(folders: Iterable[tuple[str, int]]) -> list[dict[str, str]]:
    """A row for each record that can't be read, by its name with the bytes of its folder, newest first."""
    damaged = text("report.list.damaged")
    return [
        {"record": name, "list.overall": damaged, "list.size": units.size_words(size)}
        for name, size in sorted(folders, reverse=True)
    ]


def _row(record: Record, started_at: str, size_bytes: int) -> dict[str, str]:
    is_rehearsal = record.context.kind is RecordKind.REHEARSAL
    state = verdict.overall(record)
    rehearsed = f"report.rehearsal_overall.{state}"
    choice, card = record.model, record.context.environment.device
    h2 = record.stages.get(StageId.H2)
    return {
        "record": record.id,
        "list.kind": text("report.list.rehearsal" if is_rehearsal else "report.list.acceptance"),
        "started": units.moment(started_at),
        "list.overall": text(rehearsed if is_rehearsal and has_message(rehearsed) else f"report.overall.{state}"),
        **{
            stage: text("report.running") if verdict.in_flight(record, stage) else wording.verdict_code(record, stage)
            for stage in StageId
        },
        "list.model": choice.name.rstrip("/").rsplit("/", 1)[-1] if choice else MISSING,
        "list.card": card.name if card else text("report.no_gpu"),
        "list.settings": str(h2.last_attempt.label) if h2 and h2.last_attempt else MISSING,
        "list.size": units.size_words(size_bytes),
    }


def listing_text(rows: Sequence[dict[str, str]]) -> str:
    """The rows for a terminal, or one line where there are none."""
    if not rows:
        return text("report.list.none") + "\n"
    header = [name if isinstance(name, StageId) else text(f"report.{name}") for name in _LISTED]
    return "\n".join(columns(header, [[row.get(name, MISSING) for name in _LISTED] for row in rows])) + "\n"
