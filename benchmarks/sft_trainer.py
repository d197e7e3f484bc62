"""TRL's SFTTrainer on random rows, for its memory: as it comes, with Liger's kernels, or through Unsloth.

    python -m benchmarks.sft_trainer --side trl --model-name FOLDER --output-dir DIR [--batch-size 2 …]

One process a measurement. Every row has exactly `--max-seq-length` tokens, the last `--answer-tokens` of them are
learnt. It writes no adapter: only its memory is of interest. No dropout, which Unsloth's fast paths ask for.
"""

from __future__ import annotations

import argparse
import random
import sys
from typing import Any

ALPHA = 32


def parse_options() -> argparse.Namespace:
    """The flags carry the training script's names, where it has them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=("trl", "liger", "unsloth"), required=True)
    parser.add_argument("--model-name", required=True)
    parser.add_argument("--output-dir", required=True)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--max-seq-length", type=int, default=512)
    parser.add_argument("--gradient-accumulation-steps", type=int, default=2)
    parser.add_argument("--max-steps-override", type=int, default=3)
    parser.add_argument("--lora-r", type=int, default=16)
    parser.add_argument("--target-modules", default="q_proj,v_proj")
    parser.add_argument("--answer-tokens", type=int, default=3)
    parser.add_argument("--no-4bit", action="store_true")
    parser.add_argument("--8bit", dest="eight_bit", action="store_true", help="bitsandbytes' LLM.int8() base")
    parser.add_argument(
        "--packing", action="store_true", help="TRL's packing: a micro-batch is one row without padding"
    )
    parser.add_argument("--dora", action="store_true")
    parser.add_argument("--no-recompute", action="store_true")
    return parser.parse_args()


def _unsloth_model(options: argparse.Namespace) -> Any:  # noqa: ANN401 - another library's object
    import torch
    from unsloth import FastLanguageModel  # type: ignore[import-not-found, unused-ignore]

    model, _ = FastLanguageModel.from_pretrained(
        model_name=options.model_name,
        max_seq_length=options.max_seq_length,
        dtype=torch.bfloat16,
        load_in_4bit=not options.no_4bit,
        local_files_only=True,
    )
    return FastLanguageModel.get_peft_model(
        model,
        r=options.lora_r,
        target_modules=options.target_modules.split(","),
        lora_alpha=ALPHA,
        lora_dropout=0,
        bias="none",
        use_gradient_checkpointing=False if options.no_recompute else "unsloth",
    )


def _plain_model(options: argparse.Namespace) -> Any:  # noqa: ANN401 - another library's object
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization: Any = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    if options.eight_bit:
        quantization = BitsAndBytesConfig(load_in_8bit=True)
    return AutoModelForCausalLM.from_pretrained(
        options.model_name,
        dtype=torch.bfloat16,
        quantization_config=None if options.no_4bit else quantization,
        device_map={"": 0 if torch.cuda.is_available() else "cpu"},
    )


def _rows(options: argparse.Namespace, vocabulary: int, *, labels: bool) -> list[dict[str, list[int]]]:
    drawn = random.Random(0)  # noqa: S311 - tokens, no secret
    count = options.batch_size * options.gradient_accumulation_steps * options.max_steps_override
    length, answer = options.max_seq_length, options.answer_tokens
    rows = []
    for _ in range(count):
        tokens = [drawn.randrange(100, vocabulary - 1000) for _ in range(length)]
        if labels:
            learnt = [-100] * (length - answer) + tokens[length - answer :]
            rows.append({"input_ids": tokens, "labels": learnt, "attention_mask": [1] * length})
        else:
            rows.append({"input_ids": tokens, "completion_mask": [0] * (length - answer) + [1] * answer})
    return rows


def main() -> int:
    """Train a few steps on rows that fill the length."""
    options = parse_options()
    is_unsloth = options.side == "unsloth"
    model = _unsloth_model(options) if is_unsloth else _plain_model(options)  # Unsloth patches what comes after it
    import torch
    import trl  # type: ignore[import-not-found, import-untyped, unused-ignore]
    from datasets import Dataset  # type: ignore[attr-defined, import-untyped, unused-ignore]
    from peft import LoraConfig
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq

    tokenizer = AutoTokenizer.from_pretrained(options.model_name)
    recompute = not options.no_recompute
    optional: dict[str, Any] = {"use_liger_kernel": True} if options.side == "liger" else {}
    if options.packing:
        optional["packing"] = True
    arguments = trl.SFTConfig(
        output_dir=options.output_dir,
        max_steps=options.max_steps_override,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        gradient_checkpointing=recompute and not is_unsloth,
        max_length=options.max_seq_length,
        bf16=True,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        **optional,
    )
    words: dict[str, Any] = {"model": model, "args": arguments, "processing_class": tokenizer}
    if is_unsloth:
        words["data_collator"] = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
        arguments.dataset_kwargs = {"skip_prepare_dataset": True}
        arguments.remove_unused_columns = False
    else:
        words["peft_config"] = LoraConfig(
            r=options.lora_r,
            lora_alpha=ALPHA,
            lora_dropout=0,
            target_modules=options.target_modules.split(","),
            use_dora=options.dora,
            task_type="CAUSAL_LM",
        )
    vocabulary = model.config.vocab_size
    words["train_dataset"] = Dataset.from_list(_rows(options, vocabulary, labels=is_unsloth))
    trl.SFTTrainer(**words).train()
    return 0


if __name__ == "__main__":
    sys.exit(main())
