"""What a run asks the machine of an attempt: what was passed to its processes is what they are held against."""

from __future__ import annotations

from pathlib import Path

import pytest
import record_factory as factory
from steph.base.terms import EndedBy, Severity
from steph.conduct.attempts import Finished
from steph.conduct.preparation import Setup
from steph.contract.description import Description
from steph.contract.options import Options
from steph.contract.settings import load_profile, profile_path
from steph.judge.checks_process import machine_checks
from steph.judge.verdict import checks_verdict
from steph.record.settings import Device, TrainSettings
from steph.record.values import Attempt, Check, Probe
from steph.run.gpu import memory_fraction_for_cap
from steph.run.runner import ChildOutcome

REPOSITORY = Path(__file__).parents[2]
ASKED = memory_fraction_for_cap(9 << 30, factory.device().total_bytes)


def _checks(card: Device | None, cap_bytes: int | None, **change: object) -> dict[str, Check]:
    options = Options("rtx3080", REPOSITORY, None, None, False, cap_bytes, REPOSITORY)
    profile = load_profile(profile_path("rtx3080", REPOSITORY))
    setup = Setup(options, profile, Description(), "python", card, factory.data()[0], factory.context(gpu=card))
    attempt: Attempt = factory.trained(1, TrainSettings()).model_copy(update=change)
    finished = Finished(attempt, ChildOutcome(0, EndedBy.EXIT, 1.0), REPOSITORY, 0.0, "", "")
    return {check.id: check for check in machine_checks(finished.processes(setup), "")}


@pytest.mark.parametrize(
    ("fractions", "holds"),
    [((ASKED,), True), ((None, 0.5), True), ((0.91,), False), ((ASKED, 1.0), False), ((None,), None), ((), None)],
)
def test_a_cap_that_was_not_in_force_is_never_green(fractions: tuple[float | None, ...], holds: bool | None) -> None:
    """Every process's allocator was limited; one that was not, or none that says so, fails the attempt."""
    probes = tuple(Probe(pid=number, memory_fraction=fraction) for number, fraction in enumerate(fractions, start=1))
    check = _checks(factory.device(), 9 << 30, probes=probes)["vram_cap_honoured"]
    assert (check.holds, check.severity) == (holds, Severity.FAIL)
    assert (checks_verdict([check]) is None) is (holds is True)


@pytest.mark.parametrize("returned", [True, False, None])
def test_memory_that_did_not_come_back_is_a_warning(returned: bool | None) -> None:
    """It says nothing against this attempt, and the next stage is blocked by it."""
    check = _checks(factory.device(), None, memory_returned=returned)["memory_returned"]
    assert (check.holds, check.severity) == (returned, Severity.WARN)


def test_without_a_card_or_a_cap_nothing_is_asked() -> None:
    """On the CPU there is neither of them, on a whole card no cap."""
    assert not {"vram_cap_honoured", "memory_returned"} & set(_checks(None, 9 << 30))
    assert "vram_cap_honoured" not in _checks(factory.device(), None)
