"""What a training process can use of a card that is known by name only: of `steph fit --card` and of a profile.

A card at hand is read, never looked up here.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from steph.base.messages import phrase, say
from steph.base.units import GIB, gib
from steph.record.settings import BF16_SINCE


@dataclass(frozen=True, slots=True)
class Card:
    """A row of cards.toml: `usable_gib` of a card that nobody else uses; a desktop on it takes some of that.

    `sold_as_gb`: gigabytes that its maker names, and part of the name where they tell cards apart. `capability`: its
    compute capability.
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
_ROWS = tomllib.loads(Path(__file__).with_name("cards.toml").read_text(encoding="utf-8"))
CARDS: Mapping[str, Card] = MappingProxyType(
    {name: Card(name, **{**row, "capability": tuple(row["capability"])}) for name, row in _ROWS.items()}
)


def card_by_name(name: str) -> Card:
    """The card of that name, as people, its maker or nvidia-smi write it; raises ValueError naming those known.

    Case, blanks, makers' words and a form (`SXM4`, `PCIe`) are no part of it; `RTX` may lack, and the gigabytes it is
    sold with may stand behind. `A100 20GB` is the slice of that size.
    """
    plain = _plain(name)

    def named(written: str) -> Card | None:
        return next((card for card in CARDS.values() if _plain(written) in _spellings(card)), None)

    if card := named(name):
        return card
    several = SEVERAL.fullmatch(name.strip())
    if several is not None and named(several["before"] or several["after"]):
        raise ValueError(say("card.several", name=name))
    close = [card.name for card in CARDS.values() if plain and _plain(card.name).startswith(plain)]
    if close:
        raise ValueError(say("card.close", name=name, names=close))
    raise ValueError(say("card.unknown", name=name, known=list(CARDS)))


def _spellings(card: Card) -> set[str]:
    """How a card is written, without and with its gigabytes."""
    plain = _plain(card.name)
    shorts = {plain, plain.removeprefix("rtx")}
    return shorts | {f"{short}{card.sold_as_gb}gb" for short in shorts}


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|tesla|quadro|generation|slice|sxm\d?|pcie|hbm\d\w?|[^a-z0-9]", "", name.casefold())
