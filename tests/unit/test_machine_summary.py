"""`summary.json`: the same verdicts and figures as the Markdown, for programs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import record_factory as factory
from steph.base.messages import say, speaking
from steph.base.terms import StageId
from steph.conduct.session import tell
from steph.record.values import Record
from steph.tell.advice import advise
from steph.tell.machine_summary import summary_of, write_summary
from steph.tell.outlook import production_outlook
from test_cli import keep

STAGE_KEYS = {"verdict", "running", "stale", "cause", "seconds", "explanation", "figures"}


def told(record: Record, reports: Path, name: str = "summary.json") -> dict[str, Any]:
    """What a report's writing leaves for programs."""
    tell(reports / "runs", record, with_figures=False)
    found: dict[str, Any] = json.loads((reports / name).read_text(encoding="utf-8"))
    return found


def test_its_keys_are_a_promise(tmp_path: Path) -> None:
    """Whoever reads it finds these, whatever the record came to; a new version number goes with a key that went."""
    for record in (factory.green_acceptance(), factory.crashed(), factory.live()):
        found = told(record, tmp_path)
        assert list(found) == [
            "schema", "record", "kind", "verdict", "profile", "model", "started_at", "ended_at",
            "exit_status", "stages", "production", "paths",
        ]  # fmt: skip
        assert found["schema"] == 1
        assert [set(stage) for stage in found["stages"].values()] == [STAGE_KEYS] * 3
        assert list(found["stages"]) == ["H-1", "H-2", "H-3"]
        assert list(found["stages"]["H-2"]["figures"]) == [
            "attempts", "peak_device_bytes", "peak_own_bytes", "peak_reserved_bytes", "peak_allocated_bytes",
            "tokens_per_second", "train_loss", "accuracy", "score", "metric", "questions",
        ]  # fmt: skip


def test_its_figures_are_the_record_s(tmp_path: Path) -> None:
    """Those of the attempt that counts, and the paths lead to report and record."""
    record = factory.walked_down()
    found = told(record, tmp_path)
    result = record.stages[StageId.H2]
    last = result.last_attempt
    assert last is not None
    assert last.training is not None
    figures = found["stages"]["H-2"]["figures"]
    assert (figures["attempts"], figures["peak_device_bytes"]) == (len(result.attempts), last.peak_device_bytes)
    assert figures["attempts"] > 1
    assert figures["peak_reserved_bytes"] == max(probe.peak_reserved_bytes or 0 for probe in last.probes)
    assert figures["tokens_per_second"] == last.training.tokens_per_second
    assert (found["verdict"], found["stages"]["H-2"]["verdict"]) == ("degraded", "PASS_DEGRADED")
    answered = record.stages[StageId.H3].last_attempt
    assert answered is not None
    assert answered.evaluation is not None
    assert found["stages"]["H-3"]["figures"]["accuracy"] == answered.evaluation.accuracy
    assert found["production"]["unpredicted_reason"]["id"] == "outlook.no_formula"
    assert Path(found["paths"]["report"]).read_text(encoding="utf-8").count(record.id)
    assert found["paths"]["record"] == str(tmp_path / "runs" / record.id)


def test_its_prediction_is_that_of_the_report(tmp_path: Path) -> None:
    """Peak, low, high and verdict as H-4 has them."""
    record = factory.green_acceptance()
    prediction = advise(record, production_outlook(record)).prediction
    assert prediction is not None
    assert told(record, tmp_path)["production"] == {
        "model": "Qwen/Qwen3-8B",
        "card": record.context.production.card,
        "ready": True,
        "predicted": prediction.model_dump(mode="json"),
        "unpredicted_reason": None,
    }


@pytest.mark.parametrize("language", ["ja", "en"])
def test_it_says_the_same_in_every_language_of_the_report(tmp_path: Path, language: str) -> None:
    """An explanation is English beside its id and values."""
    record = factory.green_acceptance()
    h1 = record.stages[StageId.H1].changed(explanation=say("verdict.seconds", seconds=61.0))
    with speaking("en" if language == "en" else "ja"):
        found = told(record.changed(stages={**record.stages, StageId.H1: h1}), tmp_path)
    assert found["stages"]["H-1"]["explanation"] == {
        "id": "verdict.seconds",
        "values": {"seconds": 61.0},
        "english": "61 s",
    }


def test_a_rehearsal_has_its_own(tmp_path: Path) -> None:
    """It never takes the place of an acceptance's."""
    before = told(factory.green_acceptance(), tmp_path)
    found = told(factory.rehearsal(), tmp_path, "summary-rehearsal.json")
    assert (found["kind"], found["verdict"], found["production"]["ready"]) == ("rehearsal", "passed", False)
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == before


def test_a_loss_that_is_no_number_leaves_json_that_every_reader_takes(tmp_path: Path) -> None:
    """NaN is no JSON: the figure is null."""
    record = factory.green_acceptance()
    h2 = record.stages[StageId.H2]
    assert h2.attempts[-1].training is not None
    spoilt = h2.attempts[-1].changed(training=h2.attempts[-1].training.changed(train_loss=math.nan))
    found = told(record.changed(stages={**record.stages, StageId.H2: h2.changed(attempts=(spoilt,))}), tmp_path)
    assert found["stages"]["H-2"]["figures"]["train_loss"] is None
    assert "NaN" not in (tmp_path / "summary.json").read_text(encoding="utf-8")


def test_what_can_not_be_predicted_costs_the_prediction_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the report, which says why in that part."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("steph.tell.machine_summary.blockers", broken)
    found = told(factory.green_acceptance(), tmp_path)
    assert found["verdict"] == "passed"
    assert found["production"]["predicted"] is None


def test_a_summary_that_can_not_be_written_is_said(tmp_path: Path) -> None:
    """The Markdown is there; the error goes to the caller, whose run then is not green."""
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(IsADirectoryError):
        told(factory.green_acceptance(), tmp_path)
    assert list(tmp_path.glob("*.md"))


def test_an_old_verdict_does_not_outlive_a_report_that_can_not_be_written(tmp_path: Path) -> None:
    """The report's place is a folder: the error goes on, and the summary is the newer run's."""
    assert told(factory.green_acceptance(), tmp_path)["verdict"] == "passed"
    (report,) = tmp_path.glob("*.md")
    report.unlink()
    report.mkdir()
    newer = factory.out_of_memory_everywhere()
    with pytest.raises(IsADirectoryError):
        tell(tmp_path / "runs", newer, with_figures=False)
    found = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert (found["record"], found["verdict"]) == (newer.id, "failed")


def test_an_old_summary_that_can_not_be_replaced_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: no summary rather than one of another run."""
    told(factory.green_acceptance(), tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("steph.tell.machine_summary.keep.renew", full)
    record = factory.crashed()
    with pytest.raises(OSError, match="No space"):
        write_summary(summary_of(record, None, report=tmp_path, folder=tmp_path), tmp_path)
    assert not (tmp_path / "summary.json").exists()


def test_no_text_of_it_holds_a_secret(tmp_path: Path) -> None:
    """A model that was named by an address with its password, whatever key it stands under."""
    record = factory.green_acceptance()
    h1 = record.stages[StageId.H1].changed(model=factory.model_choice("https://me:hf_Q7xQ7xQ7xQ7x@hub.example/m"))
    told(record.changed(stages={**record.stages, StageId.H1: h1}), tmp_path)
    written = (tmp_path / "summary.json").read_text(encoding="utf-8")
    assert "Q7x" not in written
    assert "https://***@hub.example/m" in written


def test_an_older_records_report_leaves_the_newest_runs_summary(tmp_path: Path) -> None:
    """`steph report OLD` writes its Markdown again; programs read on what the newest run of its kind came to."""
    older, newer = factory.out_of_memory_everywhere(), factory.green_acceptance("20261121-010000")
    session = newer.sessions[0].changed(started_at="2026-11-21T01:00:00+00:00")
    newer = newer.changed(sessions=(session,))
    for record in (older, newer, factory.rehearsal()):
        keep(tmp_path, record)
    assert told(newer, tmp_path)["record"] == newer.id
    tell(tmp_path / "runs", older, with_figures=False)
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["record"] == newer.id
    assert told(factory.rehearsal(), tmp_path, "summary-rehearsal.json")["record"] == factory.rehearsal().id
    joined = older.changed(sessions=(*older.sessions, session.changed(started_at="2026-11-22T01:00:00+00:00")))
    assert told(joined, tmp_path)["record"] == older.id
