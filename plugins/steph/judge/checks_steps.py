"""Checks of every step that a training printed or logged: gradient norms, learning rates, losses, and one run. Pure.

What is too large or no number is asked of the printed lines and of `log_history` alike: what was filtered on the way to
one of them shows in the other. What is zero is asked of `log_history` where it has all of it: a line may be rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TypeAlias

from steph.base.messages import Message, say
from steph.base.terms import Severity
from steph.contract.lines import Metrics
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind
from steph.record.values import Check

LEAST_STEPS = 4  # fewer show no schedule
SCALING_STEPS = 3  # in which fp16 finds its loss scale, with norms that are infinite
LARGEST_NORM = 1e4  # a sound step of a LoRA training is below 100, of one with a bad start below 1000
SMALLEST_EARLY_LOSS = 1e-3  # in the first half: of text that the model has never seen
UNKNOWN_VOCABULARY = 32_000  # where the model's own isn't known: the smallest of those in use
LEAST_VOCABULARY = 10_000  # below that a good model's first loss may lie near chance
CHANCE_SLACK = 0.75  # nats below ln(vocabulary) that are still a model without knowledge
MOST_VOCABULARY = 150_000  # a loss is called exploded by the chance of no smaller one
EXPLODED_OVER_CHANCE = 1.5
EXPLODED_OVER_FIRST = 5.0
ZIGZAG_STEPS, ZIGZAG_SHARE = 8, 0.5  # losses of rows go up and down, but not each time and by half of what they are
LONGEST_WARMUP = 0.5  # of the steps; a schedule that was asked for longer may climb to the end

LEAST_NORM = 1e-6  # of all steps; a loss near zero still has more
GRADIENT_FLOWS = CheckKind("gradient_flows", "H-2", FAIL, optional=True)
GRAD_NORM_FINITE = CheckKind("grad_norm_finite", "H-2", WARN, optional=True)
GRAD_NORM_BOUNDED = CheckKind("grad_norm_bounded", "H-2", WARN, optional=True)
LEARNING_RATE_RUNS = CheckKind("learning_rate_runs", "H-2", WARN, optional=True)
LOSS_PLAUSIBLE = CheckKind("loss_plausible", "H-2", WARN, optional=True)
LOSS_BELOW_CHANCE = CheckKind("loss_below_chance", "H-2", WARN, optional=True)
TRAINED_ONCE = CheckKind("trained_once", "H-2", WARN, optional=True)
STEPS = (
    GRADIENT_FLOWS,
    GRAD_NORM_FINITE,
    GRAD_NORM_BOUNDED,
    LEARNING_RATE_RUNS,
    LOSS_PLAUSIBLE,
    LOSS_BELOW_CHANCE,
    TRAINED_ONCE,
)


_Judged: TypeAlias = tuple[bool, Message, Severity | None]  # whether it holds, and how hard it is where it does not


@dataclass(frozen=True)
class StepEvidence:
    """The loss lines of the run that counts, as printed and as logged on disk, and what is known beside them.

    `earlier`: loss lines of runs before it in the same output. `vocabulary`: of the model, None where unknown or where
    its weights are random.
    """

    printed: tuple[Metrics, ...]
    logged: tuple[Metrics, ...]
    earlier: int = 0
    warmup_ratio: float = 0.0
    vocabulary: int | None = None
    random_weights: bool = False

    def values(self, key: str) -> tuple[tuple[float, ...], ...]:
        """This figure of all steps, by each source that has it."""
        sources = (tuple(v for m in lines if (v := m.get(key)) is not None) for lines in (self.printed, self.logged))
        return tuple(values for values in sources if values)

    def unrounded(self, key: str) -> tuple[tuple[float, ...], ...]:
        """This figure of all steps, from `log_history` alone where it has as many as were printed."""
        found = self.values(key)
        return found[-1:] if found and len(found[-1]) >= len(found[0]) else found


def step_checks(evidence: StepEvidence) -> tuple[Check, ...]:
    """All checks of the steps."""
    return (
        _flow_check(evidence.unrounded("grad_norm")),
        _finite_check(evidence.values("grad_norm")),
        _bounded_check(evidence.values("grad_norm")),
        _rate_check(evidence),
        _plausible_check(evidence),
        _chance_check(evidence),
        TRAINED_ONCE.check(
            evidence.earlier == 0 if evidence.printed else None,
            "earlier",
            lines=evidence.earlier,
        ),
    )


def _worst(kind: CheckKind, sources: Sequence[_Judged], unmeasured: Message) -> Check:
    """The check by the source that accuses hardest."""
    if not sources:
        return kind.check(None, unmeasured)
    order = list(Severity)
    holds, message, severity = min(
        sources, key=lambda one: len(order) if one[0] else order.index(one[2] or kind.severity)
    )
    return kind.check(holds, message, severity=None if holds else severity)


def _flow_check(sources: tuple[tuple[float, ...], ...]) -> Check:
    return _worst(GRADIENT_FLOWS, [_flow(norms) for norms in sources], say("steps.no_norms"))


def _flow(norms: tuple[float, ...]) -> _Judged:
    zero, broken = sum(norm == 0 for norm in norms), sum(not math.isfinite(norm) for norm in norms)
    largest = max((norm for norm in norms if math.isfinite(norm)), default=0.0)
    what = "check.gradient_flows.norms"
    if zero + broken == len(norms):
        what = "check.gradient_flows.none"
    elif largest < LEAST_NORM:
        what = "check.gradient_flows.tiny"
    said = say(what, norms=len(norms), zero=zero, broken=broken, largest=largest)
    return largest >= LEAST_NORM and 2 * zero < len(norms), said, FAIL if zero + broken == len(norms) else WARN


def _finite_check(sources: tuple[tuple[float, ...], ...]) -> Check:
    return _worst(GRAD_NORM_FINITE, [_finite(norms) for norms in sources], say("steps.no_norms"))


def _finite(norms: tuple[float, ...]) -> _Judged:
    """The first few may be infinite while fp16 looks for its scale, if sound ones follow and are most of all."""
    scaling = 0
    while scaling < min(SCALING_STEPS, len(norms) // 2) and not math.isfinite(norms[scaling]):
        scaling += 1
    bad = sum(not math.isfinite(norm) for norm in norms[scaling:])
    what = "check.grad_norm_finite.after_scaling" if scaling else "check.grad_norm_finite.norms"
    return bad == 0, say(what, norms=len(norms), bad=bad, scaling=scaling), WARN if 4 * bad >= len(norms) else INFO


def _bounded_check(sources: tuple[tuple[float, ...], ...]) -> Check:
    found = [[norm for norm in norms if math.isfinite(norm)] for norms in sources]
    judged: list[_Judged] = [
        (max(norms) <= LARGEST_NORM, say("check.grad_norm_bounded.largest", largest=max(norms)), None)
        for norms in found
        if norms
    ]
    return _worst(GRAD_NORM_BOUNDED, judged, say("check.grad_norm_bounded.none"))


def _rate_check(evidence: StepEvidence) -> Check:
    may_climb = evidence.warmup_ratio > LONGEST_WARMUP
    sources = [rates for rates in evidence.unrounded("learning_rate") if len(rates) >= LEAST_STEPS]
    judged = [_rate(rates, may_climb=may_climb) for rates in sources]
    return _worst(LEARNING_RATE_RUNS, judged, say("check.learning_rate_runs.too_few", least=LEAST_STEPS))


def _rate(rates: tuple[float, ...], *, may_climb: bool) -> _Judged:
    """A schedule ends in one zero at most, and is past its warm-up before its end."""
    highest = max(rates)
    at_rest = [not rate > 1e-6 * highest for rate in rates]
    if not highest > 0 or all(at_rest[1:]):
        return False, say("check.learning_rate_runs.zero", rates=len(rates)), FAIL
    resting = at_rest[::-1].index(False)
    if resting >= max(2, len(rates) / 10):
        return False, say("check.learning_rate_runs.zero_at_end", rates=len(rates), zero=resting), WARN
    rest = rates[len(rates) // 2 :]
    climbs = all(later >= earlier for earlier, later in pairwise(rates)) and rest[-1] > rest[0]
    if climbs and not may_climb:
        return False, say("check.learning_rate_runs.climbs", first=rates[0], last=rates[-1]), WARN
    said = say("check.learning_rate_runs.runs", rates=len(rates), first=rates[0], highest=highest, last=rates[-1])
    return True, said, None


def _plausible_check(evidence: StepEvidence) -> Check:
    chance = math.log(max(evidence.vocabulary or 0, MOST_VOCABULARY))
    found = [[loss for loss in losses if math.isfinite(loss)] for losses in evidence.values("loss")]
    judged = [_plausible(losses, chance) for losses in found if losses]
    return _worst(LOSS_PLAUSIBLE, judged, say("check.loss_plausible.none"))


def _plausible(losses: list[float], chance: float) -> _Judged:
    lowest, highest, first = min(losses), max(losses), losses[0]
    turns = [later - earlier for earlier, later in pairwise(losses)]
    swings = len(losses) >= ZIGZAG_STEPS and all(one * other < 0 for one, other in pairwise(turns))
    trouble = None
    if lowest < 0:
        trouble = "check.loss_plausible.negative"
    elif 0 < median(losses[: (len(losses) + 1) // 2]) < SMALLEST_EARLY_LOSS:
        trouble = "check.loss_plausible.small_from_the_start"
    elif highest > EXPLODED_OVER_CHANCE * chance or (highest > chance and highest > EXPLODED_OVER_FIRST * first):
        trouble = "check.loss_plausible.exploded"
    elif swings and median(map(abs, turns)) > ZIGZAG_SHARE * median(losses):
        trouble = "check.loss_plausible.zigzag"
    said = say(trouble or "check.loss_plausible.range", first=first, lowest=lowest, highest=highest, chance=chance)
    return trouble is None, said, None


def _chance_check(evidence: StepEvidence) -> Check:
    first = next((values[0] for values in evidence.values("loss")), None)
    if evidence.random_weights:
        return LOSS_BELOW_CHANCE.check(None, "random_weights")
    vocabulary = evidence.vocabulary or UNKNOWN_VOCABULARY
    if first is None or not math.isfinite(first) or vocabulary < LEAST_VOCABULARY:
        return LOSS_BELOW_CHANCE.check(None, "unknown")
    chance = math.log(vocabulary)
    holds = first < chance - CHANCE_SLACK
    return LOSS_BELOW_CHANCE.check(holds, "below" if holds else "at_chance", loss=first, chance=chance)
