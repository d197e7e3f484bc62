"""Checks of the model that H-1 chose: it is there whole, of the asked size, and the Hub knows it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from steph.base.messages import Message
from steph.judge.kinds import FAIL, WARN, CheckKind
from steph.record.values import Check, ModelChoice

MODEL_AVAILABLE = CheckKind("model_available", "H-1", FAIL)
PARAMETERS_IN_RANGE = CheckKind("parameters_in_range", "H-1", FAIL)
HUB_CONFIRMED = CheckKind("hub_confirmed", "H-1", WARN)
MODEL = (MODEL_AVAILABLE, PARAMETERS_IN_RANGE, HUB_CONFIRMED)


@dataclass(frozen=True)
class ModelEvidence:
    """The chosen model, whether its folder is there, the profile's range, and whether a person named the model."""

    model: ModelChoice
    is_there: bool
    min_parameters: int
    max_parameters: int
    is_explicit: bool


def _count_words(parameters: int, decimals: int = 2) -> str:
    """A count that shows more than zeros: 1.84B, 0.49B, 3.20M, 0."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if parameters >= size / 10 or (unit == "K" and parameters):
            return f"{parameters / size:.{decimals}f}{unit}"
    return "0"


def judge_model(evidence: ModelEvidence) -> tuple[Check, ...]:
    """What H-1 stands on; a size that is not known is not within the range."""
    model, count = evidence.model, evidence.model.parameters
    in_range = None if count is None else evidence.min_parameters <= count <= evidence.max_parameters
    size = "unknown" if count is None else "within" if in_range else "outside"
    checks = [
        MODEL_AVAILABLE.check(
            evidence.is_there, "there" if evidence.is_there else "missing", model=model.name, source=model.source
        ),
        PARAMETERS_IN_RANGE.check(
            in_range,
            size,
            severity=WARN if evidence.is_explicit else None,
            parameters=None if count is None else _count_words(count),
            least=_count_words(evidence.min_parameters, 1),
            most=_count_words(evidence.max_parameters, 1),
        ),
    ]
    if model.source == "cache":
        checks.append(HUB_CONFIRMED.check(False, "cached"))
    return tuple(checks)


def no_model(reason: Message) -> tuple[Check, ...]:
    """The check where no model can be had, with the reason."""
    return (MODEL_AVAILABLE.check(False, reason),)
