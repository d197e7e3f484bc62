"""Questions to the machine in processes of their own, with a deadline.

A driver or a network disk that hangs can't be interrupted from within, and a library that crashes takes its process
along; a forked child may do both, and so may `child/checkup.py` in the pipeline's Python. One that even SIGKILL does
not end is left behind.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Generic, NoReturn, TypeVar

from pydantic import ValidationError

from steph.base.files import parse_json
from steph.base.messages import phrase
from steph.doctor.facts import Checkup, Unread
from steph.run.processes import set_parent_death_signal
from steph.run.tree import Child

Answer = TypeVar("Answer")

_CHUNK_BYTES = 1 << 16
_REAP_SECONDS, _CHECKUP_REAP_SECONDS = 0.5, 2.0
_SAID_WORDS = 40
SCRIPT = Path(__file__).parents[1] / "child" / "checkup.py"
NOT_STARTED = 126  # a shell's exit status for a program that can't be run
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_held() -> Iterator[set[signal.Signals]]:
    """Let signals wait while a process is started; gives the mask that the new process is to have.

    What a handler raises in the middle of a fork, Python's own hooks around it would swallow.
    """
    mask = {signal.Signals(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)}
    try:
        yield mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Question(Generic[Answer]):
    """Asks at once; `answer` waits until `deadline_seconds` after that. Fork before any thread is started."""

    def __init__(self, ask: Callable[[], Answer], deadline_seconds: float) -> None:
        self._deadline_seconds = deadline_seconds
        self._ends_at = time.monotonic() + deadline_seconds
        self._pipe, writing = os.pipe()
        with signals_held() as mask:
            self._pid = os.fork()
            if self._pid == 0:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                _answer(ask, writing)
        os.close(writing)

    def answer(self) -> Answer | Unread:
        """The answer, or why there is none."""
        data = bytearray()
        try:
            while select.select([self._pipe], [], [], max(0.0, self._ends_at - time.monotonic()))[0]:
                chunk = os.read(self._pipe, _CHUNK_BYTES)
                if chunk:
                    data += chunk
                    continue
                try:
                    found: Answer | Unread = pickle.loads(data)  # noqa: S301 - from our own child
                except (EOFError, pickle.UnpicklingError):
                    return Unread(phrase("doctor.unread.ended"))
                return found
            return Unread(phrase("doctor.unread.late", seconds=self._deadline_seconds))
        finally:
            os.close(self._pipe)
            os.kill(self._pid, signal.SIGKILL)
            end = time.monotonic() + _REAP_SECONDS
            while os.waitpid(self._pid, os.WNOHANG) == (0, 0) and time.monotonic() < end:
                time.sleep(0.01)


def _answer(ask: Callable[[], object], writing: int) -> NoReturn:
    """The child: says nothing on the terminal, and never returns into the parent's code."""
    try:
        set_parent_death_signal(signal.SIGKILL)
        silence = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(silence, number)
        sys.stdout = sys.stderr = os.fdopen(1, "w", closefd=False)
        try:
            found = ask()
        except Exception as error:
            found = Unread(f"{type(error).__name__}: {error}")
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(pickle.dumps(found))
    finally:
        os._exit(0)


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

                def in_child() -> None:  # a doctor that is killed leaves none behind
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                    set_parent_death_signal(signal.SIGKILL)

                process = Child[bytes](
                    [python, str(SCRIPT), *words],
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=errors,
                    start_new_session=True,
                    preexec_fn=in_child,
                )
                stack.callback(_end, process)
        except OSError as error:
            failed = Checkup(returncode=NOT_STARTED, said=str(error.strerror))
            yield lambda: failed
            return

        def found() -> Checkup:
            returncode = None
            for until in (started + first_seconds, started + deadline_seconds):
                with suppress(subprocess.TimeoutExpired):
                    returncode = process.wait(max(0.0, until - time.monotonic()))
                if returncode is not None or os.fstat(output.fileno()).st_size == 0:
                    break
            _end(process)
            return read_checkup(_text(output), _text(errors), returncode)

        yield found


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


def _end(process: Child[bytes]) -> None:
    """End it and what it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # hangs in the driver: nothing more can be done
        process.wait(_CHECKUP_REAP_SECONDS)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
