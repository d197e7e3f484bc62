"""How much work a log costs: each line a little and once, however long it is and however many there are."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest
from steph.base.terms import Cause
from steph.diagnose import advice
from steph.diagnose.engine import diagnose
from steph.diagnose.table import Case, cases

CALLS_A_LINE = 30


def _calls(log: str) -> int:
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        diagnose(log, 1)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("line", ["x", "", "é", "|"])
def test_a_log_of_shortest_lines_costs_few_calls_for_each(line: str) -> None:
    """Five megabytes may be millions of lines that can say nothing: each is made, looked at and left."""
    few, many = (_calls(f"{line}\n" * count) for count in (2_000, 4_000))
    assert many - few < 2_000 * CALLS_A_LINE


@pytest.mark.parametrize("word", ["1%|", "epoch= ", "loss step ", "loss iter1 ", "|1"])
def test_one_endless_line_is_read_once(word: str) -> None:
    """A megabyte without a line break, of words that begin a bar or a loss: hours if each start read to its end."""
    assert diagnose(word * ((1 << 20) // len(word)), 1).cause.value == "other"


@pytest.mark.parametrize("word", ["Error at line 1 in file ", "step 1 "])
def test_many_long_lines_are_read_once(word: str) -> None:
    """The same where such lines are just short enough for every rule."""
    line = word * (19_000 // len(word))
    assert diagnose("\n".join(f"{number} {line}" for number in range(20)), 1).cause.value == "other"


@pytest.mark.parametrize("log", ["y" * 100_000, f"RuntimeError: {'y' * 100_000}"], ids=["line", "exception"])
def test_each_wording_is_looked_for_in_the_beginning_of_a_long_text(log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are hundreds of wordings: a last line of a megabyte took seconds where no exception told the cause."""
    looked_at = list[str]()

    class Noted:
        def search(self, text: str) -> None:
            looked_at.append(text)

    wording: Any = Noted()
    other = next(case for case in cases() if case.cause is Cause.OTHER and not case.packages)
    noted: Case = replace(other, raised=(wording,), printed=(wording,), frames=None, log=None, facts=(), phases=())
    monkeypatch.setattr(advice, "cases", lambda: (noted,))
    diagnose(log, 1)
    assert looked_at
    assert max(map(len, looked_at)) < 10_000
