"""A Hugging Face model with a LoRA adapter behind the interface of the other LLM backends."""

from dataclasses import dataclass
from typing import Optional

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig


@dataclass
class HFLLMConfig:
    model_name: str
    lora_path: Optional[str] = None
    load_in_4bit: bool = False
    max_new_tokens: int = 64


class HFLoRALLM:
    def __init__(self, config: HFLLMConfig) -> None:
        self.config = config
        self.tokenizer = AutoTokenizer.from_pretrained(config.model_name)
        quantization = None
        if config.load_in_4bit:
            quantization = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_quant_type="nf4"
            )
        self.model = AutoModelForCausalLM.from_pretrained(
            config.model_name,
            quantization_config=quantization,
            torch_dtype=torch.bfloat16,
            device_map="auto" if torch.cuda.is_available() else None,
        )
        if config.lora_path:
            self.model = PeftModel.from_pretrained(self.model, config.lora_path)
        self.model.eval()

    def invoke(self, prompt: str) -> str:
        inputs = self.tokenizer(prompt, return_tensors="pt").to(self.model.device)
        with torch.no_grad():
            output = self.model.generate(**inputs, max_new_tokens=self.config.max_new_tokens, do_sample=False)
        return self.tokenizer.decode(output[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True)
