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
            f"最後の学習の前に、別の学習の損失が {evidence.earlier} 行ある。",
        ),
    )


def _worst(kind: CheckKind, sources: Sequence[tuple[bool, str, Severity | None]], unmeasured: str) -> Check:
    """The check by the source that accuses hardest; `sources`: (holds, message, severity where it doesn't)."""
    if not sources:
        return kind.check(None, unmeasured)
    order = list(Severity)
    holds, message, severity = min(
        sources, key=lambda one: len(order) if one[0] else order.index(one[2] or kind.severity)
    )
    return kind.check(holds, message, severity=None if holds else severity)


def _flow_check(sources: tuple[tuple[float, ...], ...]) -> Check:
    return _worst(GRADIENT_FLOWS, [_flow(norms) for norms in sources], "勾配ノルムが表示されていない。")


def _flow(norms: tuple[float, ...]) -> tuple[bool, str, Severity | None]:
    zero, broken = sum(norm == 0 for norm in norms), sum(not math.isfinite(norm) for norm in norms)
    message = f"勾配ノルム {len(norms)} 件のうち、ゼロが {zero} 件、有限でないものが {broken} 件。"
    if zero + broken == len(norms):
        return False, f"{message}一度も学習していない。", FAIL
    finite = [norm for norm in norms if math.isfinite(norm)]
    if max(finite) < LEAST_NORM:
        return False, f"{message}最大でも {max(finite):.2g}。", WARN
    return 2 * zero < len(norms), message, WARN


def _finite_check(sources: tuple[tuple[float, ...], ...]) -> Check:
    return _worst(GRAD_NORM_FINITE, [_finite(norms) for norms in sources], "勾配ノルムが表示されていない。")


def _finite(norms: tuple[float, ...]) -> tuple[bool, str, Severity | None]:
    """The first few may be infinite while fp16 looks for its scale, if sound ones follow and are most of all."""
    scaling = 0
    while scaling < min(SCALING_STEPS, len(norms) // 2) and not math.isfinite(norms[scaling]):
        scaling += 1
    bad = sum(not math.isfinite(norm) for norm in norms[scaling:])
    excused = f"（ほかに最初の {scaling} 件は fp16 の尺度合わせ）" if scaling else ""
    message = f"勾配ノルム {len(norms)} 件のうち {bad} 件が有限でない{excused}。"
    return bad == 0, message, WARN if 4 * bad >= len(norms) else INFO


def _bounded_check(sources: tuple[tuple[float, ...], ...]) -> Check:
    found = [[norm for norm in norms if math.isfinite(norm)] for norms in sources]
    judged: list[tuple[bool, str, Severity | None]] = [
        (max(norms) <= LARGEST_NORM, f"勾配ノルムは最大 {max(norms):.4g}。", None) for norms in found if norms
    ]
    return _worst(GRAD_NORM_BOUNDED, judged, "有限な勾配ノルムが表示されていない。")


def _rate_check(evidence: StepEvidence) -> Check:
    may_climb = evidence.warmup_ratio > LONGEST_WARMUP
    sources = [rates for rates in evidence.unrounded("learning_rate") if len(rates) >= LEAST_STEPS]
    judged = [_rate(rates, may_climb=may_climb) for rates in sources]
    return _worst(LEARNING_RATE_RUNS, judged, f"学習率の表示が {LEAST_STEPS} 件に足りない。")


def _rate(rates: tuple[float, ...], *, may_climb: bool) -> tuple[bool, str, Severity | None]:
    """A schedule ends in one zero at most, and is past its warm-up before its end."""
    highest = max(rates)
    at_rest = [not rate > 1e-6 * highest for rate in rates]
    if not highest > 0 or all(at_rest[1:]):
        return False, f"学習率 {len(rates)} 件が、2 件目からすべてゼロ。", FAIL
    resting = at_rest[::-1].index(False)
    if resting >= max(2, len(rates) / 10):
        return False, f"学習率 {len(rates)} 件のうち、最後の {resting} 件がゼロ。", WARN
    rest = rates[len(rates) // 2 :]
    climbs = all(later >= earlier for earlier, later in pairwise(rates)) and rest[-1] > rest[0]
    if climbs and not may_climb:
        return (
            False,
            f"学習率が最後まで上がり続けた（{rates[0]:.3g} → {rates[-1]:.3g}）。ウォームアップが終わらない。",
            WARN,
        )
    return True, f"学習率 {len(rates)} 件は {rates[0]:.3g} から、最大 {highest:.3g}、最後は {rates[-1]:.3g}。", None


def _plausible_check(evidence: StepEvidence) -> Check:
    chance = math.log(max(evidence.vocabulary or 0, MOST_VOCABULARY))
    found = [[loss for loss in losses if math.isfinite(loss)] for losses in evidence.values("loss")]
    judged = [_plausible(losses, chance) for losses in found if losses]
    return _worst(LOSS_PLAUSIBLE, judged, "有限な損失がない。")


def _plausible(losses: list[float], chance: float) -> tuple[bool, str, Severity | None]:
    lowest, highest, first = min(losses), max(losses), losses[0]
    message = f"損失は最初 {first:.4g}、{lowest:.4g} から {highest:.4g} まで"
    if lowest < 0:
        return False, f"{message}: 負の損失がある。", WARN
    if 0 < median(losses[: (len(losses) + 1) // 2]) < SMALLEST_EARLY_LOSS:
        return False, f"{message}: 最初から小さすぎる。答えのほとんどが損失に入っていない疑い。", WARN
    if highest > EXPLODED_OVER_CHANCE * chance or (highest > chance and highest > EXPLODED_OVER_FIRST * first):
        return (
            False,
            f"{message}: でたらめに答える {chance:.1f} を超える。発散したか、平均でなく合計になっている。",
            WARN,
        )
    if len(losses) >= ZIGZAG_STEPS:
        turns = [later - earlier for earlier, later in pairwise(losses)]
        swings = all(one * other < 0 for one, other in pairwise(turns))
        if swings and median(map(abs, turns)) > ZIGZAG_SHARE * median(losses):
            return False, f"{message}: 毎回大きく上がっては下がる。計算された損失でない疑い。", WARN
    return True, f"{message}。", None


def _chance_check(evidence: StepEvidence) -> Check:
    first = next((values[0] for values in evidence.values("loss")), None)
    if evidence.random_weights:
        return LOSS_BELOW_CHANCE.check(None, "乱数の重みなので測らない。")
    vocabulary = evidence.vocabulary or UNKNOWN_VOCABULARY
    if first is None or not math.isfinite(first) or vocabulary < LEAST_VOCABULARY:
        return LOSS_BELOW_CHANCE.check(None, "最初の損失が分からないか、語彙が小さい。")
    chance = math.log(vocabulary)
    holds = first < chance - CHANCE_SLACK
    words = f"最初の損失は {first:.4g}、何も知らないモデルなら {chance:.2f}。"
    return LOSS_BELOW_CHANCE.check(holds, words if holds else f"{words}重みが読み込まれていない疑い。")
