"""Trap 1 through the whole suite: lengths at which a training would lose its answers, counted before it starts."""

from __future__ import annotations

import json
from pathlib import Path

from planted import TRAIN_FILE
from steph.plan.answers import count_lost_answers
from steph.record import Check, Severity, StageId, StageResult, Verdict
from suite_runs import Bench, make_bench

H1, H2, H3 = StageId
ROWS = 40
HALF_BATCH = "[[ladder]]\nbatch_size = 1\ngradient_accumulation_steps = 4\n[[ladder]]\nuse_4bit = false"


def make_rows_long(bench: Bench, tokens: int, *, longer: int = 0) -> None:
    """Pad every row's input to `tokens` tokens with its answer at the end, `longer` rows of them to 600."""
    path = bench.root / TRAIN_FILE
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == ROWS
    for number, row in enumerate(rows):
        wanted = 600 if number < longer else tokens
        row["input"] = " ".join(["語"] * (wanted - 2))  # a line break and the answer's one letter follow
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _answers(result: StageResult) -> Check:
    return next(check for check in result.checks if check.id == "answers_kept")


def test_the_benchs_tokenizer_counts_as_the_rows_were_made(tmp_path: Path) -> None:
    """The planted model's tokenizer gives a row the length that these tests ask for, so that they can't pass idly."""
    bench = make_bench(tmp_path)
    make_rows_long(bench, 450, longer=4)
    train_file, tokenizer = bench.root / TRAIN_FILE, tmp_path / "model" / "tokenizer.json"
    lost = {length: count_lost_answers(train_file, tokenizer, length, "right") for length in (600, 512, 450, 449)}
    assert [found.lost_rows for found in lost.values()] == [0, 4, 4, 40]
    assert lost[512].longest_tokens == 600


def test_rungs_that_would_lose_the_answers_are_skipped_and_give_their_change_back(tmp_path: Path) -> None:
    """An OOM at 512/b2 leads past 384 and 256, where every answer is cut off, to 512 with batch 1."""
    bench = make_bench(tmp_path, train="cuda_oom", until_batch=1)
    profile = bench.profile.read_text(encoding="utf-8").replace("[[ladder]]\nuse_4bit = false", HALF_BATCH)
    bench.profile.write_text(profile, encoding="utf-8")
    make_rows_long(bench, 450, longer=4)
    status, output = bench.run()
    assert status == 0, output
    h2 = bench.record().stages[H2]
    assert [attempt.label for attempt in h2.attempts] == ["512/b2/4bit", "512/b1/4bit"]
    assert [rung.label for rung in h2.skipped_rungs] == ["384/b2/4bit", "256/b2/4bit"]
    assert all("40行中40行で答えが切り落とされる" in rung.reason for rung in h2.skipped_rungs)
    assert h2.verdict is Verdict.PASS_DEGRADED
    assert h2.given_up == ("batch-size 2 → 1", "gradient-accumulation-steps 2 → 4")
    report = bench.report()
    for expected in ("試さなかった設定", "`384/b2/4bit`", "`256/b2/4bit`", "40行中40行", "batch-size 2 → 1"):
        assert expected in report


def test_a_length_that_loses_some_answers_is_trained_with_a_warning(tmp_path: Path) -> None:
    """At 512 tokens 9 of 40 rows lose their answer: PASS, with the count as a warning on the report's first screen."""
    bench = make_bench(tmp_path)
    make_rows_long(bench, 300, longer=9)
    assert bench.run(H1, H2)[0] == 0
    h2 = bench.record().stages[H2]
    assert h2.verdict is Verdict.PASS
    check = _answers(h2)
    assert (check.holds, check.severity, check.trap) == (False, Severity.WARN, 1)
    assert "40 行のうち 9 行" in check.message
    first_screen = bench.report().split("## タスクH-1")[0]
    assert "40 行のうち 9 行" in first_screen


def test_losing_half_of_the_answers_is_a_warning_and_one_row_more_is_meaningless(tmp_path: Path) -> None:
    """Exactly half is still trained; above half the rung is skipped, and with every rung like it H-2 fails untried."""
    bench = make_bench(tmp_path)
    make_rows_long(bench, 300, longer=20)
    assert bench.run(H1, H2)[0] == 0
    assert _answers(bench.record().stages[H2]).severity is Severity.WARN
    make_rows_long(bench, 300, longer=21)
    assert bench.run(H1, H2)[0] == 1
    assert bench.record().stages[H2].attempts == ()


def test_where_every_rung_would_lose_most_answers_nothing_is_trained(tmp_path: Path) -> None:
    """All rows are longer than the longest rung: H-2 fails with one sentence, no attempt, every rung with its count."""
    bench = make_bench(tmp_path)
    make_rows_long(bench, 600)
    status, output = bench.run()
    assert status == 1
    record = bench.record()
    h2 = record.stages[H2]
    assert (h2.verdict, h2.attempts) == (Verdict.FAIL, ())
    assert h2.explanation in output
    assert "max-seq-length 512 で 40 行中 40 行" in h2.explanation
    assert "全行の答えが残る長さは 600" in h2.explanation
    assert (_answers(h2).holds, _answers(h2).severity) == (False, Severity.FAIL)
    assert [rung.label for rung in h2.skipped_rungs] == ["512/b2/4bit", "384/b2/4bit", "256/b2/4bit", "512/b2/bf16"]
    assert record.verdict_of(H3) is Verdict.BLOCKED
    assert not list(bench.reports.glob("runs/*/H-2-*"))
    assert h2.explanation in bench.report()


def test_a_pipeline_that_keeps_the_answers_may_cut_its_prompts(tmp_path: Path) -> None:
    """Where the description says that prompts are shortened instead, long rows are no finding."""
    bench = make_bench(tmp_path)
    (bench.root / "steph.toml").write_text('truncation = "keeps_answer"\n', encoding="utf-8")
    make_rows_long(bench, 600)
    assert bench.run(H1, H2)[0] == 0
    h2 = bench.record().stages[H2]
    assert _answers(h2).holds is True
    assert h2.skipped_rungs == ()
