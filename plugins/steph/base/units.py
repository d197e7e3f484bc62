"""Sizes, durations and moments in words."""

from __future__ import annotations

from datetime import UTC, datetime

GIB, MIB, KIB = 1 << 30, 1 << 20, 1 << 10
MISSING = "—"  # a figure that is not known


def size_words(size_bytes: int) -> str:
    """Return bytes in the unit that keeps them short, as in `3.42 GiB`, `12.5 MiB`, `3.1 KiB` or `17 B`."""
    if size_bytes >= GIB:
        return gib(size_bytes)
    for unit, size in (("MiB", MIB), ("KiB", KIB)):
        if size_bytes >= size:
            return f"{size_bytes / size:,.1f} {unit}"
    return f"{size_bytes} B"


def gib(size_bytes: float | None) -> str:
    """Return bytes as GiB with two decimals, `—` where unknown."""
    return MISSING if size_bytes is None else f"{size_bytes / GIB:,.2f} GiB"


def duration(seconds: float | None) -> str:
    """Return seconds as a person says them in the language in use, `—` where unknown."""
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
    """Return seconds as `m:ss` or `h:mm:ss`, which no narrow column breaks; `—` where unknown."""
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def about_duration(seconds: float) -> str:
    """Return an estimated duration in one rough figure, in the language in use."""
    if seconds < 90:
        return _said("units.about_seconds", seconds=seconds)
    if seconds < 90 * 60:
        return _said("units.about_minutes", minutes=seconds / 60)
    return _said("units.about_hours", hours=seconds / 3600)


def _said(message_id: str, **values: float) -> str:
    from steph.base.messages import say  # it imports this module

    return str(say(message_id, **values))


def moment(iso: str | None) -> str:
    """Return an ISO 8601 time as date and minute in UTC (the column says so); as it stands where it is none."""
    if not iso:
        return MISSING
    try:
        parsed = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{parsed.astimezone(UTC) if parsed.tzinfo else parsed:%Y-%m-%d %H:%M}"


def moment_to_second(iso: str) -> str:
    """Return an ISO 8601 time to the second in UTC, so that it sorts as text; as it stands where it is none."""
    try:
        parsed = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{parsed.astimezone(UTC) if parsed.tzinfo else parsed:%Y-%m-%d %H:%M:%S}"
