"""One question to the machine in a process of its own, with a deadline.

A driver or a network disk that hangs can't be interrupted from within, and a library that crashes takes its process
along; a forked child may do both. One that even SIGKILL does not end is left behind.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, NoReturn, TypeVar

from steph.base.messages import phrase
from steph.doctor.facts import Unread
from steph.run.processes import set_parent_death_signal

Answer = TypeVar("Answer")

_CHUNK_BYTES = 1 << 16
_REAP_SECONDS = 0.5
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


class Asked(Generic[Answer]):
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
                if not chunk:
                    return _read(bytes(data))
                data += chunk
            return Unread(phrase("doctor.unread.late", seconds=self._deadline_seconds))
        finally:
            os.close(self._pipe)
            self._end()

    def _end(self) -> None:
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


def _read(data: bytes) -> Answer | Unread:
    try:
        found: Answer | Unread = pickle.loads(data)  # noqa: S301 - from our own child
    except (EOFError, pickle.UnpicklingError):
        return Unread(phrase("doctor.unread.ended"))
    return found
