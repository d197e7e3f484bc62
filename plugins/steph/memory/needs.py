"""What a fine-tuning run needs beside one card's memory, what its forecast rests on, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from steph.base.messages import Message, say
from steph.base.terms import TrainerName
from steph.base.units import GIB
from steph.memory import terms
from steph.memory.forecast import Forecast, Term
from steph.memory.shapes import ModelShape, parameter_count
from steph.memory.trainers import DEFAULT_TARGETS, HALF, Workload

Sharing = Literal["ddp", "fsdp", "zero3"]
SHARINGS: tuple[Sharing, ...] = ("ddp", "fsdp", "zero3")
LIBRARIES_BYTES = 4 * GIB  # torch, its CUDA libraries and transformers in one process; seen 3 to 4 GiB
SHARD_BYTES = 5_000_000_000  # of a published checkpoint, of which one is read at a time
ESTIMATE_ERROR = 0.10  # of settings near those that were measured
SHARED_ERROR = 0.20  # of several cards, none of which was measured
LONGEST_MEASURED = 3584  # tokens of one row
MEASURED_WITH = {  # which trainers a kind of base or of row was measured with
    "packing": (TrainerName.TRL,),
    "dora": (TrainerName.TRL,),
    "use_8bit": (TrainerName.TRL, TrainerName.LIGER),
}


@dataclass(frozen=True, slots=True)
class HostNeeds:
    """Bytes of host memory and of disk: estimates, since both depend on how a program loads and saves.

    `checkpoint_bytes`: of one checkpoint with the optimizer's state. `merged_bytes`: on disk, and about as much in
    host memory while an adapter is merged into 16 bits.
    """

    memory_bytes: int
    model_bytes: int
    checkpoint_bytes: int
    merged_bytes: int


@dataclass(frozen=True, slots=True)
class Change:
    """One or several changes after which a run surely fits, and what it then takes."""

    words: tuple[Message, ...]
    forecast: Forecast


def host_needs(shape: ModelShape, work: Workload, processes: int = 1) -> HostNeeds:
    """Host memory and disk of a run; every process has its libraries, its paged states and what Unsloth moves there."""
    whole = parameter_count(shape) * HALF
    state = terms.optimizer_bytes(shape, work)
    paged = state if work.optimizer.startswith("paged_") else 0.0
    moved = 0.0
    if work.kind.offloads_checkpoints and work.recompute:
        moved = HALF * work.tokens * shape.hidden_size * shape.num_hidden_layers
    each = LIBRARIES_BYTES + paged + moved
    return HostNeeds(
        memory_bytes=round(processes * each + min(whole, SHARD_BYTES)),
        model_bytes=whole,
        checkpoint_bytes=round(terms.trained_bytes(shape, work) + state),
        merged_bytes=whole,
    )


def unknown_reasons(shape: ModelShape, work: Workload, *, trains_all: bool = False) -> tuple[Message, ...]:
    """Why nothing measured says what this takes; empty where something does."""
    reasons = [say("fit.unknown.whole")] if trains_all else []
    if shape.num_experts:
        reasons.append(say("fit.unknown.experts", type=shape.type_words))
    elif not shape.family.is_measured:
        reasons.append(say("fit.unknown.family", type=shape.type_words))
    if is_unmeasured_optimizer(work.optimizer):
        reasons.append(say("fit.unknown.optimizer", optimizer=work.optimizer))
    return tuple(reasons)


def is_unmeasured_optimizer(name: str) -> bool:
    """Whether transformers has it and no count of its state is known here."""
    return name not in terms.OPTIMIZER_BYTES and name.startswith(terms.UNKNOWN_OPTIMIZERS)


def estimate_reasons(shape: ModelShape, work: Workload, trainer: TrainerName) -> tuple[Message, ...]:
    """In what a setting goes beyond those that were measured, though the formulas cover it."""
    reasons = [
        say(f"fit.estimate.{kind}", trainer=trainer)
        for kind, trainers in MEASURED_WITH.items()
        if getattr(work, kind) and trainer not in trainers and trainer is not TrainerName.UNKNOWN
    ]
    if work.modules_to_save or {"embed_tokens", "lm_head"} & set(work.target_modules):
        reasons.append(say("fit.estimate.head"))
    if shape.more_linears:
        reasons.append(say("fit.estimate.tower"))
    if work.width > LONGEST_MEASURED:
        reasons.append(say("fit.estimate.length", tokens=LONGEST_MEASURED))
    return tuple(reasons)


def widened(found: Forecast, error: float) -> Forecast:
    """The forecast with an interval wider by this share on each side."""
    return replace(found, peak=found.peak.widened(error))


def shared(found: Forecast, shape: ModelShape, cards: int, sharing: Sharing) -> Forecast:
    """What one of several cards takes: an estimate.

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
    moved = replace(
        found,
        terms=(*found.terms, Term("several_cards", change)),
        peak_allocated_bytes=found.peak_allocated_bytes + change,
        peak_reserved_bytes=found.peak_reserved_bytes + change,
        peak=found.peak.moved(change, whole),
    )
    return widened(moved, SHARED_ERROR)


def changes(work: Workload, fits: Callable[[Workload], Forecast | None], *, is_known: bool) -> Change | None:
    """The cheapest change that makes a run fit, else the fewest of them together, cheapest first; None where none do.

    `fits` gives the forecast of a workload that surely fits. `is_known`: the trainer is, so that one of its options or
    another one can be named.
    """
    offered = list(_offers(work, is_known=is_known))
    for words, change in offered:
        found = fits(change(work))
        if found is not None:
            return Change((words,), found)
    taken: list[tuple[Message, Callable[[Workload], Workload]]] = []
    for offer in offered:
        taken.append(offer)
        found = fits(_applied(work, taken))
        if found is not None:
            break
    else:
        return None
    for offer in tuple(taken):
        fewer = [kept for kept in taken if kept is not offer]
        without = fits(_applied(work, fewer))
        if without is not None:
            taken, found = fewer, without
    return Change(tuple(words for words, _ in taken), found)


def _applied(work: Workload, offers: list[tuple[Message, Callable[[Workload], Workload]]]) -> Workload:
    for _, change in offers:
        work = change(work)
    return work


def _offers(work: Workload, *, is_known: bool) -> Iterator[tuple[Message, Callable[[Workload], Workload]]]:
    """Changes, the cheapest first: nothing but a word, then speed, then precision, then the task itself."""
    if is_known and work.trainer is TrainerName.TRL:
        yield say("fit.change.liger"), lambda old: replace(old, trainer=TrainerName.LIGER)
    if not work.optimizer.startswith("paged_") and work.optimizer in terms.OPTIMIZER_BYTES:
        yield say("fit.change.paged"), lambda old: replace(old, optimizer="paged_adamw_8bit")
    if not work.recompute:
        yield say("fit.change.recompute"), lambda old: replace(old, recompute=True)
    batch = work.batch_size
    while batch > 1:
        batch //= 2
        steps = work.gradient_accumulation_steps * work.batch_size // batch
        smaller = _batch(batch, steps)
        yield say("fit.change.batch", batch=batch, steps=steps), smaller
    if work.use_4bit and not work.double_quant:
        yield say("fit.change.double"), lambda old: replace(old, double_quant=True)
    if not work.use_4bit:
        yield say("fit.change.four"), lambda old: replace(old, use_4bit=True, use_8bit=False)
    if is_known and work.trainer is not TrainerName.UNSLOTH:
        yield say("fit.change.unsloth"), lambda old: replace(old, trainer=TrainerName.UNSLOTH)
    if work.adapter is None and set(work.target_modules) > set(DEFAULT_TARGETS):
        yield say("fit.change.targets"), lambda old: replace(old, target_modules=DEFAULT_TARGETS)
    width = work.width
    while width > 512:
        width //= 2
        yield say("fit.change.length", tokens=width), _width(width)


def _batch(size: int, steps: int) -> Callable[[Workload], Workload]:
    return lambda old: replace(old, batch_size=size, gradient_accumulation_steps=steps)


def _width(tokens: int) -> Callable[[Workload], Workload]:
    return lambda old: replace(old, width=tokens, label_positions=min(tokens, old.label_positions))
