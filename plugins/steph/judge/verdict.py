"""From results to verdicts: pure functions, and the only place that says what is green.

What was not measured is not passed: a stage without checks, with a `fail` check that could not be measured, skipped,
blocked or stale is never green.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from steph.record import Attempt, Cause, Check, EndedBy, Record, RecordKind, Severity, StageId, Verdict


class Overall(StrEnum):
    """What the whole record may be called."""

    PASSED = "合格"
    PASSED_WITH_CONDITIONS = "条件付き合格"
    FAILED = "不合格"
    INCOMPLETE = "未完了"
    REHEARSAL_PASSED = "予行・完走"
    REHEARSAL_FAILED = "予行・失敗"
    REHEARSAL_INCOMPLETE = "予行・未完了"


def attempt_verdict(attempt: Attempt) -> tuple[Verdict, str] | None:
    """The verdict that an attempt's end alone decides, with one Japanese sentence; None where it ended well."""
    cause = attempt.diagnosis.cause if attempt.diagnosis else None
    if attempt.ended_by is EndedBy.DEADLINE:
        return Verdict.TIMEOUT, f"制限時間で打ち切り({_seconds(attempt)})"
    if attempt.ended_by is EndedBy.INTERRUPTED:
        return Verdict.CRASHED, "実行が中断された"
    if attempt.ended_by is EndedBy.SUPERVISOR_LOST:
        return Verdict.CRASHED, "監視プロセスが失われた"
    if attempt.ended_by is None or attempt.returncode is None:
        return Verdict.CRASHED, "終了状態が記録されていない"
    if attempt.returncode < 0:
        return Verdict.CRASHED, f"シグナル {-attempt.returncode} で終了(原因: {cause or '不明'})"
    if attempt.returncode > 0:
        return Verdict.FAIL, f"終了コード {attempt.returncode}(原因: {cause or '不明'})"
    if cause is None:
        return Verdict.FAIL, "ログの診断が行われていない"
    if cause is not Cause.NONE:
        return Verdict.FAIL, f"終了コード 0 だが {cause}"
    return None


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
    return attempt_verdict(attempt) or checks_verdict(checks) or passed(conditions)


def passed(conditions: Sequence[str]) -> tuple[Verdict, str]:
    """PASS, or PASS_DEGRADED where there are conditions."""
    if conditions:
        return Verdict.PASS_DEGRADED, "条件付きで通過: " + "、".join(conditions)
    return Verdict.PASS, "問題なし"


def overall(record: Record) -> Overall:
    """What the record adds up to; only three green stages that belong together pass."""
    results = [record.stages.get(stage) for stage in StageId]
    verdicts = [result.verdict if result else Verdict.NOT_RUN for result in results]
    stale = any(result.stale for result in results if result)
    rehearsal = record.context.kind is RecordKind.REHEARSAL
    if any(not verdict.is_green and verdict is not Verdict.NOT_RUN for verdict in verdicts):
        return Overall.REHEARSAL_FAILED if rehearsal else Overall.FAILED
    if stale or Verdict.NOT_RUN in verdicts:
        return Overall.REHEARSAL_INCOMPLETE if rehearsal else Overall.INCOMPLETE
    if rehearsal:
        return Overall.REHEARSAL_PASSED
    degraded = Verdict.PASS_DEGRADED in verdicts
    return Overall.PASSED_WITH_CONDITIONS if degraded else Overall.PASSED


def exit_status(selected: Sequence[StageId], record: Record, pytest_status: int) -> int:
    """The exit status of a session: never 0 where a selected stage is not green or was not run."""
    if pytest_status == 0 and any(not record.verdict_of(stage).is_green for stage in selected):
        return 1
    return pytest_status


def _seconds(attempt: Attempt) -> str:
    return f"{attempt.seconds:.0f}秒" if attempt.seconds is not None else "時間不明"
