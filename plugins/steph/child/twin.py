"""Makes a twin: a random-weight model with a published model's exact shapes, for rehearsals without a download.

A script for any interpreter that has torch, transformers, tokenizers and safetensors; it knows nothing of the suite:

    python twin.py --config CONFIG.json --output DIR (--tokenizer DIR_OR_JSON | --train-tokenizer FILE…) [--shrink]

The configuration is of any causal language model that transformers knows; `--shrink` keeps its architecture alone.

The weights are drawn tensor by tensor on the device and written shard by shard, so that neither the card nor the RAM
must hold the model. The same seed gives the same weights on the same kind of device. A twin that is there already and
agrees in shape, seed, dtype and tokenizer is kept; another twin is replaced whole, any other folder is left alone.
Ends with 0, or with 2 and one line.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

if __package__:
    from steph.child.twin_config import text_model_config
    from steph.child.twin_tokenizer import (
        TOKENIZER_FILES,
        TwinError,
        read_json,
        tokenizer_size,
        write_json,
        write_tokenizer,
    )
else:  # as a script, in an interpreter that need not know the suite
    from twin_config import text_model_config  # type: ignore[import-not-found, no-redef]
    from twin_tokenizer import (  # type: ignore[import-not-found, no-redef]
        TOKENIZER_FILES,
        TwinError,
        read_json,
        tokenizer_size,
        write_json,
        write_tokenizer,
    )

MARKER = "twin.json"
FORMAT = 4  # counted up when the same request would give another twin
SHARD_BYTES = 2 << 30
WRITERS = 2
NORMS_ADD_ONE = ("Gemma2RMSNorm", "Gemma3RMSNorm", "GemmaRMSNorm", "RecurrentGemmaRMSNorm", "Qwen3NextRMSNorm")
STANDARD_DEVIATION = 0.02  # where the configuration has no initializer_range of its own


@dataclass(frozen=True)
class Request:
    """What makes one twin differ from another."""

    config: dict[str, Any]
    seed: int
    dtype: str
    tokenizer: Path | None  # a folder with tokenizer.json, or None:
    train_files: tuple[Path, ...]  # train one on these files' texts
    shrink: bool = False  # the architecture in small sizes

    def digest(self) -> str:
        """The request in one word, contents of the files included."""
        if self.tokenizer:
            files = [self.tokenizer / name for name in TOKENIZER_FILES if (self.tokenizer / name).is_file()]
        else:
            files = [*self.train_files]
        contents = [[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in files]
        kind = "given" if self.tokenizer else "trained"
        text = json.dumps([FORMAT, self.config, self.seed, self.dtype, kind, contents, self.shrink], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Make the twin or keep the one that is there."""
    options = parse(arguments)
    # so that a folder half-written is taken away on the suite's own way of ending a process
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(128 + signal.SIGTERM))
    try:
        print(run(options), flush=True)
    except (TwinError, OSError) as error:
        print(f"twin.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make a random-weight model with a published model's shapes.")
    parser.add_argument("--config", type=Path, required=True, help="config.json of the model to imitate")
    parser.add_argument("--output", type=Path, required=True, help="folder to write, made anew as a whole")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json, or that file")
    texts = "train a BPE on the texts of these .json and .jsonl files"
    source.add_argument("--train-tokenizer", type=Path, nargs="+", default=(), metavar="FILE", help=texts)
    parser.add_argument("--shrink", action="store_true", help="the same architecture in small sizes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--device", default="auto", help="where to draw the weights: auto, cpu, cuda, cuda:1, ...")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> str:
    """Make or keep; the line that says which."""
    began = time.monotonic()
    request = read_request(options)
    output: Path = options.output.absolute()
    digest = request.digest()
    if is_twin(output, digest):
        return f"twin: kept {output}"
    if output.exists() and not (output / MARKER).is_file() and any(output.iterdir()):
        raise TwinError(f"{output} is there and is no twin; not replaced")
    with building_folder(output) as folder:
        parameters, device = build(request, folder, options.device)
        write_marker(folder, request, digest, parameters)
        if not is_twin(output, digest):  # another process may have made it meanwhile, and train on it by now
            replace(output, folder)
    seconds = time.monotonic() - began
    return f"twin: wrote {output}: {parameters:,} parameters in {request.dtype}, drawn on {device}, {seconds:.1f} s"


def read_request(options: argparse.Namespace) -> Request:
    """Check what can be checked before torch is imported."""
    config = read_json(options.config)
    if not isinstance(config.get("model_type"), str):
        raise TwinError(f"{options.config}: key 'model_type' is missing")
    tokenizer = options.tokenizer
    if tokenizer and tokenizer.name == "tokenizer.json":
        tokenizer = tokenizer.parent
    if tokenizer and not (tokenizer / "tokenizer.json").is_file():
        raise TwinError(f"{options.tokenizer}: no tokenizer.json there")
    return Request(config, options.seed, options.dtype, tokenizer, tuple(options.train_tokenizer), options.shrink)


def is_kept(arguments: list[str]) -> bool:
    """Whether the script would find its twin already made and keep it; takes no time and no package beyond Python's."""
    try:
        options = parse(arguments)
        return is_twin(options.output.absolute(), read_request(options).digest())
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


def build(request: Request, folder: Path, device_name: str) -> tuple[int, str]:
    """Write tokenizer, configuration and weights; the number of parameters and the device they were drawn on."""
    import torch
    from transformers import AutoModelForCausalLM

    if device_name == "auto":
        device_name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device_name)
    except RuntimeError as error:
        raise TwinError(f"--device {device_name}: {str(error).splitlines()[0]}") from error
    dtype = getattr(torch, request.dtype)
    config = text_model_config(request.config, request.dtype, shrink=request.shrink)
    if request.shrink and request.tokenizer:
        config.vocab_size = max(config.vocab_size, tokenizer_size(request.tokenizer))
    tokens = write_tokenizer(request.tokenizer, request.train_files, config.vocab_size, folder)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = tokens.bos, tokens.eos, tokens.pad
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        raise TwinError(f"model_type {config.model_type!r} can't be built: {error}".splitlines()[0]) from error
    # a tied head is the embedding's own tensor, and named_parameters names it once
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    ids = {"bos_token_id": tokens.bos, "eos_token_id": [*tokens.ends], "pad_token_id": tokens.pad}
    write_json(folder / "generation_config.json", {**ids, "_from_model_config": False})
    check_disk(folder, shapes, dtype.itemsize)
    deviation = float(getattr(config, "initializer_range", None) or STANDARD_DEVIATION)
    write_weights(folder, shapes, dtype, device, request.seed, deviations_of(model, deviation), norms_of(model))
    return sum(prod(shape) for shape in shapes.values()), str(device)


def deviations_of(model: Any, deviation: float) -> dict[str, float]:  # noqa: ANN401 - torch is imported late
    """The standard deviation of each parameter by name.

    Gemma multiplies its embeddings by the root of the hidden size. They are drawn that much smaller, else a model of
    random weights whose head is its embedding says nothing but the last token again, and an answer is empty.
    """
    scaled = type(model).__name__.startswith("Gemma")
    smaller = deviation / model.config.hidden_size**0.5 if scaled else deviation
    names = [name for name, _ in model.named_parameters()]
    return {name: smaller if name.endswith("embed_tokens.weight") else deviation for name in names}


def norms_of(model: Any) -> dict[str, float]:  # noqa: ANN401 - torch is imported late
    """The weights of a model's norms by name, each with what a new one holds: 1, or 0 where the model adds 1 itself."""
    found = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if "norm" in kind.lower() and getattr(module, "weight", None) is not None:
            found[f"{name}.weight"] = 0.0 if kind.startswith(NORMS_ADD_ONE) else 1.0
    return found


def write_weights(
    folder: Path,
    shapes: dict[str, tuple[int, ...]],
    dtype: Any,  # noqa: ANN401 - torch is imported late
    device: Any,  # noqa: ANN401
    seed: int,
    deviations: dict[str, float] | None = None,
    norms: dict[str, float] | None = None,
) -> None:
    """Draw each tensor on the device and write shards beside the drawing, a few in memory at a time."""
    import torch
    from safetensors.torch import save_file

    shards = list(split(shapes, dtype.itemsize))
    names = shard_names(len(shards))
    generator = torch.Generator(device).manual_seed(seed)
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(WRITERS) as writers:
        for file, names_in_shard in zip(names, shards, strict=True):
            if len(pending) == WRITERS:
                pending.popleft().result()
            tensors = {
                name: draw(
                    name,
                    shapes[name],
                    dtype,
                    device,
                    generator,
                    (deviations or {}).get(name, STANDARD_DEVIATION),
                    (norms or {}).get(name),
                )
                for name in names_in_shard
            }
            pending.append(writers.submit(save_file, tensors, folder / file, {"format": "pt"}))
        for future in pending:
            future.result()
    if len(shards) > 1:
        weight_map = {name: file for file, group in zip(names, shards, strict=True) for name in group}
        total_bytes = sum(prod(shape) for shape in shapes.values()) * dtype.itemsize
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def draw(
    name: str,
    shape: tuple[int, ...],
    dtype: Any,  # noqa: ANN401 - as above
    device: Any,  # noqa: ANN401
    generator: Any,  # noqa: ANN401
    deviation: float = STANDARD_DEVIATION,
    norm: float | None = None,
) -> Any:  # noqa: ANN401
    """One tensor as a new model has it: a norm's weight at `norm`, biases at zero, all else normal; on the CPU."""
    import torch

    if norm is not None or name.endswith("norm.weight"):
        return torch.full(shape, 1.0 if norm is None else norm, dtype=dtype)
    if name.endswith(("bias", "_bias")):
        return torch.zeros(shape, dtype=dtype)
    weights = torch.empty(shape, dtype=dtype, device=device)
    return weights.normal_(0.0, deviation, generator=generator).cpu()


def split(shapes: dict[str, tuple[int, ...]], item_bytes: int) -> Iterator[list[str]]:
    """Names in order, in groups of at most SHARD_BYTES where a single tensor isn't larger."""
    group: list[str] = []
    group_bytes = 0
    for name, shape in shapes.items():
        tensor_bytes = prod(shape) * item_bytes
        if group and group_bytes + tensor_bytes > SHARD_BYTES:
            yield group
            group, group_bytes = [], 0
        group.append(name)
        group_bytes += tensor_bytes
    yield group


def shard_names(shards: int) -> list[str]:
    """File names as transformers expects them."""
    if shards == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]


def check_disk(folder: Path, shapes: dict[str, tuple[int, ...]], item_bytes: int) -> None:
    """Refuse before writing what can't be written whole."""
    needed_bytes = sum(prod(shape) for shape in shapes.values()) * item_bytes
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes + (1 << 28):
        raise TwinError(f"the weights need {needed_bytes / 2**30:.2f} GiB, {folder} has {free_bytes / 2**30:.2f} GiB")


def write_marker(folder: Path, request: Request, digest: str, parameters: int) -> None:
    """Say what this folder is, last of all: the file sizes are how a whole twin is known."""
    marker = {
        "format": FORMAT,
        "digest": digest,
        "source_name": request.config.get("_name_or_path", ""),
        "parameters": parameters,
        "seed": request.seed,
        "dtype": request.dtype,
        "tokenizer": "given" if request.tokenizer else "trained",
        "shrunk": request.shrink,
        "config": request.config,
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


def replace(output: Path, folder: Path) -> None:
    """Put the new folder in the place of the old twin, if there is one."""
    old = output.with_name(f".{output.name}.old-{os.getpid()}")
    if output.exists():
        output.rename(old)
    folder.rename(output)
    shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
