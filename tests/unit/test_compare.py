"""Two records side by side: what is worse is flagged, what differs is named."""

from __future__ import annotations

import pytest
import record_factory as factory
from steph.base.terms import StageId, Verdict
from steph.record.values import Record
from steph.tell.compare import as_markdown, as_text, compare, listing_rows, listing_text
from steph.tell.markdown import columns, width


def slower(record: Record, ratio: float) -> Record:
    """Give the record with training at `ratio` times its tokens per second."""
    h2 = record.stages[StageId.H2]
    last = h2.attempts[-1]
    assert last.training is not None
    assert last.training.tokens_per_second is not None
    changed = last.training.model_copy(update={"tokens_per_second": last.training.tokens_per_second * ratio})
    stage = h2.model_copy(update={"attempts": (*h2.attempts[:-1], last.model_copy(update={"training": changed}))})
    return record.model_copy(update={"stages": record.stages | {StageId.H2: stage}})


def test_a_record_against_itself_has_no_regression() -> None:
    """The same record twice: nothing worse, nothing different, exit status 0."""
    same = compare(factory.green_acceptance(), factory.green_acceptance())
    assert (same.regressions, same.versions, same.differences, same.exit_status) == ((), (), (), 0)


@pytest.mark.parametrize(("ratio", "is_worse"), [(0.95, False), (0.85, True), (1.5, False)])
def test_a_slower_training_is_a_regression_over_the_threshold(ratio: float, is_worse: bool) -> None:
    """Fewer tokens per second count only beyond ten percent; more are never a regression."""
    green = factory.green_acceptance()
    found = compare(green, slower(green, ratio))
    assert [row.name for row in found.regressions] == (["H-2 tokens/s"] if is_worse else [])
    assert found.exit_status == int(is_worse)


def test_the_threshold_can_be_chosen() -> None:
    """A loss of 15 percent passes under a threshold of 20."""
    green = factory.green_acceptance()
    assert compare(green, slower(green, 0.85), threshold_ratio=0.2).exit_status == 0


def changed(record: Record, **changes: object) -> Record:
    """Give the record with its last training attempt changed."""
    h2 = record.stages[StageId.H2]
    stage = h2.model_copy(update={"attempts": (*h2.attempts[:-1], h2.attempts[-1].model_copy(update=changes))})
    return record.model_copy(update={"stages": record.stages | {StageId.H2: stage}})


@pytest.mark.parametrize(("a", "b", "is_worse"), [(7.0, 12.0, False), (188.4, 198.0, False), (60.0, 71.0, True)])
def test_a_few_seconds_more_are_no_regression(a: float, b: float, is_worse: bool) -> None:
    """A duration is worse only beyond the threshold and beyond what starting a process varies by."""
    green = factory.green_acceptance()
    found = compare(changed(green, seconds=a), changed(green, seconds=b))
    assert [row.name for row in found.regressions] == (["H-2 最後の試行"] if is_worse else [])


def test_a_figure_that_only_one_record_has_is_named() -> None:
    """A pipeline that counts no tokens can't be slower, but its missing figure does not pass for an equal one."""
    green = factory.green_acceptance()
    last = green.stages[StageId.H2].attempts[-1].training
    assert last is not None
    found = compare(green, changed(green, training=last.model_copy(update={"tokens_per_second": None})))
    assert (found.regressions, found.exit_status) == ((), 0)
    for page in (as_text(found), as_markdown(found)):
        assert "測定なし" in page
        assert "片方にしか測定がない: H-2 tokens/s" in page


def test_a_worse_verdict_is_always_a_regression() -> None:
    """From PASS to PASS_DEGRADED, and from green to red, without any threshold; back again is none."""
    green, degraded, red = factory.green_acceptance(), factory.walked_down(), factory.blocked()
    assert "H-2 判定" in {row.name for row in compare(green, degraded, threshold_ratio=9).regressions}
    assert "H-2 判定" in {row.name for row in compare(degraded, red, threshold_ratio=9).regressions}
    assert compare(red, green).exit_status == 0


def test_an_unmeasured_stage_is_worse_than_a_green_one() -> None:
    """A stage that was not run in the second record counts as a regression."""
    green = factory.green_acceptance()
    without = green.model_copy(update={"stages": {StageId.H1: green.stages[StageId.H1]}})
    assert without.verdict_of(StageId.H2) is Verdict.NOT_RUN
    assert {"全体", "H-2 判定", "H-3 判定"} <= {row.name for row in compare(green, without).regressions}


def test_changed_versions_and_circumstances_are_named() -> None:
    """Another driver shows under versions, another profile under circumstances."""
    green = factory.green_acceptance()
    card = factory.device().model_copy(update={"driver_version": "590.10"})
    other = green.model_copy(update={"context": factory.context(gpu=card, profile="a100-20gb")})
    found = compare(green, other)
    assert [(row.name, row.a, row.b) for row in found.versions] == [("ドライバ", "580.95.05", "590.10")]
    assert [row.name for row in found.differences] == ["プロファイル"]


def test_both_renderings_say_the_same() -> None:
    """Markdown and terminal text name the regressions; the Markdown is one table row a figure."""
    found = compare(factory.green_acceptance(), factory.walked_down())
    page, text = as_markdown(found), as_text(found)
    for row in found.regressions:
        assert row.name in page
        assert row.name in text
    assert sum(line.startswith("| H-") for line in page.splitlines()) >= len(found.rows) - 1


def test_terminal_columns_count_wide_characters_twice() -> None:
    """Columns line up in a terminal although Japanese takes two cells a character."""
    lines = columns(("項目", "x"), [("a", "1"), ("日本語", "2")])
    assert [width(line[: line.index(mark)]) for line, mark in zip(lines, "x12", strict=True)] == [8, 8, 8]


def test_the_listing_is_newest_first_and_never_calls_a_rehearsal_passed() -> None:
    """One row a record, in time's order, rehearsals with words of their own."""
    rows = listing_rows((sample(), 1536) for sample in factory.ALL_SAMPLES)
    assert len(rows) == len(factory.ALL_SAMPLES)
    assert [row["record"] for row in rows] == sorted((row["record"] for row in rows), reverse=True)
    rehearsed = next(row for row in rows if row["list.kind"] == "予行")
    assert "合格" not in rehearsed["list.overall"]
    assert {row["list.size"] for row in rows} == {"1.5 KiB"}
    assert "記録はまだありません" in listing_text(())


def test_what_both_have_is_said_and_what_is_a_cards_own() -> None:
    """On another card the settings carry over, and speed and memory do not; on the same one nothing is said of that."""
    a = factory.green_acceptance()
    environment = a.context.environment.model_copy(update={"device": factory.device("NVIDIA A100")})
    b = a.changed(context=a.context.changed(environment=environment))
    other, same = compare(a, b), compare(a, a)
    assert "カード" not in other.same
    assert {"モデル", "データ", "H-2 の設定"} <= set(other.same)
    for told in (as_text(other), as_markdown(other)):
        assert "どちらも同じ: " in told
        assert "速さと VRAM はカードごとの値" in told
    assert "カード" in same.same
    assert "カードごとの値" not in as_text(same)
