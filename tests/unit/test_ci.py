"""A run as a CI server sees it: selections, JUnit properties, the job's summary page, the last lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
import record_factory
from record_factory import render
from steph.base.terms import StageId, Verdict
from steph.conduct.session import append_step_summary, stage_properties
from steph.run.journal import record_folders
from suite_runs import Bench, make_bench, run_pytest

H1, H2, H3 = StageId


def run(bench: Bench, *options: str, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run the page with these options, with pytest's cache beside the bench; gives exit status and output."""
    words = [word for word in bench.arguments() if word not in ("-p", "no:cacheprovider", "no:hypothesispytest")]
    return run_pytest("-o", f"cache_dir={bench.folder / 'cache'}", words, options, **(environment or {}))


def verdicts(bench: Bench) -> list[Verdict]:
    """The newest record's verdicts, H-1 first."""
    record = bench.record()
    return [record.verdict_of(stage) for stage in StageId]


def records(bench: Bench) -> int:
    """How many records there are."""
    return len(record_folders(bench.reports / "runs"))


def properties(junit: Path) -> list[dict[str, str]]:
    """The properties of each test in a JUnit file."""
    cases = ElementTree.parse(junit).iter("testcase")  # noqa: S314 - pytest wrote it
    return [{p.attrib["name"]: p.attrib["value"] for p in case.iter("property")} for case in cases]


@dataclass(frozen=True)
class Red:
    """A run whose H-2 ran out of memory on every rung: its output and its JUnit file."""

    output: str
    junit: Path


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> Red:
    """One such run for all who only read of it."""
    bench = make_bench(tmp_path_factory.mktemp("red"), train="cuda_oom")
    junit = bench.folder / "junit.xml"
    status, output = run(bench, f"--junitxml={junit}")
    assert status == 1, output
    return Red(output, junit)


def test_a_stages_facts_are_in_the_junit_file_also_where_it_fails(red: Red) -> None:
    """Each test has its stage's verdict, cause, seconds, attempts and the report's path, green or not."""
    h1, h2, h3 = properties(red.junit)
    assert (h1["steph_verdict"], h2["steph_verdict"], h3["steph_verdict"]) == ("PASS", "FAIL", "BLOCKED")
    assert (h2["steph_cause"], h2["steph_attempts"]) == ("cuda_oom", "4")
    assert float(h2["steph_seconds"]) > 0
    assert Path(h2["steph_report"]).is_file()


def test_peaks_are_plain_bytes_and_what_is_not_known_is_no_property() -> None:
    """A measured peak is a whole number of bytes; H-1, which runs no child, has neither peak nor cause."""
    record = record_factory.walked_down()
    h2 = dict(stage_properties(record.stages[H2], Path("r.md")))
    assert int(h2["steph_peak_vram_bytes"]) > 2**30
    assert set(dict(stage_properties(record.stages[H1], None))) == {
        "steph_stage",
        "steph_verdict",
        "steph_seconds",
        "steph_attempts",
    }


def test_the_jobs_page_gets_the_reports_sections_below_what_is_there(tmp_path: Path) -> None:
    """With GITHUB_STEP_SUMMARY set the first screen and the tables are appended, and nothing that was there is lost."""
    bench = make_bench(tmp_path / "bench")
    page = tmp_path / "page.md"
    page.write_text("before\n", encoding="utf-8")
    status, output = run(bench, environment={"GITHUB_STEP_SUMMARY": str(page)})
    assert status == 0, output
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    for expected in ("予行・受入ではない", "| H-2 学習 |", "## タスクH-3", "実行履歴"):
        assert expected in text
    assert "![" not in text


def test_a_page_that_cannot_be_written_fails_nothing(tmp_path: Path) -> None:
    """The one stage that -k selects is green, exit status 0, and one line says what was not written."""
    bench = make_bench(tmp_path)
    status, output = run(bench, "-k", "h1", environment={"GITHUB_STEP_SUMMARY": str(tmp_path / "missing" / "page.md")})
    assert status == 0, output
    assert "GITHUB_STEP_SUMMARY を書けなかった" in output
    assert verdicts(bench) == [Verdict.PASS, Verdict.NOT_RUN, Verdict.NOT_RUN]


def test_the_jobs_page_names_no_home_folder(tmp_path: Path) -> None:
    """It is read by whoever may see the job; the report's own file keeps its paths, to be pasted."""
    page = tmp_path / "page.md"
    record = record_factory.green_acceptance()
    assert "/home/user/" in render(record)
    append_step_summary(record, page)
    shown = page.read_text(encoding="utf-8")
    assert "/home/" not in shown
    assert "~/statutes-rags" in shown


@pytest.mark.parametrize("option", ["--co", "--setup-only"])
def test_looking_at_the_tests_opens_no_record(tmp_path: Path, option: str) -> None:
    """Collecting and showing what would be set up write nothing and run no stage."""
    bench = make_bench(tmp_path)
    status, output = run(bench, option)
    assert not bench.reports.exists(), output
    assert status == 0 or option == "--setup-only", output


@pytest.mark.parametrize("text", ["[machine\n", "[train]\nmax_steps = -1\n", None])
def test_collecting_names_a_profile_that_cannot_be_used(tmp_path: Path, text: str | None) -> None:
    """`--co` ends with 4 and the profile's line, as the run itself would, and opens no record."""
    bench = make_bench(tmp_path)
    bench.profile.unlink() if text is None else bench.profile.write_text(text, encoding="utf-8")
    status, output = run(bench, "--co")
    assert status == 4, output
    assert str(bench.profile) in output
    assert not bench.reports.exists()


def test_without_a_terminal_reporter_the_stages_run_as_ever(tmp_path: Path) -> None:
    """`-p no:terminal` is silent, not an error: record and report are written."""
    bench = make_bench(tmp_path)
    status, output = run(bench, "-p", "no:terminal")
    assert status == 0, output
    assert verdicts(bench) == [Verdict.PASS] * 3
    assert "H-2" in bench.report()


def test_stopping_at_the_first_failure_leaves_the_rest_as_not_run(tmp_path: Path) -> None:
    """Under -x H-3 is not started after a failing H-2: the record has no result of it, and the report says so."""
    bench = make_bench(tmp_path, train="adapter_nan")
    assert run(bench, "-x")[0] == 1
    assert verdicts(bench) == [Verdict.PASS, Verdict.FAIL, Verdict.NOT_RUN]
    assert "H-3(HF 評価)は実行していません" in bench.report()


def test_last_failed_runs_the_red_stages_again_into_the_same_record(tmp_path: Path) -> None:
    """After a fix --lf selects H-2 and what it blocked; with H-1's kept result the record is green."""
    bench = make_bench(tmp_path, train="adapter_nan")
    assert run(bench)[0] == 1
    bench.plant()
    status, output = run(bench, "--lf")
    assert status == 0, output
    assert verdicts(bench) == [Verdict.PASS] * 3
    assert records(bench) == 1
    assert bench.record().sessions[-1].stages == (H2, H3)


def test_a_name_that_selects_nothing_opens_no_record(tmp_path: Path) -> None:
    """-k without a match is pytest's exit status 5, and nothing is written."""
    bench = make_bench(tmp_path)
    assert run(bench, "-k", "nothing_is_called_so")[0] == 5
    assert not bench.reports.exists()


def test_parallel_workers_refuse_the_stages_and_write_nothing(tmp_path: Path) -> None:
    """Under xdist every stage fails with the reason and what to do, and no record or report appears."""
    bench = make_bench(tmp_path)
    status, output = run(bench, "-n", "1", "--dist", "loadfile")
    assert status == 1
    assert output.count("-n を付けずに実行する") >= 3
    assert not bench.reports.exists()


def test_the_last_lines_are_ten_at_most_and_name_the_report(red: Red) -> None:
    """The section StepH has one line a stage, whatever a stage has to say, then the report's and the record's path."""
    lines = red.output.splitlines()
    start = next(at for at, line in enumerate(lines) if line.strip("= ") == "StepH")
    end = next(at for at, line in enumerate(lines) if line.startswith("記録: "))
    assert end - start < 10
    assert any(line.startswith("レポート: ") and line.endswith("StepH_予行.md") for line in lines[start:end])
    assert all(len(line) <= 160 for line in lines[start:end] if not line.startswith("レポート: "))
