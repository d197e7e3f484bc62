"""Fine-tune as most tutorials do: transformers' Trainer and PEFT, rows padded to the longest length that is allowed."""

import argparse

import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--data", default="data/law.jsonl")
parser.add_argument("--out", default="outputs")
parser.add_argument("--epochs", type=float, default=3)
parser.add_argument("--max_steps", type=int, default=-1)
parser.add_argument("--batch", type=int, default=2)
parser.add_argument("--accumulate", type=int, default=4)
parser.add_argument("--lr", type=float, default=2e-4)
parser.add_argument("--length", type=int, default=1024)
parser.add_argument("--lora_r", type=int, default=16)
parser.add_argument("--lora_alpha", type=int, default=32)
parser.add_argument("--lora_dropout", type=float, default=0.05)
parser.add_argument("--load_in_4bit", action="store_true")
args = parser.parse_args()

on_gpu = torch.cuda.is_available()
how = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
)
tokenizer = AutoTokenizer.from_pretrained(args.model)
model = AutoModelForCausalLM.from_pretrained(
    args.model,
    dtype=torch.bfloat16,
    device_map={"": "cuda" if on_gpu else "cpu"},
    quantization_config=how if args.load_in_4bit else None,
)
if args.load_in_4bit:
    model = prepare_model_for_kbit_training(model)
model = get_peft_model(
    model,
    LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
    ),
)


def encode(row: dict) -> dict:
    """One row: the whole conversation, labels on the answer alone, padded on the right."""
    prompt = tokenizer.apply_chat_template(row["messages"][:-1], tokenize=False, add_generation_prompt=True)
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = tokenizer(row["messages"][-1]["content"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    ids, labels = (asked + answer)[-args.length :], ([-100] * len(asked) + answer)[-args.length :]
    padding = args.length - len(ids)
    return {
        "input_ids": ids + [tokenizer.pad_token_id] * padding,
        "attention_mask": [1] * len(ids) + [0] * padding,
        "labels": labels + [-100] * padding,
    }


rows = load_dataset("json", data_files=args.data, split="train")
rows = rows.map(encode, remove_columns=rows.column_names)
trainer = Trainer(
    model=model,
    train_dataset=rows,
    data_collator=default_data_collator,
    args=TrainingArguments(
        output_dir=args.out,
        num_train_epochs=args.epochs,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch,
        gradient_accumulation_steps=args.accumulate,
        learning_rate=args.lr,
        logging_steps=1,
        report_to="none",
        use_cpu=not on_gpu,
    ),
)
trainer.train()
model.save_pretrained(args.out)
tokenizer.save_pretrained(args.out)
