#!/usr/bin/env python
# coding: utf-8

# # Fine-tune a small model on our questions

# In[1]:


import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments


# In[2]:


MODEL = "models/tiny"
tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))


# In[3]:


def encode(row):
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": row["prompt"]}], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = tokenizer(row["completion"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    both = (ids + answer)[-384:]
    labels = ([-100] * len(ids) + answer)[-384:]
    return {"input_ids": both, "attention_mask": [1] * len(both), "labels": labels}


data = load_dataset("json", data_files="data/train.jsonl", split="train")
data = data.map(encode, remove_columns=data.column_names)


# In[4]:


args = TrainingArguments(
    output_dir="outputs",
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    num_train_epochs=1,
    learning_rate=1e-3,
    logging_steps=1,
    report_to="none",
    use_cpu=not torch.cuda.is_available(),
)
trainer = Trainer(model=model, args=args, train_dataset=data, data_collator=DataCollatorForSeq2Seq(tokenizer))
trainer.train()


# In[5]:


model.save_pretrained("outputs/lora")
tokenizer.save_pretrained("outputs/lora")
