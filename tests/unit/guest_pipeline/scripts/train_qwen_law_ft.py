"""A stand-in for somebody else's training script: everything in one file, written for transformers 4.57 and made to
run on 5 as well, with habits that are wasteful but harmless.

It upcasts with `prepare_model_for_kbit_training`, pads every row to the maximum, cuts rows on the right, learns prompt
and answer alike, quantises to 4 bits whether asked or not, and takes `--max-steps-override` for a number of steps
rather than a cap.
"""

import argparse
import inspect
import json
import os


def parse_args():
    parser = argparse.ArgumentParser(description="QLoRA fine-tuning of Qwen on Japanese law questions")
    parser.add_argument("--model-name", type=str, required=True)
    parser.add_argument("--train-file", type=str, required=True)
    parser.add_argument("--output-dir", type=str, required=True)
    parser.add_argument("--num-epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--max-seq-length", type=int, default=1024)
    parser.add_argument("--gradient-accumulation-steps", type=int, default=4)
    parser.add_argument("--warmup-ratio", type=float, default=0.03)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--fp16", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--use-4bit", action="store_true", default=True)
    parser.add_argument("--bnb-4bit-compute-dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--bnb-4bit-quant-type", choices=["nf4", "fp4"], default="nf4")
    parser.add_argument("--lora-r", type=int, default=16)
    parser.add_argument("--lora-alpha", type=int, default=32)
    parser.add_argument("--lora-dropout", type=float, default=0.05)
    parser.add_argument("--target-modules", type=str, default=None)
    parser.add_argument("--lora-bias", choices=["none", "lora", "all"], default="none")
    parser.add_argument("--train-mode", choices=["auto", "direct", "cot"], default="auto")
    parser.add_argument("--loss-on-output-only", action="store_true")
    parser.add_argument("--logging-steps", type=int, default=50)
    parser.add_argument("--save-steps", type=int, default=500)
    parser.add_argument("--eval-steps", type=int, default=None)
    parser.add_argument("--do-train", action="store_true")
    parser.add_argument("--max-steps-override", type=int, default=None)
    return parser.parse_args()


def load_rows(path, tokenizer, max_seq_length):
    rows = []
    with open(path, encoding="utf-8") as f:
        for line in f:
            if line.strip():
                row = json.loads(line)
                text = f"{row['input']}\n{row['output']}"
                rows.append(tokenizer(text, truncation=True, max_length=max_seq_length, padding="max_length"))
    return rows


def load_model(args):
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = getattr(torch, args.bnb_4bit_compute_dtype)
    quantization = None
    if args.use_4bit:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_type=args.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=True,
        )
    model = AutoModelForCausalLM.from_pretrained(
        args.model_name,
        quantization_config=quantization,
        torch_dtype=dtype,
        device_map="auto" if torch.cuda.is_available() else None,
    )
    if args.use_4bit:
        model = prepare_model_for_kbit_training(model)
    model.config.use_cache = False
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        bias=args.lora_bias,
        target_modules=args.target_modules.split(",") if args.target_modules else None,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def main():
    args = parse_args()
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(args.model_name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    dataset = load_rows(args.train_file, tokenizer, args.max_seq_length)
    model = load_model(args)

    steps = args.max_steps_override
    if steps is None:
        batches = -(-len(dataset) // args.batch_size)
        steps = args.num_epochs * -(-batches // args.gradient_accumulation_steps)
    known = inspect.signature(TrainingArguments).parameters
    warmup = {"warmup_ratio": args.warmup_ratio} if "warmup_ratio" in known else {"warmup_steps": args.warmup_ratio}
    training_args = TrainingArguments(
        output_dir=args.output_dir,
        num_train_epochs=args.num_epochs,
        max_steps=steps,
        per_device_train_batch_size=args.batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        fp16=args.fp16,
        bf16=args.bf16,
        logging_steps=args.logging_steps,
        save_steps=args.save_steps,
        report_to=[],
        remove_unused_columns=False,
        **warmup,
    )
    with_tokenizer = "tokenizer" in inspect.signature(Trainer.__init__).parameters
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=dataset,
        data_collator=DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm=False),
        **{"tokenizer" if with_tokenizer else "processing_class": tokenizer},
    )
    if not args.do_train:
        print("セットアップが完了しました。学習するには --do-train を指定してください。")
        return
    trainer.train()
    os.makedirs(args.output_dir, exist_ok=True)
    trainer.save_model(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
