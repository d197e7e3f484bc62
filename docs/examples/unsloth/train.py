"""Fine-tune with Unsloth and TRL's SFTTrainer: one LoRA adapter, the loss on the answers alone."""

import unsloth  # noqa: F401  before transformers, trl and peft, which it patches

# isort: split
import argparse
import dataclasses

from datasets import load_dataset
from trl import SFTConfig, SFTTrainer
from unsloth import FastLanguageModel
from unsloth.chat_templates import train_on_responses_only

ASKED, ANSWERED = "<|im_start|>user\n", "<|im_start|>assistant\n"  # ChatML: Qwen and others
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

parser = argparse.ArgumentParser()
parser.add_argument("--model_name", required=True)
parser.add_argument("--train_file", required=True)
parser.add_argument("--output_dir", required=True)
parser.add_argument("--num_train_epochs", type=float, default=1)
parser.add_argument("--max_steps", type=int, default=-1)
parser.add_argument("--per_device_train_batch_size", type=int, default=2)
parser.add_argument("--gradient_accumulation_steps", type=int, default=4)
parser.add_argument("--learning_rate", type=float, default=2e-4)
parser.add_argument("--warmup_ratio", type=float, default=0.03)
parser.add_argument("--max_seq_length", type=int, default=2048)
parser.add_argument("--lora_r", type=int, default=16)
parser.add_argument("--lora_alpha", type=int, default=16)
parser.add_argument("--lora_dropout", type=float, default=0.0)
parser.add_argument("--target_modules", default="", help="a,b,c; all linear layers where nothing is said")
parser.add_argument("--load_in_4bit", default="true")
parser.add_argument("--logging_steps", type=int, default=1)
args = parser.parse_args()

model, tokenizer = FastLanguageModel.from_pretrained(
    model_name=args.model_name,
    max_seq_length=args.max_seq_length,
    load_in_4bit=args.load_in_4bit == "true",
    use_exact_model_name=True,  # else it takes a 4-bit copy of its own from the Hub
)
model = FastLanguageModel.get_peft_model(
    model,
    r=args.lora_r,
    lora_alpha=args.lora_alpha,
    lora_dropout=args.lora_dropout,
    target_modules=args.target_modules.split(",") if args.target_modules else ALL_LINEAR,
    use_gradient_checkpointing="unsloth",
)

rows = load_dataset("json", data_files=args.train_file, split="train")
rows = rows.map(
    lambda row: {"text": tokenizer.apply_chat_template(row["messages"], tokenize=False)},
    remove_columns=rows.column_names,
)

names = {field.name for field in dataclasses.fields(SFTConfig)}  # these two differ between versions of TRL
length = "max_length" if "max_length" in names else "max_seq_length"
warmup = "warmup_ratio" if "warmup_ratio" in names else "warmup_steps"
trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=rows,
    args=SFTConfig(
        output_dir=args.output_dir,
        dataset_text_field="text",
        num_train_epochs=args.num_train_epochs,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.per_device_train_batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        learning_rate=args.learning_rate,
        logging_steps=args.logging_steps,
        report_to="none",
        **{length: args.max_seq_length, warmup: args.warmup_ratio},
    ),
)
trainer = train_on_responses_only(trainer, instruction_part=ASKED, response_part=ANSWERED)
trainer.train()
model.save_pretrained(args.output_dir)
tokenizer.save_pretrained(args.output_dir)
