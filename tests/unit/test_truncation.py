"""Trap 1 through the whole suite: lengths at which a training would lose its answers, counted before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted import TRAIN_FILE
from scripted_training import BASE, LADDER, LARGE, NO_BNB, OOM, OOM_LOADING, SMALL, ScriptedTraining
from steph.base.terms import Severity, StageId, Verdict
from steph.conduct import training
from steph.conduct.training import no_rung_keeps_the_answers, settings_at
from steph.contract.rows import TruncatedAnswers, row_lengths
from steph.record.values import Check, Diagnosis, ModelChoice, StageResult
from suite_runs import lengthen_rows, make_bench, make_model

H1, H2, H3 = StageId
ROWS = 40
HALF_BATCH = "[[ladder]]\nbatch_size = 1\ngradient_accumulation_steps = 4\n[[ladder]]\nuse_4bit = false"


def _model(folder: Path) -> ModelChoice:
    return SMALL.model_copy(update={"snapshot_path": str(make_model(folder / "model"))})


def _answers(result: StageResult) -> Check:
    return next(check for check in result.checks if check.id == "answers_kept")


def test_the_benchs_tokenizer_counts_as_the_rows_were_made(tmp_path: Path) -> None:
    """The planted model's tokenizer gives a row the length that these tests ask for, so that they can't pass idly."""
    bench = make_bench(tmp_path)
    lengthen_rows(bench.root, 450, longer=4)
    train_file, tokenizer = bench.root / TRAIN_FILE, tmp_path / "model" / "tokenizer.json"
    lost = {length: row_lengths(train_file, tokenizer, "right").truncated_at(length) for length in (600, 512, 450, 449)}
    assert [found.lost_rows for found in lost.values()] == [0, 4, 4, 40]
    assert lost[512].fitting_seq_length == 600


def test_rungs_that_would_lose_the_answers_are_skipped_and_give_their_change_back(tmp_path: Path) -> None:
    """An OOM at 512/b2 leads past 384 and 256, where every answer is cut off, to 512 with batch 1."""
    bench = make_bench(tmp_path, train="cuda_oom", until_batch=1)
    profile = bench.profile.read_text(encoding="utf-8").replace("[[ladder]]\nuse_4bit = false", HALF_BATCH)
    bench.profile.write_text(profile, encoding="utf-8")
    lengthen_rows(bench.root, 450, longer=4)
    status, output = bench.run()
    assert status == 0, output
    h2 = bench.record().stages[H2]
    assert [str(attempt.label) for attempt in h2.attempts] == ["512/b2/4bit", "512/b1/4bit"]
    assert [str(rung.label) for rung in h2.skipped_rungs] == ["384/b2/4bit", "256/b2/4bit"]
    assert all("40行中40行で答えが切り落とされる" in str(rung.reason) for rung in h2.skipped_rungs)
    assert h2.verdict is Verdict.PASS_DEGRADED
    assert tuple(map(str, h2.given_up)) == ("batch-size 2 → 1", "gradient-accumulation-steps 2 → 4")
    report = bench.report()
    for expected in ("試さなかった設定", "`384/b2/4bit`", "`256/b2/4bit`", "40行中40行", "batch-size 2 → 1"):
        assert expected in report


def test_a_length_that_loses_some_answers_is_trained_with_a_warning(tmp_path: Path) -> None:
    """At 512 tokens 9 of 40 rows lose their answer: PASS, with the count as a warning on the report's first screen."""
    bench = make_bench(tmp_path)
    lengthen_rows(bench.root, 300, longer=9)
    assert bench.run(H1, H2)[0] == 0
    h2 = bench.record().stages[H2]
    assert h2.verdict is Verdict.PASS
    check = _answers(h2)
    assert (check.holds, check.severity, check.trap) == (False, Severity.WARN, 1)
    assert "40 行のうち 9 行" in str(check.message)
    first_screen = bench.report().split("## タスクH-1")[0]
    assert "40 行のうち 9 行" in first_screen


def test_losing_half_of_the_answers_is_a_warning(tmp_path: Path) -> None:
    """Exactly half is still trained, and told."""
    bench = make_bench(tmp_path)
    lengthen_rows(bench.root, 300, longer=20)
    assert bench.run(H1, H2)[0] == 0
    assert _answers(bench.record().stages[H2]).severity is Severity.WARN


def test_more_than_half_of_the_answers_lost_is_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly half is still tried; one row more, and the rung is skipped, and with every rung like it H-2 fails."""
    model = _model(tmp_path)
    for longer, tried in ((20, ["512/b2/4bit"]), (21, [])):
        stage = ScriptedTraining(tmp_path / str(longer))
        lengthen_rows(stage.setup.root, 300, longer=longer)
        outcome = stage.walk(monkeypatch, model)
        assert (stage.tried, outcome.verdict) == (tried, Verdict.PASS if tried else Verdict.FAIL)
        assert len(stage.recorded.skipped_rungs) == (0 if tried else len(LADDER) + 1)


def test_where_every_rung_would_lose_most_answers_nothing_is_trained(tmp_path: Path) -> None:
    """All rows are longer than the longest rung: H-2 fails with one sentence, no attempt, every rung with its count."""
    bench = make_bench(tmp_path)
    lengthen_rows(bench.root, 600)
    status, output = bench.run()
    assert status == 1
    record = bench.record()
    h2 = record.stages[H2]
    assert (h2.verdict, h2.attempts) == (Verdict.FAIL, ())
    assert str(h2.explanation) in output
    assert "max-seq-length 512 で 40 行中 40 行" in str(h2.explanation)
    assert "全行の答えが残る長さは 600" in str(h2.explanation)
    assert (_answers(h2).holds, _answers(h2).severity) == (False, Severity.FAIL)
    assert [str(rung.label) for rung in h2.skipped_rungs] == [
        "512/b2/4bit",
        "384/b2/4bit",
        "256/b2/4bit",
        "512/b2/bf16",
    ]
    assert record.verdict_of(H3) is Verdict.BLOCKED
    assert not list(bench.reports.glob("runs/*/H-2-*"))
    assert str(h2.explanation) in bench.report()


def test_a_pipeline_that_keeps_the_answers_may_cut_its_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the description says that prompts are shortened instead, long rows are no finding."""
    stage = ScriptedTraining(tmp_path, truncation="keeps_answer")
    lengthen_rows(stage.setup.root, 600)
    outcome = stage.walk(monkeypatch, _model(tmp_path))
    assert (outcome.verdict, stage.tried, stage.recorded.skipped_rungs) == (Verdict.PASS, ["512/b2/4bit"], ())


def test_answers_are_counted_on_the_rows_that_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline without a step limit trains the first rows alone: all of those too long is a FAIL."""
    train = BASE.model_copy(update={"max_steps": 2})
    stage = ScriptedTraining(tmp_path, flags=(), train=train)
    lengthen_rows(stage.setup.root, 100, longer=8)
    outcome = stage.walk(monkeypatch, _model(tmp_path))
    assert (outcome.verdict, stage.tried) == (Verdict.FAIL, [])
    assert "8行中8行" in str(stage.recorded.skipped_rungs[0].reason)


@pytest.mark.parametrize(
    ("cause", "tried"),
    [
        (NO_BNB, ["512/b2/4bit", "512/b1/4bit", "512/b2/bf16", "512/b1/bf16"]),
        (OOM_LOADING, ["512/b2/4bit", "512/b1/4bit", "512/b2/4bit", "512/b1/4bit"]),
    ],
)
def test_a_new_walk_down_counts_the_answers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: Diagnosis, tried: list[str]
) -> None:
    """After 384 and 256 were skipped, going without 4-bit or to a smaller model begins with nothing skipped."""
    small = _model(tmp_path)
    monkeypatch.setattr(training, "smaller_model", lambda *arguments: small)
    stage = ScriptedTraining(tmp_path, [OOM, cause, OOM])
    lengthen_rows(stage.setup.root, 450)
    outcome = stage.walk(monkeypatch, LARGE.model_copy(update={"snapshot_path": small.snapshot_path}))
    assert stage.tried == tried
    assert outcome.verdict is Verdict.PASS_DEGRADED
    assert [str(rung.label)[:3] for rung in stage.recorded.skipped_rungs] == ["384", "256"] * 2


def test_what_is_not_trained_names_the_longest_rung_and_the_length_that_would_do() -> None:
    """Of all rungs that lose most answers the longest one's counts are told, whatever their order."""
    skipped = [
        (TruncatedAnswers(rows=40, lost_rows=lost, fitting_seq_length=600), settings)
        for lost, settings in ((30, settings_at(BASE, LADDER, 1)), (21, BASE), (40, settings_at(BASE, LADDER, 2)))
    ]
    outcome = no_rung_keeps_the_answers(skipped)
    assert outcome.verdict is Verdict.FAIL
    assert "max-seq-length 512 で 40 行中 21 行" in str(outcome.explanation)
    assert "全行の答えが残る長さは 600" in str(outcome.explanation)
    assert [(check.id, check.severity, check.holds) for check in outcome.checks] == [
        ("answers_kept", Severity.FAIL, False)
    ]
