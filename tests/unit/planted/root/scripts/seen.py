"""What hooks in the process of a real program would write of this stand-in: one fact a line, for whoever looks.

The scripts load it with `runpy`, from the pipeline root. Facts go to the folder in STEPH_PROBE_DIR, none where that is
unset. `changes` plants a defect that can be seen in a process alone: {fact: {key: value}}; a value for a list goes to
each of its rows, a function makes one of the old value, and None in the place of the keys leaves the whole fact out.
"""

from __future__ import annotations

# ruff: noqa: ANN401  the scripts' own `Run` can't be imported
import contextlib
import hashlib
import json
import math
import os
import struct
import time
import unicodedata
from pathlib import Path
from typing import Any

MOST_CALLS = 16
LINEAR_LAYERS, PARAMETERS = 28, 1_836_828_672


def text_hash(text: str) -> str:
    return hashlib.blake2b(_squeezed(text).encode(), digest_size=8).hexdigest()


def fingerprints(text: str) -> list[str]:
    codes, bits, value = [0] * 12 + list(map(ord, _squeezed(text))), (1 << 32) - 1, 0
    kept: dict[str, None] = {}
    for place in range(12, len(codes)):  # a piece's hash follows from the one before it
        value = (value * 0x01000193 + codes[place] - codes[place - 12] * 0xD38C7031) & bits
        mixed = ((value ^ (value >> 15)) * 0x2C1B3C6D) & bits
        mixed ^= mixed >> 12
        if place > 22 and mixed % 8 == 0:
            kept[f"{mixed:08x}"] = None
    return list(kept)


def _squeezed(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def sha256_of(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def matrices(data: bytes) -> dict[str, list[float]]:
    """The norm, the sum and the size of each LoRA matrix of a safetensors file, by its layer's name."""
    length = struct.unpack("<Q", data[:8])[0]
    found = {}
    for key, entry in json.loads(data[8 : 8 + length]).items():
        code = {"F32": "f", "F64": "d", "F16": "e", "BF16": "f"}.get(entry.get("dtype", ""))
        name = key.removesuffix(".weight").replace("_orig_mod.", "").removeprefix("base_model.model.")
        if code is None or not name.endswith(("_A", "_B")):
            continue
        raw = data[8 + length + entry["data_offsets"][0] : 8 + length + entry["data_offsets"][1]]
        if entry["dtype"] == "BF16":
            raw = b"".join(b"\0\0" + raw[n : n + 2] for n in range(0, len(raw), 2))
        values = struct.unpack(f"<{len(raw) // struct.calcsize(code)}{code}", raw)
        found[name] = [math.sqrt(sum(value * value for value in values)), sum(values), len(values)]
    return found


NO_OWN_CODE: dict[str, Any] = {"forwards": {}, "hooks": {}, "gradient_hooks": {}}
BASE_AS_LOADED = {"compared": 30, "changed": 0, "names": []}


def line_hashes(text: str) -> list[str]:
    return [text_hash(line)[:8] for line in text.splitlines() if line.strip()]


def rendered(prompt: str, answer: str = "") -> str:
    """As a chat template does it."""
    return f"system\nあなたは親切なアシスタントです。\nuser\n{prompt}\nassistant\n{answer}"


class Facts:
    """The file of one process; `write` appends a fact to it."""

    def __init__(self, changes: dict[str, Any]) -> None:
        folder, rank = os.environ.get("STEPH_PROBE_DIR"), os.environ.get("RANK", "none")
        self.path = Path(folder) / f"witness-{rank}-{os.getpid()}.jsonl" if folder else None
        self.changes = changes
        self.calls: dict[str, int] = {}
        for module in ("transformers", "bitsandbytes", "peft"):
            self.write("hooked", module=module, version="stand-in")

    def write(self, fact: str, **values: Any) -> None:
        change = self.changes.get(fact, {})
        if self.path is None or change is None:
            return
        for key, value in change.items():
            old = values.get(key)
            value = value(old) if callable(value) else value
            if isinstance(old, list) and value is not None and not isinstance(value, list):
                value = [value] * len(old)
            values[key] = value
        # a full disk costs facts and nothing else
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"fact": fact, "at": time.time(), **values}) + "\n")

    def call(self, fact: str, **values: Any) -> None:
        """A call of the model; only the first ones are written, all are counted."""
        self.calls[fact] = self.calls.get(fact, 0) + 1
        if self.calls[fact] <= MOST_CALLS:
            self.write(fact, **values)

    def end(self) -> None:
        names = {"generation": "generations", "scoring": "scorings", "generation_raised": "raised"}
        seen = {names[fact]: {"all": n} for fact, n in self.calls.items() if self.changes.get(fact, {}) is not None}
        self.write("ended", hook_seconds=0.01, **seen)


def model(name: str, four_bit: bool, quant_type: str = "nf4", compute_dtype: str = "bfloat16") -> dict[str, Any]:
    quantised = {"class": "Linear4bit", "quant_type": quant_type, "compute_dtype": f"torch.{compute_dtype}",
                 "double_quant": True, "layers": LINEAR_LAYERS}  # fmt: skip
    return {"name_or_path": name, "class": "Qwen2ForCausalLM", "quantised": [quantised] if four_bit else [],
            "unquantised_linears": 1 if four_bit else 1 + LINEAR_LAYERS, "parameters": PARAMETERS,
            "devices": {"cuda:0": PARAMETERS}, "eos": [151645], "bos": None}  # fmt: skip


def load_model(facts: Facts, name: str, values: dict[str, Any]) -> None:
    facts.write("model_loaded", how="from_pretrained", path=name, missing=0, mismatched=0, generates=True, **values)


def train(facts: Facts, run: Any) -> None:
    """A training by the Trainer, from loading the model to the last step."""
    args, names = run.args, [f"layers.{n}.self_attn.{m}" for n in run.layers for m in run.modules()]
    values = model(args.model_name, args.use_4bit, args.bnb_4bit_quant_type, args.bnb_4bit_compute_dtype)
    load_model(facts, args.model_name, values)
    root = run.rank**0.5 if run.config.get("use_rslora") else run.rank
    lora = {"layers": len(names), "modules": dict.fromkeys(run.modules(), len(run.layers)), "rank": [run.rank],
            "scaling": [args.lora_alpha / root], "dropout": [args.lora_dropout], "adapters": ["default"],
            "active": ["default"], "trained_parameters": 2 * len(names) * run.rank * 8}  # fmt: skip
    if facts.changes.get("adapter_loaded"):
        facts.write("adapter_loaded", path=None, sha256="0" * 64, missing=0, unexpected=0, layers=2, scaling=[2.0])
    rows = [json.loads(line) for line in run.lines if line.strip()][: run.rows]
    texts = [rendered(row["input"], row["output"]) for row in rows]
    width = facts.changes.get("batch", {}) and facts.changes["batch"].get("shape", [0, 0])[1]
    texts = [text[:width] for text in texts] if width else texts
    facts.write(
        "training_begins", source="trainer", trainer="Trainer", rows=run.rows,
        row_hashes=[text_hash(text)[:8] for text in texts], row_fingerprints=list(map(fingerprints, texts[:32])),
        batch_size=run.batch_size, accumulation=run.accumulation, world_size=int(os.environ.get("WORLD_SIZE", "1")),
        steps_due=run.steps, learning_rate=run.learning_rate, schedule="linear", max_length=args.max_seq_length,
        precision="bf16" if args.bf16 else "fp16" if args.fp16 else "fp32", packing=False, resumed=run.start > 0,
        lora=lora, **values,
    )  # fmt: skip
    for first in range(0, min(len(rows), 8 * run.batch_size), run.batch_size):
        _batch(facts, run, rows[first : first + run.batch_size], first // run.batch_size)
    for entry in run.logs:
        facts.write("logged", **{key: _number(value) for key, value in entry.items()})
    zero = sum(
        all(run.value(f"base_model.model.model.{name}.lora_B.weight", n) == 0 for n in range(9)) for name in names
    )
    moved = {"total": len(names), "moved": len(names), "zero": 0}
    numbers = {name: [_number(value) for value in values] for name, values in matrices(run.adapter()).items()}
    facts.write("training_ends", source="trainer", steps=run.steps, due=run.steps, optimizer_steps=run.steps,
                forwards=run.steps * run.accumulation, bare_forwards=0, optimizer_age=[min(8, run.steps)] * 2,
                first_losses=_first_losses(run), lora_a=moved,
                lora_b=moved | {"moved": len(names) - zero, "zero": zero}, matrices=numbers,
                base=BASE_AS_LOADED, own_code=NO_OWN_CODE)  # fmt: skip


def _first_losses(run: Any) -> dict[str, list[float | str]]:
    parts = [entry["loss"] / run.accumulation for entry in run.logs if "loss" in entry and entry["step"] <= 4]
    return {str(n): [_number(part)] * run.accumulation for n, part in enumerate(parts)}


def _batch(facts: Facts, run: Any, rows: list[dict[str, Any]], n_before: int) -> None:
    """One character is one token, an end token more is at each row's end."""
    whole = [len(rendered(row["input"], row["output"])) + 1 for row in rows]
    lengths = [min(length, run.args.max_seq_length) for length in whole]
    taught = run.taught(rows) if run.taught else [row["output"] for row in rows]
    answers = [len(text) + 1 for text in taught] if run.output_only or run.taught else lengths
    width, n = max(lengths), len(rows)
    facts.write(
        "batch", shape=[n, width], supervised=answers, ends_with_end_token=[True] * n, unsupervised_tail=[0] * n,
        first_supervised=[length - answer for length, answer in zip(lengths, answers, strict=True)], aligned=True,
        shifted=False, double_bos=0, padding=1 - sum(lengths) / (n * width), packed=False,
        training=True, grad=True, dropouts=[8, 8], special_tokens=[5] * n, hidden=[0] * n,
        bare_padding=[0] * n, misplaced=None, step=n_before // run.accumulation,
        gradient=0.25 if n_before % run.accumulation else 0.0,
        row_hashes=[text_hash(rendered(row["input"], row["output"]))[:8] for row in rows],
        answer_hashes=[text_hash(text) for text in taught], unlabelled_end_hashes=[text_hash("")] * n,
        lead_hashes=[["00ff00ff", "ab12cd34"]] * n, begin_hashes=[["77aa77aa"]] * n, nested=[False] * n,
    )  # fmt: skip


def _number(value: float) -> float | str:
    return value if value == value and abs(value) != float("inf") else str(value)


def save_adapter(facts: Facts, folder: Path, step: int, in_training: bool) -> None:
    path = folder / "adapter_model.safetensors"
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, struct.error):
        known = {name: [_number(one) for one in value] for name, value in matrices(path.read_bytes()).items()}
    facts.write("model_saved", path=str(folder.resolve()), adapter=True, sha256=sha256_of(path), step=step,
                in_training=in_training, matrices=known or None)  # fmt: skip


def evaluate(facts: Facts, run: Any, raised: set[int]) -> None:
    """An evaluation row by row; the calls for the rows in `raised` raise.

    `run.asked` and `run.said` tell what the model was given and what it said; `run.also_said`: what it said before that
    without the adapter, `run.also_tried`: with it.
    """
    args, name = run.args, str(run.hf_model or run.args.hf_model_name)
    values = model(name, args.hf_load_in_4bit)
    load_model(facts, name, values)
    state: dict[str, Any] = {"adapters": [], "layers": 0, "disabled": 0, "merged": 0, "scaling": [], "sha256": None}
    if run.lora:
        sha256 = sha256_of(Path(run.lora) / "adapter_model.safetensors") or 4 * text_hash(run.lora)
        state |= {"adapters": ["default"], "layers": 2, "scaling": [2.0], "sha256": sha256}
        merged = facts.changes.get("generation")
        if merged and isinstance(merged.get("merged_sha256"), str):
            merged["merged_sha256"] = [sha256]
            facts.write("adapter_merged", adapter=["default"], sha256=[sha256], scaling=[2.0])
        facts.write("adapter_loaded", path=run.lora, sha256=sha256, missing=0, unexpected=0, layers=2, scaling=[2.0])
    path = Path(run.lora or "") / "adapter_model.safetensors"
    state["matrices"] = matrices(path.read_bytes()) if run.lora and path.is_file() else None
    for n, row in enumerate(run.rows):
        if n in raised:
            facts.call("generation_raised", error="RuntimeError", **state)
            continue
        if run.also_said:
            bare = {"adapters": ["default"], "layers": 2, "disabled": 2, "merged": 0, "scaling": [2.0], "sha256": None}
            facts.call("generation", **_generation(run, row, run.also_said(n, row)), **bare, **values)
        for said in (*(run.also_tried(n, row) if run.also_tried else ()), run.said(n, row)):
            facts.call("generation", **_generation(run, row, said), **state, **values)


def _generation(run: Any, row: dict[str, Any], said: str) -> dict[str, Any]:
    prompt, tokens, limit = rendered(run.asked(row)), row.get("new_tokens"), 2048
    said = said if not isinstance(tokens, int) else said[: 4 * tokens]
    lines = said.strip().splitlines() or [""]
    hashes = [text_hash(text) for text in (said, said.rpartition("</think>")[2], lines[0], lines[-1])]
    first = text_hash(said[0]) if said[:2].isascii() and said[:2].isalnum() and len(said) > 1 else None
    stopped = len(said) < limit and row.get("finish_reason") != "length"
    return {"rows": 1, "prompt_tokens": [len(prompt)], "prompt_hashes": [text_hash(prompt)[:8]],
            "prompt_fingerprints": [fingerprints(prompt)], "special_tokens": [5],
            "lead_hashes": [["00ff00ff", "ab12cd34"]], "thinks": [False], "nested": [False],
            "new_tokens": [len(said) + 1 if tokens is None else tokens],
            "stopped": [stopped], "limit": limit, "response_hashes": [hashes],
            "response_fingerprints": [fingerprints(said)], "first_characters": [first], "do_sample": False,
            "device": "cuda:0", "steering": {},
            "prompt_lines": [line_hashes(prompt)], "hidden": [0], "bare_padding": [0], "padding_behind": [False],
            "misplaced": None, "base": BASE_AS_LOADED, "own_code": NO_OWN_CODE}  # fmt: skip
