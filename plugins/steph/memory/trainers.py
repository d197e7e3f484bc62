"""The trainers that a prediction knows, one row of constants each, and the settings of a training step.

A further trainer is a further row of `TRAINERS`, and its name in `steph.base.terms.TrainerName`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from steph.base.terms import TrainerName

HALF, SINGLE = 2, 4  # bytes of a bf16 or fp16 number, and of an fp32 one
KIND_ERROR = 0.10
DEFAULT_TARGETS = ("q_proj", "v_proj")  # PEFT's own choice for Qwen, Llama and Mistral


@dataclass(frozen=True, slots=True)
class Trainer:
    """What one kind of training program keeps in memory.

    `upcasts`: all but the 4-bit weights is cast to fp32 (peft.prepare_model_for_kbit_training), and so are activations.
    `copies_norm_inputs`: transformers' own RMSNorm keeps an fp32 copy of its input, torch's kernel the input itself.
    `has_mask`: attention gets a mask of all pairs of tokens, under which keys and values are repeated for all heads.
    `all_logits`: logits of every position, else of the labels alone. `held_positions`: how many are held at once, where
    the loss runs in chunks. `pads_to_maximum`: rows are as long as the setting, else as the longest of them.
    `half_adapter`: LoRA's weights, gradients and moments are bf16 too, where the base is quantised. `has_own_norms`:
    kernels in place of transformers' norms, of any family. `logit_copies`: fp32 tensors of all logits at the loss.
    `eager_attention`: its softmax is kept. `offloads_checkpoints`: what recompute keeps waits in host memory.
    `mlp_kept`, `mlp_gradients`: tensors as wide as the MLP that a layer keeps, and that its backward holds.
    `least_error`: how far runs may lie from the formulas at least, as a share.
    `picks_its_way`: it decides on recompute and on fusing micro-batches by the memory that is free. `slack_share`: what
    the allocator reserves beyond what is allocated, as a share of it, median of the `marked_points` points that are
    marked for fitting. It depends on the order of requests: `full`'s points have 0.04 to 0.18. `version`: of the
    program that was measured, empty for the reference pipeline; others may hold more.
    """

    upcasts: bool
    copies_norm_inputs: bool
    has_mask: bool
    all_logits: bool
    held_positions: int | None
    pads_to_maximum: bool
    picks_its_way: bool
    slack_share: float
    marked_points: int
    version: str
    half_adapter: bool = False
    has_own_norms: bool = False
    logit_copies: int = 3
    eager_attention: bool = False
    offloads_checkpoints: bool = False
    mlp_kept: int = 3
    mlp_gradients: int = 3
    least_error: float = 0.0


# TRL's SFTTrainer as it comes: bf16 autocast, an adapter in bf16, its loss in chunks
_TRL = Trainer(
    upcasts=False,
    copies_norm_inputs=True,
    has_mask=False,
    all_logits=True,
    held_positions=32,
    pads_to_maximum=False,
    picks_its_way=False,
    slack_share=0.05,
    marked_points=7,
    version="TRL 1.16",
    half_adapter=True,
)
TRAINERS: Mapping[TrainerName, Trainer] = MappingProxyType(
    {
        # Hugging Face's Trainer without autocast after prepare_model_for_kbit_training, rows padded to the maximum
        TrainerName.FULL: Trainer(
            upcasts=True,
            copies_norm_inputs=True,
            has_mask=False,
            all_logits=True,
            held_positions=None,
            pads_to_maximum=True,
            picks_its_way=False,
            slack_share=0.10,
            marked_points=5,
            version="transformers 5.17",
        ),
        # the reference pipeline before the faster steps of 0.2.0, which need no mask: bf16 autocast, logits where there
        # are labels, padding to the longest row
        TrainerName.ANSWER: Trainer(
            upcasts=False,
            copies_norm_inputs=False,
            has_mask=True,
            all_logits=False,
            held_positions=128,
            pads_to_maximum=False,
            picks_its_way=True,
            slack_share=0.05,
            marked_points=10,
            version="",
        ),
        TrainerName.TRL: _TRL,
        # the same with use_liger_kernel
        TrainerName.LIGER: replace(_TRL, copies_norm_inputs=False, has_own_norms=True, mlp_kept=2, mlp_gradients=1),
        # Unsloth's FastLanguageModel with its own checkpointing; its loss takes chunks by the memory that it finds free
        TrainerName.UNSLOTH: replace(
            _TRL,
            version="Unsloth 2026.10",
            copies_norm_inputs=False,
            has_own_norms=True,
            held_positions=64,
            slack_share=0.03,
            offloads_checkpoints=True,
            mlp_kept=2,
            mlp_gradients=4,
            least_error=0.10,
        ),
    }
)
# What older programs keep beside: transformers before 4.45 made an fp32 copy of all logits, shifted it and kept both
# for the loss, eager attention keeps its softmax, and rows of changing lengths leave segments unused. No trainer of
# its own: the upper end where nobody said which one runs
OLDER = replace(
    TRAINERS[TrainerName.FULL],
    logit_copies=7,
    eager_attention=True,
    has_mask=True,
    slack_share=0.40,
    marked_points=0,
)
ASSUMED_TRAINER = TrainerName.FULL  # of a pipeline that does not say


@dataclass(frozen=True, slots=True)
class AdapterCount:
    """Trained parameters as peft counted them: LoRA's, DoRA's magnitudes, and those of modules trained as a whole."""

    lora: int
    magnitude: int = 0
    whole: int = 0


@dataclass(frozen=True, slots=True)
class Workload:
    """What one training step does, as far as memory goes.

    `trainer`: a name in `TRAINERS`. `batch_size` is the rows of one micro-batch, `width` their tokens,
    `gradient_accumulation_steps` the micro-batches of an optimizer step, of which `fused_micro_batches` go through the
    model as one. `label_positions`: logits of one row where labels alone have them; a direct answer has three labels,
    and the position before them is kept. `held_positions`: logits held at once, of all rows; None: the trainer's.
    `use_8bit`: bitsandbytes' LLM.int8(), without `use_4bit`. `packing`: rows are filled to `width` and a micro-batch is
    one row. `modules_to_save`: trained as a whole. `adapter`: what peft counted in place of what the targets' names
    say. `older`: `OLDER` instead of the trainer. `reentrant`: recompute by torch's older way, whose first pass keeps
    no graph at all; transformers 5 and TRL use the newer one.
    """

    trainer: TrainerName
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
    held_positions: int | None = None
    use_8bit: bool = False
    packing: bool = False
    dora: bool = False
    modules_to_save: tuple[str, ...] = ()
    adapter: AdapterCount | None = None
    older: bool = False
    reentrant: bool = False

    def of_rows(self, longest_tokens: int, longest_answer_tokens: int) -> Workload:
        """The same with the real rows of a trainer that pads to the longest and learns the answers."""
        width = min(self.width, longest_tokens)
        return replace(self, width=width, label_positions=min(width, longest_answer_tokens + 1))

    @property
    def kind(self) -> Trainer:
        """The trainer's row of constants."""
        return OLDER if self.older else TRAINERS[self.trainer]

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
