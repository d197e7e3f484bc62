"""The verdict table: what was not measured is never green."""

from __future__ import annotations

import itertools

import pytest
import record_factory as factory
from steph.base.messages import say, verbatim
from steph.base.terms import Cause, EndedBy, Severity, StageId, Verdict
from steph.judge.verdict import (
    Outcome,
    Overall,
    attempt_verdict,
    checks_verdict,
    exit_status,
    failing_check_of_green_stage,
    in_flight,
    overall,
    passed,
    stage_verdict,
)
from steph.record.values import Attempt, Check, Diagnosis, Record, Session, StageResult
from steph.tell import wording

OK = Check(id="ok", severity=Severity.FAIL, holds=True, message=verbatim("よい"))


def _attempt(**change: object) -> Attempt:
    base: dict[str, object] = {
        "stage": StageId.H2,
        "number": 1,
        "label": "512/b2/4bit",
        "started_at": "2026-01-01T00:00:00+00:00",
        "returncode": 0,
        "seconds": 10.0,
        "ended_by": EndedBy.EXIT,
        "diagnosis": Diagnosis(cause=Cause.NONE),
    }
    return Attempt.model_validate(base | change)


def _check(severity: Severity, holds: bool | None, message: str = "測った") -> Check:
    return Check(id="c", severity=severity, holds=holds, message=verbatim(message))


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, Verdict.PASS),
        ({"returncode": 1}, Verdict.FAIL),
        ({"returncode": 2}, Verdict.FAIL),
        ({"returncode": -1}, Verdict.CRASHED),
        ({"returncode": -9}, Verdict.CRASHED),
        ({"returncode": -11}, Verdict.CRASHED),
        ({"returncode": None}, Verdict.CRASHED),
        ({"ended_by": None}, Verdict.CRASHED),
        ({"ended_by": EndedBy.DEADLINE, "returncode": -15}, Verdict.TIMEOUT),
        ({"ended_by": EndedBy.DEADLINE, "returncode": 0}, Verdict.TIMEOUT),
        ({"ended_by": EndedBy.INTERRUPTED}, Verdict.CRASHED),
        ({"ended_by": EndedBy.SUPERVISOR_LOST}, Verdict.CRASHED),
        ({"ended_by": EndedBy.SUITE_ERROR}, Verdict.CRASHED),
        ({"diagnosis": None}, Verdict.FAIL),
        ({"diagnosis": Diagnosis(cause=Cause.NAN_LOSS)}, Verdict.FAIL),
        ({"diagnosis": Diagnosis(cause=Cause.CUDA_OOM)}, Verdict.FAIL),
    ],
)
def test_how_an_attempt_ended_decides_first(change: dict[str, object], verdict: Verdict) -> None:
    """Only an exit 0 with a clean diagnosis lets the checks speak."""
    assert stage_verdict(_attempt(**change), [OK], [])[0] is verdict


def test_verdict_and_report_agree_on_which_attempt_ended_well() -> None:
    """Whatever ended it, with which status and cause: the judge passes it on exactly where the report says 成功."""
    for ended_by, returncode, cause in itertools.product((None, *EndedBy), (None, -9, 0, 1), (None, *Cause)):
        diagnosis = Diagnosis(cause=cause) if cause else None
        attempt = _attempt(ended_by=ended_by, returncode=returncode, diagnosis=diagnosis)
        assert attempt.ended_well == ((ended_by, returncode, cause) == (EndedBy.EXIT, 0, Cause.NONE))
        assert (attempt_verdict(attempt) is None) == attempt.ended_well
        assert (wording.outcome_words(attempt) == "成功") == attempt.ended_well


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ended_by": EndedBy.DEADLINE}, "制限時間で打ち切り(終了まで 10秒)"),
        ({"ended_by": EndedBy.DEADLINE, "seconds": None}, "制限時間で打ち切り(終了まで 時間不明)"),
        ({"ended_by": EndedBy.DEADLINE, "limit_seconds": 7.0}, "制限時間 7 秒で打ち切り(終了まで 10秒)"),
        ({"ended_by": EndedBy.INTERRUPTED}, "実行が中断された"),
        ({"ended_by": EndedBy.SUPERVISOR_LOST}, "監視プロセスが失われた"),
        ({"ended_by": EndedBy.SUITE_ERROR}, "スイート側のエラーで続けられなかった"),
        ({"ended_by": None}, "終了状態が記録されていない"),
        ({"returncode": None}, "終了状態が記録されていない"),
        (
            {"returncode": -9, "diagnosis": Diagnosis(cause=Cause.HOST_OOM)},
            "シグナル 9 で終了(原因: ホストのメモリ不足)",
        ),
        ({"returncode": -9, "diagnosis": None}, "シグナル 9 で終了(原因: 不明)"),
        (
            {"returncode": 2, "diagnosis": Diagnosis(cause=Cause.CUDA_OOM)},
            "終了コード 2(原因: CUDA OOM(GPU メモリ不足))",
        ),
        ({"returncode": 1, "diagnosis": Diagnosis(cause=Cause.OTHER, rank=0)}, "終了コード 1(原因: 不明、rank 0)"),
        ({"returncode": 1, "diagnosis": None}, "終了コード 1(原因: 不明)"),
        ({"diagnosis": None}, "ログの診断が行われていない"),
        (
            {"diagnosis": Diagnosis(cause=Cause.NAN_LOSS)},
            "プログラムは終了コード 0 で終わったが、出力に失敗がある: 損失が NaN",
        ),
    ],
)
def test_an_attempts_end_is_told_in_one_sentence(change: dict[str, object], sentence: str) -> None:
    """The explanation names what ended it, with its number, and the diagnosis where there is one."""
    decided = attempt_verdict(_attempt(**change))
    assert decided is not None
    assert str(decided[1]) == sentence


def test_an_attempt_that_ended_well_decides_nothing() -> None:
    """Then the checks speak; and where they hold as well, nothing is wrong."""
    assert attempt_verdict(_attempt()) is None
    assert checks_verdict([OK]) is None
    assert passed([]) == (Verdict.PASS, say("verdict.clean"))
    assert stage_verdict(_attempt(), [OK], []) == (Verdict.PASS, say("verdict.clean"))


@pytest.mark.parametrize(
    ("checks", "sentence"),
    [
        ([_check(Severity.WARN, False)], "検査が一つも行われていない"),
        ([OK, _check(Severity.FAIL, False, "甲")], "甲"),
        ([_check(Severity.FAIL, False, "甲"), OK, _check(Severity.FAIL, False, "乙")], "甲(ほか1件)"),
        ([_check(Severity.FAIL, False, text) for text in "甲乙丙"], "甲(ほか2件)"),
        ([_check(Severity.FAIL, None, "丁"), _check(Severity.FAIL, False, "甲")], "甲"),
        (
            [
                _check(Severity.FAIL, False, "甲"),
                _check(Severity.FAIL, False, "学習率").changed(id="learning_rate_runs"),
            ],
            "学習率(ほか1件)",
        ),
        (
            [
                OK,
                _check(Severity.FAIL, None, "丁"),
                OK,
                _check(Severity.FAIL, None, "戊").model_copy(update={"id": "d"}),
            ],
            "測定できない必須検査がある: c(丁)",
        ),
    ],
)
def test_the_first_broken_check_is_told_and_the_others_counted(checks: list[Check], sentence: str) -> None:
    """A broken check goes before an unmeasured one, why nothing was learnt before that; soft ones are not counted."""
    decided = checks_verdict(checks)
    assert decided is not None
    assert (decided[0], str(decided[1])) == (Verdict.FAIL, sentence)


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ([], Verdict.FAIL),
        ([_check(Severity.WARN, True)], Verdict.FAIL),
        ([OK, _check(Severity.FAIL, False)], Verdict.FAIL),
        ([OK, _check(Severity.FAIL, None)], Verdict.FAIL),
        ([OK, _check(Severity.WARN, False)], Verdict.PASS),
        ([OK, _check(Severity.WARN, None)], Verdict.PASS),
        ([OK, _check(Severity.INFO, False)], Verdict.PASS),
    ],
)
def test_hard_checks_must_hold_and_be_measured(checks: list[Check], verdict: Verdict) -> None:
    """No checks, a broken hard check and an unmeasured hard check are all FAIL; softer ones only inform."""
    assert stage_verdict(_attempt(), checks, [])[0] is verdict


def test_a_condition_makes_a_pass_degraded_and_is_named() -> None:
    """A pass below the first rung says what was given up."""
    verdict, explanation = stage_verdict(_attempt(), [OK], [verbatim("max-seq-length 512 → 384")])
    assert verdict is Verdict.PASS_DEGRADED
    assert "512 → 384" in str(explanation)


def test_warnings_are_counted_beside_a_pass_and_nothing_else_is() -> None:
    """Broken warnings alone: one that holds, or that could not be measured, is none, nor is a note."""
    broken, held, unmeasured = (_check(Severity.WARN, holds) for holds in (False, True, None))
    checks = [OK, broken, broken, held, unmeasured, _check(Severity.INFO, False)]
    assert passed([], checks) == (Verdict.PASS, say("verdict.warnings", warnings=2))
    assert passed([], [OK, held, unmeasured]) == (Verdict.PASS, say("verdict.clean"))
    conditions = [verbatim("甲")]
    assert passed(conditions, [OK, held]) == (Verdict.PASS_DEGRADED, say("verdict.conditions", conditions=conditions))
    verdict, words = passed(conditions, checks)
    assert (verdict, str(words)) == (Verdict.PASS_DEGRADED, "条件付きで通過: 甲(警告 2 件)")


@pytest.mark.parametrize("checks", [(OK,), (OK, _check(Severity.FAIL, False)), ()])
def test_an_outcome_keeps_the_checks_and_conditions_that_it_stands_on(checks: tuple[Check, ...]) -> None:
    """Without an attempt the checks decide, with one its end comes first; what was given up is kept."""
    condition = verbatim("甲")
    decided = checks_verdict(checks) or passed([condition], checks)
    assert Outcome.of_checks(list(checks), [condition]) == Outcome(*decided, checks)
    attempt = _attempt(checks=checks)
    assert Outcome.of_attempt(attempt, [condition]) == Outcome(*decided, checks, (condition,))
    killed = _attempt(checks=checks, returncode=-9)
    assert Outcome.of_attempt(killed).verdict is Verdict.CRASHED


def _record(verdicts: dict[StageId, Verdict], *, stale: StageId | None = None) -> Record:
    stages = {
        stage: StageResult(
            stage=stage, verdict=verdict, explanation=verbatim(""), started_at="t", ended_at="t", stale=stage is stale
        )
        for stage, verdict in verdicts.items()
    }
    session = Session(started_at="t", command=("pytest",), stages=tuple(verdicts), verdicts=dict(verdicts.items()))
    return Record(id="r", context=factory.context(), stages=stages, sessions=(session,))


GREEN = dict.fromkeys(StageId, Verdict.PASS)


@pytest.mark.parametrize(
    ("verdicts", "stale", "expected"),
    [
        (GREEN, None, Overall.PASSED),
        (GREEN | {StageId.H2: Verdict.PASS_DEGRADED}, None, Overall.DEGRADED),
        (GREEN | {StageId.H3: Verdict.FAIL}, None, Overall.FAILED),
        (GREEN | {StageId.H3: Verdict.TIMEOUT}, None, Overall.FAILED),
        (GREEN | {StageId.H3: Verdict.CRASHED}, None, Overall.FAILED),
        (GREEN | {StageId.H3: Verdict.BLOCKED}, None, Overall.FAILED),
        (GREEN | {StageId.H3: Verdict.NOT_RUN}, None, Overall.INCOMPLETE),
        (GREEN, StageId.H3, Overall.INCOMPLETE),
        ({StageId.H1: Verdict.PASS}, None, Overall.INCOMPLETE),
        ({}, None, Overall.INCOMPLETE),
    ],
)
def test_only_three_fresh_green_stages_pass(
    verdicts: dict[StageId, Verdict], stale: StageId | None, expected: Overall
) -> None:
    """A missing, stale or failed stage is never a pass."""
    assert overall(_record(verdicts, stale=stale)) is expected


def test_a_running_record_has_not_passed() -> None:
    """While the conductor lives, three green stages are still running, and a failed one has failed."""
    green = _record(GREEN).model_copy(update={"live": True})
    assert overall(green) is Overall.RUNNING
    failed = _record(GREEN | {StageId.H1: Verdict.FAIL}).model_copy(update={"live": True})
    assert overall(failed) is Overall.FAILED


@pytest.mark.parametrize(
    ("live", "ended_at", "expected"),
    [(True, None, True), (False, None, False), (True, "t", False), (False, "t", False)],
)
def test_a_stage_is_in_flight_while_its_conductor_lives_and_it_has_no_end(
    live: bool, ended_at: str | None, expected: bool
) -> None:
    """A killed run's stage is not in flight, nor is one that ended, nor one that was never begun."""
    begun = StageResult(
        stage=StageId.H1, verdict=Verdict.NOT_RUN, explanation=verbatim(""), started_at="t", ended_at=ended_at
    )
    record = _record({}).model_copy(update={"live": live, "stages": {StageId.H1: begun}})
    assert in_flight(record, StageId.H1) is expected
    assert in_flight(record, StageId.H2) is False


def test_a_stage_in_flight_has_not_failed_yet() -> None:
    """Whatever a torn journal says of a stage that is running right now, the record is still running."""
    stages = {
        stage: result.model_copy(update={"ended_at": None}) if stage is StageId.H3 else result
        for stage, result in _record(GREEN | {StageId.H3: Verdict.CRASHED}).stages.items()
    }
    assert overall(_record(GREEN).model_copy(update={"live": True, "stages": stages})) is Overall.RUNNING
    assert overall(_record(GREEN).model_copy(update={"stages": stages})) is Overall.FAILED


@pytest.mark.parametrize(
    ("verdict", "severity", "contradicts"),
    [
        (Verdict.PASS, Severity.FAIL, True),
        (Verdict.PASS_DEGRADED, Severity.FAIL, True),
        (Verdict.PASS, Severity.WARN, False),
        (Verdict.PASS, Severity.INFO, False),
        (Verdict.FAIL, Severity.FAIL, False),
    ],
)
def test_only_a_green_verdict_over_a_broken_hard_check_contradicts_itself(
    verdict: Verdict, severity: Severity, contradicts: bool
) -> None:
    """A warning beside a pass is none, and a failed stage agrees with its broken check."""
    check = _check(severity, False)
    result = _record({StageId.H2: verdict}).stages[StageId.H2].model_copy(update={"checks": (OK, check)})
    assert failing_check_of_green_stage(result) == (check if contradicts else None)


def test_a_green_stage_with_a_broken_hard_check_has_failed() -> None:
    """A verdict that contradicts its own checks is not believed."""
    record = _record(GREEN)
    lying = record.stages[StageId.H2].model_copy(update={"checks": (_check(Severity.FAIL, False),)})
    assert overall(record.model_copy(update={"stages": {**record.stages, StageId.H2: lying}})) is Overall.FAILED


@pytest.mark.parametrize("verdict", sorted(Verdict))
def test_exit_status_is_0_only_where_every_selected_stage_is_green(verdict: Verdict) -> None:
    """Whatever pytest itself thinks, a selected stage that is not green can't end with 0."""
    record = _record({StageId.H1: verdict})
    assert (exit_status([StageId.H1], record, 0) == 0) is verdict.is_green
    assert exit_status([StageId.H1, StageId.H2], record, 0) == 1
    assert exit_status([StageId.H1], record, 5) == 5


def test_exit_status_counts_no_green_of_an_earlier_session() -> None:
    """A stage that this session selected and did not run is red, whatever an earlier session found."""
    record = _record(GREEN)
    later = Session(started_at="u", command=("pytest",), stages=(StageId.H2,))
    assert exit_status([StageId.H2], record, 0) == 0
    assert exit_status([StageId.H2], record.model_copy(update={"sessions": (*record.sessions, later)}), 0) == 1


def test_exit_status_without_a_session_or_a_result_is_1() -> None:
    """A record that knows of no run, or of a verdict without its stage, has no selected stage that is green."""
    record = _record(GREEN)
    assert exit_status([StageId.H1], record.model_copy(update={"sessions": ()}), 0) == 1
    assert exit_status([StageId.H1], record.model_copy(update={"stages": {}}), 0) == 1
    assert exit_status([], record.model_copy(update={"sessions": ()}), 0) == 0


def test_exit_status_counts_no_stale_green() -> None:
    """A stage whose base was replaced after it ran in the same session is red."""
    assert exit_status([StageId.H2, StageId.H3], _record(GREEN, stale=StageId.H3), 0) == 1
