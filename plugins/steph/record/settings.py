"""What a record was made under: what its attempts ask, the production run of H-4, its machine and its input files.

A profile sets the settings of attempts and of the production run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from steph.base.messages import Message, Value
from steph.base.terms import RecordKind, TrainerName

# major compute capability of the first cards with bf16 (CUDA C++ Programming Guide, table of arithmetic instructions)
BF16_SINCE = 8
MAX_STEPS = 500  # the spec: "several hundred steps" at most, no long training in this step
MAX_PROCESSES = 64  # of one host
MAX_SAMPLES = 10  # the spec: two or three questions, no full evaluation in this step
MAX_TOKENS = 1 << 20
MAX_ROWS = 4096  # of a batch, and of what is accumulated
MAX_RANK = 65_536
MAX_PARAMETERS = 10**13
MAX_QUESTIONS = 10**7
MAX_PRICE = 10**7  # an hour of a card, in any currency


@dataclass(frozen=True)
class Bounds:
    """What people may write for a setting; a record is not held to it, and reads back what was once asked."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    min_length: int | None = None
    pattern: str | None = None


_Tokens = Annotated[int, Bounds(ge=16, le=MAX_TOKENS)]
_Rows = Annotated[int, Bounds(ge=1, le=MAX_ROWS)]
_Rank = Annotated[int, Bounds(ge=1, le=MAX_RANK)]
_Steps = Annotated[int, Bounds(ge=1, le=MAX_STEPS)]
_Filled = Annotated[str, Bounds(min_length=1, pattern=r"\S")]
_ProcessCount = Annotated[int, Bounds(ge=1, le=MAX_PROCESSES)]
Launcher = Literal["none", "torchrun", "accelerate"]


class TrainSettings(Value):
    """The settings of one training attempt; `batch_size` is per process, `max_seq_length` in tokens."""

    num_epochs: Annotated[int, Bounds(ge=1, le=10)] = 1
    """Epochs; `--num-epochs` in the preset `lawqa`, and likewise below."""
    max_steps: _Steps = 50
    """The most optimizer steps: by `--max-steps-override` where the script has it, else by a file of fewer rows. As a
    placeholder: the steps that the asked epochs take, and no more than these."""
    batch_size: _Rows = 2
    """`--batch-size`: rows of one forward pass in one process."""
    learning_rate: Annotated[float, Bounds(gt=0, lt=1)] = 2e-4
    """Learning rate; `--learning-rate`."""
    max_seq_length: _Tokens = 512
    """The longest row in tokens; `--max-seq-length`."""
    gradient_accumulation_steps: _Rows = 2
    """Forward passes of one optimizer step; `--gradient-accumulation-steps`."""
    warmup_ratio: Annotated[float, Bounds(ge=0, le=1)] = 0.03
    """Share of the steps in which the learning rate rises; `--warmup-ratio`."""
    lora_r: _Rank = 16
    """LoRA's rank; `--lora-r`."""
    lora_alpha: _Rank = 32
    """LoRA's alpha; `--lora-alpha`."""
    lora_dropout: Annotated[float, Bounds(ge=0, lt=1)] = 0.05
    """LoRA's dropout; `--lora-dropout`."""
    target_modules: tuple[str, ...] = ()
    """LoRA's target modules; `--target-modules`, left to the script where empty."""
    use_4bit: bool = True
    """4-bit weights; `--use-4bit`."""
    bnb_4bit_compute_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """`--bnb-4bit-compute-dtype`, passed with `--use-4bit`."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """`--bnb-4bit-quant-type`, passed with `--use-4bit`."""
    mixed_precision: Literal["bf16", "fp16"] | None = None
    """`--bf16` or `--fp16`."""
    logging_steps: _Steps = 1
    """Steps between two lines of losses; `--logging-steps`."""
    launcher: Launcher = "none"
    """What starts the script: `torchrun` or `accelerate launch` of the pipeline's own Python, or nothing."""
    num_processes: _ProcessCount = 1
    """How many processes the launcher starts, on a GPU each."""

    @property
    def effective_batch_size(self) -> int:
        """Rows of one optimizer step."""
        return self.batch_size * self.gradient_accumulation_steps * self.num_processes

    def short(self) -> str:
        """The setting in one word, as in `512/b2/4bit`, and `/x2` behind it for two processes."""
        bits = "4bit" if self.use_4bit else self.mixed_precision or "full"
        ranks = f"/x{self.num_processes}" if self.num_processes > 1 else ""
        return f"{self.max_seq_length}/b{self.batch_size}/{bits}{ranks}"


# The Trainer's own arithmetic follows: `Trainer.set_initial_training_values` and `_inner_training_loop` of transformers
# 4.57 and 5.23


def batches_per_epoch(rows: int, settings: TrainSettings) -> int:
    """Batches that each process sees in one epoch; the last one may be smaller."""
    return math.ceil(math.ceil(rows / settings.batch_size) / settings.num_processes)


def steps_per_epoch(rows: int, settings: TrainSettings) -> int:
    """Optimiser steps in one epoch, at least one; an incomplete accumulation counts as a step."""
    return max(1, math.ceil(batches_per_epoch(rows, settings) / settings.gradient_accumulation_steps))


def steps_due(rows: int, settings: TrainSettings) -> int:
    """Steps of the asked epochs, capped at `max_steps`."""
    return min(settings.num_epochs * steps_per_epoch(rows, settings), settings.max_steps)


def epochs_in(steps: int, rows: int, settings: TrainSettings) -> float:
    """The epoch figure that the Trainer gives after so many optimiser steps."""
    whole, part = divmod(steps, steps_per_epoch(rows, settings))
    batches = part * settings.gradient_accumulation_steps
    return whole + min(1.0, batches / batches_per_epoch(rows, settings))


def steps_in(epochs: float, rows: int, settings: TrainSettings) -> int:
    """Optimiser steps that a printed epoch figure (four digits) stands for."""
    whole, part = divmod(epochs, 1)
    batches = round(part * batches_per_epoch(rows, settings))
    return int(whole) * steps_per_epoch(rows, settings) + math.ceil(batches / settings.gradient_accumulation_steps)


class EvalSettings(Value):
    """The settings of one evaluation attempt."""

    samples: Annotated[int, Bounds(ge=1, le=MAX_SAMPLES)] = 3
    """`--samples`: how many questions, the first of the data set."""
    top_k: Annotated[int, Bounds(ge=1, le=1000)] = 1
    """Passages that retrieval gives; `--top-k`."""
    use_rag: bool = False
    """Retrieval; without it `--no-rag` is passed."""
    use_cot: bool = False
    """Reasoning before the answer; `--use-cot`."""
    ensemble: Annotated[int, Bounds(ge=1, le=100)] = 1
    """Answers to each question; `--ensemble`."""
    load_in_4bit: bool = True
    """4-bit weights, where H-2 trained in 4 bits as well; `--hf-load-in-4bit`."""
    launcher: Launcher = "none"
    """As in `[train]`; only for a script whose processes share the questions, any other asks all of them in each."""
    num_processes: _ProcessCount = 1
    """How many processes the launcher starts, on a GPU each."""


class ProductionTarget(Value):
    """The run that H-4 advises on: what is trained and evaluated where, and what an hour there costs.

    The defaults are the spec's: Qwen3-8B on a 20 GB slice of an A100, with all 140 questions.
    """

    model: _Filled = "Qwen/Qwen3-8B"
    """The model of the production run: an id on the Hub, or a folder."""
    parameters: Annotated[int | None, Bounds(gt=0, le=MAX_PARAMETERS)] = None
    """How many it has; needed where `steph fit` does not know its shape."""
    card: _Filled = "A100 20GB"
    """The card that is rented, by a name that `steph fit --card` knows, or any with `card_memory_gib`."""
    card_memory_gib: Annotated[float | None, Bounds(gt=0, le=4096)] = None
    """What a training process may use of that card, in GiB; the table of cards says it where it is not given."""
    questions: Annotated[int | None, Bounds(ge=1, le=MAX_QUESTIONS)] = None
    """Questions of the whole evaluation. Not given: those of the data set, which is `paths.dataset`, what lm_eval says
    of its task, or the file in the folder that has the questions asked; 140 where it is the bundled sample."""
    max_seq_length: _Tokens = 1024
    """The longest row in tokens."""
    batch_size: _Rows = 2
    """Rows of one forward pass."""
    gradient_accumulation_steps: _Rows = 4
    """Forward passes of one optimizer step."""
    num_epochs: Annotated[int, Bounds(ge=1, le=1000)] = 3
    """Epochs."""
    price_per_hour: Annotated[float | None, Bounds(gt=0, le=MAX_PRICE)] = None
    """What an hour of that card costs; without it H-4 names no cost."""
    currency: _Filled = "USD"
    """The currency of `price_per_hour`."""


class DataFile(Value):
    """One input file: its path under the pipeline root, bytes' sha256 and row count."""

    role: Literal["dataset", "train_file", "train_file_cot"]
    path: str
    sha256: str
    rows: int
    is_sample: bool = False  # the questions that come with the reference pipeline, not the real data set


class Device(Value):
    """One GPU or MIG slice as NVML names it."""

    uuid: str
    name: str
    index: int
    total_bytes: int
    used_bytes: int
    driver_version: str
    cuda_driver_version: str
    compute_capability: str | None = None
    is_mig: bool = False

    @property
    def capability(self) -> tuple[int, int] | None:
        """`8.6` as (8, 6); None where it is not known."""
        if self.compute_capability is None:
            return None
        major, _, minor = self.compute_capability.partition(".")
        return int(major), int(minor or 0)

    @property
    def has_bf16(self) -> bool | None:
        """Whether it computes in bf16; None where its compute capability is not known."""
        return None if self.capability is None else self.capability[0] >= BF16_SINCE

    def usable_bytes(self, cap_bytes: int | None) -> int:
        """What others left of it before the run, and no more than the cap where there is one."""
        free_bytes = self.total_bytes - self.used_bytes
        return free_bytes if cap_bytes is None else min(free_bytes, cap_bytes)


class Environment(Value):
    """The machine and the suite's own packages."""

    os: str
    python: str
    cpu: str
    cpu_count: int
    ram_bytes: int
    is_wsl: bool = False
    device: Device | None = None
    device_error: Message | None = None
    further_devices: tuple[Device, ...] = ()  # beside `device`, where a stage runs in several processes
    packages: dict[str, str] = Field(default_factory=dict)

    @property
    def devices(self) -> tuple[Device, ...]:
        """The run's GPUs, `device` first; empty on the CPU."""
        return (self.device, *self.further_devices) if self.device else ()


class GitState(Value):
    """Branch, commit and cleanliness of a folder; all None where it is no git checkout."""

    branch: str | None = None
    commit: str | None = None
    dirty: bool | None = None


class Context(Value):
    """The circumstances of one record; a rerun joins a record only where all of this agrees."""

    kind: RecordKind
    profile: str
    profile_sha256: str
    pipeline_root: str
    pipeline_python: str
    pipeline_git: GitState
    suite_git: GitState
    environment: Environment
    trainer: TrainerName | None = None  # as steph.toml says; None in older records
    described_sha256: str | None = None  # of what steph.toml says of models, rows and training; None in older records
    vram_cap_bytes: int | None = None
    twin: bool = False
    rehearsal_reasons: tuple[Message, ...] = ()
    production: ProductionTarget = ProductionTarget()  # the spec's in older records

    @property
    def usable_bytes(self) -> int | None:
        """What a process of the run could take of the smallest of its cards; None without one."""
        return min((device.usable_bytes(self.vram_cap_bytes) for device in self.environment.devices), default=None)
