"""What a CI server shows of a run: properties in the JUnit file, and the job's summary page on GitHub.

The properties are names and plain figures; the summary is the report's own sections, without pictures, which a job's
page could not load.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steph.base.messages import say, verbatim
from steph.base.privacy import mask_for
from steph.record.values import Record, StageResult
from steph.tell import summary
from steph.tell.outlook import production_outlook
from steph.tell.report import parts

STEP_SUMMARY_ENV = "GITHUB_STEP_SUMMARY"
STEP_SUMMARY_BYTES = 1 << 20  # of one step; GitHub drops all of it where there is more (docs: workflow commands)
_NOTE_BYTES = 4096  # room for the note that says what was left out


def stage_properties(result: StageResult, report: Path | None) -> tuple[tuple[str, str], ...]:
    """Name and value of what is known of a stage, seconds and bytes as plain numbers."""
    attempt = result.last_attempt
    known = {
        "steph_stage": result.stage,
        "steph_verdict": result.verdict,
        "steph_cause": attempt.diagnosis.cause if attempt and attempt.diagnosis else None,
        "steph_seconds": result.seconds,
        "steph_peak_vram_bytes": summary.peak_bytes(result),
        "steph_attempts": len(result.attempts),
        "steph_report": report,
    }
    return tuple((name, str(value)) for name, value in known.items() if value is not None)


def append_step_summary(record: Record, report: Path | None, path: Path) -> None:
    """Add the report's sections to a job's summary, as many whole ones as have room; raises OSError."""
    room_bytes = STEP_SUMMARY_BYTES - (path.stat().st_size if path.exists() else 0)
    made = parts(record, outlook=production_outlook(record))
    mask = mask_for("\n".join(part.text for part in made))  # the page is read by others than the machine's own people
    with path.open("a", encoding="utf-8") as page:
        page.write(fitting([mask(part.text) for part in made], room_bytes, report))


def fitting(sections: Sequence[str], room_bytes: int, report: Path | None) -> str:
    """The sections in their order, each whole or not at all, and a note where one had no room."""
    room_bytes -= _NOTE_BYTES
    if room_bytes < 0:  # even the note would cost the page what others wrote
        return ""
    kept = []
    for section in sections:
        size_bytes = len(section.encode()) + 1
        if size_bytes <= room_bytes:
            kept.append(section)
            room_bytes -= size_bytes
    left_out = len(sections) - len(kept)
    if left_out:
        whole = verbatim(f"`{report}`") if report else say("ci.no_report")
        kept.append(f"({say('ci.left_out', sections=left_out, report=whole)})\n")
    return "\n".join(kept)
