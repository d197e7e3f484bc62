"""A record that is damaged, or deleted while it is written, is said to be so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import record_factory as factory
from steph.base.terms import StageId
from steph.cli import app
from steph.record.events import SessionEnded
from steph.run.journal import Journal, JournalError, now, opened_event, readable_records, record_folders
from suite_runs import make_bench
from test_faults import before_training
from typer.testing import CliRunner

NAME = "20260101-000000-abcd"


def _damaged(runs: Path, content: bytes | None) -> Path:
    folder = runs / NAME
    (folder / "H-1-1").mkdir(parents=True)
    if content is not None:
        (folder / "events.jsonl").write_bytes(content)
    return folder


@pytest.mark.parametrize("content", [None, b"", b"garbage\n"], ids=["missing", "empty", "garbage"])
def test_a_record_that_tells_nothing_is_listed_as_damaged(tmp_path: Path, content: bytes | None) -> None:
    """`steph list` has a row for it, and asking for it by name or as the newest says what is wrong with it."""
    _damaged(tmp_path / "runs", content)
    (tmp_path / "runs" / "notes").mkdir()
    listed = CliRunner().invoke(app, ["list", "--reports", str(tmp_path)])
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()][-1] == NAME
    assert "壊れている" in listed.stdout
    assert "まだありません" not in listed.stdout
    for words in ([NAME], [], [str(tmp_path / "runs" / NAME)]):
        reported = CliRunner().invoke(app, ["report", *words, "--reports", str(tmp_path)])
        assert reported.exit_code == 2
        assert f"{NAME}/events.jsonl" in reported.stderr
        assert "no record" not in reported.stderr
    assert readable_records(tmp_path / "runs") == []
    assert [folder.name for folder in record_folders(tmp_path / "runs")] == [NAME]


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_a_record_that_goes_away_takes_no_event_in_silence(tmp_path: Path, how: str) -> None:
    """Each event is written to the file that is at the record's path, or refused in one line."""
    journal = Journal(tmp_path / "record")
    journal.append(opened_event("r", factory.context()))
    if how == "moved":
        (tmp_path / "record").rename(tmp_path / "elsewhere")
    else:
        shutil.rmtree(tmp_path / "record")
    if how == "replaced":
        (tmp_path / "record").mkdir()
        (tmp_path / "record" / "events.jsonl").write_text("")
    with pytest.raises(JournalError, match=r"record: 実行中にこの記録が削除されたか移動された"):
        journal.append(SessionEnded(at=now(), exit_status=0))
    journal.close()


def test_a_run_whose_record_is_deleted_says_so_and_is_red(tmp_path: Path) -> None:
    """The training deletes the record: the stage says it, nothing is green, and no traceback is shown."""
    bench = make_bench(tmp_path)
    before_training(bench, f"import shutil; shutil.rmtree({str(bench.reports / 'runs')!r})")
    status, output = bench.run(StageId.H1, StageId.H2, StageId.H3)
    assert status == 1, output
    assert "実行中にこの記録が削除されたか移動された。すべてのステージを実行し直す" in output
    assert "(実行中に削除された)" in output or "Traceback" not in output
    assert "Traceback" not in output
    assert "make room" not in output
