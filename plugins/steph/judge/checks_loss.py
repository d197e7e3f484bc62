"""Checks of the losses that a training printed and logged. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, median

from steph.judge.kinds import FAIL, INFO, WARN, CheckKind
from steph.record import Check

TREND_LOSSES = 6  # fewer say nothing about a trend
PRINTED_TOLERANCE = 0.01  # transformers prints four significant digits

LOSS_FINITE = CheckKind(
    "loss_finite",
    "H-2",
    FAIL,
    "損失が有限でゼロでない",
    "stdout の loss・train_loss と log_history",
    note="勾配のあるゼロは `loss_rounded` が警告する",
)
LOSS_ROUNDED = CheckKind(
    "loss_rounded",
    "H-2",
    WARN,
    "損失が小さすぎてゼロと表示されていない",
    "stdout の loss と、同じ行の有限でゼロでない grad_norm",
    optional=True,
)
LOSS_LOWER = CheckKind(
    "loss_lower",
    "H-2",
    WARN,
    "損失が下がった",
    "最後の 1/3 と最初の 1/3 の中央値（6 件から）",
    quality=True,
    optional=True,
)
LOSS_LOGGED = CheckKind(
    "loss_logged",
    "H-2",
    INFO,
    "損失がディスクに残った",
    "trainer_state.json の log_history",
    trap=13,
    optional=True,
)
LOSSES_AGREE = CheckKind(
    "losses_agree",
    "H-2",
    WARN,
    "表示された損失と記録された損失が一致する",
    "stdout の行、log_history、train_loss",
    optional=True,
)
GRAD_NORM_FINITE = CheckKind("grad_norm_finite", "H-2", INFO, "勾配ノルムが有限", "stdout の grad_norm", optional=True)
LOSS = (LOSS_FINITE, LOSS_ROUNDED, LOSS_LOWER, LOSS_LOGGED, LOSSES_AGREE, GRAD_NORM_FINITE)


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
    grad_norms: tuple[float, ...]
    steps_done: int | None
    rehearsal: bool


def loss_checks(evidence: LossEvidence) -> tuple[Check, ...]:
    """All checks of the losses."""
    return (
        _finite_check(evidence),
        _rounded_check(evidence),
        _lower_check(evidence),
        _logged_check(evidence),
        _agreement_check(evidence),
        _grad_norm_check(evidence),
    )


def _finite_check(evidence: LossEvidence) -> Check:
    rounded = _rounded_to_zero(evidence)
    values = [value for losses in (evidence.printed, evidence.logged) for value in _without(losses, rounded)]
    if evidence.train_loss is not None:
        values.append(evidence.train_loss)
    if not values:
        return LOSS_FINITE.check(None, "損失がどこにも表示・記録されていない。")
    bad = [value for value in values if not math.isfinite(value) or value == 0]
    if bad:
        message = f"損失 {len(values)} 件のうち {len(bad)} 件が有限でないかゼロ（例 {bad[0]}）。"
        return LOSS_FINITE.check(False, message)
    return LOSS_FINITE.check(True, f"損失 {len(values)} 件はすべて有限でゼロでない（最小 {min(values):.4g}）。")


def _rounded_check(evidence: LossEvidence) -> Check:
    if not evidence.printed:
        return LOSS_ROUNDED.check(None, "損失が表示されていない。")
    rounded = len(_rounded_to_zero(evidence))
    message = f"表示された損失 {len(evidence.printed)} 件のうち、勾配はあるのにゼロと表示されたものが {rounded} 件。"
    return LOSS_ROUNDED.check(rounded == 0, message)


def _rounded_to_zero(evidence: LossEvidence) -> frozenset[int]:
    """Places of losses too small for the digits that transformers prints: zero, with a gradient that is there."""
    pairs = enumerate(zip(evidence.printed, evidence.printed_norms, strict=True))
    return frozenset(at for at, (loss, norm) in pairs if loss == 0 and norm and math.isfinite(norm))


def _without(losses: tuple[float, ...], rounded: frozenset[int]) -> list[float]:
    return [value for at, value in enumerate(losses) if value != 0 or at not in rounded]


def _lower_check(evidence: LossEvidence) -> Check:
    losses = [value for value in evidence.printed or evidence.logged if math.isfinite(value)]
    if len(losses) < TREND_LOSSES:
        return LOSS_LOWER.check(None, f"損失が {len(losses)} 件しかなく、傾向を測れない。")
    third = len(losses) // 3
    first, last = median(losses[:third]), median(losses[-third:])
    return LOSS_LOWER.check(
        last < first,
        f"損失の中央値は最初の 1/3 で {first:.4g}、最後の 1/3 で {last:.4g}。",
        rehearsal=evidence.rehearsal,
    )


def _logged_check(evidence: LossEvidence) -> Check:
    if not evidence.has_state:
        return LOSS_LOGGED.check(None, "trainer_state.json を使えないので測れない。")
    return LOSS_LOGGED.check(bool(evidence.logged), f"log_history に損失が {len(evidence.logged)} 件ある。")


def _agreement_check(evidence: LossEvidence) -> Check:
    pairs = list(zip(evidence.printed, evidence.logged, strict=False))
    every_step = len(evidence.printed) == evidence.steps_done and evidence.printed
    if every_step and evidence.train_loss is not None:
        pairs.append((evidence.train_loss, fmean(evidence.printed)))
    finite = [(one, other) for one, other in pairs if math.isfinite(one) and math.isfinite(other)]
    if not finite:
        return LOSSES_AGREE.check(None, "比べられる損失がない。")
    apart = [(a, b) for a, b in finite if not math.isclose(a, b, rel_tol=PRINTED_TOLERANCE, abs_tol=1e-3)]
    example = f"（例 {apart[0][0]:.4g} と {apart[0][1]:.4g}）" if apart else ""
    return LOSSES_AGREE.check(not apart, f"損失 {len(finite)} 組のうち {len(apart)} 組が食い違う{example}。")


def _grad_norm_check(evidence: LossEvidence) -> Check:
    norms = evidence.grad_norms
    if not norms:
        return GRAD_NORM_FINITE.check(None, "勾配ノルムが表示されていない。")
    bad = sum(not math.isfinite(value) for value in norms)
    return GRAD_NORM_FINITE.check(bad == 0, f"勾配ノルム {len(norms)} 件のうち {bad} 件が有限でない。")
