"""Ask the tuned model the questions of data/test.jsonl and count exact letters."""

import argparse
import json

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--adapter")
parser.add_argument("--limit", type=int, default=100)
parser.add_argument("--out", default="eval.json")
args = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(args.model)
model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
if args.adapter:
    model = PeftModel.from_pretrained(model, args.adapter)
model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
rows = []
for line in open("data/test.jsonl", encoding="utf-8").readlines()[: args.limit]:
    row = json.loads(line)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": row["question"]}], tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(model.device)
    out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    response = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    predicted = response.strip()[:1].lower()
    rows.append({"question": row["question"], "expected": row["answer"], "predicted": predicted, "response": response, "correct": predicted == row["answer"]})
accuracy = sum(row["correct"] for row in rows) / len(rows)
print("EVALUATION DONE")
print(f"accuracy {accuracy:.3f}")
with open(args.out, "w", encoding="utf-8") as file:
    json.dump({"model": args.model, "adapter": args.adapter, "accuracy": accuracy, "total": len(rows), "results": rows}, file, ensure_ascii=False)
