"""The tables of causes: what guards them, and what a person is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from steph.base.terms import Cause, Phase
from steph.diagnose.advice import advice_for
from steph.diagnose.printed import LINES, TRIGGERS
from steph.diagnose.table import first_match

SAMPLES = Path(__file__).parent / "samples" / "failures"


def test_the_fast_path_misses_no_sample_line() -> None:
    """Every line that a row matches holds one of the words that open the rows."""
    lines = {line for path in SAMPLES.glob("*.txt") for line in path.read_text(encoding="utf-8").splitlines()}
    matched = [line for line in lines if first_match(LINES, line)]
    assert len(matched) > 40
    assert [line for line in matched if not any(word in line.lower() for word in TRIGGERS)] == []


@pytest.mark.parametrize("cause", list(Cause))
@pytest.mark.parametrize("phase", [None, *Phase])
def test_every_failure_has_one_or_two_next_steps(cause: Cause, phase: Phase | None) -> None:
    """Whatever fails wherever, the advice is one or two Japanese sentences; only `none` has nothing to say."""
    advice = advice_for(cause, phase)
    assert len(advice) in ((0,) if cause is Cause.NONE else (1, 2))
    assert all(line.endswith("。") for line in advice)
