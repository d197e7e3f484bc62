"""The report's file is replaced whole or not at all, by one writer at a time, also where writers are killed."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from steph.tell import keep
from steph.tell.keep import Part, blocks_in, merge

REPOSITORY = Path(__file__).parents[2]
NOTE = "大事なメモ \udcff\r\n".encode("utf-8", "surrogateescape") * 3
WRITER = """
import sys
from pathlib import Path
from steph.tell import keep
from steph.tell.keep import Part, merge

path, name, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for number in range(rounds):
    parts = tuple(Part(id, f"# {id} {name} {number}\\n" + "line\\n" * 2_000) for id in ("summary", "h1", name))
    keep.renew(path, lambda existing: merge(existing, parts))
    print(number, flush=True)
"""


def writer(path: Path, name: str, rounds: int) -> subprocess.Popen[str]:
    """Start a process that renews three large parts again and again."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(rounds)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "plugins")},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def noted(tmp_path: Path) -> Iterator[Path]:
    """A report with a person's words above, between and below its parts, which must all be there at the end."""
    first = merge(NOTE + "\n上\n".encode(), (Part("summary", "a\n"),)) + "\n間\n".encode() + NOTE
    path = tmp_path / "r.md"
    path.write_bytes(merge(first, (Part("h1", "b\n"),)) + "\n下\n".encode() + NOTE)
    yield path
    content = path.read_bytes()
    assert content.startswith(NOTE + "\n上\n".encode())
    assert content.count(NOTE) == 3
    assert [block.id for block in blocks_in(content)][:2] == ["summary", "h1"]
    assert not any(block.is_edited for block in blocks_in(content))


def test_two_writers_at_a_time_lose_nothing(noted: Path) -> None:
    """Two processes that renew the file at once leave each part once, whole, and every word of a person."""
    both = [writer(noted, name, 15) for name in ("one", "two")]
    assert [process.wait() for process in both] == [0, 0]
    assert sorted(block.id for block in blocks_in(noted.read_bytes())) == ["h1", "one", "summary", "two"]
    assert [path.name for path in noted.parent.iterdir()] == ["r.md"]


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(noted: Path) -> None:
    """After SIGKILL in the middle of writing, parts and notes are whole, and the next write tidies up."""
    chance = random.Random(7)  # noqa: S311 - moments, no secrets
    for _ in range(8):
        process = writer(noted, "one", 10_000)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not any(block.is_edited for block in blocks_in(noted.read_bytes()))
        assert noted.read_bytes().count(NOTE) == 3
    keep.renew(noted, lambda existing: merge(existing, (Part("summary", "end\n"),)))
    assert [path.name for path in noted.parent.iterdir()] == ["r.md"]


def test_what_an_editor_saves_meanwhile_is_read_again(tmp_path: Path) -> None:
    """A file that changed while its new text was made is made again from what it holds now."""
    path = tmp_path / "r.md"
    path.write_bytes(b"old\n")
    saves = iter([b"saved\n"])

    def renewed(existing: bytes | None) -> bytes:
        for content in saves:
            path.write_bytes(content)
        return (existing or b"") + b"made\n"

    keep.renew(path, renewed)
    assert path.read_bytes() == b"saved\nmade\n"


def test_a_file_that_never_rests_is_left_alone(tmp_path: Path) -> None:
    """Where something else keeps writing, the writer gives up with an error and touches nothing."""
    path = tmp_path / "r.md"

    def renewed(existing: bytes | None) -> bytes:
        path.write_bytes((existing or b"") + b"x")
        return b"made"

    with pytest.raises(OSError, match="変わり続けている"):
        keep.renew(path, renewed)
    assert set(path.read_bytes()) == set(b"x")


def test_mode_owner_and_link_stay(tmp_path: Path) -> None:
    """The file behind a link is replaced, keeps its mode, and is written only where something changed."""
    real, link = tmp_path / "real.md", tmp_path / "link.md"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    if os.geteuid() == 0:
        os.chown(real, 12345, 12345)
    owner = (real.stat().st_uid, real.stat().st_gid)
    assert keep.renew(link, lambda _: b"new") == real
    assert (link.is_symlink(), real.read_bytes(), real.stat().st_mode & 0o777) == (True, b"new", 0o640)
    assert (real.stat().st_uid, real.stat().st_gid) == owner
    before = real.stat().st_ino
    keep.renew(real, lambda existing: existing or b"")
    assert real.stat().st_ino == before


def test_another_reports_unfinished_file_is_not_cleared_away(tmp_path: Path) -> None:
    """Only hidden `.part` files of the same report go; what people or other reports have there stays."""
    kept = [".other.md.abc.part", "r.md.part", ".r.md.backup"]
    for name in (*kept, ".r.md.dead.part"):
        (tmp_path / name).write_bytes(b"")
    keep.renew(tmp_path / "r.md", lambda _: b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "r.md"])


def test_a_writer_that_stands_still_holds_nobody_up_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another process keeps the folder's lock, the file is written all the same, and nothing cleared away."""
    monkeypatch.setattr(keep, "LOCK_SECONDS", 0.1)
    (tmp_path / ".r.md.theirs.part").write_bytes(b"")
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    keep.renew(tmp_path / "r.md", lambda _: b"new")
    os.close(other)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".r.md.theirs.part", "r.md"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_new_report_is_for_whom_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    """A new file has the modes that any other program's would have; a later one keeps what a person gave it since."""
    before = os.umask(umask)
    try:
        path = keep.renew(tmp_path / "r.md", lambda _: b"new\n")
        assert path.stat().st_mode & 0o777 == mode
        path.chmod(0o640)
        keep.renew(path, lambda _: b"newer\n")
        assert path.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)
