"""What an attempt of H-2 or H-3 asks of the pipeline: what a profile sets and a rung of the ladder changes."""

from __future__ import annotations

from typing import Literal

from steph.values import Value

Launcher = Literal["none", "torchrun", "accelerate"]


class TrainSettings(Value):
    """What one training attempt asks for; `batch_size` is per process, `max_seq_length` in tokens."""

    num_epochs: int = 1
    max_steps: int = 50
    batch_size: int = 2
    learning_rate: float = 2e-4
    max_seq_length: int = 512
    gradient_accumulation_steps: int = 2
    warmup_ratio: float = 0.03
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    target_modules: tuple[str, ...] = ()
    use_4bit: bool = True
    bnb_4bit_compute_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    mixed_precision: Literal["bf16", "fp16"] | None = None
    logging_steps: int = 1
    launcher: Launcher = "none"
    num_processes: int = 1

    @property
    def effective_batch_size(self) -> int:
        """Rows of one optimizer step."""
        return self.batch_size * self.gradient_accumulation_steps * self.num_processes

    def short(self) -> str:
        """The setting in one word, as in `512/b2/4bit`, and `/x2` behind it for two processes."""
        bits = "4bit" if self.use_4bit else self.mixed_precision or "full"
        ranks = f"/x{self.num_processes}" if self.num_processes > 1 else ""
        return f"{self.max_seq_length}/b{self.batch_size}/{bits}{ranks}"


class EvalSettings(Value):
    """What one evaluation attempt asks for."""

    samples: int = 3
    top_k: int = 1
    use_rag: bool = False
    use_cot: bool = False
    ensemble: int = 1
    load_in_4bit: bool = True
    launcher: Launcher = "none"
    num_processes: int = 1
