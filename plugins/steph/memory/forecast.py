"""Predicts the peak GPU memory of a training run, term by term, with an interval and a verdict for a card.

Pure arithmetic on a model's shape, a workload, and constants for what no formula gives; docs/memory-model.en.md has the
derivation and the errors on measured runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from steph.base.messages import say
from steph.base.terms import FitVerdict
from steph.base.units import GIB
from steph.memory import terms
from steph.memory.shapes import ModelShape, parameter_parts
from steph.memory.terms import HALF, SINGLE, TRAINERS, Workload
from steph.record.values import PredictedPeak

# The reference pipeline leaves this share of what it may use free when it decides on recompute and fusing
AUTOMATIC_HEADROOM_SHARE = 0.10
KEPT_FREE_BYTES = round(0.1 * GIB)  # of a card, beside context and allocator; a cap leaves as much
Sharing = Literal["ddp", "fsdp", "zero3"]
SHARINGS: tuple[Sharing, ...] = ("ddp", "fsdp", "zero3")
SHARED_ERROR = 0.20  # of several cards, none of which was measured
SLACK_ERROR = 0.5  # share of the slack by which a setting's own may exceed it


@dataclass(frozen=True, slots=True)
class Constants:
    """Constants that no formula gives; sizes in bytes, shares as fractions. The defaults hold where none was measured.

    `workspace_bytes`: cuBLAS' workspaces (32 MiB on Hopper, for the forward's and the backward's thread) and small
    allocations, inside the allocator. `context_bytes`: driver, kernels and libraries, outside it. `relative_error`: of
    the formulas. Two measured lengths set the last three: what a pipeline's logits and its other activations take for
    each of the formulas' bytes, and what it holds at any length beyond (or below) them.
    """

    workspace_bytes: float = 0.1 * GIB
    context_bytes: float = 0.74 * GIB
    relative_error: float = 0.03
    logits_scale: float = 1.0
    activation_scale: float = 1.0
    offset_bytes: float = 0.0


BUILT_IN_CONSTANTS = Constants()


@dataclass(frozen=True, slots=True)
class Term:
    """One line of the breakdown, its words `fit.term.<name>`; `at_peak` is False for what is over before or after."""

    name: str
    size_bytes: int
    at_peak: bool = True

    @classmethod
    def of(cls, name: str, size_bytes: float) -> Term:
        """The term in whole bytes."""
        return cls(name, round(size_bytes))


@dataclass(frozen=True, slots=True)
class Forecast:
    """A predicted peak: `peak` is the process's, allocator and context together.

    Its interval: low without slack, since a full allocator gives its cached blocks back before it fails; high with half
    as much slack again, and with the step's largest tensor once more: whether it finds a hole or takes a segment can
    turn on a few kilobytes. Both are widened by the model's error.
    """

    workload: Workload
    terms: tuple[Term, ...]
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    peak: PredictedPeak

    def verdict(self, vram_bytes: float) -> FitVerdict:
        """Whether the process fits into this much memory: `fits` only where the interval's upper end does."""
        if self.peak.high_bytes + KEPT_FREE_BYTES <= vram_bytes:
            return FitVerdict.FITS
        return FitVerdict.DOES_NOT_FIT if self.peak.low_bytes > vram_bytes else FitVerdict.TOO_CLOSE

    def peak_on(self, vram_bytes: float) -> PredictedPeak:
        """The peak with the verdict for a card of so much memory, as a record keeps it."""
        return self.peak.changed(verdict=self.verdict(vram_bytes))


def predict(shape: ModelShape, work: Workload, constants: Constants = BUILT_IN_CONSTANTS) -> Forecast:
    """Predict the peak of training steps with every row `work.width` tokens long.

    Raises ValueError naming a target module or optimizer that is not known, or a family whose layers no formula gives.
    """
    if not shape.family.is_measured:
        raise ValueError(say("fit.unknown.family", type=shape.type_words))
    weights = [
        Term.of("linears_4bit" if work.use_4bit else "linears", terms.linear_bytes(shape, work)),
        Term.of("embedding", terms.embedding_bytes(shape, work)),
        Term.of("norms", terms.norm_bytes(shape, work)),
    ]
    if constants.offset_bytes:
        weights.append(Term.of("measured", constants.offset_bytes))
    training = (
        Term.of("lora", terms.lora_bytes(shape, work)),
        Term.of("workspaces", constants.workspace_bytes * (2 if work.is_graphed else 1)),
        *_highest_moment(shape, work, constants),
    )
    # while preparing, the half-precision original of the last tensor cast lives until its copy is made
    originals_bytes = round(parameter_parts(shape).embedding * HALF) if work.upcasts else 0
    is_preparing = originals_bytes > _sum_bytes(training)
    if is_preparing:
        training = tuple(replace(term, at_peak=False) for term in training)
    lines = (*weights, *training, Term("originals", originals_bytes, at_peak=is_preparing))
    # an offset below zero can't take more than there is
    allocated = max(0, _sum_bytes(term for term in lines if term.at_peak))
    slack, context = round(work.kind.slack_share * allocated), round(constants.context_bytes)
    reserved, error = allocated + slack, max(constants.relative_error, work.least_error)
    one_more = terms.largest_tensor_bytes(shape, work, constants.logits_scale)
    launcher = GIB * work.kind.launcher_context_gib
    return Forecast(
        workload=work,
        terms=(*lines, Term("slack", slack), Term("context", context)),
        peak_allocated_bytes=allocated,
        peak_reserved_bytes=reserved,
        peak=PredictedPeak(
            peak_bytes=reserved + context,
            low_bytes=max(0, round(allocated * (1 - error))) + context,
            high_bytes=round(reserved * (1 + error) + slack * SLACK_ERROR + one_more + launcher) + context,
        ),
    )


def _highest_moment(shape: ModelShape, work: Workload, constants: Constants) -> tuple[Term, ...]:
    """The terms of that moment of a step, of the four that can be its highest, in which most is allocated."""
    scale, kind, hidden_numbers = constants.activation_scale, work.kind, work.tokens * shape.hidden_size
    one_layer = scale * terms.kept_per_token(shape, work) * work.tokens
    # half-precision copies of LoRA's weights: autocast's, which the graph keeps, and short layers', which stay
    is_copied = not work.upcasts and work.adapter_bytes != HALF and (not work.recompute or work.is_short)
    copies = HALF * terms.lora_parameters(shape, work) if is_copied else 0.0
    if work.recompute:
        kept = Term.of("layer_inputs", scale * terms.checkpoint_bytes(shape, work) + copies)
    else:
        kept = Term.of("kept", shape.num_hidden_layers * one_layer + copies)
    layer = Term.of("layer_recompute", one_layer if work.recompute else 0)
    last_norm = scale * work.norm_bytes * hidden_numbers
    at_head = Term.of("logits", constants.logits_scale * terms.head_bytes(shape, work) + last_norm)
    # the last norm's backward. torch's kernel: input and two gradients; transformers' code: input and five fp32 tensors
    number_bytes = 6 * SINGLE if kind.copies_norm_inputs else 3 * work.activation_bytes
    at_norm = Term.of("last_norm", scale * number_bytes * hidden_numbers)
    at_layer = Term.of("layer_backward", scale * terms.layer_work_bytes(shape, work))
    last = Term.of("layer_activations", one_layer)
    # of all that is trained, complete when the first layer's backward runs
    gradients = Term.of("gradients", 0.0 if work.keeps_gradients else terms.trained_bytes(shape, work))
    # (rows, 1, width, width) numbers of the queries' kind, one mask for all layers
    mask = Term.of("attention_mask", work.activation_bytes * work.tokens * work.width if kind.has_mask else 0.0)
    moments = (kept, at_head), (kept, at_norm), (kept, layer, at_layer), (gradients, last, at_layer)
    return max(((mask, *moment) for moment in moments), key=_sum_bytes)


def _sum_bytes(parts: Iterable[Term]) -> int:
    return sum(term.size_bytes for term in parts)


def predict_unknown(shape: ModelShape, work: Workload, constants: Constants = BUILT_IN_CONSTANTS) -> Forecast:
    """The forecast where nobody said how the trainer uses memory: its interval holds each known one's, with and without
    recompute.
    """
    known = [replace(work, trainer=name, recompute=flag) for name in TRAINERS for flag in (True, False)]
    return _spanning(predict(shape, way, constants) for way in (work, *known))


def predict_any(shape: ModelShape, work: Workload, *, recompute: bool | None = None) -> Forecast:
    """The same for a program of which nothing is known, so that it may hold what older ones do (`trainers.OLDER`).

    `recompute`: whether it recomputes, where that is known.
    """
    flags = (True, False) if recompute is None else (recompute,)
    known = [replace(work, trainer=name, recompute=flag) for name in TRAINERS for flag in flags]
    older = [replace(work, recompute=flag, older=True) for flag in flags]
    lean = [replace(way, reentrant=True) for way in known if way.recompute and way.use_8bit]
    return _spanning(predict(shape, way) for way in (*older, *known, *lean))


def _spanning(forecasts: Iterable[Forecast]) -> Forecast:
    first, *others = forecasts
    return replace(first, peak=first.peak.reaching(one.peak for one in others))


def on_several_cards(found: Forecast, shape: ModelShape, cards: int, sharing: Sharing) -> Forecast:
    """The forecast for one of several cards: an estimate.

    DDP: the whole, and a bucket for each trained gradient (torch.nn.parallel.DistributedDataParallel). FSDP and ZeRO-3:
    a share of what stays, and the two largest parts gathered while they are at work; activations are whole. Quantised
    weights are shared only by programs that store them as the type that is shared (`bnb_4bit_quant_storage`), so that
    the upper end holds them whole.
    """
    work, whole = found.workload, 0
    if sharing == "ddp":
        change = round(terms.trained_bytes(shape, work))
    else:
        linears = terms.linear_bytes(shape, work)
        whole = round(linears * (1 - 1 / cards)) if work.use_4bit or work.use_8bit else 0
        stays = linears + terms.embedding_bytes(shape, work) + terms.norm_bytes(shape, work)
        stays += terms.lora_bytes(shape, work)
        layer = linears / max(1, shape.num_hidden_layers)
        gathered = 2 * max(layer, HALF * shape.vocab_size * shape.hidden_size)
        change = round(min(gathered, stays * (1 - 1 / cards)) - stays * (1 - 1 / cards))
    return replace(
        found,
        terms=(*found.terms, Term("several_cards", change)),
        peak_allocated_bytes=found.peak_allocated_bytes + change,
        peak_reserved_bytes=found.peak_reserved_bytes + change,
        peak=found.peak.moved(change, whole).widened(SHARED_ERROR),
    )


def floor_bytes(shape: ModelShape, work: Workload, *, trains_all: bool = False) -> int:
    """Bytes that no run can do without: the weights, what is trained with its optimizer's state, and the context.

    Experts are counted as the base is, since not every program leaves them in 16 bits as transformers 5 does.
    `trains_all`: weights in 16 bits, the optimizer's state, and the largest gradient, since some programs free each
    gradient as soon as it is used.
    """
    parts = parameter_parts(shape)
    context = BUILT_IN_CONSTANTS.context_bytes
    state = 0.0
    with contextlib.suppress(ValueError):  # an optimizer or a target that nobody knows takes something, too
        state = 0.0 if work.optimizer.startswith("paged_") else terms.optimizer_bytes(shape, work)
    if trains_all:
        halved = 0.5 if work.optimizer in terms.MOMENTS_AS_WEIGHTS else 1.0
        return round(HALF * (parts.total + parts.embedding) + halved * state + context)
    weights = terms.linear_bytes(shape, work) + terms.embedding_bytes(shape, work) + terms.norm_bytes(shape, work)
    if work.use_4bit or work.use_8bit:
        experts = parts.experts + (0 if shape.family.is_measured else shape.more_parameters)
        weights -= experts * (HALF - (0.5 if work.use_4bit else 1))
    with contextlib.suppress(ValueError):
        weights += terms.trained_bytes(shape, work)
    return round(weights + state + context)


def automatic(
    shape: ModelShape, work: Workload, vram_bytes: float, constants: Constants = BUILT_IN_CONSTANTS
) -> Workload:
    """The way a trainer that picks its own would run this on a card of that size: recompute and fusing by memory.

    The fastest way whose allocated peak leaves a tenth of what the allocator may use; where none does, the smallest.
    Source: pipeline/app/fast/plan.py.
    """
    allowed = (vram_bytes - constants.context_bytes - KEPT_FREE_BYTES) * (1 - AUTOMATIC_HEADROOM_SHARE)
    fitting = (way for way in ways(work) if predict(shape, way, constants).peak_allocated_bytes <= allowed)
    return next(fitting, ways(work)[-1])


def ways(work: Workload) -> tuple[Workload, ...]:
    """How the trainer may run these settings by itself, fastest first and leanest last; most have no choice."""
    if not work.kind.picks_its_way:
        return (work,)
    steps = work.gradient_accumulation_steps
    fused = [replace(work, fused_micro_batches=count) for count in range(steps, 0, -1) if steps % count == 0]
    found = [replace(way, recompute=recompute) for recompute in (False, True) for way in fused]
    if work.kind.uses_host_memory:
        found += [replace(found[-1], host_memory="embeddings"), replace(found[-1], host_memory="all")]
    return tuple(found)


def leanest(work: Workload) -> Workload:
    """The same settings in as little memory as the trainer can do them: recompute on, nothing fused, host memory used.

    What "will it fit?" is asked of: a trainer that decides by itself falls back on this where a faster way doesn't fit.
    """
    host_memory = "all" if work.kind.uses_host_memory else work.host_memory
    return replace(work, recompute=True, fused_micro_batches=1, host_memory=host_memory)


def largest_fitting(forecasts: Mapping[tuple[int, int], Forecast], vram_bytes: float) -> tuple[int, int] | None:
    """The (batch size, length) with the most tokens that surely fits, the longer rows where two have as many."""
    fitting = [point for point, forecast in forecasts.items() if forecast.verdict(vram_bytes) is FitVerdict.FITS]
    return max(fitting, key=lambda point: (point[0] * point[1], point[1]), default=None)
