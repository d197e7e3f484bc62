"""What a training step keeps and computes beside the weights, per layer and at the head, in bytes.

The layer is transformers' decoder layer with gated MLP and PEFT's LoRA on bitsandbytes' 4-bit linears, attention
through sdpa. `e` is the bytes of one activation number. docs/memory-model.md has the derivation, line by line.
"""

from __future__ import annotations

from steph.memory.shapes import ModelShape, linear_shapes
from steph.memory.terms import HALF, SINGLE, Workload, lora_parameters

LOGSUMEXP_BYTES = SINGLE  # sdpa keeps one fp32 per head and token
LOGITS_AT_ONCE = 3  # see head_bytes


def kept_per_token(shape: ModelShape, work: Workload) -> float:
    """Bytes a token that one layer's backward needs: norms, attention, MLP and LoRA inputs.

    The 4-bit linears keep nothing of their input (bitsandbytes MatMul4Bit saves only the packed weight).
    """
    return sum((_norms(shape, work), _attention(shape, work), _mlp(shape, work), _adapters(shape, work)))


def _norms(shape: ModelShape, work: Workload) -> float:
    """RMSNorm keeps its input and the fp32 inverse root; on q and k too for qwen3.

    torch's kernel, which the reference trainer uses, keeps the input as it is; transformers' own code keeps an fp32
    copy, which is the input itself where activations are fp32. The first norm's input is the layer's, which recompute
    has kept (counted with the checkpoints), unless a copy is made; q's and k's are new ones.
    """
    number = work.activation_bytes if work.trainer == "answer" else SINGLE
    copied = number != work.activation_bytes
    inputs = 1 if work.recompute and not copied else 2
    kept = inputs * number * shape.hidden_size + 2 * SINGLE
    if shape.model_type == "qwen3":
        heads = shape.num_attention_heads + shape.num_key_value_heads
        kept += heads * (shape.head_dim * number + SINGLE)
    return kept


def _attention(shape: ModelShape, work: Workload) -> float:
    """sdpa keeps q, k, v and its output after rope; under a mask k and v are repeated for all heads.

    The reference trainer always has a mask (`mask_bytes`); the plain trainer's rows of full length have none.
    """
    e = work.activation_bytes
    query = shape.num_attention_heads * shape.head_dim
    masked = work.trainer == "answer"
    key_value = query if masked else shape.num_key_value_heads * shape.head_dim
    return e * (2 * query + 2 * key_value) + LOGSUMEXP_BYTES * shape.num_attention_heads


def mask_bytes(work: Workload) -> float:
    """The reference trainer's mask, (rows, 1, width, width) numbers of the queries' kind; one for all layers."""
    return work.activation_bytes * work.tokens * work.width if work.trainer == "answer" else 0.0


def _mlp(shape: ModelShape, work: Workload) -> float:
    """gate (for the activation's backward), the activation's output and up (for the product's)."""
    return 3 * work.activation_bytes * shape.intermediate_size


def _adapters(shape: ModelShape, work: Workload) -> float:
    """For each target: the input after dropout, dropout's mask of one byte, and A's output of r numbers.

    Without dropout A keeps the input itself, which modules that read the same input share.
    """
    e, linear = work.activation_bytes, linear_shapes(shape)
    targets = [name for name in linear if name in work.target_modules]
    low_rank = len(targets) * e * work.lora_r
    if work.lora_dropout:
        return low_rank + sum((e + 1) * linear[name][0] for name in targets)
    sources = {_source(name): linear[name][0] for name in targets}
    return low_rank + e * sum(sources.values())


def _source(module: str) -> str:
    return {"q_proj": "norm1", "k_proj": "norm1", "v_proj": "norm1", "gate_proj": "norm2", "up_proj": "norm2"}.get(
        module, module
    )


def layer_kept_bytes(shape: ModelShape, work: Workload) -> float:
    """What one layer's backward needs, over all tokens of a forward."""
    return kept_per_token(shape, work) * work.tokens


def checkpoint_bytes(shape: ModelShape, work: Workload) -> float:
    """Each layer's input, the only thing that recompute keeps: e·T·h·L (torch.utils.checkpoint)."""
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
    if "down_proj" not in work.target_modules:
        recomputing = wide + 3 * hidden + weight + half_copies if work.recompute else 0.0
        return max(recomputing, hidden + wide + weight + half_copies, hidden + 3 * wide)
    dropped = wide + tokens * shape.intermediate_size if work.lora_dropout else 0.0
    recomputing = wide + 5 * hidden + max(0.0, weight + half_copies - dropped) if work.recompute else 0.0
    return max(recomputing, 2 * hidden + 2 * wide + weight + half_copies - dropped, hidden + 3 * wide - dropped)


def fresh_gradient_bytes(shape: ModelShape, work: Workload) -> float:
    """fp32 gradients of all LoRA weights, complete when the first layer's backward runs; 0 where they stay anyway."""
    return 0.0 if work.keeps_gradients else SINGLE * lora_parameters(shape, work)


def norm_work_bytes(shape: ModelShape, work: Workload) -> float:
    """The last norm's backward, while every layer's activations are still kept.

    torch's kernel: its input and the two gradients; transformers' code: five fp32 tensors and its input.
    """
    if work.trainer == "answer":
        return 3 * work.activation_bytes * work.tokens * shape.hidden_size
    return 6 * SINGLE * work.tokens * shape.hidden_size


def head_positions(work: Workload) -> int:
    """Positions whose logits are held at once: all of them, or each row's labels and the one before, up to a chunk."""
    if work.trainer == "full":
        return work.tokens
    positions = work.rows * min(work.width, work.label_positions)
    return positions if work.held_positions is None else min(positions, work.held_positions)


def logits_bytes(shape: ModelShape, work: Workload) -> float:
    """One fp32 number for each position that has logits, and each word."""
    return SINGLE * head_positions(work) * shape.vocab_size


def head_bytes(shape: ModelShape, work: Workload) -> float:
    """Logits and loss at their peak, in the loss's backward.

    log_softmax's output, nll_loss' gradient and log_softmax's gradient, all fp32: 12·V bytes a position. The logits are
    gone by then (the Trainer keeps the loss alone), and where they are in half precision, their gradient comes after.
    Source: transformers ForCausalLMLoss, torch.nn.functional.cross_entropy.
    """
    return LOGITS_AT_ONCE * logits_bytes(shape, work)


def half_adapter_bytes(shape: ModelShape, work: Workload) -> float:
    """Half-precision copies of the LoRA weights, made by autocast and kept by the graph; one layer's with recompute."""
    if work.upcasts:
        return 0.0
    copies = HALF * lora_parameters(shape, work)
    return copies / shape.num_hidden_layers if work.recompute else copies
