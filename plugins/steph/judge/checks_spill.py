"""Finds a card that spilled into system memory: the driver swaps instead of an OOM, and steps become many times slower.

Figures in, one check out. Windows and WSL2 do this by default (the driver's CUDA - Sysmem Fallback Policy), on Linux
paged optimizers do. Only two things accuse: torch reserved more than the card has, or steps are slow for as long as
the card is full and were fast before. A single slow step, or a slow run with room on the card, never does.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from itertools import pairwise
from statistics import median, quantiles

from steph.base.messages import say
from steph.base.units import gib
from steph.judge.evidence import CardMemory
from steph.judge.kinds import WARN, CheckKind
from steph.record.values import Check

FULL_SHARE = 0.93  # of the card: a Windows driver keeps some hundred MiB of it to itself
SLOWDOWN = 8.0  # a spill makes steps some ten times slower; short and long rows alone can make them five times slower
SLOWDOWN_PER_TOKEN = 5.0  # where the rows' lengths are known
MEASURABLE_SECONDS = 0.01  # below this a line's arrival says more about the pipe than about the step
LEAST_STEPS = 3  # on either side; fewer can be a checkpoint or a warm-up

NO_MEMORY_SPILL = CheckKind("no_memory_spill", "H-2", WARN, optional=True)


@dataclass(frozen=True)
class TimedStep:
    """One step: when it ended, in seconds since the attempt's start, how long it took, and its tokens where known."""

    ended_seconds: float
    seconds: float
    tokens: int | None = None


def steps_between(arrivals: tuple[float, ...], logging_steps: int) -> tuple[TimedStep, ...]:
    """The steps between loss lines by the lines' arrival, the average one where a line stands for several."""
    every = max(1, logging_steps)
    return tuple(TimedStep(later, (later - earlier) / every) for earlier, later in pairwise(arrivals))


def steps_before(end_seconds: float, seconds: tuple[float, ...], tokens: tuple[int, ...]) -> tuple[TimedStep, ...]:
    """A pipeline's own step times, the last of which ended at `end_seconds`, without the first: it warms up."""
    counts: tuple[int | None, ...] = tokens if len(tokens) == len(seconds) else (None,) * len(seconds)
    steps: list[TimedStep] = []
    for taken, count in zip(reversed(seconds[1:]), reversed(counts[1:]), strict=True):
        steps.append(TimedStep(end_seconds, taken, count))
        end_seconds -= taken
    return tuple(reversed(steps))


def spill_check(card: CardMemory, steps: tuple[TimedStep, ...]) -> Check:
    """Whether training stayed in the card's own memory; None where nothing can be compared."""
    reserved = card.peak_reserved_bytes
    if reserved is not None and reserved > card.total_bytes:
        return NO_MEMORY_SPILL.check(
            False,
            "beyond_the_card",
            reserved=gib(reserved),
            total=gib(card.total_bytes),
            remedy=say("spill.remedy"),
        )
    if not card.samples:
        return NO_MEMORY_SPILL.check(None, "no_samples")
    share = max(used for _, used in card.samples) / card.total_bytes
    if share < FULL_SHARE:
        return NO_MEMORY_SPILL.check(True, "most", share=share)
    return _slowdown(card, steps, share)


def _slowdown(card: CardMemory, steps: tuple[TimedStep, ...], share: float) -> Check:
    full = [step for step in steps if _used_share(card, step.ended_seconds) >= FULL_SHARE]
    roomy = [step for step in steps if _used_share(card, step.ended_seconds) < FULL_SHARE]
    before = median(step.seconds for step in roomy) if roomy else 0.0
    if min(len(full), len(roomy)) < LEAST_STEPS or before < MEASURABLE_SECONDS:
        return NO_MEMORY_SPILL.check(None, "incomparable", share=share, before=len(roomy), after=len(full))
    by_token = all(step.tokens for step in steps)
    # the quarter of the full card's steps that is fastest: a spill slows all, a checkpoint or a long row only some
    ratio = quantiles((_cost(step, by_token) for step in full), n=4)[0] / median(_cost(s, by_token) for s in roomy)
    after = median(step.seconds for step in full)
    is_kept = ratio < (SLOWDOWN_PER_TOKEN if by_token else SLOWDOWN)
    return NO_MEMORY_SPILL.check(
        is_kept,
        "kept" if is_kept else "spilled",
        share=share,
        before=before,
        after=after,
        ratio=say("spill.by_token" if by_token else "spill.of_the_faster", times=ratio),
        remedy=say("spill.remedy"),
    )


def _used_share(card: CardMemory, at_seconds: float) -> float:
    """The share of the card in use at a moment, by the last sample until then."""
    at = bisect.bisect_right(card.samples, at_seconds, key=lambda sample: sample[0])
    return card.samples[max(0, at - 1)][1] / card.total_bytes


def _cost(step: TimedStep, by_token: bool) -> float:
    return step.seconds / step.tokens if by_token and step.tokens else step.seconds
