"""What an attempt of H-2 or H-3 asks of the pipeline: what a profile sets and a rung of the ladder changes."""

from __future__ import annotations

from typing import Literal

from steph.base.values import Value

Launcher = Literal["none", "torchrun", "accelerate"]


class TrainSettings(Value):
    """What one training attempt asks for; `batch_size` is per process, `max_seq_length` in tokens."""

    num_epochs: int = 1
    """`--num-epochs`."""
    max_steps: int = 50
    """The most optimizer steps: by `--max-steps-override` where the script has it, else by a file of fewer rows."""
    batch_size: int = 2
    """`--batch-size`: rows of one forward pass in one process."""
    learning_rate: float = 2e-4
    """`--learning-rate`."""
    max_seq_length: int = 512
    """`--max-seq-length`, in tokens."""
    gradient_accumulation_steps: int = 2
    """`--gradient-accumulation-steps`."""
    warmup_ratio: float = 0.03
    """`--warmup-ratio`."""
    lora_r: int = 16
    """`--lora-r`."""
    lora_alpha: int = 32
    """`--lora-alpha`."""
    lora_dropout: float = 0.05
    """`--lora-dropout`."""
    target_modules: tuple[str, ...] = ()
    """`--target-modules`; left to the script where empty."""
    use_4bit: bool = True
    """`--use-4bit`."""
    bnb_4bit_compute_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """`--bnb-4bit-compute-dtype`, passed with `--use-4bit`."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """`--bnb-4bit-quant-type`, passed with `--use-4bit`."""
    mixed_precision: Literal["bf16", "fp16"] | None = None
    """`--bf16` or `--fp16`."""
    logging_steps: int = 1
    """`--logging-steps`."""
    launcher: Launcher = "none"
    """What starts the script: `torchrun` or `accelerate launch` of the pipeline's own Python, or nothing."""
    num_processes: int = 1
    """How many processes the launcher starts, on a GPU each."""

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
    """`--samples`: how many questions, the first of the data set."""
    top_k: int = 1
    """`--top-k`."""
    use_rag: bool = False
    """Retrieval; without it `--no-rag` is passed."""
    use_cot: bool = False
    """`--use-cot`."""
    ensemble: int = 1
    """`--ensemble`."""
    load_in_4bit: bool = True
    """`--hf-load-in-4bit`, where H-2 trained in 4 bits as well."""
    launcher: Launcher = "none"
    """As in `[train]`; only for a script whose processes share the questions, any other asks all of them in each."""
    num_processes: int = 1
    """How many processes the launcher starts, on a GPU each."""
