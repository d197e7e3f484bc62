"""The plain QLoRA script that most tutorials show; stands for the trainer trait `full` of the memory model.

    python -m benchmarks.plain_trainer --model-name FOLDER --output-dir DIR [--batch-size 2 --max-seq-length 512 …]

transformers' Trainer as it comes: `prepare_model_for_kbit_training`, no autocast, logits at every position, rows padded
to the maximum, default AdamW. It writes no adapter: only its memory is of interest.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

TEXT = "law and order " * 2000


def parse_options() -> argparse.Namespace:
    """The flags carry the training script's names, where it has them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-name", required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--max-seq-length", type=int, default=512)
    parser.add_argument("--gradient-accumulation-steps", type=int, default=2)
    parser.add_argument("--max-steps-override", type=int, default=3)
    parser.add_argument("--lora-r", type=int, default=16)
    parser.add_argument("--target-modules", default="q_proj,v_proj")
    return parser.parse_args()


def load_model(options: argparse.Namespace) -> Any:  # noqa: ANN401 - a PeftModel, whose package has no types
    """The base model in 4 bits, prepared, with its adapter."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    device = 0 if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        options.model_name, quantization_config=quantization, device_map={"": device}
    )
    adapter = LoraConfig(
        r=options.lora_r,
        lora_alpha=32,
        lora_dropout=0.05,
        target_modules=options.target_modules.split(","),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(prepare_model_for_kbit_training(model), adapter)


def main() -> int:
    """Train a few steps on rows that fill the length."""
    options = parse_options()
    tokenizer = AutoTokenizer.from_pretrained(options.model_name)
    row = tokenizer(TEXT, truncation=True, padding="max_length", max_length=options.max_seq_length)
    count = options.batch_size * options.gradient_accumulation_steps * options.max_steps_override
    Trainer(
        model=load_model(options),
        args=TrainingArguments(
            output_dir=str(options.output_dir),
            per_device_train_batch_size=options.batch_size,
            gradient_accumulation_steps=options.gradient_accumulation_steps,
            max_steps=options.max_steps_override,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=[dict(row) for _ in range(count)],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    ).train()
    return 0


if __name__ == "__main__":
    sys.exit(main())
