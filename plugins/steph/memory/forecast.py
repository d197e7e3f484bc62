"""Will it fit? The predicted peak of a training run's GPU memory, term by term, with an interval.

Comes in: a model's shape, a workload, and constants for what no formula gives (workspaces, context).
Goes out: a `Forecast` and, against a card's size, a verdict. Pure arithmetic; docs/memory-model.md has the derivation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from steph.base.units import GIB
from steph.memory import activations as activations
from steph.memory import terms as terms
from steph.memory.constants import MEASURED, Constants
from steph.memory.shapes import ModelShape
from steph.memory.tape import play
from steph.memory.terms import Workload

FitVerdict = Literal["fits", "does_not_fit", "too_close"]
# The reference pipeline leaves this share of what it may use free when it decides on recompute and fusing
AUTOMATIC_HEADROOM_SHARE = 0.10
KEPT_FREE_BYTES = round(0.1 * GIB)  # of a card, beside context and allocator; a cap leaves as much


@dataclass(frozen=True, slots=True)
class Term:
    """One line of the breakdown; `at_peak` is False for what is over before or after the peak."""

    name: str
    size_bytes: int
    at_peak: bool = True


@dataclass(frozen=True, slots=True)
class Forecast:
    """A predicted peak; `total_bytes` is the process's: allocator and context together.

    `low_bytes` and `high_bytes` bound the total: low without slack, since a full allocator gives its cached blocks back
    before it fails; high with slack, and where every position has logits, with one such tensor more: whether it finds
    a hole or takes a segment can turn on a few kilobytes. Both are widened by the model's error.
    """

    workload: Workload
    terms: tuple[Term, ...]
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    total_bytes: int
    low_bytes: int
    high_bytes: int

    def verdict(self, vram_bytes: float) -> FitVerdict:
        """Whether the process fits into this much memory: `fits` only where the interval's upper end does."""
        if self.high_bytes + KEPT_FREE_BYTES <= vram_bytes:
            return "fits"
        return "does_not_fit" if self.low_bytes > vram_bytes else "too_close"


def predict(shape: ModelShape, work: Workload, constants: Constants = MEASURED) -> Forecast:
    """Predict the peak of training steps with every row `work.width` tokens long.

    Raises ValueError naming a target module or optimizer that is not known.
    """
    return _bounded(shape, work, _lines(shape, work, constants), constants)


def allocated_peak_bytes(shape: ModelShape, work: Workload, constants: Constants = MEASURED) -> int:
    """The forecast's `peak_allocated_bytes` alone, for which no run must be played."""
    return _allocated_bytes(_lines(shape, work, constants))


def _allocated_bytes(lines: Sequence[Term]) -> int:
    # an offset below zero can't take more than there is
    return max(0, _sum_bytes([term for term in lines if term.at_peak]))


def _lines(shape: ModelShape, work: Workload, constants: Constants) -> tuple[Term, ...]:
    """Every term inside the allocator, those at the peak marked."""
    weights, beside = _staying_terms(shape, work, constants)
    originals, step = _originals(shape, work), _highest_moment(shape, work, constants)
    preparing = originals.size_bytes > _sum_bytes((*beside, *step))
    return (
        *weights,
        *(replace(term, at_peak=not preparing) for term in (*beside, *step)),
        replace(originals, at_peak=preparing),
    )


def moving_bytes(shape: ModelShape, work: Workload, constants: Constants = MEASURED) -> int:
    """What a step allocates and frees again at its highest, in bytes."""
    return _sum_bytes(_highest_moment(shape, work, constants))


def _highest_moment(shape: ModelShape, work: Workload, constants: Constants) -> tuple[Term, ...]:
    return max(_step_moments(shape, work, constants), key=_sum_bytes)


def _originals(shape: ModelShape, work: Workload) -> Term:
    return _term("upcast weights' originals, while preparing", terms.upcast_bytes(shape, work))


def _sum_bytes(parts: Sequence[Term]) -> int:
    return sum(term.size_bytes for term in parts)


def _staying_terms(shape: ModelShape, work: Workload, constants: Constants) -> tuple[tuple[Term, ...], ...]:
    """What is there in every step: the base model's weights, and what comes after they are prepared."""
    weights: tuple[Term, ...] = (
        _term("4-bit linears" if work.use_4bit else "linears", terms.linear_bytes(shape, work)),
        _term("embedding and head", terms.embedding_bytes(shape, work)),
        _term("norms and biases", terms.norm_bytes(shape, work)),
    )
    beside = (
        _term("LoRA weights and optimizer", terms.lora_bytes(shape, work)),
        _term("library workspaces", constants.workspace_bytes),
    )
    if constants.offset_bytes:
        weights = (*weights, _term("measured beyond the formulas", constants.offset_bytes))
    return weights, beside


def _step_moments(shape: ModelShape, work: Workload, constants: Constants) -> tuple[tuple[Term, ...], ...]:
    """The moments of a step that can be its highest, each as terms beside what stays."""
    scale = constants.activation_scale
    if work.recompute:
        kept = _term("checkpointed layer inputs", scale * activations.checkpoint_bytes(shape, work))
        layer = _term("one layer's recompute", scale * activations.layer_kept_bytes(shape, work))
    else:
        every_layer = shape.num_hidden_layers * activations.layer_kept_bytes(shape, work)
        kept = _term("kept activations", scale * every_layer + activations.half_adapter_bytes(shape, work))
        layer = _term("one layer's recompute", 0)
    number = work.activation_bytes if work.trainer == "answer" else terms.SINGLE
    last_norm = scale * number * work.tokens * shape.hidden_size
    at_head = _term("logits and loss", constants.logits_scale * activations.head_bytes(shape, work) + last_norm)
    at_norm = _term("the last norm's backward", scale * activations.norm_work_bytes(shape, work))
    at_layer = _term("one layer's backward", scale * activations.layer_work_bytes(shape, work))
    last = _term("one layer's activations", scale * activations.layer_kept_bytes(shape, work))
    gradients = _term("LoRA gradients", activations.fresh_gradient_bytes(shape, work))
    mask = _term("attention mask", activations.mask_bytes(work))
    moments = (kept, at_head), (kept, at_norm), (kept, layer, at_layer), (gradients, last, at_layer)
    return tuple((mask, *moment) for moment in moments)


def _bounded(shape: ModelShape, work: Workload, lines: tuple[Term, ...], constants: Constants) -> Forecast:
    allocated = _allocated_bytes(lines)
    slack = max(0.0, play(shape, work).slack_bytes + constants.slack_extra_bytes)
    context = round(constants.context_bytes)
    error = constants.relative_error
    reserved = allocated + round(slack)
    more = (_term("allocator slack", slack), _term("CUDA context beside the allocator", context))
    luck = constants.logits_scale * activations.logits_bytes(shape, work) if work.trainer == "full" else 0.0
    high = reserved * (1 + error) + slack * constants.slack_error + luck + context
    return Forecast(
        workload=work,
        terms=(*lines, *more),
        peak_allocated_bytes=allocated,
        peak_reserved_bytes=reserved,
        total_bytes=reserved + context,
        low_bytes=max(0, round(allocated * (1 - error))) + context,
        high_bytes=round(high),
    )


def _term(name: str, size_bytes: float) -> Term:
    return Term(name, round(size_bytes))


def automatic(shape: ModelShape, work: Workload, vram_bytes: float, constants: Constants = MEASURED) -> Workload:
    """The way the reference pipeline would run this on a card of that size: recompute and fusing decided by memory.

    The fastest way whose allocated peak leaves a tenth of what the allocator may use; where none does, the smallest.
    Source: pipeline/app/training/plan.py.
    """
    allowed = (vram_bytes - constants.context_bytes - KEPT_FREE_BYTES) * (1 - AUTOMATIC_HEADROOM_SHARE)
    possible = ways(work)
    fitting = (way for way in possible if allocated_peak_bytes(shape, way, constants) <= allowed)
    return next(fitting, possible[-1])


def ways(work: Workload) -> tuple[Workload, ...]:
    """How the trainer may run these settings by itself, fastest first and leanest last; the plain one has no choice."""
    if work.trainer != "answer":
        return (work,)
    steps = work.gradient_accumulation_steps
    divisors = [count for count in range(steps, 0, -1) if steps % count == 0]
    return tuple(
        replace(work, recompute=recompute, fused_micro_batches=count)
        for recompute in (False, True)
        for count in divisors
    )


def leanest(work: Workload) -> Workload:
    """The same settings in as little memory as the trainer can do them: recompute on, nothing fused.

    What "will it fit?" is asked of: a trainer that decides by itself falls back on this where a faster way doesn't fit.
    """
    return replace(work, recompute=True, fused_micro_batches=1)


def largest_fitting(
    forecast: Callable[[int, int], Forecast], grid: tuple[tuple[int, int], ...], vram_bytes: float
) -> tuple[int, int] | None:
    """The (batch size, width) with the most tokens that surely fits, the longer rows where two have as many."""
    fitting = [
        (batch * width, width, batch) for batch, width in grid if forecast(batch, width).verdict(vram_bytes) == "fits"
    ]
    if not fitting:
        return None
    _, width, batch = max(fitting)
    return batch, width
