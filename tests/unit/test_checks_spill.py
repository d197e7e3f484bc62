"""A card that spills into system memory is found, and no slow step with another reason is taken for it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from planted import plant
from planted.defects import Variant
from planted.scenario import training_evidence
from steph.base.terms import Severity
from steph.base.text import LINE_CHARS
from steph.judge.checks_progress import TimedStep, spill_check, steps_before, steps_between
from steph.judge.checks_training import judge_training
from steph.judge.evidence import CardMemory
from steph.judge.verdict import checks_verdict
from steph.record.values import Check

GIB = 2**30
CARD_BYTES = 10 * GIB


def timed(seconds: Iterable[float], tokens: Iterable[int | None] = ()) -> tuple[TimedStep, ...]:
    """Steps one after the other from second 0 on, with their tokens where they are given."""
    taken = list(seconds)
    counts = list(tokens) or [None] * len(taken)
    return tuple(map(TimedStep, accumulate(taken), taken, counts))


def card(filled_from_seconds: float, before_share: float = 0.6, after_share: float = 0.98) -> CardMemory:
    """A card whose memory jumps from one share to another at a second, sampled five times a second."""
    shares = ((0.2 * n, after_share if 0.2 * n >= filled_from_seconds else before_share) for n in range(2000))
    return CardMemory(CARD_BYTES, tuple((second, int(share * CARD_BYTES)) for second, share in shares))


def test_steps_that_stay_tenfold_slower_once_the_card_is_full_are_a_spill() -> None:
    """Ten steps of 0.4 s, then the memory fills and ten take 4 s: a warning with cause and remedy."""
    found = spill_check(card(4.0), timed([0.4] * 10 + [4.0] * 10))
    assert (found.holds, found.severity) == (False, Severity.WARN)
    for words in (
        "98%",
        "0.40 → 4.00 秒",
        "10.0 倍",
        "システムメモリへ退避",
        "Prefer No Sysmem Fallback",
        "batch-size",
    ):
        assert words in str(found.message)
    assert len(str(found.message)) < LINE_CHARS


def test_more_reserved_than_the_card_has_is_a_spill_at_any_speed() -> None:
    """Torch holding 11.2 GiB on a card of 10 can only be in system memory, also where every step is equally slow."""
    full = CardMemory(CARD_BYTES, ((0.0, int(0.98 * CARD_BYTES)),), peak_reserved_bytes=int(11.2 * GIB))
    found = spill_check(full, timed([4.0] * 20))
    assert found.holds is False
    assert "11.20 GiB" in str(found.message)
    assert "Prefer No Sysmem Fallback" in str(found.message)
    assert len(str(found.message)) < LINE_CHARS
    assert spill_check(replace(full, peak_reserved_bytes=CARD_BYTES), timed([4.0] * 20)).holds is not False


FAST = [0.4] * 10
INNOCENT = {
    "warm-up on a card that is full at once": (card(0.0), timed([9.0, *FAST])),
    "warm-up before the card fills": (card(9.0), timed([9.0, *FAST, *FAST])),
    "one step that writes a checkpoint": (card(4.0), timed([*FAST, *FAST, 12.0, *FAST])),
    "a checkpoint every fourth step": (card(4.0), timed([*FAST, *([0.4, 0.4, 0.4, 6.0] * 5)])),
    "long rows now and then": (card(4.0), timed([*FAST, *([2.4, 0.4] * 8)])),
    "only long rows at the end, their tokens known": (
        card(4.0),
        timed([*FAST, *([4.0] * 10)], [200] * 10 + [2000] * 10),
    ),
    "slower by rows alone, tokens unknown": (card(4.0), timed([*FAST, *([2.0] * 10)])),
    "tenfold slower with room on the card": (card(4.0, after_share=0.9), timed([*FAST, *([4.0] * 10)])),
    "two slow steps at the end": (card(4.0), timed([*FAST, 4.0, 4.0])),
    "full from the first step on": (card(0.0), timed([4.0] * 20)),
    "lines that arrive in one burst": (card(0.001), timed([0.0001] * 5 + [0.4] * 10)),
    "no steps": (card(0.0), ()),
    "no samples": (CardMemory(CARD_BYTES), timed([*FAST, *([4.0] * 10)])),
}


@pytest.mark.parametrize("name", INNOCENT)
def test_what_is_no_spill_is_never_accused(name: str) -> None:
    """Warm-up, checkpoints, long rows, slowness with room left, and what can't be compared are no findings."""
    memory, steps = INNOCENT[name]
    found = spill_check(memory, steps)
    assert found.holds is not False, found.message
    assert found.holds is not None or found.severity is Severity.INFO


@example([1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.0625], [1.0, 1.0, 0.0625], 1.0, 0.0)  # a card that is full only at first
@given(  # no step is shorter than the time between two samples, or it would count as one before the memory changed
    st.lists(st.floats(0.25, 1.0), min_size=3, max_size=30),
    st.lists(st.floats(0.25, 1.0), min_size=3, max_size=30),
    st.floats(0.0, 1.2),
    st.floats(0.0, 1.2),
)
def test_steps_of_one_spread_are_never_accused(
    before: list[float], after: list[float], low: float, high: float
) -> None:
    """Whatever the memory does, steps whose fast quarter is within the earlier spread hold or stay unmeasured."""
    memory = card(sum(before), low, high)
    found = spill_check(memory, timed([*before, *[min(before)] * len(after), *after]))
    assert found.holds is not False


def test_a_pipelines_own_step_times_end_where_its_last_line_arrived() -> None:
    """Steps of its own clock are laid backwards from the last loss line, and the first, which warms up, is left out."""
    steps = steps_before(20.0, (5.0, 1.0, 2.0), (10, 20, 30))
    assert steps == (TimedStep(18.0, 1.0, 20), TimedStep(20.0, 2.0, 30))
    assert [step.tokens for step in steps_before(20.0, (5.0, 1.0, 2.0), (10,))] == [None, None]


def test_lines_that_stand_for_several_steps_share_their_time() -> None:
    """With a line each second step, the time between two lines is two steps'."""
    assert steps_between((1.0, 3.0, 7.0), 2) == (TimedStep(3.0, 1.0), TimedStep(7.0, 2.0))
    assert steps_between((), 1) == ()


def spilled(folder: Path, own_figures: object = None) -> Check:
    """The check of a planted training whose loss lines come slowly once the card is full."""
    evidence = training_evidence(plant(folder), Variant("", "H-2", ""))
    lines = [line for line in evidence.stdout.splitlines() if "'loss'" in line]
    seconds = [0.5 * n if n < 5 else 2.0 + 5.0 * (n - 4) for n in range(len(lines))]
    if own_figures is not None:
        (evidence.output_dir / "train_metrics.json").write_text(json.dumps(own_figures), encoding="utf-8")
    arrivals = tuple(zip(seconds, lines, strict=True))
    _, checks, _ = judge_training(replace(evidence, line_arrivals=arrivals, card=card(2.1)))
    assert checks_verdict(checks) is None
    return next(check for check in checks if check.id == "no_memory_spill")


def test_a_foreign_pipelines_spill_is_seen_by_its_lines_alone(tmp_path: Path) -> None:
    """The Trainer's lines and NVML suffice; the stage stays green with a warning."""
    assert spilled(tmp_path / "root").holds is False


def test_a_pipelines_own_clock_is_believed_before_its_lines(tmp_path: Path) -> None:
    """Where train_metrics.json says that no step was slow, late lines are no spill; a broken one changes nothing."""
    assert spilled(tmp_path / "a", {"step_seconds": [1.0] * 30, "step_tokens": [500] * 30}).holds is True
    assert spilled(tmp_path / "b", {"step_seconds": [1.0, "x"], "step_tokens": None}).holds is False
    assert spilled(tmp_path / "c", ["no figures"]).holds is False


def test_without_a_gpu_there_is_no_such_check(tmp_path: Path) -> None:
    """On the CPU nothing is said of a card."""
    _, checks, _ = judge_training(training_evidence(plant(tmp_path / "root"), Variant("", "H-2", "")))
    assert "no_memory_spill" not in {check.id for check in checks}
