"""A Hugging Face causal model with an optional LoRA adapter, asked in batches."""

import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedModel

from app.core.errors import PipelineError
from app.fast.ranks import chunks, gathered, note, own_share, sendable
from app.llm.chat_tokens import encode_prompt, load_tokenizer, stop_token_ids
from app.llm.loading import Quantization, load_base_model


@dataclass(frozen=True)
class HFLLMConfig:
    """Which model to load and how it answers."""

    model_name: str
    lora_path: Path | None = None
    load_in_4bit: bool = False
    max_new_tokens: int = 16
    batch_size: int = 8


@dataclass(frozen=True)
class Generation:
    """One answer: its text, tokens without the closing one, the batch's seconds shared evenly, and why it ended.

    `failure` is the exception that took the place of an answer, None where there is one.
    """

    text: str
    new_tokens: int
    seconds: float
    finish_reason: Literal["stop", "length", "error"]
    failure: Exception | None = None


class HFLoRALLM:
    """Base model and adapter, loaded once."""

    def __init__(self, config: HFLLMConfig) -> None:
        self.config = config
        self._batch_size = config.batch_size
        self._tokenizer = load_tokenizer(config.model_name)
        base = load_base_model(config.model_name, _dtype(), _quantization(config))
        self._model = _with_adapter(base, config.lora_path) if config.lora_path else base
        self._model.eval()
        self._longest_text = _longest_text_tokens(self._tokenizer.model_max_length, base.config)
        self._stop_ids = stop_token_ids(self._tokenizer, base.generation_config.eos_token_id)

    def fits(self, prompt: str) -> bool:
        """Whether the prompt leaves room for a whole answer within the length that the model was made for."""
        return self._has_room(len(encode_prompt(self._tokenizer, prompt).ids))

    def _has_room(self, prompt_tokens: int) -> bool:
        return self._longest_text is None or prompt_tokens + self.config.max_new_tokens <= self._longest_text

    def generate(
        self, prompts: Sequence[str], *, sample_seed: int | None = None, progress: Callable[[int], object] | None = None
    ) -> list[Generation]:
        """Answer each prompt, in the order given: greedily, or sampled with `sample_seed`.

        Prompts of like length share a batch, and several ranks share the batches; each rank gets all answers. After
        running out of memory the rest goes one by one; a batch that fails otherwise is asked again one by one, so that
        a failure belongs to the prompt that caused it, and its traceback is printed where it happened.
        """
        encoded = [encode_prompt(self._tokenizer, prompt).ids for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
        answers: dict[int, Generation] = {}
        for share in own_share(order, self._batch_size):
            for indices in chunks(share, self._batch_size):
                batch = self._answer([encoded[index] for index in indices], sample_seed)
                answers.update(zip(indices, batch, strict=True))
                if progress:
                    progress(len(indices))
        everyone = {index: answer for part in gathered(answers) for index, answer in part.items()}
        if progress:
            progress(len(everyone) - len(answers))
        return [everyone[index] for index in range(len(prompts))]

    def _answer(self, batch: list[list[int]], sample_seed: int | None) -> list[Generation]:
        try:
            return self._generate_batch(batch, sample_seed)
        except Exception as error:
            if len(batch) == 1:
                traceback.print_exc()
                return [Generation("", 0, 0.0, "error", sendable(error))]
            if isinstance(error, torch.OutOfMemoryError):
                print(f"Out of memory with {len(batch)} prompts at once; going on one by one", file=sys.stderr)
                self._batch_size = 1
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return [generation for ids in batch for generation in self._answer([ids], sample_seed)]

    def _generate_batch(self, batch: list[list[int]], sample_seed: int | None) -> list[Generation]:
        longest = max(map(len, batch))
        if not self._has_room(longest):
            asked = f"{longest} tokens of prompt and {self.config.max_new_tokens} new ones"
            raise PipelineError(f"{asked} are more than the model's {self._longest_text}")
        started = time.perf_counter()
        inputs = self._tokenizer.pad({"input_ids": batch}, return_tensors="pt").to(self._model.device)
        if sample_seed is not None:
            torch.manual_seed(sample_seed)
        with torch.inference_mode():
            output = self._model.generate(**inputs, **self._generation_options(sample_seed is not None))
        new_ids = output[:, inputs["input_ids"].shape[1] :].tolist()
        seconds = (time.perf_counter() - started) / len(batch)
        return [self._generation(ids, seconds) for ids in new_ids]

    def _generation_options(self, sampled: bool) -> dict[str, Any]:
        """Everything spelt out: a model's own generation_config.json must not turn greedy decoding into sampling."""
        sampling = (
            {"temperature": 0.7, "top_p": 1.0, "top_k": 50}
            if sampled
            else dict.fromkeys(("temperature", "top_p", "top_k"))
        )
        return {
            "max_new_tokens": self.config.max_new_tokens,
            "do_sample": sampled,
            "num_beams": 1,
            "repetition_penalty": 1.0,
            "eos_token_id": self._stop_ids,
            "pad_token_id": self._tokenizer.pad_token_id,
            **sampling,
        }

    def _generation(self, ids: list[int], seconds: float) -> Generation:
        end = next((position for position, token in enumerate(ids) if token in self._stop_ids), None)
        kept = ids if end is None else ids[:end]
        text = str(self._tokenizer.decode(kept, skip_special_tokens=True)).strip()
        return Generation(text, len(kept), seconds, "length" if end is None else "stop")


def _longest_text_tokens(tokenizer_limit: int, config: PretrainedConfig) -> int | None:
    """The shorter of the tokenizer's and the model's limit; a tokenizer without one says 10^30."""
    model_limit = getattr(config, "max_position_embeddings", None)
    return min(tokenizer_limit, model_limit) if model_limit else None


def _dtype() -> torch.dtype:
    """Half precision on a GPU, the widest that it computes; on the CPU fp32, which is exact and no slower."""
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _quantization(config: HFLLMConfig) -> Quantization | None:
    """The 4-bit format that the adapter was trained on, where its folder says so."""
    if not config.load_in_4bit:
        return None
    settings = _training_settings(config.lora_path)
    if not settings.get("use_4bit"):
        return Quantization()
    return Quantization(settings["bnb_4bit_quant_type"], settings["bnb_4bit_double_quant"])


def _training_settings(lora_path: Path | None) -> dict[str, Any]:
    path = lora_path / "train_metrics.json" if lora_path else None
    if path is None or not path.is_file():
        return {}
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["settings"]
    return settings


def _with_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """Put the adapter on, and make sure that every tensor of its file arrived and that it changes the model."""
    model = PeftModel.from_pretrained(base, str(folder))
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as stored:
        names = set(stored.keys())
    loaded = get_peft_model_state_dict(model)
    if names != set(loaded):
        missing, unknown = sorted(set(loaded) - names), sorted(names - set(loaded))
        raise PipelineError(
            f"adapter {folder} does not fit the model: missing {missing[:3]}, unknown {unknown[:3]}; "
            "train it again on this base"
        )
    if not any(bool(tensor.any()) for name, tensor in loaded.items() if "lora_B" in name):
        note(f"The adapter in {folder} is untrained: every lora_B is zero, so it changes nothing")
    return model
