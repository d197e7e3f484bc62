"""From results to verdicts: pure functions, and the only place that says what is green.

What was not measured is not passed: a stage without checks, with a `fail` check that could not be measured, skipped,
blocked or stale is never green.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from steph.base.terms import AnyStage, EndedBy, Severity, StageId, Verdict
from steph.record.values import Attempt, Check, Record, StageResult


class Overall(StrEnum):
    """What the record as a whole may be called; only PASSED and DEGRADED stand on three fresh green stages."""

    PASSED = "passed"
    DEGRADED = "degraded"
    FAILED = "failed"
    INCOMPLETE = "incomplete"
    RUNNING = "running"


def attempt_verdict(attempt: Attempt) -> tuple[Verdict, str] | None:
    """The verdict that an attempt's end alone decides, with one Japanese sentence; None where it ended well."""
    if attempt.ended_well:
        return None
    cause = attempt.diagnosis.cause if attempt.diagnosis else None
    if attempt.ended_by is EndedBy.DEADLINE:
        limit = f" {attempt.limit_seconds:.0f} 秒" if attempt.limit_seconds is not None else ""
        return Verdict.TIMEOUT, f"制限時間{limit}で打ち切り(終了まで {_seconds(attempt)})"
    if attempt.ended_by is EndedBy.INTERRUPTED:
        return Verdict.CRASHED, "実行が中断された"
    if attempt.ended_by is EndedBy.SUPERVISOR_LOST:
        return Verdict.CRASHED, "監視プロセスが失われた"
    if attempt.ended_by is EndedBy.SUITE_ERROR:
        return Verdict.CRASHED, "スイート側のエラーで続けられなかった"
    if attempt.ended_by is None or attempt.returncode is None:
        return Verdict.CRASHED, "終了状態が記録されていない"
    if attempt.returncode < 0:
        return Verdict.CRASHED, f"シグナル {-attempt.returncode} で終了(原因: {cause or '不明'})"
    if attempt.returncode > 0:
        rank = attempt.diagnosis.rank if attempt.diagnosis else None
        who = f"、rank {rank}" if rank is not None else ""
        return Verdict.FAIL, f"終了コード {attempt.returncode}(原因: {cause or '不明'}{who})"
    if cause is None:
        return Verdict.FAIL, "ログの診断が行われていない"
    return Verdict.FAIL, f"終了コード 0 だが {cause}"


def checks_verdict(checks: Sequence[Check]) -> tuple[Verdict, str] | None:
    """FAIL where a `fail` check does not hold, could not be measured, or where there are none at all; else None."""
    hard = [check for check in checks if check.severity is Severity.FAIL]
    if not hard:
        return Verdict.FAIL, "検査が一つも行われていない"
    broken = [check for check in hard if check.holds is False]
    if broken:
        more = f"(ほか{len(broken) - 1}件)" if len(broken) > 1 else ""
        return Verdict.FAIL, f"{broken[0].message}{more}"
    unmeasured = [check for check in hard if check.holds is None]
    if unmeasured:
        return Verdict.FAIL, f"測定できない必須検査がある: {unmeasured[0].id}({unmeasured[0].message})"
    return None


def stage_verdict(attempt: Attempt, checks: Sequence[Check], conditions: Sequence[str]) -> tuple[Verdict, str]:
    """A stage's verdict from its last attempt, its checks and the conditions that it passed under (Japanese)."""
    return attempt_verdict(attempt) or checks_verdict(checks) or passed(conditions, checks)


def passed(conditions: Sequence[str], checks: Sequence[Check] = ()) -> tuple[Verdict, str]:
    """PASS, or PASS_DEGRADED where there are conditions; the words count the warnings among the checks."""
    warnings = sum(check.severity is Severity.WARN and check.holds is False for check in checks)
    counted = f"警告 {warnings} 件" if warnings else ""
    if conditions:
        words = "条件付きで通過: " + "、".join(conditions)
        return Verdict.PASS_DEGRADED, f"{words}({counted})" if counted else words
    return Verdict.PASS, counted or "問題なし"


def in_flight(record: Record, stage: AnyStage) -> bool:
    """Whether the stage is running right now."""
    result = record.results.get(stage)
    return record.live and result is not None and result.ended_at is None


def contradiction(result: StageResult) -> Check | None:
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
    return (not result.verdict.is_green and result.verdict is not Verdict.NOT_RUN) or contradiction(result) is not None


def _seconds(attempt: Attempt) -> str:
    return f"{attempt.seconds:.0f}秒" if attempt.seconds is not None else "時間不明"


@dataclass(frozen=True)
class Outcome:
    """What a stage came to, before it is journalled.

    A verdict with its one sentence (Japanese), the checks it stands on and the settings it gave up.
    """

    verdict: Verdict
    explanation: str
    checks: tuple[Check, ...] = ()
    given_up: tuple[str, ...] = ()

    @classmethod
    def of_checks(cls, checks: Sequence[Check], conditions: Sequence[str] = ()) -> Outcome:
        """The outcome of a stage that has no attempt of its own."""
        verdict, explanation = checks_verdict(checks) or passed(conditions, checks)
        return cls(verdict, explanation, tuple(checks))

    @classmethod
    def of_attempt(cls, attempt: Attempt, given_up: Sequence[str] = ()) -> Outcome:
        """The outcome that a stage's last attempt decides."""
        verdict, explanation = stage_verdict(attempt, attempt.checks, given_up)
        return cls(verdict, explanation, attempt.checks, tuple(given_up))
