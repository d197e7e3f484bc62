"""Checks of the figures that a training gave for its steps: losses, gradient norms, learning rates. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import TypeAlias

from steph.base.messages import Message, say
from steph.base.terms import Severity
from steph.contract.lines import Metrics
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind
from steph.judge.witness import TrainingBegins, TrainingEnds
from steph.record.values import Check

LEAST_SCALED = 4  # micro-batches
SCALE_TOLERANCE = 0.02  # a loss is computed in half precision here and in full there
TREND_LOSSES = 6  # fewer say nothing about a trend
PRINTED_TOLERANCE = 0.01  # transformers prints four significant digits
EPOCH_TOLERANCE = 6e-3  # and its version 4 two decimals of the epoch
LOSS_FINITE = CheckKind("loss_finite", "H-2", FAIL)
LOSS_ROUNDED = CheckKind("loss_rounded", "H-2", WARN, optional=True)
LOSS_LOWER = CheckKind("loss_lower", "H-2", WARN, quality=True, optional=True)
LOSS_LOGGED = CheckKind("loss_logged", "H-2", INFO, trap=13, optional=True)
LOSSES_AGREE = CheckKind("losses_agree", "H-2", WARN, optional=True)
LOSS = (LOSS_FINITE, LOSS_ROUNDED, LOSS_LOWER, LOSS_LOGGED, LOSSES_AGREE)
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
_Judged: TypeAlias = tuple[bool, Message, Severity | None]  # whether it holds, and how hard it is where it does not


@dataclass(frozen=True)
class LossEvidence:
    """Losses as printed and as logged on disk, in order; values may be NaN or infinite.

    `printed_norms`: the gradient norm that was printed with each loss, None where there was none.
    """

    printed: tuple[float, ...]
    printed_norms: tuple[float | None, ...]
    logged: tuple[float, ...]
    has_state: bool
    train_loss: float | None
    steps_done: int | None
    rehearsal: bool
    printed_epochs: tuple[float | None, ...] = ()
    logged_epochs: tuple[float | None, ...] = ()
    witnessed: tuple[float, ...] = ()  # as the Trainer gave them to its callbacks
    witnessed_epochs: tuple[float | None, ...] = ()


def loss_checks(evidence: LossEvidence) -> tuple[Check, ...]:
    """All checks of the losses."""
    return (
        _losses_finite_check(evidence),
        _rounded_check(evidence),
        _lower_check(evidence),
        _logged_check(evidence),
        _agreement_check(evidence),
    )


def _losses_finite_check(evidence: LossEvidence) -> Check:
    rounded = _rounded_to_zero(evidence)
    values = [value for losses in (evidence.printed, evidence.logged) for value in _without(losses, rounded)]
    if evidence.train_loss is not None:
        values.append(evidence.train_loss)
    if not values:
        return LOSS_FINITE.check(None, "none")
    bad = [value for value in values if not math.isfinite(value) or value == 0]
    if bad:
        return LOSS_FINITE.check(False, "bad", losses=len(values), bad=len(bad), example=bad[0])
    return LOSS_FINITE.check(True, "sound", losses=len(values), least=min(values))


def _rounded_check(evidence: LossEvidence) -> Check:
    if not evidence.printed:
        return LOSS_ROUNDED.check(None, "none")
    rounded = len(_rounded_to_zero(evidence))
    return LOSS_ROUNDED.check(rounded == 0, "counted", losses=len(evidence.printed), rounded=rounded)


def _rounded_to_zero(evidence: LossEvidence) -> frozenset[int]:
    """Places of losses too small for the digits that transformers prints: zero, with a gradient that is there."""
    pairs = enumerate(zip(evidence.printed, evidence.printed_norms, strict=True))
    return frozenset(at for at, (loss, norm) in pairs if loss == 0 and norm and math.isfinite(norm))


def _without(losses: tuple[float, ...], rounded: frozenset[int]) -> list[float]:
    return [value for at, value in enumerate(losses) if value != 0 or at not in rounded]


def _lower_check(evidence: LossEvidence) -> Check:
    losses = [value for value in evidence.printed or evidence.logged if math.isfinite(value)]
    if len(losses) < TREND_LOSSES:
        return LOSS_LOWER.check(None, "too_few", losses=len(losses))
    third = len(losses) // 3
    first, last = median(losses[:third]), median(losses[-third:])
    return LOSS_LOWER.check(last < first, "compared", rehearsal=evidence.rehearsal, first=first, last=last)


def _logged_check(evidence: LossEvidence) -> Check:
    if not evidence.has_state:
        return LOSS_LOGGED.check(None, "no_state")
    return LOSS_LOGGED.check(bool(evidence.logged), "counted", losses=len(evidence.logged))


def _agreement_check(evidence: LossEvidence) -> Check:
    apart, compared = _apart(evidence.printed, evidence.printed_epochs, evidence.logged, evidence.logged_epochs)
    seen = evidence.witnessed, evidence.witnessed_epochs
    for told, epochs in ((evidence.printed, evidence.printed_epochs), (evidence.logged, evidence.logged_epochs)):
        others, further = _apart(told, epochs, *seen)
        apart, compared = [*apart, *others], compared + further
    every_step = len(evidence.printed) == evidence.steps_done and evidence.printed
    if every_step and evidence.train_loss is not None and _are_finite(evidence.train_loss, *evidence.printed):
        compared += 1
        mean = fmean(evidence.printed)
        apart += [] if _agree(evidence.train_loss, mean) else [(evidence.train_loss, mean)]
    if not compared:
        return LOSSES_AGREE.check(None, "none")
    if apart:
        one, other = apart[0]
        return LOSSES_AGREE.check(False, "apart", compared=compared, apart=len(apart), one=one, other=other)
    return LOSSES_AGREE.check(True, "agree", compared=compared)


def _apart(
    printed: Sequence[float],
    printed_epochs: Sequence[float | None],
    logged: Sequence[float],
    logged_epochs: Sequence[float | None],
) -> tuple[list[tuple[float, float]], int]:
    """Losses of the same step that differ between two sources, and how many were compared.

    In order where there are as many of both. A long output is cut in its middle: then those of the same epoch, of which
    two printed decimals may mean several.
    """
    if len(printed) == len(logged):
        pairs = [(one, [other]) for one, other in zip(printed, logged, strict=True)]
    else:
        steps = list(zip(logged_epochs, logged, strict=False))
        pairs = [
            (loss, [other for at, other in steps if at is not None and abs(at - epoch) <= EPOCH_TOLERANCE])
            for epoch, loss in zip(printed_epochs, printed, strict=False)
            if epoch is not None
        ]
    finite = [(one, others) for one, others in pairs if others and _are_finite(one, *others)]
    return [(one, others[0]) for one, others in finite if not any(_agree(one, other) for other in others)], len(finite)


def _are_finite(*values: float) -> bool:
    return all(map(math.isfinite, values))


def _agree(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=PRINTED_TOLERANCE, abs_tol=1e-3)


def scaled_loss(begins: TrainingBegins, ends: TrainingEnds | None) -> tuple[float, bool] | None:
    """The factor, which no mean has, by which each micro-batch's loss is the model's own, and whether that is a mean.

    A model that is told how many tokens the step has gives its part of the mean; any other gives its own mean, and the
    Trainer divides it by the micro-batches of the step, of which an epoch's last step may have fewer.
    """
    given = ends.own_losses if ends else ()
    factors = [one / own for one, own, _ in given if math.isfinite(one) and math.isfinite(own) and own > 0]
    if len(factors) < LEAST_SCALED:
        return None
    accumulation, is_told = begins.accumulation or 1, given[0][2]
    factor = median(factors)
    alike = sum(abs(one - factor) <= SCALE_TOLERANCE * abs(factor) for one in factors)
    sound = [1 / part for part in range(2, accumulation + 1)] if not is_told and accumulation > 1 else [1.0]
    if 4 * alike < 3 * len(factors) or any(abs(factor - one) <= SCALE_TOLERANCE * one for one in sound):
        return None
    return factor, not is_told


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
