"""Checks of the figures that a training gave for its steps: losses, gradient norms, learning rates. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import TypeAlias

from steph.base.messages import Message, say
from steph.base.terms import Severity
from steph.base.text import one_line
from steph.contract.training_files import TrainerState
from steph.judge.evidence import Trained
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind
from steph.judge.witness import TrainingBegins, TrainingEnds
from steph.record.values import Check

LEAST_SCALED = 4  # micro-batches
SCALE_TOLERANCE = 0.02  # a loss is computed in half precision here and in full there
TREND_LOSSES = 6  # fewer say nothing about a trend
PRINTED_TOLERANCE = 0.01  # transformers prints four significant digits
EPOCH_TOLERANCE = 6e-3  # and its version 4 two decimals of the epoch
LEAST_STEPS = 4  # fewer show no schedule
SCALING_STEPS = 3  # in which fp16 finds its loss scale, with norms that are infinite
LARGEST_NORM = 1e4  # a sound step of a LoRA training is below 100, of one with a bad start below 1000
LEAST_NORM = 1e-6  # of all steps; a loss near zero still has more
SMALLEST_EARLY_LOSS, EARLY_LOSSES = 1e-3, 4  # of text that the model has never seen; answers all alike are soon known
UNKNOWN_VOCABULARY = 32_000  # where the model's own isn't known: the smallest of those in use
LEAST_VOCABULARY = 10_000  # below that a good model's first loss may lie near chance
CHANCE_SLACK = 0.75  # nats below ln(vocabulary) that are still a model without knowledge
MOST_VOCABULARY = 150_000  # a loss is called exploded by the chance of no smaller one
EXPLODED_OVER_CHANCE, EXPLODED_OVER_FIRST = 1.5, 5.0
ZIGZAG_STEPS, ZIGZAG_SHARE = 10, 0.5  # losses of rows go up and down, but not each time and by half of what they are
LEAST_RATE_LEFT = 0.01  # of the highest, on average of the second half: a cosine leaves 0.18
RATE_AT_REST = 0.05  # of the highest
LONGEST_WARMUP = 0.5  # of the steps; a schedule that was asked for longer may climb to the end

LOSS_FINITE = CheckKind("loss_finite", "H-2", FAIL)
LOSS_ROUNDED = CheckKind("loss_rounded", "H-2", WARN, optional=True)
LOSS_LOWER = CheckKind("loss_lower", "H-2", WARN, quality=True, optional=True)
LOSS_LOGGED = CheckKind("loss_logged", "H-2", INFO, trap=13, optional=True)
LOSSES_AGREE = CheckKind("losses_agree", "H-2", WARN, optional=True)
VALIDATION_SOUND = CheckKind("validation_sound", "H-2", WARN, optional=True)
LOSS = (LOSS_FINITE, LOSS_ROUNDED, LOSS_LOWER, LOSS_LOGGED, LOSSES_AGREE)
GRADIENT_FLOWS = CheckKind("gradient_flows", "H-2", FAIL, optional=True)
GRAD_NORM_FINITE = CheckKind("grad_norm_finite", "H-2", WARN, optional=True)
GRAD_NORM_BOUNDED = CheckKind("grad_norm_bounded", "H-2", WARN, optional=True)
LEARNING_RATE_RUNS = CheckKind("learning_rate_runs", "H-2", WARN, optional=True)
LOSS_PLAUSIBLE = CheckKind("loss_plausible", "H-2", WARN, optional=True)
LOSS_BELOW_CHANCE = CheckKind("loss_below_chance", "H-2", WARN, optional=True)
TRAINED_ONCE = CheckKind("trained_once", "H-2", WARN, optional=True)

_VALIDATION_LOSS = re.compile(r"^(?:eval|val|valid|validation|test|dev)\w{0,40}(?:loss|perplexity)$", re.I)
_SHARE_OF_RIGHT = re.compile(
    r"^(?:eval|val|valid|validation|test|dev)\w{0,40}(?:accuracy|acc|f1|bleu|rouge\w{0,4}|exact_match)$", re.I
)
_Judged: TypeAlias = tuple[bool, Message, Severity | None]  # whether it holds, and how hard it is where it does not


def loss_checks(trained: Trained) -> tuple[Check, ...]:
    """All checks of the losses as they were printed, logged on disk, and seen by the Trainer's callbacks."""
    state, printed = trained.state, trained.printed("loss")
    losses = [value for value in printed or trained.logged_losses if math.isfinite(value)]
    third = len(losses) // 3
    lower = LOSS_LOWER.check(None, "too_few", losses=len(losses))
    if len(losses) >= TREND_LOSSES:
        first, last = median(losses[:third]), median(losses[-third:])
        lower = LOSS_LOWER.check(last < first, "compared", rehearsal=trained.rehearsal, first=first, last=last)
    logged = LOSS_LOGGED.check(None, "no_state")
    if state.fresh and state.problem is None:
        logged = LOSS_LOGGED.check(bool(state.losses), "counted", losses=len(state.losses))
    validation = _validation_check(trained)
    return (*_finite_checks(trained, printed), lower, logged, _agreement_check(trained, printed), validation)


def _validation_check(trained: Trained) -> Check:
    """Losses of held-out rows are numbers, and the checkpoint that is called the best has the best figure of all."""
    state = trained.state if trained.state.fresh else TrainerState()
    entries = [dict(one.values) for one in (*state.other_entries, *trained.log.metrics)]
    losses = [value for one in entries for name, value in one.items() if _VALIDATION_LOSS.search(name)]
    if not losses:
        return VALIDATION_SOUND.check(None, "none")
    bad = [value for value in losses if not math.isfinite(value) or value <= 0]
    if bad:
        return VALIDATION_SOUND.check(False, "bad", losses=len(losses), bad=len(bad), example=bad[0])
    best = state.best_metric if state.best_folder else None
    for name in {name for one in entries for name in one}:
        figures = [one[name] for one in entries if name in one and math.isfinite(one[name])]
        is_loss, is_share = _VALIDATION_LOSS.search(name), _SHARE_OF_RIGHT.search(name)
        if best is None or best not in figures or not (is_loss or is_share):
            continue
        better = min(figures) if is_loss else max(figures)
        if abs(better - best) > PRINTED_TOLERANCE * abs(best):
            return VALIDATION_SOUND.check(False, "not_best", name=one_line(name, 40), best=best, better=better)
    return VALIDATION_SOUND.check(True, "sound", losses=len(losses))


def _finite_checks(trained: Trained, printed: tuple[float, ...]) -> tuple[Check, Check]:
    """A printed zero beside a gradient that is there was too small for the digits that transformers prints."""
    norms = enumerate(line.get("grad_norm") for line in trained.log.losses)
    rounded = {at for at, norm in norms if printed[at] == 0 and norm and math.isfinite(norm)}
    sources = (printed, trained.logged_losses)
    values = [value for losses in sources for at, value in enumerate(losses) if value != 0 or at not in rounded]
    if trained.train_loss is not None:
        values.append(trained.train_loss)
    bad = [value for value in values if not math.isfinite(value) or value == 0]
    if bad:
        finite = LOSS_FINITE.check(False, "bad", losses=len(values), bad=len(bad), example=bad[0])
    elif values:
        finite = LOSS_FINITE.check(True, "sound", losses=len(values), least=min(values))
    else:
        finite = LOSS_FINITE.check(None, "none")
    if not printed:
        return finite, LOSS_ROUNDED.check(None, "none")
    return finite, LOSS_ROUNDED.check(not rounded, "counted", losses=len(printed), rounded=len(rounded))


def _agreement_check(trained: Trained, printed: tuple[float, ...]) -> Check:
    """Losses of the same step are the same wherever they stand, and their mean is the one that was printed."""
    history = trained.state.history if trained.state.fresh else ()
    by_print = printed, tuple(line.get("epoch") for line in trained.log.losses)
    by_disk = trained.logged_losses, tuple(line.get("epoch") for line in history)
    seen = [(line.loss, line.epoch) for line in trained.witnessed if line.loss is not None]
    by_witness = tuple(loss for loss, _ in seen), tuple(epoch for _, epoch in seen)
    apart, compared = list[tuple[float, float]](), 0
    for one, other in ((by_print, by_disk), (by_print, by_witness), (by_disk, by_witness)):
        others, further = _apart(*one, *other)
        apart, compared = [*apart, *others], compared + further
    mean, is_every_step = trained.train_loss, bool(printed) and len(printed) == trained.steps_done
    if is_every_step and mean is not None and all(map(math.isfinite, (mean, *printed))):
        compared += 1
        apart += [] if _agree(mean, fmean(printed)) else [(mean, fmean(printed))]
    if not compared:
        return LOSSES_AGREE.check(None, "none")
    if apart:
        loss, otherwise = apart[0]
        return LOSSES_AGREE.check(False, "apart", compared=compared, apart=len(apart), one=loss, other=otherwise)
    return LOSSES_AGREE.check(True, "agree", compared=compared)


def _apart(
    losses: Sequence[float], epochs: Sequence[float | None], others: Sequence[float], their: Sequence[float | None]
) -> tuple[list[tuple[float, float]], int]:
    """Losses of the same step that differ between two sources, and how many were compared.

    In order where there are as many of both. A long output is cut in its middle: then those of the same epoch, of which
    two printed decimals may mean several.
    """
    if len(losses) == len(others):
        pairs = [(one, [other]) for one, other in zip(losses, others, strict=True)]
    else:
        steps = list(zip(their, others, strict=False))
        pairs = [
            (loss, [other for at, other in steps if at is not None and abs(at - epoch) <= EPOCH_TOLERANCE])
            for epoch, loss in zip(epochs, losses, strict=False)
            if epoch is not None
        ]
    finite = [(one, found) for one, found in pairs if found and all(map(math.isfinite, (one, *found)))]
    return [(one, found[0]) for one, found in finite if not any(_agree(one, other) for other in found)], len(finite)


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


def step_checks(trained: Trained) -> tuple[Check, ...]:
    """All checks of norms, rates and losses step by step; of two sources the one that accuses hardest counts."""
    norms, losses = trained.by_source("grad_norm"), trained.by_source("loss")
    told = _unrounded(trained.by_source("learning_rate")) or [trained.own_rates]
    rates = [rates for rates in told if len(rates) >= LEAST_STEPS]
    finite_norms = [_finite(source) for source in norms if _finite(source)]
    finite_losses = [_finite(source) for source in losses if _finite(source)]
    bounded: list[_Judged] = [
        (max(source) <= LARGEST_NORM, say("check.grad_norm_bounded.largest", largest=max(source)), None)
        for source in finite_norms
    ]
    may_climb = trained.settings.warmup_ratio > LONGEST_WARMUP
    chance = math.log(max(trained.vocabulary or 0, MOST_VOCABULARY))
    too_few = say("check.learning_rate_runs.too_few", least=LEAST_STEPS)
    earlier = trained.log.earlier
    return (
        _worst(GRADIENT_FLOWS, [_flow(source) for source in _unrounded(norms)], say("steps.no_norms")),
        _worst(GRAD_NORM_FINITE, [_numbers(source) for source in norms], say("steps.no_norms")),
        _worst(GRAD_NORM_BOUNDED, bounded, say("check.grad_norm_bounded.none")),
        _worst(LEARNING_RATE_RUNS, [_schedule(source, may_climb=may_climb) for source in rates], too_few),
        _worst(LOSS_PLAUSIBLE, [_plausible(one, chance) for one in finite_losses], say("check.loss_plausible.none")),
        _chance_check(trained, next((source[0] for source in losses), None)),
        TRAINED_ONCE.check(earlier == 0 if trained.log.losses else None, "earlier", lines=earlier),
    )


def _unrounded(sources: Sequence[tuple[float, ...]]) -> Sequence[tuple[float, ...]]:
    """The figures of `log_history` alone, where it has as many as were printed."""
    return sources[-1:] if sources and len(sources[-1]) >= len(sources[0]) else sources


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _worst(kind: CheckKind, sources: Sequence[_Judged], unmeasured: Message) -> Check:
    """The check by the source that accuses hardest."""
    if not sources:
        return kind.check(None, unmeasured)
    order = list(Severity)
    holds, message, severity = min(
        sources, key=lambda one: len(order) if one[0] else order.index(one[2] or kind.severity)
    )
    return kind.check(holds, message, severity=None if holds else severity)


def _flow(norms: tuple[float, ...]) -> _Judged:
    zero, broken = sum(norm == 0 for norm in norms), sum(not math.isfinite(norm) for norm in norms)
    largest, is_dead = max(_finite(norms), default=0.0), zero + broken == len(norms)
    what = "none" if is_dead else "tiny" if largest < LEAST_NORM else "norms"
    said = say(f"check.gradient_flows.{what}", norms=len(norms), zero=zero, broken=broken, largest=largest)
    return largest >= LEAST_NORM and 2 * zero < len(norms), said, FAIL if is_dead else WARN


def _numbers(norms: tuple[float, ...]) -> _Judged:
    """The first few may be infinite while fp16 looks for its scale, if sound ones follow and are most of all."""
    scaling = 0
    while scaling < min(SCALING_STEPS, len(norms) // 2) and not math.isfinite(norms[scaling]):
        scaling += 1
    bad = sum(not math.isfinite(norm) for norm in norms[scaling:])
    what = "check.grad_norm_finite.after_scaling" if scaling else "check.grad_norm_finite.norms"
    return bad == 0, say(what, norms=len(norms), bad=bad, scaling=scaling), WARN if 4 * bad >= len(norms) else INFO


def _schedule(rates: tuple[float, ...], *, may_climb: bool) -> _Judged:
    """A schedule ends in one zero at most, is past its warm-up before its end, and does not rise again after its end.

    Who restarts it on purpose does so at once, or within a short warm-up.
    """
    highest = max(rates)
    at_rest = [not rate > 1e-6 * highest for rate in rates]
    if not highest > 0 or all(at_rest[1:]):
        return False, say("check.learning_rate_runs.zero", rates=len(rates)), FAIL
    resting = at_rest[::-1].index(False)
    if resting >= max(2, len(rates) / 10):
        return False, say("check.learning_rate_runs.zero_at_end", rates=len(rates), zero=resting), WARN
    rest = rates[len(rates) // 2 :]
    if sum(rest) < LEAST_RATE_LEFT * highest * len(rest):
        return False, say("check.learning_rate_runs.fades", rates=len(rates), highest=highest, last=rates[-1]), WARN
    climbs = all(later >= earlier for earlier, later in pairwise(rates)) and rest[-1] > rest[0]
    if climbs and not may_climb:
        return False, say("check.learning_rate_runs.climbs", first=rates[0], last=rates[-1]), WARN
    begun = next(n for n, rate in enumerate(rates) if rate > highest / 2)  # a warm-up may begin at zero
    lowest = rates.index(min(rates[begun:]), begun)
    rise = rates[lowest:]
    is_slow = len(rise) >= LEAST_STEPS and all(0 <= later - earlier < highest / 2 for earlier, later in pairwise(rise))
    if rates[lowest] < highest * RATE_AT_REST and rates[-1] > highest / 2 and is_slow:
        return False, say("check.learning_rate_runs.returns", lowest=rates[lowest], last=rates[-1]), WARN
    said = say("check.learning_rate_runs.runs", rates=len(rates), first=rates[0], highest=highest, last=rates[-1])
    return True, said, None


def _plausible(losses: list[float], chance: float) -> _Judged:
    lowest, highest, first = min(losses), max(losses), losses[0]
    turns = [later - earlier for earlier, later in pairwise(losses)]
    evens, odds = losses[::2], losses[1::2]
    are_apart = bool(odds) and (min(evens) > max(odds) or min(odds) > max(evens))  # of few, others turn by chance
    least = ZIGZAG_STEPS if are_apart else 2 * ZIGZAG_STEPS
    swings = len(losses) >= least and all(one * other < 0 for one, other in pairwise(turns))
    trouble = None
    if lowest < 0:
        trouble = "check.loss_plausible.negative"
    elif 0 < median(losses[: min(EARLY_LOSSES, (len(losses) + 1) // 2)]) < SMALLEST_EARLY_LOSS:
        trouble = "check.loss_plausible.small_from_the_start"
    elif highest > EXPLODED_OVER_CHANCE * chance or (highest > chance and highest > EXPLODED_OVER_FIRST * first):
        trouble = "check.loss_plausible.exploded"
    elif swings and median(map(abs, turns)) > ZIGZAG_SHARE * median(losses):
        trouble = "check.loss_plausible.zigzag"
    said = say(trouble or "check.loss_plausible.range", first=first, lowest=lowest, highest=highest, chance=chance)
    return trouble is None, said, None


def _chance_check(trained: Trained, first: float | None) -> Check:
    vocabulary = trained.vocabulary or UNKNOWN_VOCABULARY
    if trained.random_weights:
        return LOSS_BELOW_CHANCE.check(None, "random_weights")
    if first is None or not math.isfinite(first) or vocabulary < LEAST_VOCABULARY:
        return LOSS_BELOW_CHANCE.check(None, "unknown")
    chance = math.log(vocabulary)
    holds = first < chance - CHANCE_SLACK
    return LOSS_BELOW_CHANCE.check(holds, "below" if holds else "at_chance", loss=first, chance=chance)
