"""Checks of the losses that a training printed and logged. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

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
        _finite_check(evidence),
        _rounded_check(evidence),
        _lower_check(evidence),
        _logged_check(evidence),
        _agreement_check(evidence),
    )


def _finite_check(evidence: LossEvidence) -> Check:
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
