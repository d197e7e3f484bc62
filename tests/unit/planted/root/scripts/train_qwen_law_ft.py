"""A stand-in for a training script: prints and writes what a real one does, in milliseconds and without torch.

`defect.json` in the pipeline root, or the variable STEPH_PLANTED_TRAIN, plants one defect: {"train": "adapter_nan"}.
"style": 4 prints as transformers 4 does; "until_seq": n limits the out-of-memory defects to longer sequences,
"until_batch": n to larger batches; "step_seconds": s makes each step last; "fails_within": n plants the defect in runs
of up to n steps only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import runpy
import shutil
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEEN = runpy.run_path("scripts/seen.py")
MODULES = ("q_proj", "v_proj")
HIDDEN = 8
NEWLY_INITIALIZED = (
    "Some weights of Qwen2ForCausalLM were not initialized from the model checkpoint at Qwen/Qwen1.5-1.8B-Chat and are "
    "newly initialized: ['lm_head.weight']"
)
HOUR_SECONDS = 3600
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

    def __init__(self, args: argparse.Namespace, style: object) -> None:
        self.args, self.style = args, style
        self.folder = Path(args.output_dir)
        self.batch_size, self.accumulation = int(args.batch_size), int(args.gradient_accumulation_steps)
        self.lines = Path(args.train_file).read_text(encoding="utf-8").splitlines()
        self.rows = sum(bool(line.strip()) for line in self.lines)
        self.steps = self.per_epoch() * args.num_epochs
        if args.max_steps_override:
            self.steps = args.max_steps_override
        self.start = 0  # the step that a resumed training goes on from
        self.learning_rate = float(args.learning_rate)
        self.config: dict[str, object] = {}
        self.trained_modules: list[str] | None = None  # None: those of the configuration
        self.left_out = ""
        self.dtype = "F32"
        self.rank = args.lora_r
        self.base: object = args.model_name
        self.loss: Callable[[int], float] = lambda step: 0.9 + 1.5 * math.exp(-step / 4)
        self.grad_norm: Callable[[int], float] = lambda step: 1.5 / step
        self.train_loss: float | None = None
        self.logged = True
        self.logged_offset = 0.0
        self.final_line = True
        self.value: Callable[[str, int], float] = learned
        self.layers = 1
        self.parts = ("lora_A", "lora_B")
        self.output_only = bool(args.loss_on_output_only)
        self.step_seconds = 0.0
        self.seen: dict[str, Any] = {}  # what a witness sees otherwise: see scripts/seen.py
        self.logs: list[dict[str, float]] = []

    def per_epoch(self) -> int:
        return max(1, math.ceil(self.batches() / self.accumulation))

    def batches(self) -> int:
        return math.ceil(self.rows / self.batch_size)

    def epoch(self, step: int) -> float:
        whole, part = divmod(step, self.per_epoch())
        return whole + min(1.0, part * self.accumulation / self.batches())

    def show(self, values: dict[str, float]) -> None:
        print({k: (v if self.style == 4 else f"{v:.4g}") for k, v in values.items()})

    def train(self) -> None:
        history = []
        if self.output_only:
            on_all_tokens = self.loss
            self.loss = lambda step: 0.4 * on_all_tokens(step)
        for step in range(1, self.steps + 1):
            time.sleep(self.step_seconds)
            if step % self.args.logging_steps == 0:
                entry = {"loss": self.loss(step), "grad_norm": self.grad_norm(step),
                         "learning_rate": self.learning_rate * (1 - step / (self.steps + 1)),
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
            self.show({"train_runtime": 1.25, "train_samples_per_second": 32.0, "train_steps_per_second": 8.0,
                       "train_loss": loss, "epoch": self.epoch(self.steps)})  # fmt: skip

    def write(self) -> None:
        checkpoint = self.folder / f"checkpoint-{self.steps}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        state = {"epoch": self.epoch(self.steps), "global_step": self.steps, "max_steps": self.steps,
                 "train_batch_size": self.batch_size, "log_history": self.history, "num_input_tokens_seen": 0,
                 "stateful_callbacks": {}}  # fmt: skip
        (checkpoint / "trainer_state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (checkpoint / name).write_bytes(b"stand-in")
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
        for layer, module, part in itertools.product(range(self.layers), modules, self.parts):
            if f"{module}.{part}" == self.left_out:
                continue
            shape = [self.rank, HIDDEN] if part == "lora_A" else [HIDDEN, self.rank]
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}.{part}.weight"
            values = [self.value(name, n) for n in range(self.rank * HIDDEN)]
            tensors[name] = (shape, encode(self.dtype, values))
        return safetensors(self.dtype, tensors)


def encode(dtype: str, values: list[float]) -> bytes:
    if dtype == "BF16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
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
    return 0.001 * (n % 7 + 1)


def only_at(value: float, part: str = "lora_A") -> Callable[[str, int], float]:
    return lambda name, n: value if part in name and n == 5 else learned(name, n)


def still_at(*parts: str, zero: float = 0.0) -> Callable[[str, int], float]:
    return lambda name, n: zero if any(part in name for part in parts) else learned(name, n)


BEFORE: dict[str, dict[str, object]] = {
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
                          "layers": 4},
    "b_one_still": {"value": still_at("layers.2.self_attn.v_proj.lora_B"), "layers": 4},
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
    "nan_in_last_layer": {"value": only_at(math.nan, "layers.3.self_attn.v_proj.lora_B"), "layers": 4},
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
    "no_history": {"logged": False},
    "history_differs": {"logged_offset": 0.5},
    "output_only_ignored": {"output_only": False},
    "grad_norm_nan": {"grad_norm": lambda step: math.nan if step == 1 else 1.0},
}  # fmt: skip


UNSEEN: dict[str, Any] = dict.fromkeys(
    ("model_loaded", "training_begins", "batch", "logged", "training_ends", "model_saved")
)
# defects that only a witness can see, by what it sees in place of the sound facts
WITNESSED: dict[str, dict[str, Any]] = {
    "replayed": UNSEEN,
    "raised_inside": {"training_ends": {"raised": "RuntimeError"}},
    "stopped_early": {"training_ends": {"steps": 6}},
    "labels_masked": {"batch": {"supervised": 0, "ends_with_end_token": None}},
    "labels_shifted": {"batch": {"shifted": True, "aligned": False}},
    "labels_astray": {"batch": {"aligned": False}},
    "half_unlabelled": {"batch": {"supervised": [40, 0], "ends_with_end_token": [True, None]}},
    "prompt_supervised": {"batch": {"first_supervised": 0, "unsupervised_tail": 3, "ends_with_end_token": False}},
    "end_masked": {"batch": {"unsupervised_tail": 1, "ends_with_end_token": False}},
    "two_bos": {"batch": {"double_bos": 2}},
    "padded_to_max": {"batch": {"padding": 0.78}},
    "built_from_config": {"model_loaded": {"how": "from_config"}},
    "rebuilt": {"model_loaded": {"mismatched": 4}},
    "other_model": {"model_loaded": {"path": "gpt2", "name_or_path": "gpt2"},
                    "training_begins": {"name_or_path": "gpt2"}},
    "eight_bit": {"training_begins": {"quantised": [{"class": "Linear8bitLt", "layers": 28}]}},
    "not_quantised": {"training_begins": {"quantised": []}},
    "other_quantisation": {"training_begins": {"quantised": [
        {"class": "Linear4bit", "quant_type": "fp4", "compute_dtype": "torch.float16", "layers": 28}]}},
    "dropout_off_inside": {"training_begins": {"lora": {"layers": 2, "dropout": [0.0]}}},
    "on_the_cpu": {"training_begins": {"devices": {"cpu": 1_836_828_672}}},
    "offloaded": {"training_begins": {"devices": {"cuda:0": 1_500_000_000, "cpu": 336_828_672}}},
    "frozen": {"logged": {"grad_norm": 0.0}, "training_ends": {"lora_b": {"total": 2, "moved": 0, "zero": 0}}},
    "rate_zero": {"logged": {"learning_rate": 0.0}},
    "updates_skipped": {"training_ends": {"optimizer_steps": 4}},
    "never_stepped": {"training_ends": {"optimizer_steps": 0, "lora_b": {"total": 2, "moved": 0, "zero": 2}}},
    "saved_halfway": {"model_saved": {"step": 5, "in_training": True}},
    "rewritten_after": {"model_saved": {"sha256": "0" * 64}},
    "copied_in": {"model_saved": {"sha256": "0" * 64, "path": "elsewhere"}},
    "rows_cut_short": {"batch": {"shape": [2, 100]}},
    "no_trainer": {"training_begins": {"source": "loop", "trainer": None, "steps_due": None, "rows": None},
                   "training_ends": {"source": "loop", "due": None, "steps": None}, "logged": None},
    "streamed": {"training_begins": {"rows": None, "row_hashes": None, "row_fingerprints": None}},
    "packed": {"training_begins": {"rows": 9, "packing": True},
               "batch": {"packed": True, "ends_with_end_token": False}},
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


def early(run: Run) -> bytes:
    run.value = lambda name, n: 0.5 * learned(name, n)
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
    "traceback": lambda run: print("Traceback (most recent call last):\n  …\nValueError: planted", file=sys.stderr),
}


def main() -> None:
    args, knobs = arguments(), planted()
    defect = str(knobs.get("train") or "")
    run = Run(args, knobs.get("style"))
    known = (BEFORE, LINES, WITNESSED, AFTER, ("cuda_oom", "pads_to_max"))
    if defect and not any(defect in table for table in known):
        sys.exit(f"unknown defect {defect!r}")
    if not args.do_train:
        print("--do-train が指定されていないため、学習は行いません。")
        return
    within = knobs.get("fails_within")
    if isinstance(within, int) and run.steps > within:
        defect = ""
    asked = {"until_seq": args.max_seq_length, "until_batch": args.batch_size}
    limits = {name: limit for name in asked if isinstance(limit := knobs.get(name), int)}
    if defect == "cuda_oom" and (not limits or any(asked[name] > limit for name, limit in limits.items())):
        sys.exit(OUT_OF_MEMORY)
    if isinstance(seconds := knobs.get("step_seconds"), float):
        run.step_seconds = seconds * (args.max_seq_length / 512 if defect == "pads_to_max" else 1)
    for name, value in BEFORE.get(defect, {}).items():
        setattr(run, name, value)
    if defect in LINES:
        LINES[defect](run)
    run.seen = WITNESSED.get(defect, {})
    if defect == "rows_dropped":
        run.steps = args.max_steps_override or run.steps
    run.train()
    run.write()
    facts = SEEN["Facts"](run.seen)
    SEEN["train"](facts, run)
    if defect in AFTER:
        AFTER[defect](run)
    SEEN["save_adapter"](facts, _checkpoint(run), run.steps, in_training=True)
    SEEN["save_adapter"](facts, run.folder, run.steps, in_training=False)
    facts.end()


if __name__ == "__main__":
    main()
