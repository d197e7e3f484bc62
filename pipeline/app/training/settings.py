"""The training script's command line as one frozen value."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, TypeVar

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
    _add_data_flags(parser)
    _add_optimisation_flags(parser)
    _add_precision_flags(parser)
    _add_lora_flags(parser)
    _add_run_flags(parser)
    return parser


def _add_data_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model-name", required=True, help="Hub id or folder of the base model")
    parser.add_argument("--train-file", type=Path, required=True, help="rows from scripts/build_finetune_dataset.py")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--max-seq-length", type=_at_least(1, int), default=1024, help="tokens a row, answer included")
    parser.add_argument(
        "--train-mode", choices=("auto", "direct", "cot"), default="auto", help="refuse rows of another mode"
    )
    parser.add_argument(
        "--loss-on-output-only",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="no loss on the prompt's tokens",
    )


def _add_optimisation_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-epochs", type=_above_zero, default=3.0)
    parser.add_argument(
        "--max-steps-override", type=_at_least(1, int), metavar="N", help="stop after N optimizer steps"
    )
    parser.add_argument("--learning-rate", type=_at_least(0.0, float), default=2e-4)
    parser.add_argument("--batch-size", type=_at_least(1, int), default=2)
    parser.add_argument("--gradient-accumulation-steps", type=_at_least(1, int), default=4)
    parser.add_argument("--warmup-ratio", type=_at_least(0.0, float), default=0.03)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument(
        "--optim", help="optimizer name as TrainingArguments knows it (its own default where not given)"
    )
    parser.add_argument("--seed", type=int, default=42)


def _add_precision_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fp16", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--use-4bit", action="store_true", help="quantise the base model's linear layers to 4 bits")
    parser.add_argument("--bnb-4bit-compute-dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--bnb-4bit-quant-type", choices=("nf4", "fp4"), default="nf4")
    parser.add_argument(
        "--bnb-4bit-double-quant",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="quantise the block scales too: 0.37 bit a parameter less",
    )


def _add_lora_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lora-r", type=_at_least(1, int), default=16)
    parser.add_argument("--lora-alpha", type=_at_least(1, int), default=32)
    parser.add_argument("--lora-dropout", type=_at_least(0.0, float), default=0.05)
    parser.add_argument(
        "--target-modules", type=_names, metavar="A,B,C", help="PEFT's default for the model where not given"
    )
    parser.add_argument("--lora-bias", choices=("none", "lora", "all"), default="none")


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--do-train", action="store_true", help="without it the inputs are checked and nothing is trained"
    )
    parser.add_argument("--logging-steps", type=_at_least(1, int), default=50)
    parser.add_argument("--save-steps", type=_at_least(1, int), default=500)
    parser.add_argument("--eval-steps", type=_at_least(1, int), help="accepted; there is no evaluation during training")
    parser.add_argument(
        "--resume-from-checkpoint",
        nargs="?",
        const="latest",
        metavar="FOLDER",
        help="go on from a checkpoint, the newest in --output-dir where no folder is given",
    )
    for flag, meaning in (
        ("--gradient-checkpointing", "recompute activations in the backward pass; auto: only where memory demands it"),
        ("--fuse-accumulation", "run accumulated micro-batches as one; auto: as far as memory allows"),
        ("--cuda-graph", "replay each step as one CUDA graph; auto: where the first steps show that it is faster"),
    ):
        parser.add_argument(flag, choices=("auto", "on", "off"), default="auto", help=meaning)
    parser.add_argument(
        "--host-memory",
        choices=("auto", "off", "embeddings", "all"),
        default="auto",
        help="keep frozen embeddings, or these and what recompute begins from, in host memory; "
        "auto: only where nothing else fits",
    )


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
