"""What `steph diagnose` prints: reads one log, of a huge one its ends, and writes the diagnosis as text or JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import BinaryIO

from steph.base.terms import Phase
from steph.diagnose.engine import diagnose
from steph.record.values import Diagnosis

HEAD_BYTES = 1 << 20
TAIL_BYTES = 4 << 20


def run_diagnose(path: Path, returncode: int | None, as_json: bool) -> str:
    """What `steph diagnose` prints for a log file (`-`: standard input); of a huge log, its head and its tail.

    The JSON has the keys cause, phase, evidence, oom, advice, and `rank` where several processes ran. Raises OSError
    where the file can't be read.
    """
    if str(path) == "-":
        data = _ends_of(sys.stdin.buffer)
    else:
        with path.open("rb") as file:
            data = _ends_of(file)
    found = diagnose(data.decode("utf-8", "replace"), returncode)
    if as_json:
        without = {"rank"} if found.rank is None else None
        return json.dumps(found.model_dump(mode="json", exclude=without), ensure_ascii=False, indent=2)
    return "\n".join(_as_text(found))


def _ends_of(stream: BinaryIO) -> bytes:
    """The stream's bytes, or where there are more than fit, its first and its last."""
    head = stream.read(HEAD_BYTES)
    if stream.seekable():
        size = stream.seek(0, 2)
        start = max(HEAD_BYTES, size - TAIL_BYTES)
        stream.seek(start)
        return head + (b"\n" if start > HEAD_BYTES else b"") + stream.read(TAIL_BYTES)
    tail, dropped = b"", False
    while block := stream.read(1 << 20):
        tail += block
        if len(tail) > 2 * TAIL_BYTES:
            tail, dropped = tail[-TAIL_BYTES:], True
    return head + (b"\n" if dropped else b"") + tail


def _as_text(found: Diagnosis) -> list[str]:
    phase: Phase | None = found.phase
    out = [f"cause: {found.cause.value}", f"phase: {phase.value if phase else '-'}"]
    out += [f"rank: {found.rank}"] if found.rank is not None else []
    out += [f"evidence: {line}" for line in found.evidence]
    if found.oom:
        figures = {key: value for key, value in found.oom.model_dump().items() if value is not None}
        out += [f"{key}: {value} ({value / (1 << 30):.2f} GiB)" for key, value in figures.items()]
    return out + [f"advice: {line}" for line in found.advice]
