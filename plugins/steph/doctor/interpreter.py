"""Runs `child/checkup.py` in the pipeline's Python: begun at once, read at its end or at its deadline."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from steph.base.files import parse_json
from steph.base.messages import phrase
from steph.doctor.asking import signals_held
from steph.doctor.facts import Checkup
from steph.run.processes import set_parent_death_signal
from steph.run.tree import Child

SCRIPT = Path(__file__).parents[1] / "child" / "checkup.py"
NOT_STARTED = 126  # a shell's exit status for a program that can't be run
_SAID_WORDS = 40
_REAP_SECONDS = 2.0


@contextmanager
def begun_checkup(
    python: str, words: Sequence[str], environment: Mapping[str, str], deadline_seconds: float, first_seconds: float
) -> Iterator[Callable[[], Checkup]]:
    """Start the script; the function waits for what it found. Leaves no process behind.

    `first_seconds`: how long the interpreter may take until it says anything at all.
    """
    started = time.monotonic()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors, ExitStack() as stack:
        try:
            with signals_held() as mask:
                process = Child[bytes](
                    [python, str(SCRIPT), *words],
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=errors,
                    start_new_session=True,
                    preexec_fn=partial(_end_with_parent, mask),
                )
                stack.callback(_end, process)
        except OSError as error:
            failed = Checkup(returncode=NOT_STARTED, said=str(error.strerror))
            yield lambda: failed
            return
        yield lambda: read_checkup(
            *_written(process, started + first_seconds, started + deadline_seconds, output, errors)
        )


def read_checkup(output: str, errors: str, returncode: int | None) -> Checkup:
    """The steps from the script's lines; a line that is no step is passed over. `returncode` None: out of time."""
    steps = {}
    for line in output.splitlines():
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            found = parse_json(line.encode(errors="replace"), finite=False)
            steps[found.pop("step")] = found
    said = " ".join(errors.split()[-_SAID_WORDS:])
    known = {name: facts for name, facts in steps.items() if name in Checkup.model_fields}
    try:
        return Checkup.model_validate({**known, "returncode": returncode, "said": said})
    except ValidationError as error:
        return Checkup(
            returncode=returncode, said=phrase("doctor.python.printed", script=SCRIPT.name, error=str(error))
        )


def _written(
    process: Child[bytes], first_at: float, ends_at: float, output: IO[bytes], errors: IO[bytes]
) -> tuple[str, str, int | None]:
    """What the script wrote and its exit status, once it has ended or is out of time."""
    returncode = None
    for until in (first_at, ends_at):
        with suppress(subprocess.TimeoutExpired):
            returncode = process.wait(max(0.0, until - time.monotonic()))
        if returncode is not None or os.fstat(output.fileno()).st_size == 0:
            break
    _end(process)
    return _text(output), _text(errors), returncode


def _end(process: Child[bytes]) -> None:
    """End it and what it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # hangs in the driver: nothing more can be done
        process.wait(_REAP_SECONDS)


def _end_with_parent(mask: set[signal.Signals]) -> None:
    """In the new process: a doctor that is killed leaves none behind."""
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    set_parent_death_signal(signal.SIGKILL)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
