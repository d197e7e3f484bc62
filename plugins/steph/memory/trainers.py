"""The trainers that a prediction knows, a row of trainers.toml each, and the settings of a training step."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from steph.base.terms import NAMED_TRAINERS, TrainerName

HALF, SINGLE = 2, 4  # bytes of a bf16 or fp16 number, and of an fp32 one
KIND_ERROR = 0.10
DEFAULT_TARGETS = ("q_proj", "v_proj")  # PEFT's own choice for Qwen, Llama and Mistral
ASSUMED_TRAINER = TrainerName.FULL  # of a pipeline that does not say


@dataclass(frozen=True, slots=True)
class Trainer:
    """What one kind of training program keeps in memory.

    `slack_share`: what the allocator reserves beyond what is allocated, as a share of it, median of the `marked_points`
    points that are marked for fitting. It depends on the order of requests: `full`'s points have 0.04 to 0.18.
    `version`: of the program that was measured, empty for the reference pipeline; others may hold more.
    `upcasts`: all but the 4-bit weights is cast to fp32 (peft.prepare_model_for_kbit_training), and so are activations.
    `copies_norm_inputs`: transformers' own RMSNorm keeps an fp32 copy of its input, torch's kernel the input itself.
    `has_mask`: attention gets a mask of all pairs of tokens, under which keys and values are repeated for all heads.
    `all_logits`: logits of every position, else of the labels alone. `held_positions`: how many are held at once, where
    the loss runs in chunks. `pads_to_maximum`: rows are as long as the setting, else as the longest of them.
    `picks_its_way`: it decides on recompute and on fusing micro-batches by the memory that is free.
    `half_adapter`: LoRA's weights, gradients and moments are bf16 too, where the base is quantised. `has_own_norms`:
    kernels in place of transformers' norms, of any family. `logit_copies`: fp32 tensors of all logits at the loss.
    `eager_attention`: its softmax is kept. `offloads_checkpoints`: what recompute keeps waits in host memory.
    `mlp_kept`, `mlp_gradients`: tensors as wide as the MLP that a layer keeps, and that its backward holds.
    `is_short`: without dropout a LoRA layer is one function that keeps its input itself, and a gated MLP makes its
    product again. `uses_host_memory`: where nothing else fits, embeddings and then recompute's inputs wait in host
    memory. `launcher_context_gib`: what a program that starts the training holds of the card itself; a
    script does without. `least_error`: how far runs may lie from the formulas at least, as a share.
    """

    slack_share: float
    marked_points: int
    version: str = ""
    upcasts: bool = False
    copies_norm_inputs: bool = False
    has_mask: bool = False
    all_logits: bool = True
    held_positions: int | None = None
    pads_to_maximum: bool = False
    picks_its_way: bool = False
    half_adapter: bool = False
    has_own_norms: bool = False
    logit_copies: int = 3
    eager_attention: bool = False
    offloads_checkpoints: bool = False
    mlp_kept: int = 3
    mlp_gradients: int = 3
    is_short: bool = False
    uses_host_memory: bool = False
    launcher_context_gib: float = 0.0
    least_error: float = 0.0


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
    """What one training step does, as far as memory goes.

    `trainer`: a name in `TRAINERS`. `batch_size` is the rows of one micro-batch, `width` their tokens,
    `gradient_accumulation_steps` the micro-batches of an optimizer step, of which `fused_micro_batches` go through the
    model as one. `label_positions`: logits of one row where labels alone have them; a direct answer has three labels,
    and the position before them is kept. `held_positions`: logits held at once, of all rows; None: the trainer's.
    `use_8bit`: bitsandbytes' LLM.int8(), without `use_4bit`. `packing`: rows are filled to `width` and a micro-batch is
    one row. `modules_to_save`: trained as a whole. `adapter`: what peft counted in place of what the targets' names
    say. `older`: `OLDER` instead of the trainer. `reentrant`: recompute by torch's older way, whose first pass keeps
    no graph at all; transformers 5 and TRL use the newer one. `host_memory`: what waits there, with "all" recompute's
    inputs beside the embeddings.
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
    host_memory: Literal["off", "embeddings", "all"] = "off"

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
        """Whether LoRA layers and MLPs keep their inputs alone."""
        return self.kind.is_short and not self.lora_dropout

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
