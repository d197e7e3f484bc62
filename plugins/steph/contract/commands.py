"""Settings to command lines, exactly as a person would type them from the pipeline root."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steph.contract.description import Description
from steph.record.settings import EvalSettings, Launcher, TrainSettings

TRAIN_FILE_FLAG = "--train-file"
MAX_STEPS_FLAG = "--max-steps-override"
LOSS_FLAG = "--loss-on-output-only"
# what a person's own `accelerate config` would decide otherwise is spelled out
ACCELERATE_FLAGS = ("--num_machines", "1", "--gpu_ids", "all", "--mixed_precision", "no", "--dynamo_backend", "no")


def launched(python: str, launcher: Launcher, num_processes: int) -> tuple[str, ...]:
    """What stands before a script: the interpreter alone, or its own torchrun or accelerate with a free port."""
    count = str(num_processes)
    match launcher:
        case "none":
            return (python,)
        case "torchrun":
            return (python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", count)
        case "accelerate":
            several = ("--multi_gpu", "--main_process_port", "0") if num_processes > 1 else ()
            return (python, "-m", "accelerate.commands.launch", *several, "--num_processes", count, *ACCELERATE_FLAGS)


def without_launcher(argv: Sequence[str], settings: TrainSettings | EvalSettings) -> tuple[str, ...]:
    """The command of these settings as one process would run it."""
    start = launched(argv[0], settings.launcher, settings.num_processes)
    return (argv[0], *argv[len(start) :])


def train_command(
    python: str,
    description: Description,
    model: str,
    train_file: str,
    settings: TrainSettings,
    *,
    cap_steps: bool,
    output_dir: str | None = None,
) -> tuple[str, ...]:
    """The spec's H-2 command; `cap_steps` adds `--max-steps-override`, which a pipeline may lack.

    `output_dir`: another folder than the description's, from the pipeline root.
    """
    paths = description.paths
    values: list[object] = [
        *("--model-name", model),
        *(TRAIN_FILE_FLAG, train_file),
        *("--output-dir", output_dir or paths.output_dir),
        *("--num-epochs", settings.num_epochs),
        *("--batch-size", settings.batch_size),
        *("--learning-rate", f"{settings.learning_rate:g}"),
        *("--max-seq-length", settings.max_seq_length),
        *("--gradient-accumulation-steps", settings.gradient_accumulation_steps),
        *("--warmup-ratio", f"{settings.warmup_ratio:g}"),
        *("--lora-r", settings.lora_r),
        *("--lora-alpha", settings.lora_alpha),
        *("--lora-dropout", f"{settings.lora_dropout:g}"),
    ]
    if settings.target_modules:
        values += ["--target-modules", ",".join(settings.target_modules)]
    if settings.use_4bit:
        values += ["--use-4bit"]
        values += ["--bnb-4bit-compute-dtype", settings.bnb_4bit_compute_dtype]
        values += ["--bnb-4bit-quant-type", settings.bnb_4bit_quant_type]
    if settings.mixed_precision:
        values += [f"--{settings.mixed_precision}"]
    values += ["--logging-steps", settings.logging_steps]
    if cap_steps:
        values += [MAX_STEPS_FLAG, settings.max_steps]
    start = launched(python, settings.launcher, settings.num_processes)
    return (*start, paths.train_script, *map(str, values), "--do-train")


def evaluate_command(
    python: str,
    description: Description,
    model: str,
    dataset: str,
    settings: EvalSettings,
    *,
    lora_path: str | None,
    output_path: str | None = None,
) -> tuple[str, ...]:
    """The spec's H-3 command; without `lora_path` the base model alone is evaluated.

    `output_path`: another file than the description's, from the pipeline root.
    """
    paths = description.paths
    output = output_path or paths.evaluation_output
    argv = [*launched(python, settings.launcher, settings.num_processes), paths.evaluate_script]
    argv += ["--data", dataset, "--output", output]
    argv += ["--samples", str(settings.samples), "--top-k", str(settings.top_k)]
    argv += [] if settings.use_rag else ["--no-rag"]
    argv += ["--use-cot"] if settings.use_cot else []
    argv += ["--llm-backend", "hf", "--hf-model-name", model]
    argv += ["--hf-lora-path", lora_path] if lora_path else []
    argv += ["--hf-load-in-4bit"] if settings.load_in_4bit else []
    return (*argv, "--ensemble", str(settings.ensemble))


def folder_beside(output_dir: str, name: str) -> str:
    """The folder next to another one that a further training writes to."""
    return f"{output_dir.rstrip('/')}-{name}"


def needed_libraries(argv: Sequence[str]) -> tuple[str, ...]:
    """The libraries without which a command of this module can't do what it asks: the contract's LoRA and 4-bit."""
    has_adapter = any(flag in argv for flag in ("--lora-r", "--hf-lora-path"))
    in_4bit = any(flag in argv for flag in ("--use-4bit", "--hf-load-in-4bit"))
    return (*(("peft",) if has_adapter else ()), *(("bitsandbytes",) if in_4bit else ()))


def build_command(python: str, template: Sequence[str], values: Mapping[str, str]) -> tuple[str, ...]:
    """The description's build command with its placeholders filled; an unknown placeholder stays as it is."""
    argv = list(template)
    for key, value in values.items():
        argv = [word.replace(f"{{{key}}}", value) for word in argv]
    return (python, *argv)
