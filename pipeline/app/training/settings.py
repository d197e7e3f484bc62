"""The training script's command line as one frozen value."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

Choice = Literal["auto", "on", "off"]
HostChoice = Literal["auto", "off", "embeddings", "all"]
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides a training run; field names are the flags'."""

    model_name: str
    train_file: Path
    output_dir: Path
    num_epochs: float
    learning_rate: float
    batch_size: int
    max_seq_length: int
    gradient_accumulation_steps: int
    warmup_ratio: float
    weight_decay: float
    fp16: bool
    bf16: bool
    use_4bit: bool
    bnb_4bit_compute_dtype: Literal["bfloat16", "float16", "float32"]
    bnb_4bit_quant_type: Literal["nf4", "fp4"]
    bnb_4bit_double_quant: bool
    lora_r: int
    lora_alpha: int
    lora_dropout: float
    target_modules: tuple[str, ...] | None
    lora_bias: Literal["none", "lora", "all"]
    train_mode: Literal["auto", "direct", "cot"]
    loss_on_output_only: bool
    logging_steps: int
    save_steps: int
    eval_steps: int | None
    do_train: bool
    max_steps_override: int | None
    optim: str | None
    seed: int
    resume_from_checkpoint: str | None
    gradient_checkpointing: Choice
    fuse_accumulation: Choice
    cuda_graph: Choice
    host_memory: HostChoice

    @property
    def compute_dtype_name(self) -> Literal["bfloat16", "float16", "float32"]:
        """The dtype of frozen weights and autocast: `--bf16` or `--fp16` where given, else the 4-bit compute dtype."""
        if self.bf16:
            return "bfloat16"
        return "float16" if self.fp16 else self.bnb_4bit_compute_dtype


def parse_settings(argv: list[str] | None = None) -> TrainingSettings:
    """Read the command line; argparse exits with 2 on a bad one."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.bf16 and arguments.fp16:
        parser.error("argument --fp16: not allowed with --bf16")
    return TrainingSettings(**{field.name: getattr(arguments, field.name) for field in fields(TrainingSettings)})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train a LoRA adapter on legal multiple-choice rows (JSON Lines).")
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    count, rate = _at_least(1, int), _at_least(0.0, float)
    auto: dict[str, Any] = {"choices": ("auto", "on", "off"), "default": "auto"}
    # data
    add("--model-name", required=True, help="Hub id or folder of the base model")
    add("--train-file", type=Path, required=True, help="rows from scripts/build_finetune_dataset.py")
    add("--output-dir", type=Path, required=True)
    add("--max-seq-length", type=count, default=1024, help="tokens a row, answer included")
    add("--train-mode", choices=("auto", "direct", "cot"), default="auto", help="refuse rows of another mode")
    add("--loss-on-output-only", action=switch, default=True, help="no loss on the prompt's tokens")
    # optimisation
    add("--num-epochs", type=_above_zero, default=3.0)
    add("--max-steps-override", type=count, metavar="N", help="stop after N optimizer steps")
    add("--learning-rate", type=rate, default=2e-4)
    add("--batch-size", type=count, default=2)
    add("--gradient-accumulation-steps", type=count, default=4)
    add("--warmup-ratio", type=rate, default=0.03)
    add("--weight-decay", type=float, default=0.0)
    add("--optim", help="optimizer name as TrainingArguments knows it (its own default where not given)")
    add("--seed", type=int, default=42)
    # precision
    add("--fp16", action="store_true")
    add("--bf16", action="store_true")
    add("--use-4bit", action="store_true", help="quantise the base model's linear layers to 4 bits")
    add("--bnb-4bit-compute-dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    add("--bnb-4bit-quant-type", choices=("nf4", "fp4"), default="nf4")
    add("--bnb-4bit-double-quant", action=switch, default=True, help="quantise the block scales too")
    # adapter
    add("--lora-r", type=count, default=16)
    add("--lora-alpha", type=count, default=32)
    add("--lora-dropout", type=rate, default=0.05)
    add("--target-modules", type=_names, metavar="A,B,C", help="PEFT's default for the model where not given")
    add("--lora-bias", choices=("none", "lora", "all"), default="none")
    # run
    add("--do-train", action="store_true", help="without it the inputs are checked and nothing is trained")
    add("--logging-steps", type=count, default=50)
    add("--save-steps", type=count, default=500)
    add("--eval-steps", type=count, help="accepted; there is no evaluation during training")
    resume = "go on from a checkpoint, the newest in --output-dir where no folder is given"
    add("--resume-from-checkpoint", nargs="?", const="latest", metavar="FOLDER", help=resume)
    # speed and memory
    add("--gradient-checkpointing", **auto, help="recompute activations; auto: only where memory demands it")
    add("--fuse-accumulation", **auto, help="run accumulated micro-batches as one; auto: as far as memory allows")
    add("--cuda-graph", **auto, help="replay micro-batches as a CUDA graph; auto: where the first ones are faster so")
    host = "keep frozen embeddings, or all that recompute needs too, in host memory; auto: where nothing else fits"
    add("--host-memory", choices=("auto", "off", "embeddings", "all"), default="auto", help=host)
    return parser


def _at_least(least: Number, kind: Callable[[str], Number]) -> Callable[[str], Number]:
    def parse(text: str) -> Number:
        value = kind(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"must be {least} or more, not {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


def _above_zero(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def _names(text: str) -> tuple[str, ...]:
    names = tuple(filter(None, (name.strip() for name in text.split(","))))
    if not names:
        raise argparse.ArgumentTypeError("needs at least one module name")
    return names
