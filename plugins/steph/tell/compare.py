"""Two records side by side: what became better, what worse, and which versions changed.

Takes two records, gives a `Comparison`, as Markdown or for a terminal. `a` is the older or the one to hold against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from steph.base import units
from steph.base.messages import NOTHING, phrase, say, text
from steph.base.terms import AnyStage, ExtendedId, StageId, Verdict
from steph.base.units import MISSING
from steph.judge import verdict
from steph.record.values import Attempt, Record, StageResult
from steph.tell import summary
from steph.tell.columns import columns
from steph.tell.markdown import Markdown, code, inline, joined, table

DEFAULT_THRESHOLD_RATIO = 0.10
NOISE_SECONDS = 10.0  # starting a process alone takes some seconds more or less, by what the disk cache holds
_RANKS = {Verdict.PASS: 0, Verdict.PASS_DEGRADED: 1}  # everything else is red alike


class Better(Enum):
    """Which direction of a figure is the good one."""

    LOWER = "lower"
    HIGHER = "higher"


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
    """Two records compared; `differences` are circumstances that make the figures hard to compare, `same` those that
    both have, by name.
    """

    a: str
    b: str
    threshold_ratio: float
    rows: tuple[Compared, ...]
    versions: tuple[Compared, ...]
    differences: tuple[Compared, ...]
    same: tuple[str, ...] = ()
    is_other_card: bool = False

    @property
    def regressions(self) -> tuple[Compared, ...]:
        """The rows in which `b` is worse than `a` by more than the threshold."""
        return tuple(row for row in self.rows if row.is_regression)

    @property
    def exit_status(self) -> int:
        """1 with a regression, else 0."""
        return int(bool(self.regressions))


def compare(a: Record, b: Record, threshold_ratio: float = DEFAULT_THRESHOLD_RATIO) -> Comparison:
    """Compare two records; a worse verdict is always a regression, a worse figure when over the threshold.

    A duration must also be worse by more than `NOISE_SECONDS`. Only figures of green stages count.
    """
    extended = [_extended_row(stage, a, b) for stage in ExtendedId if stage in (a.extended | b.extended)]
    verdicts = [_overall_row(a, b), *(_verdict_row(stage, a, b) for stage in StageId), *extended]
    figures = [_figure_row(figure, a, b, threshold_ratio) for figure in _FIGURES]
    circumstances = [Compared(text(f"compare.circumstance.{name}"), read(a), read(b)) for name, read in _CIRCUMSTANCES]
    return Comparison(
        a=a.id,
        b=b.id,
        threshold_ratio=threshold_ratio,
        rows=(*verdicts, *(row for row in figures if (row.a, row.b) != (MISSING, MISSING))),
        versions=_changed_versions(a, b),
        differences=tuple(row for row in circumstances if row.a != row.b),
        same=tuple(row.name for row in circumstances if row.a == row.b != MISSING),
        is_other_card=_card(a) != _card(b),
    )


def _overall_row(a: Record, b: Record) -> Compared:
    order = list(verdict.Overall)
    left, right = verdict.overall(a), verdict.overall(b)
    is_worse = left in order[:2] and order.index(right) > order.index(left)
    return Compared(text("compare.overall"), summary.headline(a), summary.headline(b), is_regression=is_worse)


def _extended_row(stage: ExtendedId, a: Record, b: Record) -> Compared:
    """A stage that only one of the two was asked for is no worse there."""
    both = stage in a.extended and stage in b.extended
    row = _verdict_row(stage, a, b)
    return row if both else replace(row, is_regression=False)


def _verdict_row(stage: AnyStage, a: Record, b: Record) -> Compared:
    left, right = a.verdict_of(stage), b.verdict_of(stage)
    is_worse = _RANKS.get(right, 2) > _RANKS.get(left, 2)
    return Compared(
        phrase("compare.verdict", stage=stage),
        _verdict_words(a, stage),
        _verdict_words(b, stage),
        is_regression=is_worse,
    )


def _verdict_words(record: Record, stage: AnyStage) -> str:
    result = record.results.get(stage)
    return record.verdict_of(stage).value + ("(stale)" if result and result.stale else "")


class Figure(NamedTuple):
    """One compared figure by its message; a difference of at most `noise`, in the figure's own unit, is none."""

    name: str
    read: Callable[[Record], float | None]
    say: Callable[[float], str]
    better: Better = Better.LOWER
    noise: float = 0.0


def _figure_row(figure: Figure, a: Record, b: Record, threshold_ratio: float) -> Compared:
    name, left, right = text(f"compare.figure.{figure.name}"), figure.read(a), figure.read(b)
    was, now = (MISSING if value is None else figure.say(value) for value in (left, right))
    if not left or right is None:
        return Compared(name, was, now)
    worse_by = left - right if figure.better is Better.HIGHER else right - left
    is_worse = worse_by > max(threshold_ratio * abs(left), figure.noise)
    return Compared(name, was, now, (right - left) / left, is_worse)


def _stage(record: Record, stage: StageId) -> StageResult | None:
    result = record.stages.get(stage)
    return result if result and result.verdict.is_green else None


def _last(record: Record, stage: StageId) -> Attempt | None:
    result = _stage(record, stage)
    return result.last_attempt if result else None


def _seconds(stage: StageId) -> Callable[[Record], float | None]:
    def read(record: Record) -> float | None:
        result = _stage(record, stage)
        return result.seconds if result else None

    return read


def _attempt_seconds(stage: StageId) -> Callable[[Record], float | None]:
    def read(record: Record) -> float | None:
        attempt = _last(record, stage)
        return attempt.seconds if attempt else None

    return read


def _peak(stage: StageId) -> Callable[[Record], float | None]:
    def read(record: Record) -> float | None:
        attempt = _last(record, stage)
        return attempt.peak_device_bytes if attempt else None

    return read


def _torch_peak(stage: StageId) -> Callable[[Record], float | None]:
    def read(record: Record) -> float | None:
        attempt = _last(record, stage)
        peaks = [p.peak_reserved_bytes for p in attempt.probes if p.peak_reserved_bytes] if attempt else []
        return max(peaks, default=None)

    return read


def own_peak(record: Record) -> float | None:
    """H-2's peak of the process's own card memory in bytes; None where it was not measured, or H-2 is not green."""
    attempt = _last(record, StageId.H2)
    return attempt.peak_own_bytes if attempt else None


def tokens_per_second(record: Record) -> float | None:
    """H-2's speed in tokens a second; None where it was not measured, or H-2 is not green."""
    attempt = _last(record, StageId.H2)
    return attempt.training.tokens_per_second if attempt and attempt.training else None


def _train_loss(record: Record) -> float | None:
    attempt = _last(record, StageId.H2)
    return attempt.training.train_loss if attempt and attempt.training else None


def _attempt_count(record: Record) -> float | None:
    result = _stage(record, StageId.H2)
    return len(result.attempts) if result else None


def _gib(size: float) -> str:
    return units.gib(int(size))


_FIGURES = (
    Figure("h2_seconds", _seconds(StageId.H2), units.duration, noise=NOISE_SECONDS),
    Figure("h2_attempts", _attempt_count, "{:.0f}".format),
    Figure("h2_last", _attempt_seconds(StageId.H2), units.duration, noise=NOISE_SECONDS),
    Figure("h2_speed", tokens_per_second, "{:,.0f}".format, Better.HIGHER),
    Figure("h2_peak", _peak(StageId.H2), _gib),
    Figure("h2_torch", _torch_peak(StageId.H2), _gib),
    Figure("h2_loss", _train_loss, "{:.4f}".format),
    Figure("h3_seconds", _seconds(StageId.H3), units.duration, noise=NOISE_SECONDS),
    Figure("h3_peak", _peak(StageId.H3), _gib),
)


def _model(record: Record) -> str:
    choice = record.model
    return f"{choice.name}@{(choice.revision or MISSING)[:12]}" if choice else MISSING


def _card(record: Record) -> str:
    card = record.context.environment.device
    return f"{card.name} {units.gib(card.total_bytes)}" if card else text("compare.no_gpu")


def _data(record: Record) -> str:
    files = [say("compare.data", role=file.role, rows=file.rows, sha=file.sha256[:12]) for file in record.data]
    return phrase("list.of", items=files) if files else MISSING


def _settings(record: Record) -> str:
    attempt = _last(record, StageId.H2)
    return str(attempt.label) if attempt else MISSING


def _commit(record: Record) -> str:
    state = record.context.pipeline_git
    commit = (state.commit or MISSING)[:12]
    return phrase("compare.changed_commit", commit=commit) if state.dirty else commit


_CIRCUMSTANCES: tuple[tuple[str, Callable[[Record], str]], ...] = (
    ("kind", lambda record: record.context.kind.value),
    ("profile", lambda record: f"{record.context.profile} {record.context.profile_sha256[:12]}"),
    ("pipeline", lambda record: record.context.pipeline_root),
    ("commit", _commit),
    ("card", _card),
    ("cap", lambda record: units.gib(record.context.vram_cap_bytes)),
    ("model", _model),
    ("files", _data),
    ("settings", _settings),
)


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


def _changed_versions(a: Record, b: Record) -> tuple[Compared, ...]:
    left, right = _versions(a), _versions(b)
    rows = [
        Compared(name, left.get(name, MISSING), right.get(name, MISSING)) for name in sorted(left.keys() | right.keys())
    ]
    return tuple(row for row in rows if row.a != row.b)


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
    said = [say("compare.same", names=comparison.same)] if comparison.same else []
    if comparison.is_other_card:
        said.append(say("compare.other_card"))
    return " ".join(map(str, said))


def as_markdown(comparison: Comparison) -> str:
    """Give the comparison as Markdown."""
    head = (text("compare.column.item"), f"A: {comparison.a}", f"B: {comparison.b}")
    pieces = [
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
            pieces += [
                Markdown(f"## {text(f'compare.{title}')}"),
                table(head, [(row.name, row.a, row.b) for row in rows]),
            ]
    return joined((*pieces, inline(_carried_over(comparison)))) + "\n"


def as_text(comparison: Comparison) -> str:
    """Give the comparison for a terminal, columns aligned by the width of the characters."""
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
