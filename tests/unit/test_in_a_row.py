"""Commands in a row: one after the other, none after one that failed, and the end is the last one's own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from steph.conduct.attempts import in_a_row


def run(folder: Path, *codes: str) -> subprocess.CompletedProcess[str]:
    """Run Python programs of these texts in a row."""
    commands = tuple((sys.executable, "-S", "-c", code) for code in codes)
    return subprocess.run(in_a_row(commands), cwd=folder, capture_output=True, text=True, check=False)


def test_each_runs_after_the_one_before(tmp_path: Path) -> None:
    """Their output comes in order, and the last one's status is the end."""
    done = run(tmp_path, "print('a', flush=True)", "print('b', flush=True)", "print('c'); raise SystemExit(3)")
    assert (done.stdout.split(), done.returncode) == (["a", "b", "c"], 3)


def test_the_first_that_fails_is_the_last(tmp_path: Path) -> None:
    """Its status is the end, a signal too; a program that is not there is named."""
    done = run(tmp_path, "raise SystemExit(7)", "print('never')")
    assert (done.stdout, done.returncode) == ("", 7)
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV):
        killed = run(tmp_path, "print('once')", f"import os; os.kill(os.getpid(), {number:d})", "print('never')")
        assert (killed.stdout, killed.returncode) == ("once\n", -number)
    assert list(tmp_path.iterdir()) == []
    missing = subprocess.run(
        in_a_row((("no-such-program",), (sys.executable, "-c", "print('never')"))),
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (missing.stdout, missing.returncode) == ("", 127)
    assert "no-such-program" in missing.stderr


def test_no_word_is_the_shells(tmp_path: Path) -> None:
    """What a shell would read as something else comes as it is."""
    words = ("$HOME", "a b", "'", '"', "*", "; exit 9", "日本\n語", "")
    show = (sys.executable, "-S", "-c", "import json, sys; print(json.dumps(sys.argv[1:]))")
    both = in_a_row(((*show, *words), (*show, *words)))
    done = subprocess.run(both, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [tuple(json.loads(line)) for line in done.stdout.splitlines()] == [words, words]


def test_one_alone_is_itself() -> None:
    """Nothing stands before a single command."""
    assert in_a_row((("a", "b"),)) == ("a", "b")
