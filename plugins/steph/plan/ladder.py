"""The OOM ladder: which settings an attempt runs at, and where a failed one leads.

Rungs are changes, applied one upon the other; a skipped rung gives its change back. Pure values: the conductor asks
`next_move` after every failed attempt and does what it says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from steph.base.messages import Message, say
from steph.base.terms import Cause, Phase
from steph.plan.settings import Rung
from steph.record.settings import TrainSettings
from steph.record.values import Diagnosis

PHASES_BEFORE_STEPS = (Phase.LOAD, Phase.PREPARE)


class MoveKind(StrEnum):
    """What to do after a failed attempt."""

    NEXT_RUNG = "next_rung"
    WITHOUT_4BIT = "without_4bit"
    SMALLER_MODEL = "smaller_model"
    STOP = "stop"


@dataclass(frozen=True)
class Move:
    """Where a failed attempt leads, and why (Japanese)."""

    kind: MoveKind
    reason: Message


def settings_at(
    base: TrainSettings,
    ladder: Sequence[Rung],
    rung: int,
    *,
    skipped: Collection[int] = (),
    half: Literal["bf16", "fp16"] = "bf16",
) -> TrainSettings:
    """The settings of rung `rung` (0 is `base`), with the changes of `skipped` rungs left out.

    A rung without 4-bit trains in `half` precision, what the card can do.
    """
    changes: dict[str, Any] = {}
    for number, step in enumerate(ladder[:rung], start=1):
        if number not in skipped:
            changes |= step.model_dump(exclude_none=True)
    if changes.get("use_4bit") is False and base.mixed_precision is None:
        changes["mixed_precision"] = half
    return base.changed(**changes)


def drops_4bit(step: Rung) -> bool:
    """Whether this rung trains without 4-bit."""
    return step.use_4bit is False


def next_move(diagnosis: Diagnosis, rung: int, ladder: Sequence[Rung]) -> Move:
    """Where a failed attempt at `rung` leads, by cause and phase.

    CUDA OOM steps down; while loading or preparing it goes to a smaller model, since batch and length can't cure it;
    bitsandbytes trouble goes to training without 4-bit where the ladder allows that; anything else stops at once.
    """
    if diagnosis.cause is Cause.CUDA_OOM:
        if diagnosis.phase in PHASES_BEFORE_STEPS:
            return Move(MoveKind.SMALLER_MODEL, say("ladder.oom_before_steps"))
        if rung < len(ladder):
            return Move(MoveKind.NEXT_RUNG, say("ladder.next_rung"))
        return Move(MoveKind.STOP, say("ladder.oom_at_the_end"))
    if diagnosis.cause is Cause.BNB_SETUP and any(map(drops_4bit, ladder)):
        return Move(MoveKind.WITHOUT_4BIT, say("ladder.without_4bit"))
    return Move(MoveKind.STOP, say("ladder.no_help", cause=diagnosis.cause.value))


def ladder_without_4bit(
    base: TrainSettings, ladder: Sequence[Rung], half: Literal["bf16", "fp16"] = "bf16"
) -> tuple[TrainSettings, tuple[Rung, ...]]:
    """The ladder where bitsandbytes can't be used: the first rung's batch and length in `half`, then as before."""
    top = base.changed(use_4bit=False, mixed_precision=base.mixed_precision or half)
    return top, tuple(step for step in ladder if not drops_4bit(step))


_TITLES: Mapping[str, str] = {
    "max_seq_length": "max-seq-length",
    "batch_size": "batch-size",
    "gradient_accumulation_steps": "gradient-accumulation-steps",
    "use_4bit": "4bit",
    "mixed_precision": "mixed precision",
}


def given_up(asked: TrainSettings, used: TrainSettings) -> tuple[Message, ...]:
    """The settings that a degraded pass gave up, as `max-seq-length 512 → 384`."""
    before, after = asked.model_dump(), used.model_dump()
    return tuple(
        say("ladder.given_up", setting=title, before=_shown(before[key]), after=_shown(after[key]))
        for key, title in _TITLES.items()
        if before[key] != after[key]
    )


def _shown(value: object) -> object:
    return say("ladder.with" if value else "ladder.without") if value is None or isinstance(value, bool) else value
