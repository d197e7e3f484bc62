"""Others' published GPU memory against what `steph fit` answers when it is asked for the same run."""

from __future__ import annotations

from collections import Counter

import pytest
from steph.base.units import GIB

from benchmarks.published import CASES, Case, Compared, ask_in_process, compare, read_cases, table

SOURCES, ALL_CASES = read_cases()


def test_every_published_figure_is_inside_the_interval_or_unknown_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All cases, asked by the command itself; the committed page is what they give."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    compared = [compare(case, ask_in_process) for case in ALL_CASES]
    assert [one for one in compared if one.verdict not in ("inside", "unknown")] == []
    assert all(one.reasons for one in compared if one.verdict == "unknown")
    told = (CASES.parents[1] / "docs" / "memory-model.en.md").read_text(encoding="utf-8")
    inside = [one.verdict for one in compared].count("inside")
    assert f"{len(compared)} figures of" in told
    assert f"{inside} lie inside the interval, {len(compared) - inside} are `unknown`" in told
    assert (CASES.parent / "published.md").read_text(encoding="utf-8") == table(SOURCES, compared)


def test_the_sources_that_people_look_up_are_there() -> None:
    """ms-swift, litgpt, Qwen, torchtune, Unsloth and the QLoRA paper; every case names an address."""
    found = Counter(case.source for case in ALL_CASES)
    assert set(found) == set(SOURCES) >= {"ms_swift", "litgpt", "qwen", "torchtune", "unsloth", "qlora"}
    assert all(address.startswith("https://") for address in SOURCES.values())
    assert min(found["ms_swift"], found["litgpt"], found["unsloth"], found["qwen"]) >= 7
    assert sum(found.values()) >= 60


def _compared(figure: float, unit: str = "GiB", counts: str = "device", reasons: tuple[str, ...] = ()) -> str:
    return Compared(Case("a", "b", (), figure, unit, counts), 10.0, 20.0, reasons).verdict


def test_a_figure_outside_the_interval_is_not_called_inside() -> None:
    """On either side; a card may be larger than all that is needed, but not smaller than the least."""
    assert [_compared(size) for size in (9.9, 10.0, 20.0, 20.1)] == ["below", "inside", "inside", "above"]
    assert [_compared(size, counts="card") for size in (9.9, 48.0)] == ["below", "inside"]
    assert [_compared(size, reasons=("because",)) for size in (9.9, 99.0)] == ["below", "unknown"]


def test_a_card_on_which_a_run_died_must_not_be_said_to_hold_it() -> None:
    """The answer says `fits` from a tenth of a GiB above its upper end on; anything less is no false answer."""
    assert [_compared(size, counts="oom") for size in (5.0, 20.0, 20.2)] == ["inside", "inside", "said to fit"]


def test_a_figure_in_gigabytes_may_be_either() -> None:
    """10.5 GB are 9.78 GiB or 10.5 GiB, as the source counted."""
    assert Case("a", "b", (), 10.5, "GB", "device").figure_gib == (10.5e9 / GIB, 10.5)
    assert _compared(10.5, "GB") == "inside"
    assert _compared(9.9, "GB") == "below"


def test_what_lies_beside_the_allocator_is_in_no_figure_of_torchs_own() -> None:
    """The interval is lower by the CUDA context at both ends, at one end only where the source says nothing."""
    case = Case("a", "b", ("--model", "Qwen3-8B", "--batch-size", "1", "--max-seq-length", "512"), 1, "GiB", "device")
    device, allocator, either = (
        compare(Case(case.source, case.what, case.asked, 1, "GiB", counts), ask_in_process)
        for counts in ("device", "allocator", "either")
    )
    assert device.low_gib - allocator.low_gib == pytest.approx(0.74, abs=0.001)
    assert device.high_gib - allocator.high_gib == pytest.approx(0.74, abs=0.001)
    assert (either.low_gib, either.high_gib) == (allocator.low_gib, device.high_gib)
