"""Figures and ends in words: units, rounding, and what is said where nothing is known."""

from __future__ import annotations

import pytest
from steph.base.terms import Cause, EndedBy, StageId
from steph.record.values import Attempt, Diagnosis
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
    ("said", "words"),
    [
        (wording.moment("2026-11-20T10:05:59+09:00"), "2026-11-20 01:05"),
        (wording.moment("2026-11-20T10:05:59"), "2026-11-20 10:05"),
        (wording.moment("soon"), "soon"),
        (wording.moment(None), wording.MISSING),
        (wording.moment_to_second("2026-11-20T10:05:59+09:00"), "2026-11-20 01:05:59"),
        (wording.moment_to_second("soon"), "soon"),
        (wording.about_duration(89), "約 89 秒"),
        (wording.about_duration(90), "約 2 分"),
        (wording.about_duration(90 * 60), "約 1.5 時間"),
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
