"""The terms of a training step's memory, each a formula in the model's sizes; docs/memory-model.md derives them.

Comes in: a shape and a workload. Goes out: bytes. Nothing here is fitted to a measurement: what torch, transformers,
PEFT and bitsandbytes allocate follows from their code, and counting every tensor of a step on the CPU checks it
(tests/unit/pipeline/test_counted_memory.py). `tokens` is rows x width of one forward, padding included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from steph.memory.shapes import ModelShape, linear_shapes, parameter_parts

Trainer = Literal["full", "answer"]
ASSUMED_TRAINER: Trainer = "full"  # of a pipeline that does not say
DEFAULT_TARGETS = ("q_proj", "v_proj")  # PEFT's own choice for Qwen, Llama and Mistral
HALF, SINGLE = 2, 4  # bytes of a bf16 or fp16 number, and of an fp32 one
ABSMAX_BLOCK, NESTED_BLOCK = 64, 256  # bitsandbytes.functional.quantize_4bit: weights per scale, scales per fp32 scale
# bytes beside weight and gradient of one trained parameter, by transformers' name of the optimizer
OPTIMIZER_BYTES: Mapping[str, float] = MappingProxyType(
    {
        "adamw_torch": 8,
        "adamw_torch_fused": 8,
        "adamw_bnb_8bit": 2,
        "adamw_8bit": 2,
        "paged_adamw_8bit": 2,
        "paged_adamw_32bit": 8,
        "sgd": 0,
        "adafactor": 0,
    }
)


@dataclass(frozen=True, slots=True)
class Workload:
    """What one training step does, as far as memory goes.

    `batch_size` is the rows of one micro-batch, `width` their tokens, `gradient_accumulation_steps` the micro-batches
    of an optimizer step, of which `fused_micro_batches` go through the model as one. `label_positions`: logits of one
    row that the `answer` trainer computes; a direct answer has three labels, and the position before them is kept.
    `held_positions`: logits that it holds at once, of all rows together; None: all, as it did before its loss ran in
    chunks.
    """

    trainer: Trainer
    batch_size: int
    width: int
    gradient_accumulation_steps: int = 1
    lora_r: int = 16
    target_modules: tuple[str, ...] = DEFAULT_TARGETS
    lora_dropout: bool = True
    use_4bit: bool = True
    double_quant: bool = True
    recompute: bool = True
    optimizer: str = "adamw_torch"
    fused_micro_batches: int = 1
    label_positions: int = 4
    held_positions: int | None = 128

    def of_rows(self, longest_tokens: int, longest_answer_tokens: int) -> Workload:
        """The same with the real rows of the `answer` trainer, which pads to the longest and learns the answers."""
        width = min(self.width, longest_tokens)
        return replace(self, width=width, label_positions=min(width, longest_answer_tokens + 1))

    @property
    def rows(self) -> int:
        """Rows of one forward."""
        return self.batch_size * self.fused_micro_batches

    @property
    def tokens(self) -> int:
        """Tokens of one forward, padding included."""
        return self.rows * self.width

    @property
    def upcasts(self) -> bool:
        """Whether everything that is not 4-bit is cast to fp32 (peft.prepare_model_for_kbit_training)."""
        return self.trainer == "full" and self.use_4bit

    @property
    def activation_bytes(self) -> int:
        """Bytes of one activation number: fp32 after the upcast, where nothing autocasts; else half precision."""
        return SINGLE if self.upcasts else HALF

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients of earlier micro-batches are there while activations are at their peak."""
        return self.gradient_accumulation_steps > self.fused_micro_batches


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
    """fp32 weights (PEFT's `autocast_adapter_dtype`), the optimizer's state, and gradients where they accumulate.

    Raises ValueError naming an optimizer that is not known.
    """
    if work.optimizer not in OPTIMIZER_BYTES:
        raise ValueError(f"optimizer {work.optimizer}: not known; allowed: {', '.join(OPTIMIZER_BYTES)}")
    gradient = SINGLE if work.keeps_gradients else 0
    return lora_parameters(shape, work) * (SINGLE + OPTIMIZER_BYTES[work.optimizer] + gradient)


def upcast_bytes(shape: ModelShape, work: Workload) -> float:
    """What preparing holds beyond the weights that training finds: the half-precision original of the last tensor cast.

    `prepare_model_for_kbit_training` casts one tensor after the other; each original lives until its copy is made.
    """
    return parameter_parts(shape).embedding * HALF if work.upcasts else 0.0
