"""The terms of a training step's memory, each a formula in the model's sizes, and the trainers' constants in them.

docs/memory-model.en.md derives the formulas. The layer is transformers' decoder layer with gated MLP and PEFT's LoRA on
bitsandbytes' 4-bit linears, attention through sdpa. Nothing in a formula is fitted to a measurement: counting every
tensor of a step on the CPU checks it (tests/unit/pipeline/test_counted_memory.py). Every formula gives bytes; `tokens`
is rows x width of one forward, padding included, `e` the bytes of one activation number. A trainer is a row of
trainers.toml.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from steph.base.messages import say
from steph.base.terms import NAMED_TRAINERS, TrainerName
from steph.memory.shapes import ModelShape, linear_shapes, linears, parameter_parts

HALF, SINGLE = 2, 4  # bytes of a bf16 or fp16 number, and of an fp32 one
KIND_ERROR = 0.10
MLP = frozenset({"gate_proj", "up_proj", "down_proj"})
DEFAULT_TARGETS = ("q_proj", "v_proj")  # PEFT's own choice for Qwen, Llama and Mistral
ASSUMED_TRAINER = TrainerName.FULL  # of a pipeline that does not say


@dataclass(frozen=True, slots=True)
class Trainer:
    """The memory use of one kind of training program."""

    slack_share: float  # reserved beyond what is allocated, as a share; `full`'s points have 0.04 to 0.18
    marked_points: int  # of whose slack it is the median
    version: str = ""  # that was measured, empty for the reference pipeline; others may hold more
    upcasts: bool = False  # all but 4-bit weights, and activations, to fp32 (peft.prepare_model_for_kbit_training)
    copies_norm_inputs: bool = False  # to fp32, as transformers' RMSNorm does; torch's kernel keeps the input itself
    has_mask: bool = False  # of all pairs of tokens, under which keys and values are repeated for all heads
    all_logits: bool = True  # of every position, else of the labels alone
    held_positions: int | None = None  # logits held at once, where the loss runs in chunks
    pads_to_maximum: bool = False  # rows are as long as the setting, else as the longest of them
    picks_its_way: bool = False  # recompute and fused micro-batches, by the memory that is free
    half_adapter: bool = False  # LoRA's weights, gradients and moments are bf16, where the base is quantised
    has_own_norms: bool = False  # kernels in place of transformers' norms, of any family
    logit_copies: int = 3  # fp32 tensors of all logits at the loss
    eager_attention: bool = False  # its softmax is kept
    offloads_checkpoints: bool = False  # what recompute keeps waits in host memory
    mlp_kept: int = 3  # tensors as wide as the MLP that a layer keeps
    mlp_gradients: int = 3  # and that its backward holds
    is_short: bool = False  # without dropout, LoRA's layers and gated MLPs are functions that keep their inputs alone
    tries_graph: bool = False  # steps become a CUDA graph, which has a workspace of its own
    uses_host_memory: bool = False  # for embeddings, then for recompute's inputs, where nothing else fits
    launcher_context_gib: float = 0.0  # of the card, held by a program that starts the training
    least_error: float = 0.0  # how far runs may lie from the formulas at least, as a share


def _trainer(rows: Mapping[str, Mapping[str, Any]], name: str) -> Trainer:
    row = {**rows.get(rows[name].get("like", ""), {}), **rows[name]}
    return Trainer(**{key: value for key, value in row.items() if key != "like"})


_ROWS = tomllib.loads(Path(__file__).with_name("trainers.toml").read_text(encoding="utf-8"))
TRAINERS: Mapping[TrainerName, Trainer] = MappingProxyType({name: _trainer(_ROWS, name) for name in NAMED_TRAINERS})
OLDER = _trainer(_ROWS, "older")


@dataclass(frozen=True, slots=True)
class AdapterCount:
    """Trained parameters as peft counted them: LoRA's, DoRA's magnitudes, and those of modules trained as a whole."""

    lora: int
    magnitude: int = 0
    whole: int = 0


@dataclass(frozen=True, slots=True)
class Workload:
    """The work of one training step, as far as memory goes."""

    trainer: TrainerName  # a name in `TRAINERS`
    batch_size: int  # rows of one micro-batch
    width: int  # their tokens
    gradient_accumulation_steps: int = 1  # micro-batches of an optimizer step
    lora_r: int = 16
    target_modules: tuple[str, ...] = DEFAULT_TARGETS
    lora_dropout: bool = True
    use_4bit: bool = True
    double_quant: bool = True
    recompute: bool = True
    optimizer: str = "adamw_torch"
    fused_micro_batches: int = 1  # of which so many go through the model as one
    label_positions: int = 4  # logits of a row where labels alone have them: a direct answer's three, and one before
    held_positions: int | None = None  # logits held at once, of all rows; None: the trainer's
    use_8bit: bool = False  # bitsandbytes' LLM.int8(), without `use_4bit`
    packing: bool = False  # rows are filled to `width`, and a micro-batch is one row
    dora: bool = False
    modules_to_save: tuple[str, ...] = ()  # trained as a whole
    adapter: AdapterCount | None = None  # what peft counted, in place of what the targets' names say
    older: bool = False  # `OLDER` instead of the trainer
    reentrant: bool = False  # recompute by torch's older way, without any graph in the first pass; TRL uses the newer
    host_memory: Literal["off", "embeddings", "all"] = "off"  # what waits there; "all": recompute's inputs, too
    cuda_graph: bool = True  # False where the trainer is told not to try one

    def of_rows(self, longest_tokens: int, longest_answer_tokens: int) -> Workload:
        """The same with the real rows of a trainer that pads to the longest and learns the answers."""
        width = min(self.width, longest_tokens)
        return replace(self, width=width, label_positions=min(width, longest_answer_tokens + 1))

    @property
    def kind(self) -> Trainer:
        """The trainer's row of constants."""
        return OLDER if self.older else TRAINERS[self.trainer]

    @property
    def is_short(self) -> bool:
        """Whether LoRA layers keep their inputs alone."""
        return self.kind.is_short and not self.lora_dropout

    @property
    def has_short_mlp(self) -> bool:
        """Whether an MLP is one function; a dropout in front of one of its adapters is what keeps it from that."""
        return self.kind.is_short and not (self.lora_dropout and MLP.intersection(self.target_modules))

    @property
    def is_graphed(self) -> bool:
        """Whether a CUDA graph is tried; recompute with dropout draws its random numbers outside of one."""
        return self.cuda_graph and self.kind.tries_graph and not (self.recompute and self.lora_dropout)

    @property
    def rows(self) -> int:
        """Rows of one forward."""
        return self.batch_size * self.fused_micro_batches

    @property
    def tokens(self) -> int:
        """Tokens of one forward, padding included."""
        return self.rows * self.width

    @property
    def logit_positions(self) -> int:
        """Positions whose logits are held at once."""
        positions = self.tokens if self.kind.all_logits else self.rows * min(self.width, self.label_positions)
        held = self.kind.held_positions if self.held_positions is None else self.held_positions
        return positions if held is None else min(positions, held)

    @property
    def upcasts(self) -> bool:
        """Whether everything that is not quantised is cast to fp32."""
        return self.kind.upcasts and (self.use_4bit or self.use_8bit)

    @property
    def activation_bytes(self) -> int:
        """Bytes of one activation number: fp32 after the upcast, where nothing autocasts; else half precision."""
        return SINGLE if self.upcasts else HALF

    @property
    def least_error(self) -> float:
        """How far runs may lie from the formulas at least, as a share.

        How many columns 8 bits keep in half precision as well depends on the weights, which no shape tells, and what
        DoRA works with was set by a single point.
        """
        return max(self.kind.least_error, KIND_ERROR if self.use_8bit or self.dora else 0.0)

    @property
    def adapter_bytes(self) -> int:
        """Bytes of one number of LoRA's weights, gradients and moments; a quantised base's may be in half precision."""
        return HALF if self.kind.half_adapter and (self.use_4bit or self.use_8bit) else SINGLE

    @property
    def norm_bytes(self) -> int:
        """Bytes of one number that an RMSNorm keeps of its input."""
        return SINGLE if self.kind.copies_norm_inputs else self.activation_bytes

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients of earlier micro-batches are there while activations are at their peak."""
        return self.gradient_accumulation_steps > self.fused_micro_batches


ABSMAX_BLOCK, NESTED_BLOCK = 64, 256  # bitsandbytes.functional.quantize_4bit: weights per scale, scales per fp32 scale
_OPTIMIZERS = tomllib.loads(Path(__file__).with_name("optimizers.toml").read_text(encoding="utf-8"))
OPTIMIZER_BYTES: Mapping[str, float] = MappingProxyType(
    {name: float(size) for size, names in _OPTIMIZERS["bytes"].items() for name in names}
)
UNKNOWN_OPTIMIZERS = tuple(_OPTIMIZERS["unknown"]["begins_with"])
MOMENTS_AS_WEIGHTS = ("adamw_torch", "adamw_torch_fused")  # torch's keep moments in the weights' precision
DORA_WORK_BYTES = 33  # a number of the largest weight, while its norm is computed; of one measured point
INPUT_OF = {"q_proj": "norm1", "k_proj": "norm1", "v_proj": "norm1", "gate_proj": "norm2", "up_proj": "norm2"}


def linear_bytes(shape: ModelShape, work: Workload) -> float:
    """Weights of the projections: half a byte each and their scales, or half precision without 4-bit.

    In 8 bits one byte each and an fp32 scale for each output (bitsandbytes.nn.Int8Params). Scales of 4 bits: one fp32
    per 64 weights (4.5 bit/parameter); with double quantisation one byte per 64 and one fp32 per 256 of those (4.127
    bit/parameter). Source: bitsandbytes.functional.quantize_4bit, QLoRA section 3.
    """
    count = parameter_parts(shape).quantised_linear
    if work.use_8bit:
        return count + SINGLE * sum(linear.outputs * linear.count for linear in linears(shape))
    if not work.use_4bit:
        return count * HALF
    scale = 1 + SINGLE / NESTED_BLOCK if work.double_quant else SINGLE
    return count * (0.5 + scale / ABSMAX_BLOCK)


def embedding_bytes(shape: ModelShape, work: Workload) -> float:
    """Embedding and head, once where tied: 2 bytes a parameter, 4 after `prepare_model_for_kbit_training`.

    Embeddings that no head shares may wait in host memory.
    """
    parts = parameter_parts(shape)
    waiting = parts.embedding if parts.head and work.host_memory != "off" else 0
    return (parts.embedding + parts.head - waiting) * work.activation_bytes


def norm_bytes(shape: ModelShape, work: Workload) -> float:
    """Norms, biases and experts, stored as the embedding is."""
    parts = parameter_parts(shape)
    return (parts.norms + parts.biases + parts.experts) * work.activation_bytes


def lora_parameters(shape: ModelShape, work: Workload) -> int:
    """r x (in + out) for each linear that a target module's name stands for, of an image tower's too.

    As peft counted it where a workload says so. Raises ValueError naming an unknown module.
    """
    if work.adapter is not None:
        return work.adapter.lora
    every = linears(shape)
    hidden, words = shape.hidden_size, shape.vocab_size
    whole = {"embed_tokens": (words, hidden), "lm_head": (hidden, words)}
    known = {linear.name for linear in every} | set(whole)
    unknown = [name for name in work.target_modules if name not in known]
    if unknown:
        allowed = tuple(dict.fromkeys(linear.name for linear in every))
        raise ValueError(say("fit.no_target", names=[*map(repr, unknown)], allowed=allowed))
    targets = set(work.target_modules)
    sides = sum((linear.inputs + linear.outputs) * linear.count for linear in every if linear.name in targets)
    return work.lora_r * (sides + sum(sum(whole[name]) for name in targets & set(whole)))


def magnitude_parameters(shape: ModelShape, work: Workload) -> int:
    """DoRA's: one number for each output of a target."""
    if work.adapter is not None:
        return work.adapter.magnitude
    targets = set(work.target_modules) if work.dora else set()
    return sum(linear.outputs * linear.count for linear in linears(shape) if linear.name in targets)


def whole_parameters(shape: ModelShape, work: Workload) -> int:
    """Those of `modules_to_save`, of which peft trains a copy; raises ValueError naming one that is not known."""
    if work.adapter is not None:
        return work.adapter.whole
    size = shape.vocab_size * shape.hidden_size
    sizes = {"embed_tokens": size, "lm_head": size}
    unknown = [name for name in work.modules_to_save if name not in sizes]
    if unknown:
        raise ValueError(say("fit.no_module", names=[*map(repr, unknown)], allowed=tuple(sizes)))
    return sum(sizes[name] for name in set(work.modules_to_save))


def optimizer_bytes(shape: ModelShape, work: Workload) -> float:
    """The optimizer's state, wherever it is; raises ValueError naming an optimizer that is not known."""
    if work.optimizer not in OPTIMIZER_BYTES:
        raise ValueError(say("fit.no_optimizer", optimizer=work.optimizer, allowed=tuple(OPTIMIZER_BYTES)))
    in_weights = work.adapter_bytes / SINGLE if work.optimizer in MOMENTS_AS_WEIGHTS else 1
    halves = lora_parameters(shape, work) + whole_parameters(shape, work)
    return OPTIMIZER_BYTES[work.optimizer] * (halves * in_weights + magnitude_parameters(shape, work))


def lora_bytes(shape: ModelShape, work: Workload) -> float:
    """What is trained: weights, the optimizer's state unless it is paged, and gradients where they accumulate.

    The weights are fp32 (PEFT's `autocast_adapter_dtype`), or bf16 where the trainer casts them; DoRA's magnitudes
    stay fp32.

    Raises ValueError naming an optimizer that is not known.
    """
    state = optimizer_bytes(shape, work)
    copies = 2 if work.keeps_gradients else 1
    return copies * trained_bytes(shape, work) + (0.0 if work.optimizer.startswith("paged_") else state)


def trained_bytes(shape: ModelShape, work: Workload) -> float:
    """The trained weights themselves; their gradients take as much."""
    halves = lora_parameters(shape, work) + whole_parameters(shape, work)
    return work.adapter_bytes * halves + SINGLE * magnitude_parameters(shape, work)


def kept_per_token(shape: ModelShape, work: Workload) -> float:
    """Bytes a token that one layer's backward needs: norms, attention, MLP and LoRA inputs.

    Norms: input and fp32 inverse root. The first norm's input is the layer's, which recompute has kept (counted with
    the checkpoints), unless a copy is made; qwen3's norms on q and k have inputs of their own. Attention: q, k, v after
    rope, the output, and sdpa's fp32 log-sum-exp per head. MLP: gate, the activation's output, up. The 4-bit linears
    keep nothing of their input (bitsandbytes MatMul4Bit saves only the packed weight).
    """
    e, heads, family = work.activation_bytes, shape.num_attention_heads, shape.family
    norm = SINGLE if family.keeps_fp32_norms and not work.kind.has_own_norms else work.norm_bytes
    inputs = family.layer_norms - (1 if work.recompute and norm == e else 0)
    norms = inputs * norm * shape.hidden_size + family.layer_norms * SINGLE
    if family.head_norms:
        norms += (heads + shape.num_key_value_heads) * (shape.head_dim * norm + SINGLE)
    key_value_heads = heads if work.kind.has_mask else shape.num_key_value_heads
    attention = e * 2 * (heads + key_value_heads) * shape.head_dim + SINGLE * heads
    if work.kind.eager_attention:  # softmax in fp32, and its copy
        attention += (SINGLE + e) * heads * work.width
    mlp = (2 if work.has_short_mlp else work.kind.mlp_kept) * e * shape.intermediate_size
    # MatMul8bitLt keeps its input in half precision where nothing else keeps that tensor (bitsandbytes.autograd): the
    # norms' two outputs, which three and two linears share, and the input of down
    eight_bit = HALF * (2 * shape.hidden_size + shape.intermediate_size) if work.use_8bit else 0.0
    return norms + attention + mlp + eight_bit + _adapter_inputs(shape, work)


def _adapter_inputs(shape: ModelShape, work: Workload) -> float:
    """For each target: the input after dropout, dropout's mask of one byte, and A's output of r numbers.

    Without dropout A keeps the input itself, which modules that read the same input share; with an fp32 adapter each
    keeps the copy that it was cast to.
    """
    e, linear = work.activation_bytes, linear_shapes(shape)
    widths = {name: linear[name][0] for name in linear if name in work.target_modules}
    low_rank = len(widths) * e * work.lora_r
    if work.dora:  # the plain result and LoRA's own
        low_rank += 2 * e * sum(linear[name][1] for name in widths)
    if work.lora_dropout:
        return low_rank + (e + 1) * sum(widths.values())
    if work.adapter_bytes > e and not work.is_short:
        return low_rank + e * sum(widths.values())
    if work.is_short:  # the MLP's product is made again
        widths.pop("down_proj", None)
    shared = {INPUT_OF.get(name, name): width for name, width in widths.items() if name != "o_proj"}
    return low_rank + e * sum(shared.values())  # o's input is attention's output, which is kept anyway


def checkpoint_bytes(shape: ModelShape, work: Workload) -> float:
    """Each layer's input, the only thing that recompute keeps: e·T·h·L (torch.utils.checkpoint)."""
    layers = work.tokens * shape.num_hidden_layers
    # MatMul8bitLt holds its inputs where recompute does not find them (ctx.tensors), in every layer
    inputs = 2 * shape.hidden_size + shape.num_attention_heads * shape.head_dim + shape.intermediate_size
    held = HALF * layers * inputs if work.use_8bit and not work.reentrant else 0.0
    if work.kind.offloads_checkpoints or work.host_memory == "all":
        return held
    return held + work.activation_bytes * layers * shape.hidden_size


def layer_work_bytes(shape: ModelShape, work: Workload) -> float:
    """The most that one layer's recompute and backward hold beyond what they keep.

    Three moments can be the highest, in tokens T, hidden h, intermediate I, the dequantised weight W = 2·h·I:
    the recompute reaching its last large linear (up, with the product's gradient waiting, or down where LoRA is on it,
    before or after it has kept its dropped input); down's backward; the product's backward with three gradients of
    width I. Of an MLP that is one function it is always the last one, with the weights of gate and up as one.
    """
    e, tokens = work.activation_bytes, work.tokens
    hidden, wide = e * tokens * shape.hidden_size, e * tokens * shape.intermediate_size
    weight = HALF * shape.hidden_size * shape.intermediate_size if work.use_4bit or work.use_8bit else 0
    if work.has_short_mlp:
        return 2 * hidden + 3 * wide + 2 * weight
    half_copies = HALF * tokens * shape.intermediate_size if work.upcasts else 0
    gradients = work.kind.mlp_gradients
    if "down_proj" not in work.target_modules:
        recomputing = wide + 3 * hidden + weight + half_copies if work.recompute else 0.0
        return max(recomputing, hidden + wide + weight + half_copies, hidden + gradients * wide)
    # without dropout the product is what LoRA on down keeps, and is counted there; with it, a dropped copy is
    dropped = wide + tokens * shape.intermediate_size if work.lora_dropout else wide
    again = wide if work.lora_dropout else 0.0
    left = weight + half_copies - (dropped if work.lora_dropout else 0.0)
    recomputing = again + 5 * hidden + max(0.0, left) if work.recompute else 0.0
    if work.dora:
        recomputing += DORA_WORK_BYTES * shape.hidden_size * shape.intermediate_size
    return max(recomputing, 2 * hidden + 2 * wide + weight + half_copies - dropped, hidden + gradients * wide - dropped)


def largest_tensor_bytes(shape: ModelShape, work: Workload, logits_scale: float = 1.0) -> float:
    """The largest tensor of a step: one as wide as the MLP, or as the vocabulary where all positions have logits."""
    wide = work.activation_bytes * work.tokens * shape.intermediate_size
    logits = logits_scale * SINGLE * work.logit_positions * shape.vocab_size if work.kind.all_logits else 0.0
    return max(wide, logits)


def head_bytes(shape: ModelShape, work: Workload) -> float:
    """Logits and loss at their peak: fp32 log_softmax, nll_loss' gradient and log_softmax's, 12·V bytes a position.

    The logits are gone by then (the Trainer keeps the loss alone), and where they are in half precision, their gradient
    comes after. Where they are capped, tanh keeps its output, too. Source: transformers ForCausalLMLoss,
    torch.nn.functional.cross_entropy.
    """
    copies = work.kind.logit_copies + shape.family.caps_logits
    return copies * SINGLE * work.logit_positions * shape.vocab_size
