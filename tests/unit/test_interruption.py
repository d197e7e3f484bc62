"""Signals of a session: the first ends the run, those that follow do not cut its ending short."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest
from steph.conduct import session
from steph.conduct.session import Interruption

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Python's own handlers, and afterwards those of this run again."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    for number in NUMBERS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_is_an_interrupt_that_names_it(number: signal.Signals) -> None:
    """Whatever asks the run to end does it as Ctrl-C would."""
    Interruption()
    with pytest.raises(KeyboardInterrupt, match=number.name):
        signal.raise_signal(number)


def test_only_ctrl_c_cuts_an_ending_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM and SIGHUP have nothing to add while the run ends; once that took too long they count again."""
    asked = Interruption()
    asked.begin_ending()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGHUP)
    with pytest.raises(KeyboardInterrupt, match="SIGINT"):
        signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(session, "ENDING_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_somebody_else_handles_is_left_alone() -> None:
    """What nohup ignores stays ignored, a handler of the surrounding program stays, and both come through the end."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    asked = Interruption()
    signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM]
    asked.restore()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_outside_the_main_thread_no_handler_is_touched() -> None:
    """Python lets nobody else set one, and a session in a thread runs without."""
    made: list[Interruption] = []
    thread = threading.Thread(target=lambda: made.append(Interruption()))
    thread.start()
    thread.join()
    assert len(made) == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    made[0].restore()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
