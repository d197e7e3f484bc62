"""The grid of the memory model's validation: which points set its constants and which judge it, fixed beforehand.

Points of the small model with a head of its own set the constants; those of four other shapes judge the prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from steph.plan.shapes import BUILT_IN, TINY, linear_shapes
from steph.plan.vram_constants import GIB
from steph.plan.vram_terms import DEFAULT_TARGETS, Trainer, Workload

CALIBRATES = "Qwen/Qwen1.5-1.8B-Chat"
JUDGED = ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B")
MODELS = (CALIBRATES, *JUDGED)
DRY_MODEL = "tiny"
ACCUMULATION_STEPS = 2
LABELS = 3  # a letter, the end of the turn, a line break
ALL_LINEAR = tuple(linear_shapes(TINY))


@dataclass(frozen=True)
class Point:
    """One measurement; `allowed_gib` caps the allocator, None leaves it the whole card."""

    model: str
    trainer: Trainer
    batch: int
    seq: int
    r: int = 16
    targets: tuple[str, ...] = DEFAULT_TARGETS
    recompute: bool = True
    allowed_gib: float | None = None

    @property
    def use(self) -> Literal["calibrate", "judge"]:
        """Whether this point sets constants or judges them; never both."""
        return "calibrate" if self.model == CALIBRATES and self.allowed_gib is None else "judge"

    @property
    def work(self) -> Workload:
        """The point as the memory model sees it."""
        return Workload(
            trainer=self.trainer,
            batch_size=self.batch,
            width=self.seq,
            accumulation_steps=ACCUMULATION_STEPS,
            lora_r=self.r,
            target_modules=self.targets,
            recompute=self.recompute,
            label_positions=LABELS + 1,
        )

    @property
    def key(self) -> str:
        """What makes two measurements the same point."""
        return repr(sorted(asdict(self).items()))


# batch, seq, r, targets, recompute; one list for every model, so that shapes differ and nothing else
_ANSWER: Sequence[tuple[int, int, int, tuple[str, ...], bool]] = (
    (1, 256, 16, DEFAULT_TARGETS, True),
    (2, 512, 16, DEFAULT_TARGETS, True),
    (2, 1024, 16, DEFAULT_TARGETS, True),
    (4, 1024, 16, ALL_LINEAR, True),
    (8, 512, 8, ALL_LINEAR, True),
    (2, 2048, 64, ALL_LINEAR, True),
    (2, 512, 16, DEFAULT_TARGETS, False),
    (4, 512, 16, ALL_LINEAR, False),
)
_FULL: Sequence[tuple[int, int, int, tuple[str, ...], bool]] = (
    (1, 256, 16, DEFAULT_TARGETS, True),
    (2, 512, 16, DEFAULT_TARGETS, True),
    (2, 1024, 16, ALL_LINEAR, True),
    (1, 2048, 64, DEFAULT_TARGETS, True),
    (8, 512, 16, DEFAULT_TARGETS, True),
)
# under the 8.8 GiB that an RTX 3080 leaves the allocator: some run out of memory, none of those may be said to fit
_CAPPED_GIB = 8.8
_CAPPED: Sequence[tuple[str, Trainer, int, int]] = (
    ("Qwen/Qwen1.5-1.8B-Chat", "full", 4, 768),
    ("Qwen/Qwen1.5-1.8B-Chat", "full", 4, 1024),
    ("Qwen/Qwen3-4B", "full", 2, 512),
    ("Qwen/Qwen3-4B", "full", 2, 1024),
    ("Qwen/Qwen3-8B", "answer", 4, 1024),
    ("Qwen/Qwen3-8B", "answer", 6, 1024),
    ("Qwen/Qwen3-8B", "answer", 8, 1024),
)


def points_of(model: str) -> tuple[Point, ...]:
    """A model's points: the answer trainer's first, since the plain one's upcast can't be undone."""
    if model == DRY_MODEL:
        tiny: tuple[Trainer, ...] = ("answer", "full")
        return tuple(Point(DRY_MODEL, trainer, 2, 32, 4) for trainer in tiny)
    free = [Point(model, "answer", *values) for values in _ANSWER] + [Point(model, "full", *values) for values in _FULL]
    capped = [Point(*values, allowed_gib=_CAPPED_GIB) for values in _CAPPED if values[0] == model]
    return tuple(sorted([*free, *capped], key=lambda point: (point.trainer == "full", point.allowed_gib is not None)))


def card_bytes(point: Point, context_bytes: float, kept_free_bytes: int) -> float | None:
    """The size of the card that a capped point stands for, None for the others."""
    return None if point.allowed_gib is None else point.allowed_gib * GIB + context_bytes + kept_free_bytes


SHAPES = {**BUILT_IN, DRY_MODEL: TINY}
