"""Logs as programs, launchers and people hand them over: prefixes, notebooks, encodings, several writers in one log."""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
from pathlib import Path

import pytest
from steph.base.terms import Cause, Phase
from steph.base.text import encoding_of
from steph.diagnose.engine import diagnose, first_traceback, run_diagnose
from steph.diagnose.reader import chains_of, lines_of

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
TRACEBACK = (
    'Traceback (most recent call last):\n  File "/w/train.py", line 3, in <module>\n    trainer.train()\n'
    f'  File "/env/lib/python3.11/site-packages/transformers/trainer.py", line 2206, in train\n{OOM}\n'
)
HARMLESS = (Path(__file__).parent / "samples" / "harmless.txt").read_text(encoding="utf-8")
HARMLESS_LOGS = re.split(r"^=== (.*)\n", HARMLESS, flags=re.M)[1:]

# what stands before line {n} of a log; {s} is a second
PREFIXES = {
    "logging": "2024-05-01 10:00:{s},123 - trainer - ERROR - ",
    "logging's default": "ERROR:root:",
    "stamp and level": "[2024-05-01 10:00:{s}] [INFO] ",
    "loguru": "2024-05-01 10:00:{s}.123 | ERROR    | __main__:main:12 - ",
    "hydra": "[2024-05-01 10:00:{s},123][__main__][ERROR] - ",
    "axolotl": "[2024-05-01 10:00:{s},123] [ERROR] [axolotl.train:173] [PID:7311] [RANK:0] ",
    "rich": "[10:00:{s}] ERROR    ",
    "a critical one": "2024-05-01 10:00:{s},123 - trainer - CRITICAL - ",
    "journald": "May 01 10:00:{s} box python[731]: ",
    "kubernetes": "2024-05-01T10:00:{s}.000000000Z stderr F ",
    "docker compose": "trainer-1  | ",
    "a pod": "trainer-7d9f-abcde trainer ",
    "srun": "0: ",
    "pdsh": "node-12: ",
    "ray": "(RayTrainWorker pid=1234, ip=10.0.0.4) ",
    "torchrun": "[rank0]: ",
    "a quotation": "> ",
    "line numbers": "{n:4d}  ",
    "numbered with a colon": "{n}: ",
    "job, pid and hash": "2023-04-29 06:01:{s}.977 [177/train/578 (pid 28936)] [09c561ee] ",
    "two launchers": "worker-3: [rank3]: ",
    "a scheduler": "2024/05/01 10:00:{s} job.191 out> ",
}


def behind(prefix: str, log: str) -> str:
    """The log with a prefix before each line."""
    return "".join(f"{prefix.format(n=n, s=f'{n % 60:02d}')}{line}\n" for n, line in enumerate(log.splitlines(), 1))


@pytest.mark.parametrize(
    "name", ["StopIteration", "futures.process.BrokenProcessPool", "http.client.RemoteDisconnected"]
)
def test_an_exception_need_not_be_called_an_error(name: str) -> None:
    """Behind a frame and with a message, by the names that libraries give them."""
    log = f'Traceback (most recent call last):\n  File "/w/x.py", line 8, in main\n{name}: it broke'
    (chain,) = chains_of(lines_of(log))
    assert chain[0].type == name


@pytest.mark.parametrize("head", ["--- Logging error ---", "Error in sys.excepthook:"])
def test_what_python_itself_calls_harmless_is_no_cause(head: str) -> None:
    """Python went on after each of them."""
    raised = TRACEBACK.replace(OOM, "UnicodeEncodeError: 'ascii' codec can't encode characters")
    assert diagnose(f"{head}\n{raised}", None).cause is Cause.NONE
    assert diagnose(raised, None).cause is not Cause.NONE


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=list(PREFIXES))
def test_a_prefix_on_every_line_changes_nothing(prefix: str) -> None:
    """Whoever stamped the lines, the cause, its phase and the traceback are the same."""
    log = behind(prefix, "loading the model\n" + TRACEBACK)
    found = diagnose(log)
    assert (found.cause, found.phase) == (Cause.CUDA_OOM, Phase.FIRST_STEP)
    assert found.oom is not None
    assert first_traceback(log) == TRACEBACK.rstrip()


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=list(PREFIXES))
def test_a_prefix_does_not_make_an_unknown_exception_nothing(prefix: str) -> None:
    """An exception that ended a log is never `none`, also one that no row knows."""
    log = behind(prefix, TRACEBACK.replace(OOM, "AcmeTrainerError: the flux is not aligned"))
    assert diagnose(log).cause is Cause.OTHER


def test_an_exception_alone_behind_a_stamp_is_seen() -> None:
    """Without a traceback and at level INFO: it ended the log."""
    log = "[2024-05-01 10:00:00] [INFO] start\nloading\n[2024-05-01 10:00:01] [INFO] " + OOM
    assert diagnose(log).cause is Cause.CUDA_OOM


def test_interleaved_ranks_are_told_apart() -> None:
    """Each rank's lines are read for themselves, and the one that failed is named."""
    other = TRACEBACK.replace(OOM, "RuntimeError: [pair.cc:534] Connection closed by peer [127.0.0.1]:4021")
    pairs = zip(behind("[rank0]: ", other).splitlines(), behind("[rank1]: ", TRACEBACK).splitlines(), strict=True)
    found = diagnose("\n".join(line for pair in pairs for line in pair))
    assert (found.cause, found.rank) == (Cause.CUDA_OOM, 1)


def test_workers_without_a_known_prefix_are_told_apart() -> None:
    """Two workers of a scheduler that nobody has heard of."""
    other = TRACEBACK.replace(OOM, "ValueError: planted")
    pairs = zip(
        behind("acme worker=0 > ", other).splitlines(), behind("acme worker=1 > ", TRACEBACK).splitlines(), strict=True
    )
    assert diagnose("\n".join(line for pair in pairs for line in pair)).cause is Cause.CUDA_OOM


def test_a_low_level_in_a_learned_prefix_still_counts() -> None:
    """A warning about a handled OOM is not the cause only because an error has the same kind of stamp."""
    log = "[2024-05-01 10:00:01] [WARNING] CUDA out of memory. Tried to allocate 1.00 GiB\n" + behind(
        "[2024-05-01 10:00:{s}] [ERROR] ", TRACEBACK.replace(OOM, "KeyError: 'instruction'")
    )
    assert diagnose(log).cause is Cause.BAD_DATA


def _notebook(outputs: list[dict[str, object]]) -> str:
    cells = [
        {"cell_type": "markdown", "source": ["x"]},
        {"cell_type": "code", "source": ["train()"], "outputs": outputs},
    ]
    return json.dumps({"cells": cells, "nbformat": 4, "metadata": {}}, indent=1)


def test_a_notebook_is_read_as_what_its_cells_put_out() -> None:
    """The printed text and the error of an .ipynb, with its colours."""
    trace = [
        "\x1b[0;31m---------------------------------------------------------------------------\x1b[0m",
        "\x1b[0;31mOutOfMemoryError\x1b[0m                          Traceback (most recent call last)",
        "Cell \x1b[0;32mIn[3], line 1\x1b[0m\n\x1b[0;32m----> 1\x1b[0m trainer.train()\n",
        "\x1b[0;31mOutOfMemoryError\x1b[0m: CUDA out of memory. Tried to allocate 2.00 GiB.",
    ]
    outputs: list[dict[str, object]] = [
        {"output_type": "stream", "name": "stdout", "text": ["{'loss': 1.2, 'epoch': 0.1}\n"]},
        {"output_type": "error", "ename": "OutOfMemoryError", "evalue": "CUDA out of memory.", "traceback": trace},
    ]
    found = diagnose(_notebook(outputs))
    assert (found.cause, found.phase) == (Cause.CUDA_OOM, Phase.STEP)
    assert diagnose(_notebook([{"output_type": "stream", "text": "all is well\n"}])).cause is Cause.NONE
    bare: list[dict[str, object]] = [{"output_type": "error", "ename": "KeyError", "evalue": "'text'", "traceback": []}]
    assert diagnose(_notebook(bare)).cause is Cause.BAD_DATA
    assert diagnose('{"cells": [{"outputs": 3}]}', 1).cause is Cause.OTHER


def test_the_json_of_an_error_cell_is_read() -> None:
    """As editors copy it: name, message and stack."""
    cell = json.dumps({"name": "OutOfMemoryError", "message": "CUDA out of memory.", "stack": TRACEBACK}, indent=2)
    assert diagnose(cell).cause is Cause.CUDA_OOM


def test_json_lines_are_read_as_their_messages() -> None:
    """Docker's, a logger's with its traceback apart, and mixed ones; levels keep their meaning."""
    docker = "\n".join(json.dumps({"log": f"{line}\n", "stream": "stderr"}) for line in TRACEBACK.splitlines())
    assert diagnose(docker).cause is Cause.CUDA_OOM
    logger = json.dumps({"level": "error", "message": "training failed", "exc_info": TRACEBACK})
    assert diagnose(logger).cause is Cause.CUDA_OOM
    mild = json.dumps({"level": "warning", "message": "CUDA out of memory. Tried to allocate 1.00 GiB"})
    assert diagnose(f"{mild}\n{mild}").cause is Cause.NONE


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp932"])
def test_encodings_of_windows_are_read(tmp_path: Path, encoding: str) -> None:
    """PowerShell writes UTF-16, Japanese Windows cp932."""
    log = "学習を開始します。モデルを読み込みました。\n" + TRACEBACK
    data = log.encode(encoding)
    assert "学習を開始" in data.decode(encoding_of(data), "replace")
    path = tmp_path / "log.txt"
    path.write_bytes(data)
    assert run_diagnose(path, None, False).startswith("cause: cuda_oom\n")
    assert encoding_of(data[:-1]).startswith(encoding[:5])


def test_a_huge_utf_16_log_is_cut_between_characters(tmp_path: Path) -> None:
    """Its ends are read, not the bytes between."""
    path = tmp_path / "log.txt"
    path.write_bytes(("x" * 78 + "\n").encode("utf-16-le") * 60_000 + TRACEBACK.encode("utf-16-le"))
    assert run_diagnose(path, None, False).startswith("cause: cuda_oom\n")


def test_a_gzipped_log_is_read_also_from_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its first bytes, whatever its name; a broken one is an OSError."""
    data = gzip.compress(TRACEBACK.encode())
    path = tmp_path / "log"
    path.write_bytes(data)
    assert run_diagnose(path, None, False).startswith("cause: cuda_oom\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert run_diagnose(Path("-"), None, False).startswith("cause: cuda_oom\n")
    path.write_bytes(data[:40])
    with pytest.raises(OSError, match="gzip"):
        run_diagnose(path, None, False)


def test_carriage_returns_and_their_letters_break_lines() -> None:
    """A terminal's and the `^M` that some viewers write."""
    texts = [line.text for line in lines_of("a\rb\r\nc^M d\n")]
    assert texts[:4] == ["a", "b", "c", " d"]


@pytest.mark.parametrize(("name", "log"), list(zip(HARMLESS_LOGS[::2], HARMLESS_LOGS[1::2], strict=True)))
@pytest.mark.parametrize("status", [None, 0])
def test_a_harmless_log_is_accused_of_nothing(name: str, log: str, status: int | None) -> None:
    """Frightening words in help, warnings, data and answers are no failure."""
    assert diagnose(log, status).cause is Cause.NONE, name


def test_there_are_thirty_harmless_logs() -> None:
    """And each is another one."""
    assert len(set(HARMLESS_LOGS[1::2])) >= 30
