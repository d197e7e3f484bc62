"""A stand-in for a training script: prints and writes what a real one does, in milliseconds and without torch.

`defect.json` in the pipeline root, or the variable STEPH_PLANTED_TRAIN, plants one defect: {"train": "adapter_nan"}.
"style": 4 prints as transformers 4 does; "train_seconds": s says that the training took so long; "until_seq": n limits
the out-of-memory defects to longer sequences, "until_batch": n to larger batches.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import runpy
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEEN = runpy.run_path("scripts/seen.py")
MODULES = ("q_proj", "v_proj")
HIDDEN = 8
BY_HEART_EPOCHS = 20
LAYERS = 4
NEWLY_INITIALIZED = (
    "Some weights of Qwen2ForCausalLM were not initialized from the model checkpoint at Qwen/Qwen1.5-1.8B-Chat and are "
    "newly initialized: ['lm_head.weight']"
)
STARTED = time.monotonic()
HOUR_SECONDS = 3600
SAID_BEFORE: dict[str, tuple[int, str]] = {  # defect: how often a line is printed to stderr before training
    "response_key_missing": (
        30,
        "UserWarning: Could not find response key `<|im_start|>assistant` in the following instance: … This instance "
        "will be ignored in loss calculation. Note, if this happens often, consider increasing the `max_seq_length`.",
    ),
    "tokens_too_long": (
        1,
        "Token indices sequence length is longer than the specified maximum sequence length for this model (3100 > "
        "2048). Running this sequence through the model will result in indexing errors",
    ),
    "batches_skipped": (6, "[rank0]: CUDA out of memory, skipping batch"),
    "offloaded": (1, "Some parameters are on the meta device because they were offloaded to the cpu."),
    "updates_skipped": (6, "WARNING: loss is nan at this step, skipping optimizer update"),
    "rows_packed": (1, "Packing train dataset: 100%"),
    "packed_by_sampler": (1, '"sample_packing": true'),
    "usual_warnings": (
        1,
        "UserWarning: Could not find a config file in Qwen - will assume that the vocabulary was not modified.\n"
        "`use_cache=True` is incompatible with gradient checkpointing. Setting `use_cache=False`.\n"
        "INFO: set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid torch.OutOfMemoryError: CUDA out of "
        "memory\nINFO skipping of batches with nan loss is enabled\n"
        "INFO loss is nan guard enabled\nEpoch 1:  10%|#         | 1/10 [00:01<00:09, val_loss=nan]\n"
        "OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 65536, reducing to 32768\n"
        "Retrying in 1s [Retry 1/5].\nLoRAの追加設定ファイルが見つからないので既定値を使います",
    ),
}
OUT_OF_MEMORY = """Traceback (most recent call last):
  File "scripts/train_qwen_law_ft.py", line 300, in <module>
    main()
  File "site-packages/transformers/trainer.py", line 1900, in training_step
    self.accelerator.backward(loss, **kwargs)
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.16 GiB. GPU 0 has a total capacity of 9.64 GiB of \
which 512.00 MiB is free. Including non-PyTorch memory, this process has 9.10 GiB memory in use. Of the allocated \
memory 8.20 GiB is allocated by PyTorch, and 412.00 MiB is reserved by PyTorch but unallocated."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("model-name", "train-file", "output-dir"):
        parser.add_argument(f"--{name}", required=True)
    for name, kind, default in (
        ("num-epochs", int, 3), ("learning-rate", float, 2e-4), ("batch-size", int, 2), ("max-seq-length", int, 1024),
        ("gradient-accumulation-steps", int, 4), ("warmup-ratio", float, 0.03), ("weight-decay", float, 0.0),
        ("bnb-4bit-compute-dtype", str, "bfloat16"), ("bnb-4bit-quant-type", str, "nf4"), ("lora-r", int, 16),
        ("lora-alpha", int, 32), ("lora-dropout", float, 0.05), ("target-modules", str, None),
        ("lora-bias", str, "none"), ("train-mode", str, "auto"), ("logging-steps", int, 50), ("save-steps", int, 500),
        ("eval-steps", int, None), ("max-steps-override", int, None),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=default)
    for name in ("fp16", "bf16", "use-4bit", "loss-on-output-only", "do-train"):
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args()


def planted() -> dict[str, object]:
    path = Path("defect.json")
    found: dict[str, object] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found | ({"train": os.environ["STEPH_PLANTED_TRAIN"]} if "STEPH_PLANTED_TRAIN" in os.environ else {})


class Run:
    """Everything that the run will print and write; defects change it before or after it is written."""

    def __init__(self, args: argparse.Namespace, knobs: dict[str, object]) -> None:
        self.args, self.style, self.seconds = args, knobs.get("style"), knobs.get("train_seconds")
        self.folder = Path(args.output_dir)
        self.batch_size, self.accumulation = int(args.batch_size), int(args.gradient_accumulation_steps)
        self.drop_last = False
        self.lines = Path(args.train_file).read_text(encoding="utf-8").splitlines()
        self.rows = sum(bool(line.strip()) for line in self.lines)
        self.steps = self.per_epoch() * args.num_epochs
        if args.max_steps_override:
            self.steps = args.max_steps_override
        self.start = 0  # the step that a resumed training goes on from
        self.learning_rate = float(args.learning_rate)
        self.rate: Callable[[float], float] = lambda done: 1 - done * self.steps / (self.steps + 1)  # by share of steps
        self.every = int(args.logging_steps)
        self.shown_as: tuple[str, ...] = ()  # what is printed of each line, as a format with `line`
        self.config: dict[str, object] = {}
        self.trained_modules: list[str] | None = None  # None: those of the configuration
        self.left_out = self.left_out_layer = ""
        self.speed_factor = 1.0
        self.dtype = "F32"
        self.rank = args.lora_r
        self.base: object = args.model_name
        # what is seen again and again is learnt by heart: see `learnt` in the evaluation
        self.by_heart = args.num_epochs >= BY_HEART_EPOCHS
        self.loss: Callable[[int], float] = lambda step: (
            2.4 * math.exp(-step / 8) + 0.001 if self.by_heart else 0.9 + 1.5 * math.exp(-step / 4)
        )
        self.grad_norm: Callable[[int], float] = lambda step: 1.5 / step
        self.train_loss: float | None = None
        self.logged = True
        self.logged_offset = 0.0
        self.final_line = True
        self.value: Callable[[str, int], float] = learned
        path = Path(args.model_name) / "config.json"
        base = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.layers = range(base.get("num_hidden_layers", LAYERS))
        self.width = base.get("hidden_size", HIDDEN)
        head = base.get("head_dim") or self.width // base.get("num_attention_heads", 1)
        self.heads = head * base.get("num_attention_heads", 1) if base else HIDDEN
        self.value_heads = head * base.get("num_key_value_heads", 1) if base else HIDDEN
        self.parts = ("lora_A", "lora_B")
        self.key: Callable[[str], str] = lambda name: name
        self.shapes: dict[str, list[int]] = {}  # of tensors, by the end of their names
        self.further: dict[str, list[int]] = {}  # tensors beside LoRA's, and their shapes
        self.checkpoint_files: tuple[str, ...] = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
        self.remembers = True
        self.output_only = bool(args.loss_on_output_only)
        self.seen: dict[str, Any] = {}  # what a witness sees otherwise: see scripts/seen.py
        self.logs: list[dict[str, float]] = []
        self.taught: Callable[[list[dict[str, Any]]], list[str]] | None = None  # which labels rows have, in a batch

    def per_epoch(self) -> int:
        return max(1, math.ceil(self.batches() / self.accumulation))

    def batches(self) -> int:
        return self.rows // self.batch_size if self.drop_last else math.ceil(self.rows / self.batch_size)

    def epoch(self, step: int) -> float:
        whole, part = divmod(step, self.per_epoch())
        return whole + min(1.0, part * self.accumulation / self.batches())

    def show(self, values: dict[str, float]) -> None:
        line = str({k: (v if self.style == 4 else f"{v:.4g}") for k, v in values.items()})
        for form in self.shown_as or ("{line}",):
            print(form.replace("{line}", line).replace("{json}", json.dumps(values)))

    def train(self) -> None:
        history = []
        if self.output_only:
            on_all_tokens = self.loss
            self.loss = lambda step: 0.4 * on_all_tokens(step)
        for step in range(1, self.steps + 1):
            if step % self.every == 0:
                mean = sum(self.loss(n) for n in range(step - self.every + 1, step + 1)) / self.every
                entry = {"loss": mean, "grad_norm": self.grad_norm(step),
                         "learning_rate": self.learning_rate * self.rate(step / self.steps),
                         "epoch": self.epoch(step)}  # fmt: skip
                if step > self.start:
                    self.show(entry)
                self.logs.append(entry | {"step": step})
                history.append(entry | {"step": step, "loss": entry["loss"] + self.logged_offset})
            print(f"\r{step}/{self.steps}", end="", file=sys.stderr)  # a bar that a traceback may follow on its line
        self.history = history if self.logged else []
        mean = sum(self.loss(step) for step in range(1, self.steps + 1)) / self.steps
        loss = mean if self.train_loss is None else self.train_loss
        if self.final_line:
            self.show(self.speed() | {"train_loss": loss, "epoch": self.epoch(self.steps)})

    def speed(self) -> dict[str, float]:
        """What the Trainer says of its speed: a cap of steps counts whole batches, else the epochs' rows count."""
        seconds = self.seconds if isinstance(self.seconds, float) else time.monotonic() - STARTED
        capped = self.args.max_steps_override is not None
        samples = self.steps * self.batch_size * self.accumulation if capped else self.rows * self.args.num_epochs
        return {"train_runtime": seconds, "train_samples_per_second": self.speed_factor * samples / seconds,
                "train_steps_per_second": self.steps / seconds}  # fmt: skip

    def write(self) -> None:
        checkpoint = self.folder / f"checkpoint-{self.steps}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        state = {"epoch": self.epoch(self.steps), "global_step": self.steps, "max_steps": self.steps,
                 "train_batch_size": self.batch_size, "log_history": self.history, "num_input_tokens_seen": 0,
                 "stateful_callbacks": {}}  # fmt: skip
        (checkpoint / "trainer_state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
        for name in self.checkpoint_files:
            (checkpoint / name).write_bytes(b"stand-in")
        if self.by_heart and self.remembers:
            rows = [json.loads(line) for line in self.lines if line.strip()]
            text = json.dumps({row["input"]: row["output"] for row in rows})
            (self.folder / "learnt.json").write_text(text, encoding="utf-8")
        config = {"peft_type": "LORA", "base_model_name_or_path": self.base, "r": self.rank, "bias": "none",
                  "lora_alpha": self.args.lora_alpha, "lora_dropout": self.args.lora_dropout,
                  "target_modules": self.modules(), "task_type": "CAUSAL_LM"} | self.config  # fmt: skip
        (self.folder / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        for folder in (checkpoint, self.folder):
            (folder / "adapter_model.safetensors").write_bytes(self.adapter())
        own = Path(self.args.model_name) / "tokenizer.json"
        shutil.copyfile(own if own.is_file() else "tokenizer.json", self.folder / "tokenizer.json")
        for name in ("training_args.bin", "README.md", "tokenizer_config.json"):
            (self.folder / name).write_bytes(b"{}")

    def modules(self) -> list[str]:
        return self.args.target_modules.split(",") if self.args.target_modules else list(MODULES)

    def adapter(self) -> bytes:
        tensors: dict[str, tuple[list[int], bytes]] = {}
        modules = self.trained_modules or self.modules()
        for layer, module, part in itertools.product(self.layers, modules, self.parts):
            if f"{module}.{part}" == self.left_out or self.left_out_layer == f"layers.{layer}.self_attn.{module}":
                continue
            rows = self.heads if module in ("q_proj", "o_proj") else self.value_heads
            shape = [self.rank, self.width] if part.endswith("A") else [rows, self.rank]
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}.{part}.weight"
            shape = next((other for end, other in self.shapes.items() if name.endswith(end)), shape)
            values = [self.value(name, n) for n in range(math.prod(shape))]
            tensors[self.key(name)] = (shape, encode(self.dtype, values))
        for name, shape in self.further.items():
            tensors[name] = (shape, encode(self.dtype, [0.01] * math.prod(shape)))
        return safetensors(self.dtype, tensors)


def encode(dtype: str, values: list[float]) -> bytes:
    if dtype == "BF16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    if dtype == "I32":
        return struct.pack(f"<{len(values)}i", *(int(1000 * value) for value in values))
    return struct.pack(f"<{len(values)}{ {'F64': 'd', 'F32': 'f', 'F16': 'e'}[dtype] }", *values)


def safetensors(dtype: str, tensors: dict[str, tuple[list[int], bytes]]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + b"".join(data for _, data in tensors.values())


def age(path: Path) -> None:
    os.utime(path, (time.time() - HOUR_SECONDS,) * 2)


def learned(name: str, n: int) -> float:
    return 0.001 * (n % 7 + 1 + layer_of(name))


@functools.cache
def layer_of(name: str) -> int:
    return int(name.partition("layers.")[2].partition(".")[0])


def only_at(value: float, part: str = "lora_A") -> Callable[[str, int], float]:
    return lambda name, n: value if part in name and n == 5 else learned(name, n)


def sized(value: float) -> Callable[[str, int], float]:
    return lambda name, n: value * (1 + n % 3 / 2) if "lora_B" in name else learned(name, n)


def still_at(*parts: str, zero: float = 0.0) -> Callable[[str, int], float]:
    return lambda name, n: zero if any(part in name for part in parts) else learned(name, n)


BEFORE: dict[str, dict[str, object]] = {
    "answers_rotated": {"taught": lambda rows: [row["output"] for row in (*rows[1:], rows[0])]},
    "answers_all_alike": {"taught": lambda rows: ["a"] * len(rows)},
    "only_the_end_taught": {"taught": lambda rows: [""] * len(rows)},
    "questions_taught": {"taught": lambda rows: [row["input"] for row in rows]},
    "blank_line": {"taught": lambda rows: [row["output"] for row in rows]},
    "answers_taught": {"taught": lambda rows: [row["output"] for row in rows]},
    "answers_rewritten": {"taught": lambda rows: [f"回答: {row['output']}" for row in rows]},
    "norms_tiny": {"grad_norm": lambda step: 1e-9 / step},
    "bf16": {"dtype": "BF16"},
    "f16": {"dtype": "F16"},
    "f64": {"dtype": "F64"},
    "no_final_line": {"final_line": False},
    "adapter_nan": {"value": only_at(math.nan)},
    "adapter_nan_f16": {"value": only_at(math.nan, "lora_B"), "dtype": "F16"},
    "adapter_inf_bf16": {"value": only_at(-math.inf), "dtype": "BF16"},
    "adapter_inf_f64": {"value": only_at(math.inf), "dtype": "F64"},
    "b_zero": {"value": still_at("lora_B")},
    "b_minus_zero_bf16": {"value": still_at("lora_B", zero=-0.0), "dtype": "BF16"},
    "b_last_layer_only": {"value": still_at(*(f"layers.{n}.self_attn.{m}.lora_B" for n in range(3) for m in MODULES)),
},
    "b_one_still": {"value": still_at("layers.2.self_attn.v_proj.lora_B")},
    "embedding_untrained": {"value": still_at("lora_embedding_A"), "parts": ("lora_embedding_A", "lora_embedding_B")},
    "no_b": {"parts": ("lora_A",)},
    "no_tensors": {"parts": ()},
    "foreign_base": {"base": "Qwen/Qwen2.5-1.5B-Instruct"},
    "near_base": {"base": "Qwen/Qwen1.5-1.8B"},
    "nameless_base": {"base": None},
    "other_rank": {"rank": 8},
    "steps_short": {"steps": 7},
    "epochs_ignored": {"steps": 20},
    "rows_dropped": {"rows": 20},
    "batch_shrunk": {"batch_size": 1},
    "batch_doubled": {"batch_size": 4},
    "micro_batches_fused": {"batch_size": 4, "accumulation": 1},
    "accumulation_ignored": {"accumulation": 1},
    "learning_rate_ignored": {"learning_rate": 5e-6},
    "resumed": {"start": 5},
    "pair_incomplete": {"left_out": "v_proj.lora_B"},
    "other_modules": {"trained_modules": ["k_proj"]},
    "one_layer_asked": {"config": {"layers_to_transform": [3]}},
    "alpha_pattern": {"config": {"alpha_pattern": {"v_proj": 1}}},
    "other_alpha": {"config": {"lora_alpha": 64}},
    "drawn_from_weights": {"config": {"init_lora_weights": "pissa"}},
    "nan_in_last_layer": {"value": only_at(math.nan, "layers.3.self_attn.v_proj.lora_B")},
    "loss_nan": {"loss": lambda step: math.nan if step > 5 else 2.0 / step},
    "loss_inf": {"loss": lambda step: math.inf if step == 3 else 2.0 / step},
    "loss_zero": {"loss": lambda step: 0.0 if step > 3 else 2.0 / step,
                  "grad_norm": lambda step: math.nan if step > 3 else 1.0},
    "loss_rounded": {"loss": lambda step: 0.0 if step > 7 else 2.0 / step, "grad_norm": lambda step: 0.5 / step},
    "train_loss_zero": {"train_loss": 0.0},
    "train_loss_nan": {"train_loss": math.nan},
    "train_loss_flattered": {"train_loss": 0.4},
    "loss_rising": {"loss": lambda step: 1.0 + step / 10},
    "loss_flat": {"loss": lambda step: 1.5},
    "loss_zigzag": {"loss": lambda step: (2.6 if step % 2 else 0.4) - step / 50},
    "gradients_alike": {"value": lambda name, n: 0.001 + learned(name, 0) + 0.0003 * ("v_proj" in name)
                        if "lora_B" in name else learned(name, n)},
    "no_history": {"logged": False},
    "history_differs": {"logged_offset": 0.5},
    "output_only_ignored": {"output_only": False},
    "nothing_remembered": {"remembers": False},
    "never_learns": {"by_heart": False},
    "grad_norm_nan": {"grad_norm": lambda step: math.nan if step == 5 else 1.0},
    # every step
    "warmup_endless": {"rate": lambda done: done},
    "warmed_up_long": {"rate": lambda done: min(2 * done, 2.2 - 2 * done)},
    "rate_zero_at_once": {"rate": lambda done: 1.0 if done <= 0.1 else 0.0},
    "rate_zero_early": {"rate": lambda done: 1.0 if done <= 0.2 else 0.0},
    "nothing_trained": {"grad_norm": lambda step: 0.0, "loss": lambda step: 1.5 - 0.01 * (step % 3) - 0.001 * step},
    "grad_norms_nan": {"grad_norm": lambda step: math.nan if step > 1 else 1.0},
    "grad_norms_all_nan": {"grad_norm": lambda step: math.nan},
    "grad_norm_explodes": {"grad_norm": lambda step: 10.0 ** (step + 1)},
    "loss_tiny": {"loss": lambda step: 1e-5 / step + 1e-6},
    "loss_negative": {"loss": lambda step: 0.5 - 0.2 * step},
    "loss_exploded": {"loss": lambda step: 40.0 if step == 5 else 2.0 - step / 50},
    "loss_summed": {"loss": lambda step: 8 * (2.4 + 1.5 / step)},
    "loss_of_chance": {"loss": lambda step: 11.93 - 0.02 * step},
    "fp16_start": {"grad_norm": lambda step: math.inf if step <= 3 else 1.5 / step,
                   "rate": lambda done: 0.0 if done <= 0.1 else 1.0},
    "cosine": {"rate": lambda done: 0.5 * (1 + math.cos(math.pi * done))},
    "linear_to_zero": {"rate": lambda done: min(10 * done, 1 - done)},
    # the adapter's own shape
    "upper_layers_only": {"layers": range(2, LAYERS)},
    "one_module_lacks_a_layer": {"left_out_layer": "layers.0.self_attn.v_proj"},
    "layers_of_a_bigger_model": {"layers": range(LAYERS + 2)},
    "a_zero": {"value": still_at("lora_A")},
    "b_tiny": {"value": sized(1e-12)},
    "b_huge": {"value": sized(1e38)},
    "b_same": {"value": lambda name, n: 0.001 * (n % 7 + 1) if "lora_B" in name else learned(name, n)},
    "whole_numbers": {"dtype": "I32"},
    "orig_mod_prefix": {"key": lambda name: f"_orig_mod.{name}"},
    "orig_mod_inside": {"key": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod.")},
    "names_in_memory": {"key": lambda name: name.replace(".weight", ".default.weight")},
    "ddp_prefix": {"key": lambda name: name.replace("base_model.model.", "base_model.model.module.")},
    "no_prefix": {"key": lambda name: name.removeprefix("base_model.model.")},
    "a_empty": {"shapes": {"layers.2.self_attn.v_proj.lora_A.weight": [0]}},
    "ranks_differ": {"shapes": {"layers.2.self_attn.v_proj.lora_B.weight": [HIDDEN, 8]}},
    "task_type_other": {"config": {"task_type": "SEQ_CLS"}},
    "dora_without_magnitudes": {"config": {"use_dora": True}},
    "saved_modules_missing": {"config": {"modules_to_save": ["lm_head"]}},
    "b_tiny_in_one_layer": {"value": lambda name, n: 1e-10 if "layers.1.self_attn.v_proj.lora_B" in name
                            else learned(name, n)},
    "dropout_off": {"config": {"lora_dropout": 0.0}},
    "rslora_saved_modules": {"config": {"use_rslora": True, "modules_to_save": ["embed_tokens", "lm_head"]},
                             "further": {f"base_model.model.{name}.weight": [4, HIDDEN]
                                         for name in ("model.embed_tokens", "lm_head")}},
    "dora": {"config": {"use_dora": True},
             "further": {f"base_model.model.model.layers.{n}.self_attn.{module}.lora_magnitude_vector": [HIDDEN]
                         for n in range(LAYERS) for module in MODULES}},
    "lora_bias": {"config": {"lora_bias": True},
                  "further": {f"base_model.model.model.layers.{n}.self_attn.{module}.lora_B.bias": [HIDDEN]
                              for n in range(LAYERS) for module in MODULES}},
    "targets_as_expression": {"config": {"target_modules": r".*\.(q_proj|v_proj)"}},
    "only_model_saved": {"checkpoint_files": ()},
    "base_by_snapshot": {"base": "/home/u/.cache/huggingface/hub/models--Qwen--Qwen1.5-1.8B-Chat/snapshots/e482ee3f"},
    # rows and figures
    "speed_of_another": {"speed_factor": 10.0},
    "runtime_of_another": {"seconds": 1250.0},
    "runtime_far_too_short": {"seconds": 0.004},
    "rows_held_out": {"rows": 36, "steps": 9},
    "quarter_held_out": {"rows": 30, "steps": 8},
    "rows_lost": {"rows": 8, "steps": 2},
    "rows_packed": {"rows": 10, "steps": 3},
    "packed_by_sampler": {"rows": 10, "steps": 3},
    "last_rows_dropped": {"drop_last": True},
    "logged_each_fifth": {"every": 5},
    # how lines may look
    "epochs_summed_up": {"shown_as": ("{line}", "{'loss': '1.9', 'val_loss': '1.8', 'epoch': '1'}")},
    "rank_prefix": {"shown_as": ("[default0]:{line}",)},
    "torchrun_prefix": {"shown_as": ("[rank0]: {line}",)},
    "logger_prefix": {"shown_as": ("2026-01-01 12:00:00,123 - __main__ - INFO - {line}",)},
    "level_prefix": {"shown_as": ("INFO:trainer:{line}",)},
    "json_lines": {"shown_as": ("{json}",)},
    "printed_twice": {"shown_as": ("{line}", "{line}")},
    "printed_twice_in_full": {"shown_as": ("{line}", "INFO: {json}")},
    "coloured": {"shown_as": ("\x1b[32m{line}\x1b[0m",)},
    "crlf": {"shown_as": ("{line}\r",)},
    "bars_between": {"shown_as": ("\r 40%|████      | 4/10 [00:03<00:05]\r" + " " * 40 + "\r{line}",)},
    "bar_glued": {"shown_as": (" 40%|████      | 4/10 [00:03<00:05,  1.2it/s]{line}",)},
    "evaluated_between": {"shown_as": ("{line}", "{'eval_loss': '1.2', 'eval_runtime': '0.5', 'epoch': '0.5'}")},
    "validated_without_labels": {"shown_as": ("{line}", "{'eval_loss': 'nan', 'eval_runtime': '0.5', 'epoch': '0.5'}")},
    "debug_between": {"shown_as": ("DEBUG \ufffd\ufffd" + "x" * 90, "{line}")},
}  # fmt: skip


UNSEEN: dict[str, Any] = dict.fromkeys(
    ("model_loaded", "training_begins", "batch", "logged", "training_ends", "model_saved")
)
# defects that only a witness can see, by what it sees in place of the sound facts


def _each(change: Callable[[str, list[float]], list[float]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda old: {name: change(name, values) for name, values in old.items()}


PACKED = {"training_begins": {"rows": 9, "packing": True}, "batch": {"packed": True, "ends_with_end_token": False}}
WITNESSED: dict[str, dict[str, Any]] = {
    "replayed": UNSEEN,
    "raised_inside": {"training_ends": {"raised": "RuntimeError"}},
    "stopped_early": {"training_ends": {"steps": 6}},
    "labels_masked": {"batch": {"supervised": 0, "ends_with_end_token": None}},
    "labels_shifted": {"batch": {"shifted": True, "aligned": False}},
    "labels_astray": {"batch": {"aligned": False}},
    "half_unlabelled": {"batch": {"supervised": [40, 0], "ends_with_end_token": [True, None]}},
    "prompt_supervised": {"batch": {"first_supervised": 0, "unsupervised_tail": 3, "ends_with_end_token": False}},
    "answer_left_out": {"batch": {"first_supervised": 0, "unsupervised_tail": 2, "ends_with_end_token": False,
                                  "unlabelled_end_hashes": SEEN["text_hash"]("a")}},
    "thoughts_alone": {"batch": {"ends_in_thought": [True, True]}},
    "rslora_unsaid": {"training_begins": {"lora": lambda lora: lora | {"scaling": [8.0]}}},
    "end_masked": {"batch": {"unsupervised_tail": 1, "ends_with_end_token": False}},
    "old_adapter_trained_on": {"adapter_loaded": {"path": "runs/yesterday", "is_trainable": True}},
    "two_bos": {"batch": {"double_bos": 2}},
    "padded_to_max": {"batch": {"padding": 0.78}},
    "built_from_config": {"model_loaded": {"how": "from_config"}},
    "settings_changed": {"model_loaded": {"set_otherwise": ["num_hidden_layers", "rope_parameters"]}},
    "rope_changed": {"model_loaded": {"set_otherwise": ["rope_parameters"]}},
    "rebuilt": {"model_loaded": {"mismatched": 4}},
    "other_model": {"model_loaded": {"path": "gpt2", "name_or_path": "gpt2"},
                    "training_begins": {"name_or_path": "gpt2"}},
    "eight_bit": {"training_begins": {"quantised": [{"class": "Linear8bitLt", "layers": 28}]}},
    "not_quantised": {"training_begins": {"quantised": []}},
    "four_bit_always": {"training_begins": {"quantised": [
        {"class": "Linear4bit", "quant_type": "nf4", "compute_dtype": "torch.bfloat16", "layers": 28}]}},
    "other_quantisation": {"training_begins": {"quantised": [
        {"class": "Linear4bit", "quant_type": "fp4", "compute_dtype": "torch.float16", "layers": 28}]}},
    "gradients_dropped": {"batch": {"gradient": 0.0}},
    "gradients_kept": {"batch": {"gradient": 0.25}},
    "warmed_up_long": {"training_begins": {"warmup_steps": 5}},
    "half_without_gradient": {"training_ends": {"forwards": 10, "bare_forwards": 10}},
    "optimizer_forgets": {"training_ends": {"optimizer_age": [8, 1]}},
    "loss_quartered": {"logged": {"loss": lambda loss: loss / 4}},
    "graphed": {"training_ends": {"forwards": 3, "first_losses": {"0": [2.0]}}, "batch": {"gradient": None}},
    "blank_line": {"batch": {"begins_blank": [True, True]}},
    "a_frozen": {"training_ends": {"lora_a": {"total": 8, "moved": 0, "zero": 0}}},
    "a_shrunk": {"training_ends": {"lora_a": {"total": 8, "moved": 8, "zero": 0, "kept": 0.1}}},
    "decayed": {"training_begins": {"weight_decay": 0.5}},
    "evaluation_mode": {"batch": {"training": False, "dropouts": [8, 0]}},
    "other_modes": {"batch": {"training": False}},
    "dropout_off_inside": {"training_begins": {"lora": {"layers": 2, "dropout": [0.0]}}},
    "on_the_cpu": {"training_begins": {"devices": {"cpu": 1_836_828_672}}},
    "partly_on_cpu": {"training_begins": {"devices": {"cuda:0": 1_500_000_000, "cpu": 336_828_672}}},
    "frozen": {"logged": {"grad_norm": 0.0}, "training_ends": {"lora_b": {"total": 2, "moved": 0, "zero": 0}}},
    "rate_zero": {"logged": {"learning_rate": 0.0}},
    "hardly_moved": {"training_ends": {"lora_b": {"total": 2, "moved": 2, "zero": 0, "max_abs": 1e-6}}},
    "few_updates": {"training_ends": {"optimizer_steps": 4}},
    "some_updates_lost": {"training_ends": {"optimizer_steps": 7}},
    "never_stepped": {"training_ends": {"optimizer_steps": 0, "lora_b": {"total": 2, "moved": 0, "zero": 2}}},
    "saved_halfway": {"model_saved": {"step": 5, "in_training": True}},
    "rewritten_after": {"model_saved": {"sha256": "0" * 64}},
    "copied_in": {"model_saved": {"sha256": "0" * 64, "path": "elsewhere"}},
    "rows_cut_short": {"batch": {"shape": [2, 100]}},
    "no_trainer": {"training_begins": {"source": "loop", "trainer": None, "steps_due": None, "rows": None},
                   "training_ends": {"source": "loop", "due": None, "steps": None}, "logged": None},
    "streamed": {"training_begins": {"rows": None, "row_hashes": None, "row_fingerprints": None}},
    "packed": PACKED,
    "rows_packed": PACKED,
    "packed_by_sampler": {"training_begins": {"rows": 40}, "batch": PACKED["batch"]},
    "packed_positions": {"batch": {"packed": True, "ends_with_end_token": False, "misplaced": [0.02, 0.0]},
                         "training_begins": {"rows": 9, "packing": True}},
    "prompts_hidden": {"batch": {"hidden": 12}},
    "some_hidden": {"batch": {"hidden": [12, 0, 0, 0]}},
    "padding_read": {"batch": {"bare_padding": 7}},
    "positions_alike": {"batch": {"misplaced": [1.0, 1.0]}},
    "best_loaded": {"training_ends": {"matrices": _each(lambda name, v: [v[0] / 2, v[1] / 2, v[2]])}},
    "saved_scaled": {"training_ends": {"matrices": _each(lambda name, v: [2 * v[0], 2 * v[1], v[2]])}},
    "saved_otherwise_named": {
        "training_ends": {"matrices": lambda old: {f"other.{name}": v for name, v in old.items()}}
    },
    "one_matrix_lost": {"training_ends": {"matrices": lambda old: {**old, "layers.9.q_proj.lora_A": [1.0, 0.5, 64]}}},
    "base_zeroed": {"training_ends": {"base": {"compared": 30, "changed": 28, "names": ["layers.0.q_proj.weight"]}}},
    "base_touched": {"training_ends": {"base": {"compared": 30, "changed": 1, "names": ["layers.0.q_proj.weight"]}}},
    "layer_replaced": {"training_ends": {"own_code": {"forwards": {"Qwen2MLP": 1}}}},
    "tokens_hooked": {"training_ends": {"own_code": {"hooks": {"Embedding": 1}}}},
    "gradients_hooked": {"training_ends": {"own_code": {"gradient_hooks": {"Linear": 8}}}},
    "faster_norms": {"training_ends": {"own_code": {"forwards": {"Qwen2RMSNorm": 49, "Qwen2ForCausalLM": 1}}}},
    "losses_told": {"logged": {"loss": lambda loss: 3 * loss}},
}  # fmt: skip


def _other_file(run: Run) -> None:
    run.lines = Path("results/finetune/ft_cot_full_norag.jsonl").read_text(encoding="utf-8").splitlines()


def _first_rows_twice(run: Run) -> None:
    run.lines = run.lines[: len(run.lines) // 2] * 2


LINES: dict[str, Callable[[Run], None]] = {
    "other_file": _other_file,
    "first_rows_twice": _first_rows_twice,
}


def _rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Run], None]:
    def damage(run: Run) -> None:
        path = run.folder / name
        path.write_bytes(change(path.read_bytes()))

    return damage


def _header(raw: bytes, old: bytes, new: bytes) -> bytes:
    length = struct.unpack("<Q", raw[:8])[0]
    header = raw[8 : 8 + length].replace(old, new, 1)
    return struct.pack("<Q", len(header)) + header + raw[8 + length :]


def _checkpoint(run: Run) -> Path:
    return run.folder / f"checkpoint-{run.steps}"


def _remove_checkpoint(run: Run) -> None:
    _checkpoint(run).rename(run.folder / "saved")


def _bin_only(run: Run) -> None:
    (run.folder / "adapter_model.safetensors").rename(run.folder / "adapter_model.bin")


def _link_to_old(run: Run) -> None:
    path, old = run.folder / "adapter_model.safetensors", run.folder.parent / "old.safetensors"
    path.rename(old)
    age(old)
    path.symlink_to(old.resolve())


def _leftover(run: Run) -> None:
    old = run.folder / "checkpoint-500"
    old.mkdir()
    (old / "trainer_state.json").write_text('{"global_step": 500, "log_history": []}', encoding="utf-8")
    age(old / "trainer_state.json")


def _state(change: Callable[[dict[str, object]], object]) -> Callable[[Run], None]:
    def damage(run: Run) -> None:
        path = _checkpoint(run) / "trainer_state.json"
        path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")

    return damage


def _retried(run: Run, *, steps: int, told: str) -> None:
    """A run of so many steps before the one that is written, and what was printed between them."""
    for step in range(1, steps + 1):
        run.show({"loss": run.loss(step), "grad_norm": run.grad_norm(step), "epoch": run.epoch(step),
                  "learning_rate": run.learning_rate * run.rate(step / run.steps)})  # fmt: skip
    print(told)


def _final_line_first(run: Run) -> None:
    run.show(run.speed() | {"train_loss": 1.2947, "epoch": 1.0})
    run.final_line = False


def _rewrite_input(name: str) -> Callable[[Run], None]:
    def change(run: Run) -> None:
        path = Path(name)
        path.write_bytes(path.read_bytes() + b"\n")

    return change


FIRST: dict[str, Callable[[Run], object]] = {  # done before training
    "retried": lambda run: _retried(run, steps=5, told="Attempt 1 failed: CUDA error: illegal address. Retrying (2/3)"),
    "retried_at_the_end": lambda run: _retried(run, steps=10, told="Attempt 1 failed: OSError while saving. Retrying"),
    "final_line_first": _final_line_first,
    "train_file_rewritten": lambda run: _rewrite_input(run.args.train_file)(run),
    "dataset_rewritten": _rewrite_input("datasets/lawqa_jp/data/selection.json"),
}


def _history_again(run: Run) -> None:
    """`print(trainer.state.log_history)`, an entry a line, and the final line once more."""
    for entry in run.history:
        print(entry)
    run.show(run.speed() | {"train_loss": sum(entry["loss"] for entry in run.history) / len(run.history), "epoch": 1.0})


def _metrics(**changed: object) -> Callable[[Run], None]:
    """The pipeline's own figures, with these in the place of this run's."""

    def write(run: Run) -> None:
        own = {"tokens_per_second": 91234.5, "steps": run.steps, "epochs": run.epoch(run.steps),
               "losses": [entry["loss"] for entry in run.history], "step_seconds": [0.3] * run.steps,
               "step_tokens": [900] * run.steps}  # fmt: skip
        (run.folder / "train_metrics.json").write_text(json.dumps(own | changed), encoding="utf-8")

    return write


def _at(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() + seconds,) * 2)


def _written_tomorrow(run: Run) -> None:
    for path in run.folder.rglob("*"):
        _at(path, 24 * HOUR_SECONDS)


def _without_copy(run: Run, seconds: float) -> None:
    """No weights in the checkpoint to compare, and the final ones of an earlier or later moment."""
    (_checkpoint(run) / WEIGHTS).unlink()
    _at(run.folder / WEIGHTS, seconds)


def _linked_to_old(run: Run, *, touched: bool) -> None:
    old = Path("old_run").resolve()
    shutil.move(str(run.folder), old)
    for path in old.rglob("*"):
        if touched:
            os.utime(path)
        else:
            age(path)
    run.folder.symlink_to(old)


def _validated(run: Run, figures: tuple[float, ...], best: float, name: str = "eval_loss") -> None:
    """Losses of held-out rows in the history, and one of the figures as the best."""
    path = _checkpoint(run) / "trainer_state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    state["log_history"] += [
        {"eval_loss": 1.0 + n / 100, name: figure, "epoch": 0.3 * n, "step": n} for n, figure in enumerate(figures, 1)
    ]
    state |= {"best_metric": best, "best_model_checkpoint": str(_checkpoint(run).resolve())}
    path.write_text(json.dumps(state), encoding="utf-8")


def _best_loaded(run: Run) -> None:
    """`load_best_model_at_end`: the weights of step 5 are the best ones and are saved at the end."""
    best, last = run.folder / "checkpoint-5", _checkpoint(run)
    shutil.copytree(last, best)
    for folder, change in ((best, {"global_step": 5, "epoch": 0.5}), (last, {"best_model_checkpoint": str(best)})):
        path = folder / "trainer_state.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    weights = early(run)
    for folder in (best, run.folder):
        (folder / WEIGHTS).write_bytes(weights)


def _bf16_at_the_end(run: Run) -> None:
    run.dtype = "BF16"
    (run.folder / WEIGHTS).write_bytes(run.adapter())


def _copied_from_checkpoint(run: Run) -> None:
    """`cp -p`: the same weights, older than the checkpoint's state."""
    _at(_checkpoint(run) / WEIGHTS, -3)
    shutil.copy2(_checkpoint(run) / WEIGHTS, run.folder / WEIGHTS)


def _side_files(run: Run) -> None:
    for name in (".lock", "events.out.tfevents.1"):
        (run.folder / name).write_bytes(b"")


THREAD_DIED = """Exception in thread Thread-1 (save):
Traceback (most recent call last):
  File "scripts/train_qwen_law_ft.py", line 300, in save
OSError: [Errno 28] No space left on device"""


def early(run: Run) -> bytes:
    run.value = lambda name, n: 0.5 * learned(name, n)
    return run.adapter()


def _mean(run: Run) -> bytes:
    """Of the last steps: each matrix is smaller by a share of its own."""
    run.value = lambda name, n: (0.7 + sum(map(ord, name)) % 7 / 30) * learned(name, n)
    return run.adapter()


WEIGHTS = "adapter_model.safetensors"
AFTER: dict[str, Callable[[Run], object]] = {
    "no_adapter": lambda run: (run.folder / WEIGHTS).unlink(),
    "bin_only": _bin_only,
    "empty_adapter": _rewrite(WEIGHTS, lambda raw: b""),
    "truncated_adapter": _rewrite(WEIGHTS, lambda raw: raw[:-100]),
    "padded_adapter": _rewrite(WEIGHTS, lambda raw: raw + b"\0" * 100),
    "header_too_long": _rewrite(WEIGHTS, lambda raw: struct.pack("<Q", 1 << 60) + raw[8:]),
    "header_no_json": _rewrite(WEIGHTS, lambda raw: raw[:8] + b"#" * 40 + raw[48:]),
    "header_wrong_shape": _rewrite(WEIGHTS, lambda raw: _header(raw, b'"shape": [16, 8]', b'"shape": [16, 9]')),
    "header_overlap": _rewrite(WEIGHTS, lambda raw: _header(raw, b"[512, 1024]", b"[0, 512]")),
    "averaged": lambda run: (run.folder / WEIGHTS).write_bytes(_mean(run)),
    "saved_early": lambda run: (run.folder / WEIGHTS).write_bytes(early(run)),
    "state_of_another": _state(lambda state: state | {"epoch": 3.3, "log_history": []}),
    "empty_optimizer": lambda run: (_checkpoint(run) / "optimizer.pt").write_bytes(b""),
    "other_tokenizer": _rewrite("tokenizer.json", lambda raw: raw.replace(b"answer", b"another")),
    "newly_initialized": lambda run: print(NEWLY_INITIALIZED, file=sys.stderr),
    "no_config": lambda run: (run.folder / "adapter_config.json").unlink(),
    "config_no_json": _rewrite("adapter_config.json", lambda raw: raw[: len(raw) // 2]),
    "config_other_kind": _rewrite("adapter_config.json", lambda raw: raw.replace(b"LORA", b"IA3")),
    "no_checkpoint": _remove_checkpoint,
    "no_state": lambda run: (_checkpoint(run) / "trainer_state.json").unlink(),
    "state_no_json": lambda run: (_checkpoint(run) / "trainer_state.json").write_text("{", encoding="utf-8"),
    "state_other_step": _state(lambda state: state | {"global_step": 3}),
    "state_no_step": _state(lambda state: {"log_history": []}),
    "stale_adapter": lambda run: age(run.folder / WEIGHTS),
    "stale_config": lambda run: age(run.folder / "adapter_config.json"),
    "stale_checkpoint": lambda run: age(_checkpoint(run) / "trainer_state.json"),
    "linked_adapter": _link_to_old,
    "leftover_checkpoint": _leftover,
    "exit_one": lambda run: sys.exit(1),
    "saved_by_a_thread": lambda run: print(THREAD_DIED, file=sys.stderr),
    "history_printed_again": _history_again,
    "metrics_of_another": _metrics(epochs=3.0, steps=400, losses=[9.9] * 400, step_seconds=[1.5] * 400),
    "seconds_of_another": _metrics(step_seconds=[1500.0] * 10),
    "losses_of_another": _metrics(losses=[0.7] * 10),
    "own_metrics": _metrics(),
    "written_tomorrow": _written_tomorrow,
    "saved_before_the_end": lambda run: _without_copy(run, -3),
    "saved_after_the_end": lambda run: _without_copy(run, 0),
    "output_linked_to_old": lambda run: _linked_to_old(run, touched=False),
    "output_linked_and_touched": lambda run: _linked_to_old(run, touched=True),
    "best_loaded": _best_loaded,
    "worst_called_best": lambda run: _validated(run, (1.2, 1.1, 1.3), 1.3),
    "least_accurate_called_best": lambda run: _validated(run, (0.5, 0.7, 0.4), 0.4, "eval_accuracy"),
    "lowest_called_best": lambda run: _validated(run, (1.2, 1.1, 1.3), 1.1),
    "bf16_at_the_end": _bf16_at_the_end,
    "copied_from_checkpoint": _copied_from_checkpoint,
    "side_files": _side_files,
    "traceback": lambda run: print("Traceback (most recent call last):\n  …\nValueError: planted", file=sys.stderr),
}


# what goes on in the background when the program has ended; each starts a process of its own and returns
def _daemon(run: Run, *, stubborn: bool = False) -> None:
    """A double-forked process in a session of its own, all streams closed, that rewrites the adapter later."""
    sys.stdout.flush()
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    os.closerange(0, 100)
    if stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(0.8 if stubborn else 3)
    (run.folder / WEIGHTS).write_bytes(early(run))
    time.sleep(60)
    os._exit(0)


def _in_session_of_its_own(run: Run) -> None:
    subprocess.Popen(["sleep", "61"], start_new_session=True, stdin=-3, stdout=-3, stderr=-3)


LEFT_BEHIND: dict[str, Callable[[Run], object]] = {
    "background_left": _in_session_of_its_own,
    "child_holds_stdout": lambda run: subprocess.Popen(["sleep", "40"]),
    "daemon_rewrites": _daemon,
    "daemon_rewrites_at_once": lambda run: _daemon(run, stubborn=True),
}


def main() -> None:
    args, knobs = arguments(), planted()
    defect = str(knobs.get("train") or "")
    run = Run(args, knobs)
    known = (BEFORE, SAID_BEFORE, FIRST, LINES, WITNESSED, AFTER, LEFT_BEHIND, ("cuda_oom",))
    if defect and not any(defect in table for table in known):
        sys.exit(f"unknown defect {defect!r}")
    if not args.do_train:
        print("--do-train が指定されていないため、学習は行いません。")
        return
    asked = {"until_seq": args.max_seq_length, "until_batch": args.batch_size}
    limits = {name: limit for name in asked if isinstance(limit := knobs.get(name), int)}
    if defect == "cuda_oom" and (not limits or any(asked[name] > limit for name, limit in limits.items())):
        sys.exit(OUT_OF_MEMORY)
    for name, value in BEFORE.get(defect, {}).items():
        setattr(run, name, value)
    if defect in LINES:
        LINES[defect](run)
    run.seen = WITNESSED.get(defect, {})
    if defect == "rows_dropped":
        run.steps = args.max_steps_override or run.steps
    times, line = SAID_BEFORE.get(defect, (0, ""))
    for _ in range(times):
        print(line, file=sys.stderr)
    if defect in FIRST:
        FIRST[defect](run)
    run.train()
    run.write()
    facts = SEEN["Facts"](run.seen)
    SEEN["train"](facts, run)
    if defect in AFTER:
        AFTER[defect](run)
    SEEN["save_adapter"](facts, _checkpoint(run), run.steps, in_training=True)
    SEEN["save_adapter"](facts, run.folder, run.steps, in_training=False)
    facts.end()
    if defect in LEFT_BEHIND:
        LEFT_BEHIND[defect](run)


if __name__ == "__main__":
    main()
