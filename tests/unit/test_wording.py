"""Figures and ends in words: units, rounding, and what is said where nothing is known."""

from __future__ import annotations

import math

import pytest
import record_factory as factory
from record_factory import render
from steph.base import units
from steph.base.messages import speaking, verbatim
from steph.base.terms import Cause, EndedBy, Severity, StageId, Verdict
from steph.record.values import Attempt, Check, Diagnosis, EvalOutcome, StageResult
from steph.tell import wording


def _attempt(**fields: object) -> Attempt:
    base: dict[str, object] = {"stage": StageId.H2, "number": 1, "label": "", "started_at": ""}
    return Attempt.model_validate(base | fields)


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (_attempt(returncode=0, ended_by=EndedBy.EXIT, diagnosis=Diagnosis(cause=Cause.NONE)), "成功"),
        (_attempt(returncode=0, ended_by=EndedBy.EXIT), "その他エラー(ログの診断なし)"),
        (_attempt(returncode=0, diagnosis=Diagnosis(cause=Cause.NONE)), "終わりの記録なし"),
        (_attempt(returncode=1, diagnosis=Diagnosis(cause=Cause.CUDA_OOM)), "OOM"),
        (
            _attempt(returncode=0, diagnosis=Diagnosis(cause=Cause.NAN_LOSS)),
            f"その他エラー({wording.cause_name(Cause.NAN_LOSS)})",
        ),
        (_attempt(returncode=0, ended_by=EndedBy.DEADLINE), "その他エラー(時間切れ)"),
        (_attempt(ended_by=EndedBy.INTERRUPTED), "その他エラー(中断)"),
        (_attempt(), "終わりの記録なし"),
        (_attempt(returncode=3, ended_by=EndedBy.EXIT), "その他エラー(終了コード 3)"),
        (_attempt(returncode=-9, ended_by=EndedBy.EXIT), "その他エラー(シグナル 9 で終了)"),
        (_attempt(returncode=0, ended_by=EndedBy.SUPERVISOR_LOST), "その他エラー(監視プロセスが失われた)"),
        (_attempt(ended_by=EndedBy.SUITE_ERROR), "その他エラー(スイート側)"),
    ],
)
def test_an_attempts_end_is_said_in_the_specs_words(attempt: Attempt, words: str) -> None:
    """成功, OOM or その他エラー with its reason; only the first has not failed."""
    assert wording.outcome_words(attempt) == words
    assert attempt.ended_well is (words == "成功")


@pytest.mark.parametrize(
    ("seconds", "japanese", "english"),
    [
        (99.94, "99.9秒", "99.9 s"),
        (100, "1分40秒", "1 min 40 s"),
        (3599.6, "1時間0分", "1 h 0 min"),
        (None, units.MISSING, units.MISSING),
    ],
)
def test_a_duration_is_said_in_the_language_in_use(seconds: float | None, japanese: str, english: str) -> None:
    """Rounded before it is cut into hours and minutes."""
    assert units.duration(seconds) == japanese
    with speaking("en"):
        assert units.duration(seconds) == english
        assert units.about_duration(90) == "about 2 min"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (units.moment("2026-11-20T10:05:59+09:00"), "2026-11-20 01:05"),
        (units.moment("2026-11-20T10:05:59"), "2026-11-20 10:05"),
        (units.moment("soon"), "soon"),
        (units.moment(None), units.MISSING),
        (units.moment_to_second("2026-11-20T10:05:59+09:00"), "2026-11-20 01:05:59"),
        (units.moment_to_second("soon"), "soon"),
        (units.about_duration(89), "約 89 秒"),
        (units.about_duration(90), "約 2 分"),
        (units.about_duration(90 * 60), "約 1.5 時間"),
        (wording.size_class(None), "サイズ不明"),
        (wording.size_class(1_836_828_672), "1.8B"),
        (wording.size_class(49_999_999), "50.00M"),
        (wording.parameters(None), "不明(記録なし)"),
        (wording.parameters(99_999), "99,999"),
        (wording.parameters(1_836_828_672), "約 1.8B(1,836,828,672)"),
        (wording.accuracy_words(2, 3), "3問中2問正解(66.7%)"),
        (wording.accuracy_words(0, 0), "0問中0問正解"),
        (wording.accuracy_words(None, 3), "未測定"),
    ],
)
def test_figures_have_their_unit_and_unknown_ones_say_so(said: str, words: str) -> None:
    """Times in UTC, durations in one rough figure, sizes as people name them."""
    assert said == words


@pytest.mark.parametrize(
    ("start", "end", "seconds"),
    [
        ("2026-11-20T10:00:00+00:00", "2026-11-20T19:00:10+09:00", 10.0),
        ("2026-11-20T10:00:00+00:00", None, None),
        ("2026-11-20T10:00:00+00:00", "2026-11-20T10:00:10", None),
        ("soon", "2026-11-20T10:00:10", None),
    ],
)
def test_seconds_between_two_times_need_two_times(start: str, end: str | None, seconds: float | None) -> None:
    """One without a zone, or no time at all, can't be compared."""
    assert wording.seconds_between(start, end) == seconds


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ({"total": 3, "correct": 2}, "3問中2問正解(66.7%)"),
        ({"total": 5, "correct": 1, "score": 0.2, "metric": "task/acc,none"}, "task/acc,none 0.2(5問)"),
        ({"score": 31.4}, "スコア 31.4"),
        ({}, "未測定"),
    ],
)
def test_a_score_is_said_as_its_format_gives_it(outcome: dict[str, object], words: str) -> None:
    """Right answers of the published format; of others the figure with its metric, which may be no share."""
    assert wording.score_words(EvalOutcome.model_validate({"output_path": "out"} | outcome)) == words


def test_a_check_that_does_not_apply_is_counted_apart_and_shown_with_its_reason() -> None:
    """It is neither held, nor broken, nor unmeasured; the report has it in a fold of its own."""
    checks = (
        Check(id="exit_zero", severity=Severity.FAIL, holds=True, message=verbatim("終了コードは 0。")),
        Check(
            id="line_results",
            severity=Severity.INFO,
            holds=None,
            message=verbatim("対象外: 表示がない。"),
            applies=False,
        ),
        Check(id="train_overlap", severity=Severity.INFO, holds=None, message=verbatim("読めない。")),
    )
    result = StageResult(stage=StageId.H3, verdict=Verdict.PASS, explanation=verbatim(""), started_at="", checks=checks)
    record = factory.green_acceptance()
    told = render(record.changed(stages=record.stages | {StageId.H3: result}))
    _, counted, shown = told.partition("検査 3 件: 成立 1、不成立 0、未測定 1、対象外 1。")
    broken, folded, ruled_out = shown.partition("対象外の検査 1 件")
    assert counted
    assert folded
    assert "line_results" not in broken
    assert "表示がない" in ruled_out


@pytest.mark.parametrize("absurd", [math.nan, math.inf, -math.inf, 1e300])
def test_what_is_no_figure_is_shown_as_unknown(absurd: float) -> None:
    """No duration and no size is `nan`, and none has three hundred digits."""
    for said in (units.duration, units.clock, units.about_duration, units.gib):
        assert said(absurd) == units.MISSING
