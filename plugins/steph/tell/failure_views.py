"""What the report shows of an attempt that failed, and of one that is still running: cause, message, last lines.

Takes values of a record, gives Markdown.
"""

from __future__ import annotations

import re
from itertools import pairwise

from steph.base import units
from steph.base.messages import text
from steph.base.terms import AnyStage, Cause, EndedBy
from steph.judge import verdict
from steph.record.values import Attempt, OomNumbers, Probe, Record, StageResult
from steph.tell import wording
from steph.tell.markdown import Markdown, code, details, fence, joined, prose, said
from steph.tell.pieces import cause_words, command_block, is_running

MOST_EVIDENCE_LINES = 8
MESSAGE_WIDTH = 110
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line \d+(?:, in .*)?')
_LIBRARY = re.compile(r"(?:^|[/\\])(?:site-packages|dist-packages|lib[/\\]python\d)[^\"]*")


def failures(record: Record, result: StageResult | None) -> Markdown:
    """Give every failed attempt with message, evidence, advice and traceback."""
    if result is None:
        return joined(())
    following = {one.number: later for one, later in pairwise(result.attempts)}
    failed = [a for a in result.attempts if not a.ended_well and not is_running(record, result, a)]
    return joined(_failure(record, attempt, following.get(attempt.number)) for attempt in failed)


def _failure(record: Record, attempt: Attempt, following: Attempt | None) -> Markdown:
    title = said(
        "report.failure.title",
        number=attempt.number,
        label=code(attempt.label),
        outcome=wording.outcome_words(attempt),
    )
    memo = _cause_memo(record, attempt, following)
    return joined((title, _message(record, attempt), memo, *_logs(record, attempt, is_last=following is None)))


def _message_words(record: Record, attempt: Attempt) -> str:
    """Give the error's own words: the uncaught exception, else the evidence; empty where there is neither."""
    raised = _raised_probe(attempt)
    if raised:
        return f"{raised.exception_type}: {raised.exception_message or ''}"
    return "\n".join(_evidence(record, attempt))


def _raised_probe(attempt: Attempt) -> Probe | None:
    """Give the process whose exception counts; a launcher's own only says that a process of it failed."""
    raised = [probe for probe in attempt.probes if probe.exception_type]
    if attempt.settings is not None and attempt.settings.launcher != "none":
        rank = attempt.diagnosis.rank if attempt.diagnosis else None
        raised = [probe for probe in raised if probe.rank is not None and probe.rank == rank]
    return next(iter(raised), None)


def _message(record: Record, attempt: Attempt) -> Markdown:
    words = _message_words(record, attempt)
    if words:
        return fence(words, width=MESSAGE_WIDTH)
    return said("report.failure.no_message", ending=_ending(attempt))


def _ending(attempt: Attempt) -> str:
    if attempt.ended_by not in (None, EndedBy.EXIT):
        return text(f"report.ending.{attempt.ended_by}")
    return text("report.ending.none") if attempt.returncode is None else wording.exit_words(attempt.returncode)


def _cause_memo(record: Record, attempt: Attempt, following: Attempt | None) -> Markdown:
    """Give cause, figures and evidence; of the last attempt what to do next, of any other what was done."""
    diagnosis = attempt.diagnosis
    if diagnosis is None or diagnosis.cause is Cause.NONE:
        return said("report.failure.unknown")
    lines = [said("report.failure.cause", cause=cause_words(diagnosis)), Markdown()]
    if diagnosis.oom:
        lines.append(_oom_words(record, diagnosis.oom))
    shown = _message_words(record, attempt)
    evidence = [line for line in _evidence(record, attempt) if line.strip() not in shown]
    lines += [said("report.failure.evidence", line=code(line, 240)) for line in evidence]
    lines += [said("report.failure.means", meaning=prose(diagnosis.meaning))] if diagnosis.meaning else []
    if following is None:
        lines += [said("report.failure.next", step=prose(step)) for step in diagnosis.advice]
    else:
        lines.append(said("report.failure.followed", number=following.number, label=code(following.label)))
    return Markdown("\n".join(lines))


def _oom_words(record: Record, oom: OomNumbers) -> Markdown:
    """The figures of torch's message; under a limit, what it says of the whole card is not what the run had."""
    cap = record.context.vram_cap_bytes
    sizes = {
        "requested": units.size_words(oom.requested_bytes) if oom.requested_bytes is not None else units.MISSING,
        "allocated": units.gib(oom.allocated_bytes),
        "reserved": units.gib(oom.reserved_bytes),
    }
    if cap is not None:
        return said("report.failure.memory_capped", cap=units.gib(cap), **sizes)
    return said("report.failure.memory", free=units.gib(oom.free_bytes), total=units.gib(oom.total_bytes), **sizes)


def _evidence(record: Record, attempt: Attempt) -> list[str]:
    """The lines that tell the cause, with the pipeline's own frame in the place of its libraries' frames."""
    found = attempt.diagnosis.evidence if attempt.diagnosis else ()
    own = own_frame(attempt.traceback or "", record.context.pipeline_root)
    told = [line for line in found[:MOST_EVIDENCE_LINES] if own is None or not _FRAME.match(line.strip())]
    return told if own is None else [*told, own]


def own_frame(traceback: str, root: str) -> str | None:
    """Give the last frame of a traceback that is in the pipeline's own files; None where there is none."""
    frames = [match for line in traceback.splitlines() if (match := _FRAME.match(line.strip()))]
    inside = f"{root.rstrip('/')}/"
    own = [f for f in frames if f["file"].startswith(inside) or not f["file"].startswith(("/", "<"))]
    own = [frame for frame in own if not _LIBRARY.search(frame["file"])]
    return own[-1][0] if own else None


def _logs(record: Record, attempt: Attempt, *, is_last: bool) -> list[Markdown]:
    """Give the longer texts of a failed attempt, folded; the last lines are open where there is no message."""
    folds: list[Markdown] = []
    if attempt.traceback:
        folds.append(details("traceback", fence(attempt.traceback)))
    if attempt.last_lines and _message_words(record, attempt):
        folds.append(details(text("report.failure.last_lines"), fence("\n".join(attempt.last_lines))))
    elif attempt.last_lines:
        folds += [said("report.failure.last_lines_below"), fence("\n".join(attempt.last_lines))]
    if attempt.argv and not is_last:
        folds.append(details(text("report.failure.command"), command_block(attempt)))
    return folds


def last_lines(record: Record, stage: AnyStage) -> Markdown:
    """Give the last lines of a stage that runs or broke off; empty for one that ended."""
    result = record.results.get(stage)
    attempt = result.newest_attempt if result else None
    if result is None or attempt is None or not attempt.last_lines or not verdict.in_flight(record, stage):
        return Markdown()
    return joined((said("report.failure.last_lines_now"), fence("\n".join(attempt.last_lines))))
