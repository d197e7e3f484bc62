"""What a training process can use of a card that is known by name only: of `steph fit --card` and of a profile.

A card at hand is read, never looked up here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from steph.base.messages import NOTHING, Message, phrase, say
from steph.base.units import GIB, gib
from steph.record.settings import BF16_SINCE


@dataclass(frozen=True, slots=True)
class Card:
    """`usable_gib` of a card that nobody else uses; a desktop on it takes some of that.

    `sold_as_gb`: gigabytes that its maker names, and part of the name where they tell cards apart. `basis`: `measured`
    by this project or by whom it was made for; `documented`: the lowest "total capacity" that torch's own out-of-memory
    messages name in public issue threads about that card or its sister of the same memory, or what NVML shows of a
    slice. nvidia-smi's total is some 0.4 GiB above it on cards with ECC.
    """

    name: str
    sold_as_gb: int
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
        """One line on the card."""
        bf16 = say("card.bf16" if self.computes_bf16 else "card.no_bf16")
        capability, basis = ".".join(map(str, self.capability)), say(f"card.{self.basis}")
        return phrase(
            "card.words", name=self.name, usable=gib(self.usable_bytes), basis=basis, capability=capability, bf16=bf16
        )


SEVERAL = re.compile(r"\d+\s*[x*]\s*(?P<after>.+)|(?P<before>.+)\s[x*]\s*\d+", re.IGNORECASE)  # 2x T4, T4 x2
CARDS: Mapping[str, Card] = MappingProxyType(
    {
        card.name: card
        for card in (
            Card("A10", 24, 21.99, (8, 6), "documented"),
            Card("A100 20GB slice", 20, 19.5, (8, 0), "documented"),
            Card("A100 40GB", 40, 39.41, (8, 0), "documented"),
            Card("A100 80GB", 80, 79.14, (8, 0), "documented"),
            Card("A10G", 24, 21.99, (8, 6), "documented"),
            Card("A30", 24, 23.53, (8, 0), "documented"),
            Card("H100 80GB", 80, 79.18, (9, 0), "measured"),
            Card("H200", 141, 139.8, (9, 0), "measured"),
            Card("L4", 24, 22.05, (8, 9), "documented"),
            Card("L40", 48, 44.4, (8, 9), "documented"),
            Card("L40S", 48, 44.4, (8, 9), "documented"),
            Card("RTX 2080 Ti", 11, 10.76, (7, 5), "documented"),
            Card("RTX 3060", 12, 11.75, (8, 6), "documented"),
            Card("RTX 3070", 8, 7.78, (8, 6), "documented"),
            Card("RTX 3080", 10, 9.64, (8, 6), "measured"),
            Card("RTX 3090", 24, 23.7, (8, 6), "documented"),
            Card("RTX 4060", 8, 7.75, (8, 9), "documented"),
            Card("RTX 4090", 24, 23.52, (8, 9), "documented"),
            Card("RTX 5090", 32, 31.36, (12, 0), "documented"),
            Card("RTX 6000 Ada", 48, 44.43, (8, 9), "documented"),
            Card("RTX 8000", 48, 47.46, (7, 5), "documented"),
            Card("T4", 16, 14.56, (7, 5), "documented"),
            Card("V100 16GB", 16, 15.77, (7, 0), "documented"),
            Card("V100 32GB", 32, 31.74, (7, 0), "documented"),
        )
    }
)


def card_by_name(name: str) -> Card:
    """The card of that name, as people, its maker or nvidia-smi write it; raises ValueError naming those known.

    Case, blanks, makers' words and a form (`SXM4`, `PCIe`) are no part of it; `RTX` may lack, and the gigabytes it is
    sold with may stand behind. `A100 20GB` is the slice of that size.
    """
    plain = _plain(name)
    for card in CARDS.values():
        if plain in _spellings(card):
            return card
    several = SEVERAL.fullmatch(name.strip())
    if several is not None and _known(several["before"] or several["after"]):
        raise ValueError(say("card.several", name=name))
    close = [card.name for card in CARDS.values() if plain and _plain(card.name).startswith(plain)]
    question = NOTHING
    if close:
        names: Message | str = close[0]
        for other in close[1:]:
            names = say("card.or", one=names, other=other)
        question = say("card.close", names=names)
    raise ValueError(say("card.unknown", name=name, question=question, known=list(CARDS)))


def _known(name: str) -> bool:
    return any(_plain(name) in _spellings(card) for card in CARDS.values())


def _spellings(card: Card) -> set[str]:
    """How a card is written, without and with its gigabytes."""
    plain = _plain(card.name)
    return {
        written for short in (plain, plain.removeprefix("rtx")) for written in (short, f"{short}{card.sold_as_gb}gb")
    }


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|tesla|quadro|generation|slice|sxm\d?|pcie|hbm\d\w?|[^a-z0-9]", "", name.casefold())
