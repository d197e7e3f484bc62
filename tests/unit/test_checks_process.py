"""What the machine says of an attempt: an emulated card's limit as it was asked for, and memory that came back."""

from __future__ import annotations

import pytest
from steph.judge.checks_process import ProcessEvidence, machine_checks
from steph.record import Check, Probe, Severity

ASKED = 0.1105  # 9.64 GiB emulated on a card of 80 GB
LAUNCHER = Probe(pid=1)  # imports torch and never touches a card


def on_card(fraction: float | None, rank: int | None = None) -> Probe:
    """A process that worked on a card, held to this share of it; None: its torch can't say."""
    return Probe(pid=2, rank=rank, device_uuid="GPU-0", peak_reserved_bytes=1, memory_fraction=fraction)


def found(check_id: str, evidence: ProcessEvidence) -> Check:
    """The check of this id."""
    return next(check for check in machine_checks(evidence, "") if check.id == check_id)


@pytest.mark.parametrize(
    ("probes", "holds"),
    [
        ((on_card(ASKED),), True),
        ((LAUNCHER, on_card(ASKED, rank=0), on_card(ASKED, rank=1)), True),
        ((on_card(ASKED + 5e-7),), True),
        ((on_card(0.95),), False),
        ((on_card(ASKED + 0.01),), False),
        ((on_card(ASKED, rank=0), on_card(0.95, rank=1)), False),
        ((on_card(None), on_card(0.95)), False),
        ((on_card(ASKED), on_card(None)), None),
        ((on_card(ASKED, rank=0), Probe(pid=3, rank=1)), None),
        ((LAUNCHER,), None),
        ((), None),
    ],
)
def test_the_cap_is_honoured_where_every_process_kept_to_the_fraction_that_was_asked(
    probes: tuple[Probe, ...], holds: bool | None
) -> None:
    """A share above the asked one, in any process, breaks the check; one that shows none leaves it unmeasured, red."""
    check = found("vram_cap_honoured", ProcessEvidence(1, probes, asked_fraction=ASKED))
    assert (check.holds, check.severity) == (holds, Severity.FAIL)


def test_a_cap_that_the_card_can_not_be_held_to_is_not_honoured() -> None:
    """A limit above the whole card emulates nothing, whatever torch says."""
    assert found("vram_cap_honoured", ProcessEvidence(1, (on_card(1.0),), asked_fraction=1.0)).holds is False


@pytest.mark.parametrize("returned", [True, False, None])
def test_memory_that_did_not_come_back_is_a_warning(returned: bool | None) -> None:
    """The check says what NVML saw after the end, also that it saw nothing."""
    check = found("memory_returned", ProcessEvidence(1, (), memory_returned=returned))
    assert (check.holds, check.severity) == (returned, Severity.WARN)


def test_without_a_card_and_without_a_cap_there_is_nothing_to_check() -> None:
    """On the CPU no check of the machine is made; on a card without a cap none of the cap."""
    assert machine_checks(ProcessEvidence(1, (), asked_fraction=ASKED, on_gpu=False), "") == ()
    assert [check.id for check in machine_checks(ProcessEvidence(1, ()), "")] == ["memory_returned"]
