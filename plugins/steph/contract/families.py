"""The families of models that a folder may be made for, with the small ones of each that fit a small card. Pure.

A further family is a further row. Parameters are those that transformers builds from the published config.json.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_MODEL_ID = re.compile(
    r"\b(?:meta-llama|NousResearch|TinyLlama|unsloth|google|mistralai|microsoft|openai|Qwen)/[\w.-]*\w|"
    r"\"model_type\":\s*\"\w+\""
)


@dataclass(frozen=True)
class Family:
    """Models that share an architecture and a chat template; `small`: ids on the Hub with parameters, in order.

    An empty `small` leaves the profile's candidates, which are of that family.
    """

    name: str
    pattern: re.Pattern[str]
    small: tuple[tuple[str, int], ...] = ()

    @property
    def candidates(self) -> list[str]:
        """The small models' ids."""
        return [model for model, _ in self.small]


def _family(name: str, pattern: str, *small: tuple[str, int]) -> Family:
    return Family(name, re.compile(pattern, re.I), small)


FAMILIES = (
    _family("Qwen", r"qwen"),
    _family(
        "Llama",
        r"llama",
        ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
    ),
    _family("Gemma", r"gemma", ("google/gemma-3-1b-it", 999_885_952), ("google/gemma-2-2b-it", 2_614_341_888)),
    _family("Mistral", r"mi(?:s|x)tral", ("mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552)),
    _family(
        "Phi",
        r"\bphi",
        ("microsoft/Phi-4-mini-instruct", 3_836_021_760),
        ("microsoft/Phi-3.5-mini-instruct", 3_821_079_552),
    ),
)


def family_of(model: str) -> Family | None:
    """The family of a model by its id, or of a `model_type`; None for one that is in no row."""
    name = model.rpartition("/")[2]
    return next((family for family in FAMILIES if family.pattern.search(name)), None)


def family_in(texts: Iterable[str]) -> Family | None:
    """The family that these texts name most often, by ids of models and by configurations; None where none is named."""
    named = (family_of(found[0]) for text in texts for found in _MODEL_ID.finditer(text))
    counted = Counter(family.name for family in named if family is not None)
    most = counted.most_common(1)
    return next(family for family in FAMILIES if family.name == most[0][0]) if most else None
