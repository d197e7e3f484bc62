"""The `steph` command: what it prints, and its exit status where something is wrong."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import record_factory as factory
from steph.base.messages import language, say
from steph.base.terms import StageId
from steph.cli import app
from steph.conduct.session import tell
from steph.record.events import AttemptEnded, ModelChosen, SessionEnded, SessionStarted, StageEnded, StageStarted
from steph.record.values import Record
from steph.run.journal import Journal, opened_event, read_record
from typer.testing import CliRunner, Result

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.16 GiB. GPU 0 has a total capacity of 9.64 GiB"


def steph(*arguments: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, [str(word) for word in arguments])


def keep(reports: Path, record: Record) -> None:
    """Write a record's journal as a run would have."""
    journal = Journal(reports / "runs" / record.id)
    at = "2026-11-20T01:00:00.000+00:00"
    journal.append(opened_event(record.id, record.context))
    for session in record.sessions:
        shared = session.model_dump(include={"command", "stages", "report_name"})
        journal.append(SessionStarted(at=session.started_at, **shared))
    for result in record.stages.values():
        journal.append(StageStarted(at=result.started_at, stage=result.stage))
        if result.model:
            journal.append(ModelChosen(at=at, stage=result.stage, model=result.model))
        for attempt in result.attempts:
            journal.append(AttemptEnded(at=at, attempt=attempt))
        shared = result.model_dump(include={"stage", "verdict", "explanation", "checks", "given_up"})
        journal.append(StageEnded(at=at, seconds=result.seconds or 0.0, **shared))
    journal.append(SessionEnded(at=at, exit_status=0))
    journal.close()


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """Two records: a green one, and a later one that had to step down after an OOM."""
    keep(tmp_path, factory.green_acceptance())
    keep(tmp_path, factory.walked_down())
    return tmp_path


def test_diagnose_prints_cause_and_phase_or_json(tmp_path: Path) -> None:
    """A log's cause is printed for people, and with --json under the promised keys."""
    log = tmp_path / "train.log"
    log.write_text(f"Traceback (most recent call last):\n{OOM}\n", encoding="utf-8")
    shown = steph("diagnose", log, "--returncode", "1")
    assert shown.exit_code == 0
    assert shown.output.startswith("cause: cuda_oom\n")
    found = json.loads(steph("diagnose", log, "--json").output)
    assert {"cause", "case", "confidence", "phase", "evidence", "oom", "meaning", "advice"} <= set(found)
    assert found["oom"]["requested_bytes"] == 1_245_540_516


@pytest.mark.parametrize(
    ("words", "variable", "said"),
    [((), "", "問題なし"), (("--language", "en"), "ja", "No trouble found"), ((), "en", "No trouble found")],
)
def test_an_old_record_is_told_in_the_language_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], variable: str, said: str
) -> None:
    """By option or environment, and the next command of the process speaks as before."""
    monkeypatch.setenv("STEPH_LANGUAGE", variable)
    record = factory.green_acceptance()
    h1 = record.stages[StageId.H1].changed(explanation=say("verdict.clean"))
    keep(tmp_path, record.changed(stages={**record.stages, StageId.H1: h1}))
    ended = steph("report", "--reports", tmp_path, *words)
    assert ended.exit_code == 0
    assert said in Path(ended.output.strip()).read_text(encoding="utf-8")
    assert language() == "ja"


@pytest.mark.parametrize("command", ["report", "list", "compare"])
def test_a_language_that_nobody_speaks_is_one_line_and_status_2(tmp_path: Path, command: str) -> None:
    """With those that there are."""
    ended = steph(command, "--reports", tmp_path, "--language", "de")
    assert (ended.exit_code, ended.stderr) == (
        2,
        "steph: --language: 'de' という言語はない(not a language of the suite)。使える値(allowed): ja、en\n",
    )


def test_a_language_of_the_environment_that_nobody_speaks_is_refused_by_the_variables_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who never typed an option is not sent to look for one."""
    monkeypatch.setenv("STEPH_LANGUAGE", "de")
    said = "steph: STEPH_LANGUAGE: 'de' という言語はない(not a language of the suite)。使える値(allowed): ja、en\n"
    assert steph("list", "--reports", tmp_path).stderr == said


@pytest.mark.parametrize(
    "words",
    [
        ("--steph-language=en", "ROOT"),
        ("--steph-twin", "--steph-model", "some/name", "--language", "en", "ROOT"),
        ("ROOT", "--steph-vram-cap", "9GiB", "--steph-language", "en"),
    ],
)
def test_check_finds_its_folder_behind_any_option_of_a_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    """The option is no folder, nor is its value."""
    (tmp_path / "steph.toml").write_text("[train]\nnonsense = 1\n", encoding="utf-8")
    ended = steph("check", *(str(tmp_path) if word == "ROOT" else word for word in words))
    assert ended.exit_code == 2
    assert f"{tmp_path / 'steph.toml'}: train.nonsense" in "".join(capfd.readouterr()) + ended.output


def test_what_check_refuses_is_told_in_the_language_that_was_asked_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A folder without a pipeline: the refusal is raised while the language is in use, and printed in it."""
    for chosen, said in (("en", "missing script"), ("ja", "スクリプトがない")):
        ended = steph("check", tmp_path, "--language", chosen)
        assert ended.exit_code == 2
        assert said in ended.output + "".join(capfd.readouterr())


def test_the_help_of_fit_names_the_trainers_that_there_are() -> None:
    """All of them, so that none has to be guessed."""
    shown = " ".join(steph("fit", "--help").output.replace("│", " ").split())
    assert "memory: full, answer, reference, trl, liger, unsloth (default" in shown


def test_diagnose_takes_a_signal_and_standard_input() -> None:
    """An empty log of a process that signal 9 ended is not called a success."""
    ended = CliRunner().invoke(app, ["diagnose", "-", "--returncode", "-9", "--json"], input="loading\n")
    assert json.loads(ended.output)["cause"] not in ("none", None)


@pytest.mark.parametrize("path", ["missing.log", "."])
def test_diagnose_of_what_is_no_readable_file_is_one_line_and_status_2(tmp_path: Path, path: str) -> None:
    """A missing file or a folder is named in one line on stderr."""
    ended = steph("diagnose", tmp_path / path)
    assert ended.exit_code == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"steph: {tmp_path}")
    assert len(ended.stderr.splitlines()) == 1


def test_list_shows_every_record_newest_first(reports: Path) -> None:
    """One line for each record under a header; without records one sentence."""
    lines = steph("list", "--reports", reports).output.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["20261120-020000", "20261120-010000"]
    assert lines[1].endswith(" KiB")
    empty = steph("list", "--reports", reports / "none")
    assert (empty.exit_code, len(empty.output.splitlines())) == (0, 1)


def test_list_names_a_record_that_can_not_be_read(reports: Path) -> None:
    """A broken journal is a line on stderr and hides no other record."""
    broken = reports / "runs" / "20261121-000000"
    broken.mkdir()
    (broken / "events.jsonl").write_text("garbage\n", encoding="ascii")
    shown = steph("list", "--reports", reports)
    assert shown.exit_code == 0
    assert len(shown.stdout.splitlines()) == 4
    assert "20261121-000000" in shown.stderr


def test_a_report_that_can_not_be_written_is_one_line_and_status_2(reports: Path) -> None:
    """A folder in the report's place is named, without a traceback."""
    (reports / "StepH_結果まとめ.md").mkdir()
    ended = steph("report", "--reports", reports)
    assert ended.exit_code == 2
    assert "StepH_結果まとめ.md" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_report_that_was_named_is_written_again_under_its_name(tmp_path: Path) -> None:
    """`--steph-report out/my.md`: the notes in it stay, also where the folder has moved, and no second file appears."""
    record = factory.green_acceptance()
    named = record.sessions[0].model_copy(update={"report_name": "my.md"})
    keep(tmp_path / "out", record.model_copy(update={"sessions": (named,)}))
    told = tell(tmp_path / "out" / "runs", read_record(tmp_path / "out" / "runs" / record.id))
    (tmp_path / "out").rename(tmp_path / "moved")
    mine = tmp_path / "moved" / told.name
    mine.write_text(f"{mine.read_text(encoding='utf-8')}\nmy note\n", encoding="utf-8")
    result = steph("report", "--reports", tmp_path / "moved")
    assert (result.exit_code, result.output.strip()) == (0, str(mine))
    assert "my note" in mine.read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "moved").glob("*.md")] == ["my.md"]


def test_compare_holds_the_newest_against_the_one_before_and_exits_1_where_it_is_worse(reports: Path) -> None:
    """Stepping down after a PASS is a regression by default; the other way round there is none in the verdicts."""
    worse = steph("compare", "--reports", reports)
    assert worse.exit_code == 1
    assert "悪化" in worse.output
    better = steph("compare", "20261120-020000", "20261120-010000", "--threshold", "100", "--reports", reports)
    assert better.exit_code == 0, better.output
    assert "悪化なし" in better.output


def test_compare_takes_the_newest_with_its_predecessor_of_the_same_kind(reports: Path) -> None:
    """A rehearsal in between is never held against an acceptance unless it is named."""
    keep(reports, factory.rehearsal("20261120-015000"))
    header = steph("compare", "--reports", reports).output.splitlines()[0]
    assert header.split() == ["20261120-010000", "20261120-020000", "変化"]
    named = steph("compare", "20261120-015000", "--reports", reports)
    assert "種別" in named.output


def test_compare_takes_folders_from_anywhere(reports: Path, tmp_path: Path) -> None:
    """A record's folder that was copied from another machine can be named by its path."""
    elsewhere = tmp_path / "other machine"
    keep(elsewhere, factory.green_acceptance("20261119-010000"))
    shown = steph("compare", elsewhere / "runs" / "20261119-010000", "20261120-010000", "--reports", reports)
    assert shown.exit_code == 0, shown.output
    assert "20261119-010000" in shown.output


def test_compare_prints_markdown(reports: Path) -> None:
    """With --markdown the comparison is a page with a table."""
    shown = steph("compare", "20261120-010000", "--markdown", "--reports", reports).output
    assert shown.startswith("# StepH 比較")
    assert "| 項目 |" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("compare", "20261120-020000"), "can't be compared with itself"),
        (("compare", "elsewhere"), "elsewhere: no record of this name"),
        (("compare", "20261120-010000", "elsewhere"), "elsewhere: no record of this name"),
        (("report", "elsewhere"), "elsewhere: no record of this name"),
    ],
)
def test_a_record_that_can_not_be_used_is_named_with_status_2(
    reports: Path, arguments: tuple[str, ...], said: str
) -> None:
    """Unknown records, and one held against itself, end with one line and exit status 2."""
    ended = steph(*arguments, "--reports", reports, "--language", "en")
    assert ended.exit_code == 2
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_comparing_without_two_records_is_status_2(tmp_path: Path) -> None:
    """No record, or a single one, is said in one line."""
    assert "no records yet" in steph("compare", "--reports", tmp_path, "--language", "en").stderr
    keep(tmp_path, factory.green_acceptance())
    ended = steph("compare", "--reports", tmp_path, "--language", "en")
    assert ended.exit_code == 2
    assert "no acceptance before 20261120-010000" in ended.stderr


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_the_version_is_that_of_the_package(word: str) -> None:
    """One line with name and version, as in the installed package's metadata."""
    said = steph(word)
    assert (said.exit_code, said.output) == (0, f"steph {version('steph')}\n")
