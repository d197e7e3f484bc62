"""Sizes, durations and moments in words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TypeVar

GIB, MIB, KIB = 1 << 30, 1 << 20, 1 << 10
MISSING = "—"  # a figure that is not known
MOST_SECONDS = 1e9  # thirty years: more is no measurement
MOST_BYTES = 2.0**60
Figure = TypeVar("Figure", int, float)


def highest(figures: Iterable[Figure | None]) -> Figure | None:
    """Return the largest figure that is known, None where none is."""
    return max((figure for figure in figures if figure is not None), default=None)


def size_words(size_bytes: int) -> str:
    """Return bytes in the unit that keeps them short, as in `3.42 GiB`, `12.5 MiB`, `3.1 KiB` or `17 B`."""
    if size_bytes >= GIB:
        return gib(size_bytes)
    for unit, size in (("MiB", MIB), ("KiB", KIB)):
        if size_bytes >= size:
            return f"{size_bytes / size:,.1f} {unit}"
    return f"{size_bytes} B"


def gib(size_bytes: float | None) -> str:
    """Return bytes as GiB with two decimals, `—` where unknown or absurd."""
    if size_bytes is None or not abs(size_bytes) < MOST_BYTES:  # NaN is below nothing
        return MISSING
    return f"{size_bytes / GIB:,.2f} GiB"


def plausible_seconds(seconds: float | None) -> float | None:
    """Return seconds as they are, None where they are unknown, negative, more than a life has, or no number."""
    return seconds if seconds is not None and math.isfinite(seconds) and 0 <= seconds < MOST_SECONDS else None


def duration(seconds: float | None) -> str:
    """Return seconds as a person says them in the language in use, `—` where unknown or absurd."""
    seconds = plausible_seconds(seconds)
    if seconds is None:
        return MISSING
    if seconds < 100:
        return _said("units.seconds", seconds=seconds)
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return _said("units.hours", hours=hours, minutes=minutes)
    return _said("units.minutes", minutes=minutes, seconds=rest)


def clock(seconds: float | None) -> str:
    """Return seconds as `m:ss` or `h:mm:ss`, which no narrow column breaks; `—` where unknown or absurd."""
    seconds = plausible_seconds(seconds)
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def about_duration(seconds: float | None) -> str:
    """Return an estimated duration in one rough figure, in the language in use; `—` where unknown or absurd."""
    seconds = plausible_seconds(seconds)
    if seconds is None:
        return MISSING
    if seconds < 90:
        return _said("units.about_seconds", seconds=seconds)
    if seconds < 90 * 60:
        return _said("units.about_minutes", minutes=seconds / 60)
    return _said("units.about_hours", hours=seconds / 3600)


def _said(message_id: str, **values: object) -> str:
    from steph.base.messages import phrase  # it imports this module

    return phrase(message_id, **values)


def moment(iso: str | None, form: str = "%Y-%m-%d %H:%M") -> str:
    """Return an ISO 8601 time as date and minute in UTC (the column says so); as it stands where it is none."""
    if not iso:
        return MISSING
    try:
        parsed = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return (parsed.astimezone(UTC) if parsed.tzinfo else parsed).strftime(form)


def moment_to_second(iso: str) -> str:
    """Return the same to the second, so that it sorts as text."""
    return moment(iso, "%Y-%m-%d %H:%M:%S")


def moment_here(iso: str) -> str:
    """Return an ISO 8601 time to the minute, in UTC and as the clocks of this machine have it, where they differ."""
    try:
        here = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    if here.tzinfo is None or not here.astimezone().utcoffset():
        return _said("report.moment_utc", utc=moment(iso))
    return _said("report.moment", utc=moment(iso), local=f"{here.astimezone():%Y-%m-%d %H:%M %Z}")
