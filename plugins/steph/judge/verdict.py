"""Decides verdicts from results.

Pure functions, and the only place that says what is green. What was not measured is not passed: a stage without checks,
with a `fail` check that could not be measured, skipped, blocked or stale is never green.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from steph.base.messages import NOTHING, Message, say
from steph.base.terms import AnyStage, Cause, EndedBy, Severity, StageId, Verdict
from steph.record.values import Attempt, Check, Record, StageResult


class Overall(StrEnum):
    """The verdict of a record as a whole; only PASSED and DEGRADED stand on three fresh green stages."""

    PASSED = "passed"
    DEGRADED = "degraded"
    FAILED = "failed"
    INCOMPLETE = "incomplete"
    RUNNING = "running"


def attempt_verdict(attempt: Attempt) -> tuple[Verdict, Message] | None:
    """The verdict that an attempt's end alone decides, with one sentence; None where it ended well."""
    if attempt.ended_well:
        return None
    cause = say(f"diagnose.cause.{attempt.diagnosis.cause}.name") if attempt.diagnosis else None
    is_known = attempt.diagnosis is not None and attempt.diagnosis.cause is not Cause.OTHER
    named = cause if cause is not None and is_known else say("verdict.unknown_cause")
    if attempt.ended_by is EndedBy.DEADLINE:
        taken = say("verdict.no_time") if attempt.seconds is None else say("verdict.seconds", seconds=attempt.seconds)
        if attempt.limit_seconds is None:
            return Verdict.TIMEOUT, say("verdict.some_deadline", taken=taken)
        return Verdict.TIMEOUT, say("verdict.deadline", limit=attempt.limit_seconds, taken=taken)
    if attempt.ended_by is EndedBy.INTERRUPTED:
        return Verdict.CRASHED, say("verdict.interrupted")
    if attempt.ended_by is EndedBy.SUPERVISOR_LOST:
        return Verdict.CRASHED, say("verdict.supervisor_lost")
    if attempt.ended_by is EndedBy.SUITE_ERROR:
        return Verdict.CRASHED, say("verdict.suite_error")
    if attempt.ended_by is None or attempt.returncode is None:
        return Verdict.CRASHED, say("verdict.no_end")
    if attempt.returncode < 0:
        return Verdict.CRASHED, say("verdict.signal", signal=-attempt.returncode, cause=named)
    if attempt.returncode > 0:
        rank = attempt.diagnosis.rank if attempt.diagnosis else None
        whose = NOTHING if rank is None else say("verdict.rank", rank=rank)
        return Verdict.FAIL, say("verdict.exit_code", code=attempt.returncode, cause=named, rank=whose)
    if cause is None:
        return Verdict.FAIL, say("verdict.undiagnosed")
    return Verdict.FAIL, say("verdict.exit_zero_but", cause=cause)


_EXPLAIN = ("learning_rate_runs", "tokens_supervised")  # why nothing was learnt, where others say that nothing was


def checks_verdict(checks: Sequence[Check]) -> tuple[Verdict, Message] | None:
    """FAIL where a `fail` check does not hold, could not be measured, or where there are none at all; else None."""
    hard = [check for check in checks if check.severity is Severity.FAIL]
    if not hard:
        return Verdict.FAIL, say("verdict.no_checks")
    broken = sorted((check for check in hard if check.holds is False), key=lambda check: check.id not in _EXPLAIN)
    if broken:
        first, more = broken[0].message, len(broken) - 1
        return Verdict.FAIL, say("verdict.broken", first=first, more=more) if more else first
    unmeasured = [check for check in hard if check.holds is None]
    if unmeasured:
        return Verdict.FAIL, say("verdict.unmeasured", check=unmeasured[0].id, reason=unmeasured[0].message)
    return None


def stage_verdict(attempt: Attempt, checks: Sequence[Check], conditions: Sequence[Message]) -> tuple[Verdict, Message]:
    """A stage's verdict from its last attempt, its checks and the conditions that it passed under."""
    return attempt_verdict(attempt) or checks_verdict(checks) or passed(conditions, checks)


def passed(conditions: Sequence[Message], checks: Sequence[Check] = ()) -> tuple[Verdict, Message]:
    """PASS, or PASS_DEGRADED where there are conditions; the words count the warnings among the checks."""
    warnings = sum(check.severity is Severity.WARN and check.holds is False for check in checks)
    counted = say("verdict.warnings", warnings=warnings) if warnings else None
    if conditions:
        words = say("verdict.conditions", conditions=conditions)
        return Verdict.PASS_DEGRADED, say("verdict.with_warnings", words=words, counted=counted) if counted else words
    return Verdict.PASS, counted or say("verdict.clean")


def in_flight(record: Record, stage: AnyStage) -> bool:
    """Whether the stage is running right now."""
    result = record.results.get(stage)
    return record.live and result is not None and result.ended_at is None


def failing_check_of_green_stage(result: StageResult) -> Check | None:
    """A check of severity `fail` that does not hold although the stage is called green; None where there is none."""
    broken = (check for check in result.findings if check.severity is Severity.FAIL)
    return next(broken, None) if result.verdict.is_green else None


def overall(record: Record) -> Overall:
    """The record as a whole, by its worst stage; stale and unmeasured stages never count as passed."""
    results = list(record.stages.values())
    settled = [result for result in results if not in_flight(record, result.stage)]
    if any(_is_red(result) for result in settled):
        return Overall.FAILED
    if record.live:
        return Overall.RUNNING
    if len(results) < len(StageId) or any(r.verdict is Verdict.NOT_RUN or r.stale for r in results):
        return Overall.INCOMPLETE
    degraded = any(result.verdict is Verdict.PASS_DEGRADED for result in results)
    return Overall.DEGRADED if degraded else Overall.PASSED


def exit_status(selected: Sequence[AnyStage], record: Record, pytest_status: int) -> int:
    """The newest session's exit status: never 0 where a selected stage did not run in it to a fresh green.

    A green that an earlier session left counts for nothing, nor does one whose base was replaced after it.
    """
    ran = record.sessions[-1].verdicts if record.sessions else {}
    if pytest_status == 0 and any(stage not in ran or not _is_fresh_green(record, stage) for stage in selected):
        return 1
    return pytest_status


def _is_fresh_green(record: Record, stage: AnyStage) -> bool:
    result = record.results.get(stage)
    return result is not None and result.verdict.is_green and not result.stale


def _is_red(result: StageResult) -> bool:
    return (not result.verdict.is_green and result.verdict is not Verdict.NOT_RUN) or failing_check_of_green_stage(
        result
    ) is not None


@dataclass(frozen=True)
class Outcome:
    """A stage's outcome before it is journalled.

    A verdict with its one sentence, the checks it stands on and the settings it gave up.
    """

    verdict: Verdict
    explanation: Message
    checks: tuple[Check, ...] = ()
    given_up: tuple[Message, ...] = ()

    @classmethod
    def of_checks(cls, checks: Sequence[Check], conditions: Sequence[Message] = ()) -> Outcome:
        """The outcome of a stage that has no attempt of its own."""
        verdict, explanation = checks_verdict(checks) or passed(conditions, checks)
        return cls(verdict, explanation, tuple(checks))

    @classmethod
    def of_attempt(cls, attempt: Attempt, given_up: Sequence[Message] = ()) -> Outcome:
        """The outcome that a stage's last attempt decides."""
        verdict, explanation = stage_verdict(attempt, attempt.checks, given_up)
        return cls(verdict, explanation, attempt.checks, tuple(given_up))
