"""Makes a twin: a random-weight model with a published model's exact shapes, for rehearsals without a download.

A script for any interpreter that has torch, transformers, tokenizers and safetensors; it knows nothing of the suite:

    python twin.py --config CONFIG.json --output DIR (--tokenizer DIR_OR_JSON | --train-tokenizer FILE…) [--shrink]

The configuration is of any causal language model that transformers knows; of a model that also sees or hears, the twin
is the part that reads and writes text. `--shrink` keeps its architecture alone.

The weights are drawn tensor by tensor on the device and written shard by shard, so that neither the card nor the RAM
must hold the model: bfloat16, and the same each time on the same kind of device. A twin that is there already and
agrees in shape and tokenizer is kept; another twin is replaced whole, any other folder is left alone.
Ends with 0, or with 2 and one line.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKER = "twin.json"
FORMAT = 6  # counted up when the same request would give another twin
SEED, DTYPE = 0, "bfloat16"
SHARD_BYTES = 2 << 30
WRITERS = 2
NORMS_ADD_ONE = ("Gemma2RMSNorm", "Gemma3RMSNorm", "GemmaRMSNorm", "RecurrentGemmaRMSNorm", "Qwen3NextRMSNorm")
STANDARD_DEVIATION = 0.02  # where the configuration has no initializer_range of its own
SMALL_VOCABULARY = 2048
SURE_LOGIT = 20.0  # hidden size times the deviation of the head's weights: what a learnt token can stand out by
HEADS, HEAD_DIM, LAYERS = 4, 16, 2
LEAST_ROWS = 32  # bitsandbytes packs a 4-bit weight for newer processors, and asks for a multiple of so many rows
# what makes a model of any family small, by transformers' names; a key that a family does not have is left out
SMALL_SIZES = {
    "hidden_size": HEADS * HEAD_DIM,
    "intermediate_size": 128,
    "num_attention_heads": HEADS,
    "head_dim": HEAD_DIM,
    "global_head_dim": HEAD_DIM,
    "query_pre_attn_scalar": HEAD_DIM,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": LEAST_ROWS,
    "qk_nope_head_dim": HEAD_DIM,
    "v_head_dim": HEAD_DIM,
    "hidden_size_per_layer_input": LEAST_ROWS,
    "vocab_size_per_layer_input": SMALL_VOCABULARY,
    "num_kv_shared_layers": 0,
}
# of the published weights, their place and their making: nothing that a new model has
_NOT_OF_A_NEW_MODEL = frozenset(
    {"model_type", "_name_or_path", "auto_map", "quantization_config", "dtype", "torch_dtype", "architectures"}
)
LARGEST_TRAINED_VOCABULARY = 32_000
END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# where an answer stands is marked, as `trl sft` needs for labels on answers alone (assistant_only_loss)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# for a base model's tokenizer, which has no token for a turn: what it has anyway, and its end of text behind an answer
PLAIN_TURNS = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
# of Llama 3, Gemma, Phi, ChatML, gpt-oss
TURN_ENDS = ("<|eot_id|>", "<end_of_turn>", "<|end|>", "<|im_end|>", "<|return|>")
# Qwen2Tokenizer's own: transformers 5 loads every qwen model's tokenizer.json as that class and splits text by this,
# so a tokenizer trained otherwise would count other tokens than the model gets
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
)
TOKENIZER_SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": None,
    "eos_token": END,
    "pad_token": END_OF_TEXT,
    "model_max_length": 32768,
    # as Qwen2Tokenizer: transformers 4 would add token_type_ids, which `generate` refuses
    "model_input_names": ["input_ids", "attention_mask"],
    "clean_up_tokenization_spaces": False,
}


class TwinError(Exception):
    """The twin can't be made; the message is one line."""


@dataclass(frozen=True)
class Request:
    """A twin to make in the folder `output`."""

    output: Path
    config: dict[str, Any]
    tokenizer: Path | None  # a folder with tokenizer.json, or None:
    train_files: tuple[Path, ...]  # train one on these files' texts
    shrink: bool

    def digest(self) -> str:
        """The request in one word, contents of the files included."""
        if self.tokenizer:
            files = [self.tokenizer / name for name in TOKENIZER_FILES if (self.tokenizer / name).is_file()]
        else:
            files = [*self.train_files]
        contents = [[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in files]
        kind = "given" if self.tokenizer else "trained"
        text = json.dumps([FORMAT, self.config, SEED, DTYPE, kind, contents, self.shrink], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def main() -> int:
    """Make the twin or keep the one that is there."""
    # so that a folder half-written is taken away on the suite's own way of ending a process
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(128 + signal.SIGTERM))
    try:
        print(run(requested()), flush=True)
    except (TwinError, OSError) as error:
        print(f"twin.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def requested(arguments: Sequence[str] | None = None) -> Request:
    """Read the command line, and check what can be checked before torch is imported; raises TwinError."""
    parser = argparse.ArgumentParser(description="Make a random-weight model with a published model's shapes.")
    parser.add_argument("--config", type=Path, required=True, help="config.json of the model to imitate")
    parser.add_argument("--output", type=Path, required=True, help="folder to write, made anew as a whole")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json, or that file")
    texts = "train a BPE on the texts of these .json and .jsonl files"
    source.add_argument("--train-tokenizer", type=Path, nargs="+", default=(), metavar="FILE", help=texts)
    parser.add_argument("--shrink", action="store_true", help="the same architecture in small sizes")
    options = parser.parse_args(arguments)
    config, tokenizer = read_json(options.config), options.tokenizer
    if not isinstance(config.get("model_type"), str):
        raise TwinError(f"{options.config}: key 'model_type' is missing")
    if tokenizer and tokenizer.name == "tokenizer.json":
        tokenizer = tokenizer.parent
    if tokenizer and not (tokenizer / "tokenizer.json").is_file():
        raise TwinError(f"{options.tokenizer}: no tokenizer.json there")
    return Request(options.output.absolute(), config, tokenizer, tuple(options.train_tokenizer), options.shrink)


def run(request: Request) -> str:
    """Make or keep; the line that says which."""
    began, output, digest = time.monotonic(), request.output, request.digest()
    if is_twin(output, digest):
        return f"twin: kept {output}"
    if output.exists() and not (output / MARKER).is_file() and any(output.iterdir()):
        raise TwinError(f"{output} is there and is no twin; not replaced")
    with building_folder(output) as folder:
        parameters, device = build(request, folder)
        write_marker(folder, request, parameters)
        if not is_twin(output, digest):  # another process may have made it meanwhile, and train on it by now
            old = output.with_name(f".{output.name}.old-{os.getpid()}")
            if output.exists():
                output.rename(old)
            folder.rename(output)
            shutil.rmtree(old, ignore_errors=True)
    seconds = time.monotonic() - began
    return f"twin: wrote {output}: {parameters:,} parameters in {DTYPE}, drawn on {device}, {seconds:.1f} s"


def is_kept(arguments: Sequence[str]) -> bool:
    """Whether the script would find its twin already made and keep it; takes no time and no package beyond Python's."""
    try:
        request = requested(arguments)
        return is_twin(request.output, request.digest())
    except (TwinError, OSError):
        return False


def is_twin(folder: Path, digest: str) -> bool:
    """Whether a whole twin of this digest is there."""
    try:
        marker = read_json(folder / MARKER)
        sizes: dict[str, int] = marker["files"]
        return marker["digest"] == digest and all((folder / f).stat().st_size == size for f, size in sizes.items())
    except (OSError, TwinError, KeyError, AttributeError):
        return False


def write_marker(folder: Path, request: Request, parameters: int) -> None:
    """Say what this folder is, last of all: the file sizes are how a whole twin is known."""
    marker = {
        "format": FORMAT,
        "digest": request.digest(),
        "source_name": request.config.get("_name_or_path", ""),
        "parameters": parameters,
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
    write_json(folder / MARKER, marker)


@contextlib.contextmanager
def building_folder(output: Path) -> Iterator[Path]:
    """A folder beside the output that is gone afterwards unless it was renamed; those of dead processes go too."""
    output.parent.mkdir(parents=True, exist_ok=True)
    for left in output.parent.glob(f".{output.name}.*-*"):
        pid = left.name.rpartition("-")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = output.with_name(f".{output.name}.new-{os.getpid()}")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def build(request: Request, folder: Path) -> tuple[int, str]:
    """Write tokenizer, configuration and weights; the number of parameters and the device they were drawn on."""
    import torch
    from transformers import AutoModelForCausalLM

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = text_model_config(request.config, shrink=request.shrink)
    if request.shrink and request.tokenizer:
        config.vocab_size = max(config.vocab_size, 1 + largest_id(request.tokenizer))
    tokens = write_tokenizer(request.tokenizer, request.train_files, config.vocab_size, folder)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = tokens.bos, tokens.eos, tokens.pad
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        raise TwinError(f"model_type {config.model_type!r} can't be built: {error}".splitlines()[0]) from error
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    ids = {"bos_token_id": tokens.bos, "eos_token_id": [*tokens.ends], "pad_token_id": tokens.pad}
    write_json(folder / "generation_config.json", {**ids, "_from_model_config": False})
    parameters = sum(parameter.numel() for parameter in model.parameters())
    needed_bytes, free_bytes = parameters * torch.bfloat16.itemsize, shutil.disk_usage(folder).free
    if free_bytes < needed_bytes + (1 << 28):
        raise TwinError(f"the weights need {needed_bytes / 2**30:.2f} GiB, {folder} has {free_bytes / 2**30:.2f} GiB")
    gc.enable()  # the imports are over
    write_weights(model, device, folder)
    return parameters, str(device)


def write_weights(model: Any, device: Any, folder: Path) -> None:  # noqa: ANN401 - torch is imported late
    """Draw each tensor on the device and write shards beside the drawing, a few in memory at a time.

    A norm's weight is what a new one holds: 1, or 0 where the model adds 1 itself; biases are 0, all else is normal.
    Gemma multiplies its embeddings by the root of the hidden size. They are drawn that much smaller, else a model of
    random weights whose head is its embedding says nothing but the last token again, and an answer is empty.
    """
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    deviation = float(getattr(model.config, "initializer_range", None) or STANDARD_DEVIATION)
    embedding_scale = model.config.hidden_size**-0.5 if type(model).__name__.startswith("Gemma") else 1.0
    norms = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if "norm" in kind.lower() and getattr(module, "weight", None) is not None:
            norms[f"{name}.weight"] = 0.0 if kind.startswith(NORMS_ADD_ONE) else 1.0
    dtype, generator = torch.bfloat16, torch.Generator(device).manual_seed(SEED)

    def drawn(name: str, shape: tuple[int, ...]) -> Any:  # noqa: ANN401
        if name in norms or name.endswith("norm.weight"):
            return torch.full(shape, norms.get(name, 1.0), dtype=dtype)
        if name.endswith(("bias", "_bias")):
            return torch.zeros(shape, dtype=dtype)
        scale = embedding_scale if name.endswith("embed_tokens.weight") else 1.0
        weights = torch.empty(shape, dtype=dtype, device=device)
        return weights.normal_(0.0, deviation * scale, generator=generator).cpu()

    # a tied head is the embedding's own tensor, and named_parameters names it once
    empty = {name: torch.empty_like(one, dtype=dtype, device="meta") for name, one in model.named_parameters()}
    shards = split_torch_state_dict_into_shards(empty, max_shard_size=SHARD_BYTES)
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(WRITERS) as writers:
        for file, names in shards.filename_to_tensors.items():
            if len(pending) == WRITERS:
                pending.popleft().result()
            tensors = {name: drawn(name, tuple(empty[name].shape)) for name in names}
            pending.append(writers.submit(save_file, tensors, folder / file, {"format": "pt"}))
        for future in pending:
            future.result()
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


def text_model_config(published: dict[str, Any], *, shrink: bool = False) -> Any:  # noqa: ANN401
    """The configuration of the text model in a published config.json, as transformers has it.

    `shrink`: same architecture, two layers or one of each kind, widths of 64 and 128, a vocabulary of 2048. Raises
    TwinError for a model that transformers does not know, or that is no causal language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = published["model_type"]
    settings = {key: value for key, value in published.items() if key not in _NOT_OF_A_NEW_MODEL}
    try:
        config = AutoConfig.for_model(kind, **settings, dtype=DTYPE).get_text_config(decoder=True)
        if shrink:
            config = AutoConfig.for_model(config.model_type, **small_values(config), dtype=DTYPE)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TwinError(f"model_type {kind!r}: transformers makes no configuration of it: {reason}") from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise TwinError(f"model_type {kind!r}: no causal language model that transformers knows")
    return config


def small_values(config: Any) -> dict[str, Any]:  # noqa: ANN401 - transformers is imported late
    """The values of a configuration with the sizes of a small model, in the family's own names."""
    names = config.attribute_map
    values = {key: value for key, value in config.to_dict().items() if key not in _NOT_OF_A_NEW_MODEL}
    small: dict[str, Any] = {names.get(key, key): size for key, size in SMALL_SIZES.items()}
    # as many as heads, one where a head can be wide enough, or half of the heads: as the published model shares them
    heads, shared = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    has_width = values.get(names.get("head_dim", "head_dim")) is not None
    sharing = HEADS if shared in (None, heads) else 1 if shared == 1 and has_width else HEADS // 2
    small[names.get("num_key_value_heads", "num_key_value_heads")] = sharing
    if sharing == 1:
        small |= {names.get(key, key): LEAST_ROWS for key in ("head_dim", "global_head_dim", "query_pre_attn_scalar")}
    layers, kinds = LAYERS, values.get("layer_types")
    if kinds:
        small["layer_types"] = [*dict.fromkeys(kinds)] if len(set(kinds)) > 1 else kinds[:LAYERS]
        layers = len(small["layer_types"])
    of_layers = {
        name: value for name, value in values.items() if isinstance(value, (list, tuple)) and name != "layer_types"
    }
    values |= {name: value[:layers] for name, value in of_layers.items() if len(value) == config.num_hidden_layers}
    values |= {name: size for name, size in small.items() if values.get(name) is not None}
    values[names.get("num_hidden_layers", "num_hidden_layers")] = layers
    values[names.get("vocab_size", "vocab_size")] = min(config.vocab_size, SMALL_VOCABULARY)
    values["initializer_range"] = SURE_LOGIT / (HEADS * HEAD_DIM)  # a narrow model is as sure as a wide one
    for name in ("rope_scaling", "rope_parameters"):
        if "longrope" in str(values.get(name)):  # it has a factor for each number of a head of one width
            values[name] = None
    values |= {f"{token}_token_id": None for token in ("bos", "eos", "pad")}  # of the published vocabulary
    return values


@dataclass(frozen=True)
class SpecialTokens:
    """The ids of a tokenizer's special tokens; `ends` are those that end an answer, `eos` the first of them."""

    bos: int
    eos: int
    pad: int
    ends: tuple[int, ...]


def write_tokenizer(given: Path | None, train_files: Sequence[Path], vocab_size: int, folder: Path) -> SpecialTokens:
    """Copy a tokenizer, or train a byte-level BPE on the texts of these files: any text can be encoded, these in few
    tokens.

    It has a chat template in any case: its own, else ChatML or, without ChatML's tokens, plain turns. The special
    tokens are ChatML's, else those that the tokenizer's own settings name and those of other families that end a turn.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer_config.json"
    if given:
        for name in TOKENIZER_FILES:
            if (given / name).is_file():
                shutil.copyfile(given / name, folder / name)
        settings = read_json(path) if path.is_file() else TOKENIZER_SETTINGS
    else:
        train_tokenizer(train_files, vocab_size, folder)
        settings = TOKENIZER_SETTINGS
    tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
    has_chatml = all(tokenizer.token_to_id(token) is not None for token in (END_OF_TEXT, START, END))
    if "chat_template" not in settings and not (folder / "chat_template.jinja").is_file():
        settings = {**settings, "chat_template": CHATML if has_chatml else PLAIN_TURNS}
    write_json(path, settings)
    largest = largest_id(folder)
    if largest >= vocab_size:
        raise TwinError(f"the tokenizer's largest id {largest} doesn't fit the model's vocab_size {vocab_size}")
    if has_chatml:
        end_of_text, end = tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(END)
        return SpecialTokens(end_of_text, end, end_of_text, (end, end_of_text))

    def named(key: str) -> int | None:
        value = settings.get(key)
        token = value.get("content") if isinstance(value, dict) else value
        return tokenizer.token_to_id(token) if isinstance(token, str) else None

    bos, eos, pad = named("bos_token"), named("eos_token"), named("pad_token")
    if eos is None:
        raise TwinError(f"{given}: tokenizer_config.json names no eos_token that the tokenizer has")
    turns = {tokenizer.token_to_id(token) for token in TURN_ENDS} - {None, eos}
    return SpecialTokens(eos if bos is None else bos, eos, eos if pad is None else pad, (eos, *sorted(turns)))


def largest_id(folder: Path) -> int:
    """The largest id of a tokenizer; there may be smaller ones that nothing stands for."""
    from tokenizers import Tokenizer

    return max(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True).values())


def train_tokenizer(files: Sequence[Path], vocab_size: int, folder: Path) -> None:
    """Train the tokenizer's own part, `tokenizer.json`."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, LARGEST_TRAINED_VOCABULARY),
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for file in files for text in texts_of(file)), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


def texts_of(file: Path) -> list[str]:
    """Every text in a JSON file, in the lines of a JSON-lines file, or in a table; keys are none."""

    def strings_in(value: Any) -> Iterator[str]:  # noqa: ANN401 - whatever JSON holds
        if isinstance(value, str):
            yield value
        elif isinstance(value, list | dict):
            for item in value.values() if isinstance(value, dict) else value:
                yield from strings_in(item)

    try:
        content = file.read_text(encoding="utf-8-sig")
        if file.suffix in (".csv", ".tsv"):
            return content.splitlines()
        parts = [line for line in content.split("\n") if line.strip()] if file.suffix == ".jsonl" else [content]
        texts = [text for part in parts for text in strings_in(json.loads(part))]
    except UnicodeDecodeError as error:
        raise TwinError(f"{file}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise TwinError(f"{file}: not JSON: {error}") from error
    if not texts:
        raise TwinError(f"{file}: no text to train a tokenizer on")
    return texts


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; TwinError where the file holds something else."""
    # not base/files.py's reader: this runs in an interpreter that need not know the suite
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise TwinError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise TwinError(f"{path}: no JSON object")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """JSON with Japanese readable."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    gc.disable()  # a fifth of importing torch and transformers, whose objects all stay
    sys.exit(main())
