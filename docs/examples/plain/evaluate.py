"""Ask the model, with its adapter, the questions of data/test.jsonl; an answer is right where its letter is."""

import argparse
import json

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--adapter")
parser.add_argument("--load_in_4bit", action="store_true")
parser.add_argument("--limit", type=int, default=100)
parser.add_argument("--out", default="evaluation.json")
args = parser.parse_args()

place = "cuda" if torch.cuda.is_available() else "cpu"
how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
tokenizer = AutoTokenizer.from_pretrained(args.model)
model = AutoModelForCausalLM.from_pretrained(
    args.model, dtype=torch.bfloat16, device_map={"": place}, quantization_config=how if args.load_in_4bit else None
)
if args.adapter:
    model = PeftModel.from_pretrained(model, args.adapter)
model.eval()

rows = []
with open("data/test.jsonl", encoding="utf-8") as lines:
    asked = [json.loads(line) for line in lines][: args.limit]
for row in asked:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": row["question"]}], tokenize=False, add_generation_prompt=True
    )
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(model.device)
    out = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    response = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    predicted = response.strip()[:1].lower()
    rows.append({
        "question": row["question"], "expected": row["answer"], "predicted": predicted, "response": response,
        "correct": predicted == row["answer"],
    })  # fmt: skip
score = sum(row["correct"] for row in rows) / len(rows)
print(f"accuracy {score:.3f}")
with open(args.out, "w", encoding="utf-8") as file:
    whole = {"model": args.model, "adapter": args.adapter, "accuracy": score, "total": len(rows), "results": rows}
    json.dump(whole, file, ensure_ascii=False, indent=1)
