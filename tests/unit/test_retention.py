"""What runs leave on the disk is bounded: old logs go, records and people's files stay."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import record_factory as factory
from steph.base.terms import StageId
from steph.conduct.preparation import Console, Setup
from steph.conduct.session import JoinError, StageSession
from steph.contract.description import Description
from steph.contract.options import Options
from steph.contract.settings import load_profile, profile_path
from steph.run.journal import LOGS_KEPT, Journal, folder_bytes, opened_event, prune_logs, read_record
from steph.run.runner import NAME

LOGS = {"output.log", "output.tail-000008388608.log", "stdout.log", "stdout.times", "supervisor.log"}
KEPT = {NAME, "exit.json", "probe-none-1.json"}


def attempt(record: Path, name: str, written_at: float) -> Path:
    """Make the folder of an attempt with all that a child leaves, its log written at a moment."""
    folder = record / name
    (folder / "before").mkdir(parents=True)
    for file in LOGS | KEPT | {"before/output.log"}:
        (folder / file).write_text("x" * 100, encoding="ascii")
    os.utime(folder / "output.log", (written_at, written_at))
    return folder


def record(runs: Path, record_id: str) -> Journal:
    """Open a record's journal, as a run does."""
    journal = Journal(runs / record_id)
    journal.append(opened_event(record_id, factory.rehearsal().context))
    return journal


def names(folder: Path) -> set[str]:
    """The names of an attempt's own files."""
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_old_attempts_lose_their_logs_and_nothing_else(tmp_path: Path) -> None:
    """Of four attempts in two records the two newest keep their logs; records and set-aside files are there."""
    for record_id in ("20261120-010000", "20261121-010000"):
        record(tmp_path, record_id).close()
    first, second = tmp_path / "20261120-010000", tmp_path / "20261121-010000"
    folders = [attempt(first, "H-2-1", 10), attempt(first, "H-3-1", 20), attempt(second, "H-2-1", 30)]
    newest = attempt(first, "H-2-2", 40)  # a stage run again in the older record
    prune_logs(tmp_path, kept=2)
    assert [names(folder) for folder in folders] == [KEPT, KEPT, KEPT | LOGS]
    assert names(newest) == KEPT | LOGS
    assert all((folder / "before" / "output.log").is_file() for folder in (*folders, newest))
    assert read_record(first).id == "20261120-010000"
    prune_logs(tmp_path, kept=2)
    assert names(newest) == KEPT | LOGS


def test_a_record_that_is_being_written_keeps_its_logs(tmp_path: Path) -> None:
    """The logs of another run in progress are not touched."""
    journal = record(tmp_path, "20261120-010000")
    folder = attempt(journal.folder, "H-2-1", 10)
    prune_logs(tmp_path, kept=0)
    assert names(folder) == KEPT | LOGS
    journal.close()
    prune_logs(tmp_path, kept=0)
    assert names(folder) == KEPT


def test_links_and_missing_folders_do_no_harm(tmp_path: Path) -> None:
    """A log that is a link is taken away without what it leads to; without records there is nothing to do."""
    prune_logs(tmp_path / "none")
    record(tmp_path, "20261120-010000").close()
    folder = attempt(tmp_path / "20261120-010000", "H-2-1", 10)
    precious = tmp_path / "precious.log"
    precious.write_text("mine", encoding="ascii")
    (folder / "stdout.log").unlink()
    (folder / "stdout.log").symlink_to(precious)
    prune_logs(tmp_path, kept=0)
    assert precious.read_text(encoding="ascii") == "mine"
    assert names(folder) == KEPT


@pytest.mark.parametrize("size", [0, 5000])
def test_a_records_size_is_that_of_its_files(tmp_path: Path, size: int) -> None:
    """Folders and links count nothing."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x" * size)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "a" / "b" / "file")
    assert folder_bytes(tmp_path / "a") == size


def test_every_run_begins_by_pruning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a session opens its record, the logs beyond the newest sixty attempts are gone."""
    record(tmp_path / "runs", "20261120-010000").close()
    folders = [attempt(tmp_path / "runs" / "20261120-010000", f"H-2-{n}", n) for n in range(1, LOGS_KEPT + 2)]

    def refuse(*_: object) -> Journal:
        raise JoinError("enough seen")

    monkeypatch.setattr("steph.conduct.session.open_journal", refuse)
    options = Options("rtx3080", tmp_path, None, None, False, None, tmp_path)
    profile = load_profile(profile_path("rtx3080", Path(__file__).parents[2]))
    context = factory.rehearsal().context
    setup = Setup(options, profile, Description(), "python", None, factory.rehearsal().data[0], context)
    with pytest.raises(JoinError, match="enough seen"):
        StageSession(setup, (StageId.H1,), ("pytest",), Console(lambda _: None, False))
    assert [names(folder) & LOGS == LOGS for folder in folders] == [False] + [True] * LOGS_KEPT
