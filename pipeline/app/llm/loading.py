"""Loading a base model: safetensors only, no code from its repository, straight onto its device."""

import os
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from app.core.errors import PipelineError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Quantization:
    """4-bit weights; double quantisation stores the block scales in 8 bits too and saves 0.37 bit a parameter."""

    quant_type: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = True


def load_base_model(name: str, dtype: torch.dtype, quantization: Quantization | None) -> PreTrainedModel:
    """The causal model `name`: linear layers in 4 bits where asked, everything else in `dtype`, attention by sdpa.

    Raises `PipelineError` where 4-bit was asked for and no layer came out quantised.
    """
    # cuDNN's attention builds a plan for each new width: 10 s of a 35-step run with real rows (H200, torch 2.11)
    torch.backends.cuda.enable_cudnn_sdp(False)
    model = AutoModelForCausalLM.from_pretrained(
        name,
        dtype=dtype,
        quantization_config=_bitsandbytes_config(quantization, dtype),
        attn_implementation=_attention(name),
        device_map={"": int(os.environ.get("LOCAL_RANK", "0"))} if torch.cuda.is_available() else None,
        trust_remote_code=False,
        use_safetensors=True,
    )
    quantised = any(type(module).__name__ == "Linear4bit" for module in model.modules())
    if quantised != (quantization is not None):
        raise PipelineError(f"{name} loaded {'with' if quantised else 'without'} 4-bit layers, which was not asked for")
    return model


def _attention(name: str) -> str | None:
    """sdpa, and the model's own choice where its family has none (gpt-oss)."""
    kind = AutoModelForCausalLM._model_mapping.get(type(AutoConfig.from_pretrained(name)), None)
    return "sdpa" if kind is None or kind._supports_sdpa else None


def _bitsandbytes_config(quantization: Quantization | None, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if quantization is None:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.quant_type,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=dtype,
    )
