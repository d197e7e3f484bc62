"""One training run, from checked rows to a saved adapter."""

import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import PreTrainedModel, TrainingArguments, set_seed

from app.core.errors import PipelineError
from app.core.files import write_json_atomically
from app.fast.ranks import is_first, joined_ranks, note, rank_count
from app.fast.sampler import with_filler
from app.fast.steps import FastSteps, fast_steps, get_ready
from app.llm.chat_tokens import load_tokenizer
from app.llm.loading import DTYPES, Quantization, load_base_model
from app.training.collator import AnswerCollator
from app.training.metrics import RecordingTrainer, StepRecorder, memory_metrics, reset_peak_memory, versions
from app.training.rows import EncodedRows, TrainingRow, encode_rows
from app.training.settings import TrainingSettings

ALL_LINEAR = "all-linear"  # PEFT's word for every linear layer but the head


@joined_ranks()
def train(settings: TrainingSettings, rows: Sequence[TrainingRow]) -> None:
    """Train, then write adapter, tokenizer, arguments and `train_metrics.json` to the output folder.

    Under a launcher each rank trains on its share of every step's rows, and the first one writes.
    """
    get_ready()
    tokenizer = load_tokenizer(settings.model_name)
    encoded = encode_rows(
        tokenizer, rows, max_seq_length=settings.max_seq_length, loss_on_output_only=settings.loss_on_output_only
    )
    dtype = _compute_dtype(settings)
    model = _lora_model(settings, dtype)
    _tell(settings, encoded)
    collator = AnswerCollator(tokenizer.pad_token_id)
    steps = min(settings.max_steps_override or math.inf, epoch_steps(settings, len(encoded.rows)))
    fast = fast_steps(settings, model, encoded.rows, collator, dtype, steps)
    recorder = StepRecorder()
    trainer = RecordingTrainer(
        recorder,
        model=model,
        args=_arguments(settings, len(encoded.rows), fast, dtype),
        train_dataset=with_filler(encoded.rows),
        data_collator=collator,
        processing_class=tokenizer,
    )
    fast.attach(trainer)
    reset_peak_memory()
    trainer.train(resume_from_checkpoint=_resume(settings))
    took, memory = recorder.metrics(trainer.accelerator), memory_metrics()
    if is_first():
        _save(trainer, settings.output_dir)
        write_json_atomically(
            settings.output_dir / "train_metrics.json",
            {
                **took,
                **memory,
                "rows": len(encoded.rows),
                "shortened_rows": encoded.shortened_rows,
                "dropped_tokens": encoded.dropped_tokens,
                "seed": settings.seed,
                **fast.told(),
                "settings": _as_json(settings),
                "versions": versions(),
            },
        )


def _compute_dtype(settings: TrainingSettings) -> torch.dtype:
    name = settings.compute_dtype_name
    if name == "float16" and not torch.cuda.is_available():
        note("float16 training needs a GPU for its loss scaling; computing in bfloat16")
        name = "bfloat16"
    return DTYPES[name]


def _lora_model(settings: TrainingSettings, dtype: torch.dtype) -> PeftModel:
    """Base model and adapter; PEFT keeps the LoRA weights in fp32, the frozen ones stay as they were loaded."""
    set_seed(settings.seed)
    quantization = (
        Quantization(settings.bnb_4bit_quant_type, settings.bnb_4bit_double_quant) if settings.use_4bit else None
    )
    base = load_base_model(settings.model_name, dtype, quantization)
    base.config.use_cache = False
    model = get_peft_model(
        base,
        LoraConfig(
            r=settings.lora_r,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=_target_modules(base, settings.target_modules),
            bias="lora_only" if settings.lora_bias == "lora" else settings.lora_bias,  # PEFT's word for it
            task_type="CAUSAL_LM",
        ),
    )
    model.train()  # the wrapper says that it is, while the base below it was loaded for evaluation
    return model


def _target_modules(base: PreTrainedModel, asked: Sequence[str] | None) -> list[str] | str | None:
    """What LoRA is put on: what is asked, else PEFT's own choice for the family, else all linear layers.

    Raises `PipelineError` for a module that the model lacks: families name theirs differently, Phi-3 fuses q, k and v.
    """
    if not asked:
        has_default = base.config.model_type in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
        return None if has_default else ALL_LINEAR
    if tuple(asked) == (ALL_LINEAR,):
        return ALL_LINEAR
    names = [name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)]
    missing = [target for target in asked if not any(f".{name}".endswith(f".{target}") for name in names)]
    if missing:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
        raise PipelineError(
            f"--target-modules {','.join(missing)}: a {base.config.model_type} model has no such module; "
            f"it has {known}; or give {ALL_LINEAR}"
        )
    return list(asked)


def _arguments(settings: TrainingSettings, row_count: int, fast: FastSteps, dtype: torch.dtype) -> TrainingArguments:
    optional = {"optim": settings.optim} if settings.optim else {}
    return TrainingArguments(
        output_dir=str(settings.output_dir),
        num_train_epochs=settings.num_epochs,
        max_steps=capped_steps(settings, row_count),
        per_device_train_batch_size=fast.batch_size,
        gradient_accumulation_steps=fast.accumulation_steps,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        remove_unused_columns=False,
        logging_steps=settings.logging_steps,
        # the filter would hide a NaN, and reading each micro-batch's loss makes the CPU wait for the GPU
        logging_nan_inf_filter=False,
        # so does a batch's way to it, which goes on beside the step before
        accelerator_config={"non_blocking": True},
        save_steps=settings.save_steps,
        seed=settings.seed,
        report_to=[],
        # every trained parameter is used in every step, and no buffer changes: nothing to look for, nothing to send
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        use_cpu=not torch.cuda.is_available(),
        **optional,
    )


def capped_steps(settings: TrainingSettings, row_count: int) -> int:
    """`max_steps` for the Trainer: the cap where the epochs are longer than it, else -1 (the epochs decide)."""
    cap = settings.max_steps_override
    return cap if cap is not None and cap < epoch_steps(settings, row_count) else -1


def epoch_steps(settings: TrainingSettings, row_count: int) -> int:
    """Optimizer steps of all epochs, whatever the cap."""
    micro_batches = math.ceil(row_count / (settings.batch_size * rank_count()))
    return math.ceil(settings.num_epochs * math.ceil(micro_batches / settings.gradient_accumulation_steps))


def _resume(settings: TrainingSettings) -> str | bool | None:
    return True if settings.resume_from_checkpoint == "latest" else settings.resume_from_checkpoint


def _tell(settings: TrainingSettings, encoded: EncodedRows) -> None:
    if encoded.shortened_rows:
        note(
            f"Shortened {encoded.shortened_rows} of {len(encoded.rows)} prompts from the left to fit "
            f"--max-seq-length {settings.max_seq_length} ({encoded.dropped_tokens} tokens dropped; answers are whole)"
        )


def _save(trainer: RecordingTrainer, output_dir: Path) -> None:
    """Save beside the output folder's files and move each into place, the adapter's weights and configuration last."""
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=output_dir) as staging:
        trainer.save_model(staging)
        saved = sorted(Path(staging).iterdir(), key=lambda path: path.name.startswith("adapter_"))
        for path in saved:
            target = output_dir / path.name
            if target.is_dir():
                shutil.rmtree(target)
            path.replace(target)


def _as_json(settings: TrainingSettings) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()}
