"""Where H-2 stands on the ladder: what the card can do goes down with it."""

from __future__ import annotations

import pytest
import record_factory as factory
from steph.plan.settings import Rung
from steph.record import Device, TrainSettings
from steph.training import Walk, half_precision_of

LADDER = (Rung(max_seq_length=384), Rung(use_4bit=False))


def _card(compute_capability: str | None) -> Device:
    return factory.device().model_copy(update={"compute_capability": compute_capability})


@pytest.mark.parametrize(
    ("card", "half"),
    [
        (_card("7.5"), "fp16"),
        (_card("8.0"), "bf16"),
        (_card("8.6"), "bf16"),
        (_card("10.0"), "bf16"),
        (_card(None), "bf16"),
        (None, "bf16"),
    ],
)
def test_the_rung_without_4bit_trains_in_what_the_card_can_do(card: Device | None, half: str) -> None:
    """A card before Ampere has no bf16: its last rung is fp16, also after skipped rungs."""
    walk = Walk(
        factory.model_choice(), TrainSettings(), LADDER, rung=2, skipped=frozenset({1}), half=half_precision_of(card)
    )
    assert walk.settings.mixed_precision == half
    assert walk.settings.short() == f"512/b2/{half}"
