"""A session from its opening to its end, without a stage."""

from __future__ import annotations

from pathlib import Path

from planted import plant
from steph.base.terms import StageId
from steph.conduct.preparation import Console, prepare
from steph.conduct.session import StageSession, tell
from steph.contract.options import Options
from steph.contract.settings import load_profile, profile_path
from steph.run.journal import read_record

CLONE = Path(__file__).parents[2]


def test_the_name_of_the_report_is_on_record(tmp_path: Path) -> None:
    """Whoever tells the record later writes to the file that `--steph-report` named."""
    options = Options("cpu", plant(tmp_path / "root"), None, None, False, None, tmp_path / "out" / "my.md")
    setup = prepare(options, load_profile(profile_path("cpu", CLONE)), [StageId.H1])
    session = StageSession(setup, (StageId.H1,), ("pytest",), Console(lambda _: None, False))
    session.finish(0)
    assert session.report == tmp_path / "out" / "my.md"
    folder = session.journal.folder
    session.report.unlink()
    assert tell(folder.parent, read_record(folder)) == tmp_path / "out" / "my.md"
