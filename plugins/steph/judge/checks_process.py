"""Checks of the process itself, the same for both stages. Pure."""

from __future__ import annotations

from steph.judge.catalog import finding
from steph.judge.lines import tracebacks_in
from steph.record import Check


def process_checks(returncode: int | None, output: str) -> tuple[Check, ...]:
    """Check the exit code and count the tracebacks that were printed."""
    ended = "不明" if returncode is None else str(returncode)
    count = tracebacks_in(output)
    return (
        finding("exit_zero", None if returncode is None else returncode == 0, f"終了コードは {ended}。"),
        finding("no_traceback", count == 0, f"表示されたトレースバックは {count} 件。"),
    )
