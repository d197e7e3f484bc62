"""What H-1 says of models: the one under test, those that were passed over, and what each would need of the card."""

from __future__ import annotations

from typing import Literal

from steph.terms import Cause
from steph.values import Value


class RejectedCandidate(Value):
    """A model candidate that was passed over, and why (one line)."""

    name: str
    cause: Cause
    message: str


class ModelChoice(Value):
    """The model under test; `name` is what the pipeline gets as its model name (an id on the Hub or a folder)."""

    name: str
    source: Literal["hub", "cache", "local", "twin"]
    reason: str  # 選定理由, Japanese
    automatic_substitute: bool = False
    parameters: int | None = None
    revision: str | None = None
    licence: str | None = None
    download_bytes: int | None = None
    free_disk_bytes: int | None = None
    predicted_peak_bytes: int | None = None
    snapshot_path: str | None = None
    rejected: tuple[RejectedCandidate, ...] = ()


class Candidate(Value):
    """A model that H-1 could choose, with the predicted peak of training it at the profile's settings on this card.

    Peaks are the whole process's. Without them `unpredicted_reason` says why (Japanese).
    """

    name: str
    outcome: Literal["chosen", "rejected", "not_tried"]
    parameters: int | None = None
    settings: str = ""  # as in `512/b2/4bit`
    predicted_peak_bytes: int | None = None
    predicted_low_bytes: int | None = None
    predicted_high_bytes: int | None = None
    verdict: Literal["fits", "does_not_fit", "too_close"] | None = None
    unpredicted_reason: str = ""
