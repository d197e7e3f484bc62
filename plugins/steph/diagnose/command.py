"""`steph diagnose`: reads one log, of a huge one both ends, and prints its diagnosis as text or JSON."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import sys
from pathlib import Path
from typing import BinaryIO

from steph.base.messages import text
from steph.base.terms import Cause, Phase
from steph.base.text import encoding_of
from steph.base.units import gib
from steph.diagnose.advice import facts_of
from steph.diagnose.engine import diagnose
from steph.diagnose.figures import is_final_metric, losses_of, phase_of
from steph.diagnose.reader import chains_of, lines_of
from steph.record.values import Diagnosis

HEAD_BYTES = 1 << 20
TAIL_BYTES = 4 << 20
NOTEBOOK_BYTES = 256 << 20  # JSON is read whole: its ends alone are none
_GZIP = b"\x1f\x8b"


def run_diagnose(path: Path, returncode: int | None, as_json: bool) -> str:
    """What `steph diagnose` prints for a log file (`-`: standard input); of a huge log, its head and its tail.

    The JSON has the keys cause, case, confidence, phase, evidence, oom, meaning, advice and seen, and `rank` where
    several processes ran. Raises OSError where the file can't be read.
    """
    with contextlib.ExitStack() as stack:
        file = sys.stdin.buffer if str(path) == "-" else stack.enter_context(path.open("rb"))
        start = file.read(2)
        whole = file if file.seekable() and file.seek(0) == 0 else _Rejoined(start, file)
        if start == _GZIP:
            whole = _Rejoined(b"", stack.enter_context(gzip.GzipFile(fileobj=whole)))
        try:
            head, tail, is_cut = _ends_of(whole)
        except (EOFError, gzip.BadGzipFile) as error:
            raise OSError(0, f"a broken gzip file ({error})") from error
    encoding = encoding_of(head)
    ends = (head, tail) if is_cut else (head + tail,)
    log = "\n".join(end.decode(encoding, "replace") for end in ends)
    found = diagnose(log, returncode)
    seen = seen_in(log) if found.cause is Cause.NONE else ()
    if as_json:
        without = {"rank"} if found.rank is None else None
        words = {"meaning": found.meaning and str(found.meaning), "advice": list(map(str, found.advice))}
        shown = {**found.model_dump(mode="json", exclude=without), **words, "seen": list(seen)}
        return json.dumps(shown, ensure_ascii=False, indent=2)
    return "\n".join((*_as_text(found), *seen))


class _Rejoined(io.RawIOBase, BinaryIO):
    """A stream behind the bytes that were read from it to see what it is; it can't be sought in."""

    def __init__(self, start: bytes, rest: BinaryIO | gzip.GzipFile) -> None:
        super().__init__()
        self._start, self._rest = start, rest

    def read(self, size: int = -1) -> bytes:
        start, self._start = self._start, b""
        return start + self._rest.read(size - len(start) if size >= 0 else -1)


def _ends_of(stream: BinaryIO) -> tuple[bytes, bytes, bool]:
    """The stream's first bytes, its last ones, and whether some between them are left out; a notebook comes whole."""
    head = stream.read(HEAD_BYTES)
    if head.lstrip()[:1] == b"{" and b'"cells"' in head:
        return head + stream.read(NOTEBOOK_BYTES), b"", False
    if stream.seekable():
        start = max(HEAD_BYTES, stream.seek(0, 2) - TAIL_BYTES) & ~1  # even, for UTF-16
        stream.seek(start)
        return head, stream.read(), start > HEAD_BYTES
    tail, dropped = b"", False
    while block := stream.read(1 << 20):
        tail += block
        if len(tail) > 2 * TAIL_BYTES:
            tail, dropped = tail[(len(tail) - TAIL_BYTES) & ~1 :], True
    return head, tail, dropped


def _as_text(found: Diagnosis) -> list[str]:
    phase: Phase | None = found.phase
    out = [f"cause: {found.cause.value}"]
    out += [f"case: {found.case}"] if found.case else []
    out += [f"confidence: {found.confidence}"] if found.confidence else []
    out += [f"phase: {phase.value if phase else '-'}"]
    out += [f"rank: {found.rank}"] if found.rank is not None else []
    out += [f"evidence: {line}" for line in found.evidence]
    if found.oom:
        figures = {key: value for key, value in found.oom.model_dump().items() if value is not None}
        out += [f"{key}: {value} ({gib(value)})" for key, value in figures.items()]
    out += [f"meaning: {found.meaning}"] if found.meaning else []
    return out + [f"advice: {line}" for line in found.advice]


def seen_in(log: str) -> tuple[str, ...]:
    """Sentences about a healthy or unfinished run, so that nobody takes "no failure found" for "all is well"."""
    lines = lines_of(log)
    losses = losses_of(lines)
    facts = facts_of("\n".join(line.text for line in lines), losses, (), None)
    found: list[tuple[str, dict[str, object]]] = [("nothing", {})]
    found.append(("lines", {"lines": sum(bool(line.text.strip()) for line in lines)}))
    if facts.program:
        found.append(("program", {"program": facts.program.name}))
    values = [value for value in losses.values if math.isfinite(value)]
    if values:
        found.append(("losses", {"count": len(values), "first": f"{values[0]:g}", "last": f"{values[-1]:g}"}))
    if handled := sum(not chain[0].ignored and "Error" in chain[0].type for chain in chains_of(lines)):
        found.append(("handled", {"count": handled}))
    if warnings := sum(line.is_mild and "WARN" in line.text.upper() for line in lines):
        found.append(("warnings", {"count": warnings}))
    if any(is_final_metric(line) for line in lines):
        found.append(("metrics", {}))
    else:
        phase = phase_of(lines, len(lines))
        if phase is not None:
            found.append(("phase", {"phase": text(f"diagnose.phase.{phase.value}")}))
        found.append(("no_metrics", {}))
    return tuple(text(f"diagnose.seen.{name}", values=values) for name, values in found)
