"""A session from its opening to its end, without a stage."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from planted import plant
from steph.base.terms import StageId
from steph.conduct import session as sessions
from steph.conduct.preparation import Console, prepare
from steph.conduct.session import StageSession, tell
from steph.contract.options import Options
from steph.contract.settings import load_profile, profile_path
from steph.run.journal import read_record

CLONE = Path(__file__).parents[2]


def _session(tmp_path: Path) -> StageSession:
    options = Options("cpu", plant(tmp_path / "root"), None, None, False, None, tmp_path / "out" / "my.md")
    setup = prepare(options, load_profile(profile_path("cpu", CLONE)), [StageId.H1])
    return StageSession(setup, (StageId.H1,), ("pytest",), Console(lambda _: None, False))


def test_the_name_of_the_report_is_on_record(tmp_path: Path) -> None:
    """Whoever tells the record later writes to the file that `--steph-report` named."""
    session = _session(tmp_path)
    session.finish(0)
    assert session.report == tmp_path / "out" / "my.md"
    folder = session.journal.folder
    session.report.unlink()
    assert tell(folder.parent, read_record(folder)) == tmp_path / "out" / "my.md"


def test_a_report_that_never_ends_beside_a_stage_holds_up_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C may leave a module locked for every thread but the main one, which writes the last report itself."""
    told_by: list[str] = []

    def stuck(*given: object, **named: object) -> Path:
        told_by.append(threading.current_thread().name)
        if threading.current_thread() is not threading.main_thread():
            threading.Event().wait()
        return tell(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(sessions, "tell", stuck)
    monkeypatch.setattr(sessions, "REPORT_SECONDS", 0.1)
    session = _session(tmp_path)
    session.run(StageId.H1, 0.0)
    session.finish(0)
    assert told_by == ["report", "MainThread"]
    assert session.report is not None
    assert session.report.is_file()
