"""What a training process can use of a card that is known by name only: of `steph fit --card` and of a profile.

A card at hand is read, never looked up here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from steph.base.units import GIB
from steph.record.environment import BF16_SINCE


@dataclass(frozen=True, slots=True)
class Card:
    """`usable_gib` of a card that nobody else uses; a desktop on it takes some of that.

    `basis`: `measured` by this project or by whom it was made for; `documented`: the lowest "total capacity" that
    torch's own out-of-memory messages name in public issue threads about that card, or what NVML shows of a slice.
    nvidia-smi's total is some 0.4 GiB above it on cards with ECC.
    """

    name: str
    usable_gib: float
    capability: tuple[int, int]
    basis: Literal["measured", "documented"]

    @property
    def usable_bytes(self) -> int:
        """The same in bytes."""
        return round(self.usable_gib * GIB)

    @property
    def computes_bf16(self) -> bool:
        """Whether its compute capability has bf16."""
        return self.capability[0] >= BF16_SINCE

    def words(self) -> str:
        """One line on the card, in English."""
        bf16 = "bf16" if self.computes_bf16 else "no bf16"
        capability = ".".join(map(str, self.capability))
        return f"{self.name}: {self.usable_gib:.2f} GiB usable ({self.basis}), compute capability {capability}, {bf16}"


CARDS: Mapping[str, Card] = MappingProxyType(
    {
        card.name: card
        for card in (
            Card("A10", 21.99, (8, 6), "documented"),
            Card("A100 20GB slice", 19.5, (8, 0), "documented"),
            Card("A100 40GB", 39.5, (8, 0), "documented"),
            Card("A100 80GB", 79.25, (8, 0), "documented"),
            Card("A30", 23.53, (8, 0), "documented"),
            Card("H100 80GB", 79.18, (9, 0), "measured"),
            Card("H200", 139.8, (9, 0), "measured"),
            Card("L40", 44.4, (8, 9), "documented"),
            Card("RTX 3060", 11.75, (8, 6), "documented"),
            Card("RTX 3070", 7.78, (8, 6), "documented"),
            Card("RTX 3080", 9.64, (8, 6), "measured"),
            Card("RTX 3090", 23.7, (8, 6), "documented"),
            Card("RTX 4060", 7.75, (8, 9), "documented"),
            Card("RTX 4090", 23.52, (8, 9), "documented"),
            Card("RTX 5090", 31.36, (12, 0), "documented"),
            Card("RTX 6000 Ada", 44.43, (8, 9), "documented"),
            Card("T4", 14.56, (7, 5), "documented"),
        )
    }
)


def card_by_name(name: str) -> Card:
    """The card of that name, whatever the case, blanks and maker's words; raises ValueError naming those known.

    `A100 20GB` is the slice of that size.
    """
    for card in CARDS.values():
        if _plain(card.name) == _plain(name):
            return card
    raise ValueError(f"{name}: not known; known are {', '.join(CARDS)}")


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|tesla|slice|[^a-z0-9]", "", name.casefold())
