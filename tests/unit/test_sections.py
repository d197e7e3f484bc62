"""A part of the report that can't be computed says so in its place, and the rest is written."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import record_factory as factory
from record_factory import render
from steph.base.terms import StageId
from steph.record.values import Record, StageResult
from steph.tell import advice, attempts, report, wording
from steph.tell import outlook as forecasting
from steph.tell.outlook import production_outlook
from steph.tell.report import parts, write_report


def _failing(function: Callable[..., object]) -> Callable[..., object]:
    """A function of the same signature that raises."""

    @functools.wraps(function)
    def fail(*arguments: object, **named: object) -> object:
        raise TypeError("planted")

    return fail


def _record() -> Record:
    return factory.green_acceptance()


@pytest.mark.parametrize(
    ("module", "name", "kept"),
    [
        (advice, "advise", "## タスクH-2"),
        (attempts, "production_command", "#### そのまま流用できそうな設定"),
        (advice, "answers", "| H-2"),
        (wording, "headline", "| H-2"),
        (wording, "sentences", "| H-2"),
        (wording, "stage_name", "## タスクH-3"),
        (attempts, "table_of", "--output-dir"),
        (attempts, "extended_command", "## 実行履歴"),
        (report, "history_rows", "## StepHまとめ"),
    ],
)
def test_what_fails_in_one_part_is_said_there(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, kept: str
) -> None:
    """An error in any of them leaves its name in its place, all sections and what stands in them."""
    monkeypatch.setattr(module, name, _failing(getattr(module, name)))
    text = render(_record())
    assert "ここは計算できませんでした: " in text
    assert "planted" in text
    assert kept in text
    assert len(parts(_record())) == len(parts(factory.walked_down()))


def test_what_fails_in_a_templates_own_words_is_said_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A macro that can't read a value of the record costs itself alone: here the counts of the checks."""
    monkeypatch.setattr(StageResult, "held", property(_later(TypeError("planted"))))
    text = render(_record())
    assert text.count("ここは計算できませんでした: TypeError: planted") == len(StageId)
    assert text.count("成立した検査") == len(StageId)


@pytest.mark.parametrize("sample", factory.ALL_SAMPLES)
def test_a_whole_report_has_no_such_line(sample: Callable[[], Record]) -> None:
    """Where nothing fails, nothing is said to have failed; rehearsals and given-up settings have lists of their own."""
    assert "計算できませんでした" not in render(sample(), [])


def _later(error: Exception) -> Callable[..., object]:
    def fail(*arguments: object, **named: object) -> object:
        raise error

    return fail


@pytest.mark.parametrize("error", [TypeError("planted"), OverflowError("planted"), RecursionError("planted")])
def test_a_forecast_that_fails_costs_the_forecast_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Whatever is raised, the report is written and says in H-4 why there is no prediction."""
    monkeypatch.setattr(forecasting, "calibration_or_default", _later(error))
    record = _record()
    found = production_outlook(record)
    assert found is not None
    assert str(found.unpredicted) == f"計算できない: {type(error).__name__}: planted"
    path = write_report(record, (), tmp_path / "report.md", with_figures=False, outlook=found)
    assert f"{type(error).__name__}: planted" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("length", [2**63, 2**200])
def test_a_record_of_an_absurd_length_is_reported(tmp_path: Path, length: int) -> None:
    """A record made before the profile refused such a length still gets its report, each section in it."""
    record = _record()
    h2 = record.stages[StageId.H2]
    (*before, last) = h2.attempts
    assert last.settings is not None
    huge = last.changed(settings=last.settings.changed(max_seq_length=length))
    stages = {**record.stages, StageId.H2: h2.changed(attempts=(*before, huge))}
    absurd = record.changed(stages=stages)
    path = write_report(absurd, (), tmp_path / "report.md", outlook=production_outlook(absurd))
    text = path.read_text(encoding="utf-8")
    assert all(title in text for title in ("## タスクH-1", "## タスクH-2", "## タスクH-3", "## StepHまとめ"))
