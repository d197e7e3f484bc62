"""The terms of a training step's memory, each a formula in the model's sizes; docs/memory-model.md derives them.

The layer is transformers' decoder layer with gated MLP and PEFT's LoRA on bitsandbytes' 4-bit linears, attention
through sdpa. Nothing here is fitted to a measurement: counting every tensor of a step on the CPU checks it
(tests/unit/pipeline/test_counted_memory.py). Every function returns bytes; `tokens` is rows x width of one forward,
padding included, `e` the bytes of one activation number.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from steph.memory.shapes import ModelShape, linear_shapes, parameter_parts
from steph.memory.trainers import HALF, SINGLE, Workload

ABSMAX_BLOCK, NESTED_BLOCK = 64, 256  # bitsandbytes.functional.quantize_4bit: weights per scale, scales per fp32 scale
# bytes beside weight and gradient of one trained parameter, by transformers' name of the optimizer
OPTIMIZER_BYTES: Mapping[str, float] = MappingProxyType(
    dict.fromkeys(("adamw_torch", "adamw_torch_fused", "paged_adamw_32bit"), 8.0)
    | dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"), 2.0)
    | dict.fromkeys(("sgd", "adafactor"), 0.0)
)
MOMENTS_AS_WEIGHTS = ("adamw_torch", "adamw_torch_fused")  # torch's keep moments in the weights' precision
INPUT_OF = {"q_proj": "norm1", "k_proj": "norm1", "v_proj": "norm1", "gate_proj": "norm2", "up_proj": "norm2"}


def linear_bytes(shape: ModelShape, work: Workload) -> float:
    """Weights of the projections: half a byte each and their scales, or half precision without 4-bit.

    Scales: one fp32 per 64 weights (4.5 bit/parameter); with double quantisation one byte per 64 and one fp32 per 256
    of those (4.127 bit/parameter). Source: bitsandbytes.functional.quantize_4bit, QLoRA section 3.
    """
    count = parameter_parts(shape).quantised_linear
    if not work.use_4bit:
        return count * HALF
    scale = 1 + SINGLE / NESTED_BLOCK if work.double_quant else SINGLE
    return count * (0.5 + scale / ABSMAX_BLOCK)


def embedding_bytes(shape: ModelShape, work: Workload) -> float:
    """Embedding and head, once where tied: 2 bytes a parameter, 4 after `prepare_model_for_kbit_training`."""
    parts = parameter_parts(shape)
    return (parts.embedding + parts.head) * work.activation_bytes


def norm_bytes(shape: ModelShape, work: Workload) -> float:
    """Norms and biases, stored as the embedding is."""
    parts = parameter_parts(shape)
    return (parts.norms + parts.biases) * work.activation_bytes


def lora_parameters(shape: ModelShape, work: Workload) -> int:
    """r x (in + out) for each target module of each layer; raises ValueError naming an unknown module."""
    linear = linear_shapes(shape)
    unknown = [name for name in work.target_modules if name not in linear]
    if unknown:
        raise ValueError(f"target module {', '.join(map(repr, unknown))}: not known; allowed: {', '.join(linear)}")
    per_layer = sum(sum(linear[name]) for name in set(work.target_modules))
    return work.lora_r * per_layer * shape.num_hidden_layers


def lora_bytes(shape: ModelShape, work: Workload) -> float:
    """Weights, the optimizer's state, and gradients where they accumulate.

    The weights are fp32 (PEFT's `autocast_adapter_dtype`), or bf16 where the trainer casts them.

    Raises ValueError naming an optimizer that is not known.
    """
    if work.optimizer not in OPTIMIZER_BYTES:
        raise ValueError(f"optimizer {work.optimizer}: not known; allowed: {', '.join(OPTIMIZER_BYTES)}")
    number = HALF if work.kind.half_adapter else SINGLE
    gradient = number if work.keeps_gradients else 0
    moments = OPTIMIZER_BYTES[work.optimizer] * (number / SINGLE if work.optimizer in MOMENTS_AS_WEIGHTS else 1)
    return lora_parameters(shape, work) * (number + moments + gradient)


def upcast_bytes(shape: ModelShape, work: Workload) -> float:
    """While preparing, the half-precision original of the last tensor cast, which lives until its copy is made."""
    return parameter_parts(shape).embedding * HALF if work.upcasts else 0.0


def kept_per_token(shape: ModelShape, work: Workload) -> float:
    """Bytes a token that one layer's backward needs: norms, attention, MLP and LoRA inputs.

    Norms: input and fp32 inverse root. The first norm's input is the layer's, which recompute has kept (counted with
    the checkpoints), unless a copy is made; qwen3's norms on q and k have inputs of their own. Attention: q, k, v after
    rope, the output, and sdpa's fp32 log-sum-exp per head. MLP: gate, the activation's output, up. The 4-bit linears
    keep nothing of their input (bitsandbytes MatMul4Bit saves only the packed weight).
    """
    e, heads = work.activation_bytes, shape.num_attention_heads
    inputs = 1 if work.recompute and work.norm_bytes == e else 2
    norms = inputs * work.norm_bytes * shape.hidden_size + 2 * SINGLE
    if shape.model_type == "qwen3":
        norms += (heads + shape.num_key_value_heads) * (shape.head_dim * work.norm_bytes + SINGLE)
    key_value_heads = heads if work.kind.has_mask else shape.num_key_value_heads
    attention = e * 2 * (heads + key_value_heads) * shape.head_dim + SINGLE * heads
    return norms + attention + work.kind.mlp_kept * e * shape.intermediate_size + _adapter_inputs(shape, work)


def _adapter_inputs(shape: ModelShape, work: Workload) -> float:
    """For each target: the input after dropout, dropout's mask of one byte, and A's output of r numbers.

    Without dropout A keeps the input itself, which modules that read the same input share.
    """
    e, linear = work.activation_bytes, linear_shapes(shape)
    widths = {name: linear[name][0] for name in linear if name in work.target_modules}
    low_rank = len(widths) * e * work.lora_r
    if work.lora_dropout:
        return low_rank + (e + 1) * sum(widths.values())
    return low_rank + e * sum({INPUT_OF.get(name, name): width for name, width in widths.items()}.values())


def mask_bytes(work: Workload) -> float:
    """A mask of (rows, 1, width, width) numbers of the queries' kind; one for all layers."""
    return work.activation_bytes * work.tokens * work.width if work.kind.has_mask else 0.0


def layer_kept_bytes(shape: ModelShape, work: Workload) -> float:
    """What one layer's backward needs, over all tokens of a forward."""
    return kept_per_token(shape, work) * work.tokens


def checkpoint_bytes(shape: ModelShape, work: Workload) -> float:
    """Each layer's input, the only thing that recompute keeps: e·T·h·L (torch.utils.checkpoint)."""
    if work.kind.offloads_checkpoints:
        return 0.0
    return work.activation_bytes * work.tokens * shape.hidden_size * shape.num_hidden_layers


def layer_work_bytes(shape: ModelShape, work: Workload) -> float:
    """The most that one layer's recompute and backward hold beyond what they keep.

    Three moments can be the highest, in tokens T, hidden h, intermediate I, the dequantised weight W = 2·h·I:
    the recompute reaching its last large linear (up, with the product's gradient waiting, or down where LoRA is on it,
    before or after it has kept its dropped input); down's backward; the product's backward with three gradients of
    width I.
    """
    e, tokens = work.activation_bytes, work.tokens
    hidden, wide = e * tokens * shape.hidden_size, e * tokens * shape.intermediate_size
    weight = HALF * shape.hidden_size * shape.intermediate_size if work.use_4bit else 0
    half_copies = HALF * tokens * shape.intermediate_size if work.upcasts else 0
    gradients = work.kind.mlp_gradients
    if "down_proj" not in work.target_modules:
        recomputing = wide + 3 * hidden + weight + half_copies if work.recompute else 0.0
        return max(recomputing, hidden + wide + weight + half_copies, hidden + gradients * wide)
    dropped = wide + tokens * shape.intermediate_size if work.lora_dropout else 0.0
    recomputing = wide + 5 * hidden + max(0.0, weight + half_copies - dropped) if work.recompute else 0.0
    return max(recomputing, 2 * hidden + 2 * wide + weight + half_copies - dropped, hidden + gradients * wide - dropped)


def fresh_gradient_bytes(shape: ModelShape, work: Workload) -> float:
    """Gradients of all LoRA weights, complete when the first layer's backward runs; 0 where they stay anyway."""
    number = HALF if work.kind.half_adapter else SINGLE
    return 0.0 if work.keeps_gradients else number * lora_parameters(shape, work)


def norm_work_bytes(shape: ModelShape, work: Workload) -> float:
    """The last norm's backward, while every layer's activations are still kept.

    torch's kernel: its input and the two gradients; transformers' code: five fp32 tensors and its input.
    """
    numbers = 6 * SINGLE if work.kind.copies_norm_inputs else 3 * work.activation_bytes
    return numbers * work.tokens * shape.hidden_size


def logits_bytes(shape: ModelShape, work: Workload) -> float:
    """One fp32 number for each position that has logits, and each word."""
    return SINGLE * work.logit_positions * shape.vocab_size


def head_bytes(shape: ModelShape, work: Workload) -> float:
    """Logits and loss at their peak: fp32 log_softmax, nll_loss' gradient and log_softmax's, 12·V bytes a position.

    The logits are gone by then (the Trainer keeps the loss alone), and where they are in half precision, their gradient
    comes after. Source: transformers ForCausalLMLoss, torch.nn.functional.cross_entropy.
    """
    return 3 * logits_bytes(shape, work)


def half_adapter_bytes(shape: ModelShape, work: Workload) -> float:
    """Half-precision copies of the LoRA weights, made by autocast and kept by the graph; one layer's with recompute."""
    if work.upcasts or work.kind.half_adapter:
        return 0.0
    copies = HALF * lora_parameters(shape, work)
    return copies / shape.num_hidden_layers if work.recompute else copies
