"""What the pipeline's own interpreter can do: its packages, torch on the device, its libraries, a 4-bit layer.

A script for any Python from 3.9 on, whatever is installed there; it knows nothing of the suite:

    python checkup.py --device cuda|cpu [--quick] [--script TRAIN.py] [--quant-type nf4] [--compute-dtype bfloat16]

Prints one JSON object a line for each step as soon as it is done, so that a crash or a hang shows as the first step
that is missing. `--quick` ends after torch. Loads no model, reads no network. Exit status 0, whatever it found.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib.util
import inspect
import json
import platform
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "numpy",
)
ROWS, OUT_FEATURES, IN_FEATURES = 8, 256, 512
Facts = dict[str, Any]


def python_facts() -> Facts:
    """Version, encoding of print into a pipe, packages, and which of their requirements on each other are not met.

    `conflicts`: package, what it requires of another of these, and which version is installed instead; None where that
    can't be told. `bnb_cuda_libraries`: CUDA versions that bitsandbytes brings a library for, as in its file names: 126
    is 12.6.
    """
    versions: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    conflicts: list[tuple[str, str, str]] | None = None
    with suppress(ImportError):
        from packaging.requirements import Requirement

        conflicts = []
        for name, version in versions.items():
            for text in metadata.requires(name) or () if version else ():
                wanted = Requirement(text)
                has = versions.get(wanted.name.lower().replace("-", "_"))
                applies = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
                if has and applies and not wanted.specifier.contains(has, prereleases=True):
                    conflicts.append((f"{name} {version}", f"{wanted.name}{wanted.specifier}", has))
    spec = importlib.util.find_spec("bitsandbytes")
    folders = spec.submodule_search_locations if spec else None
    start = "libbitsandbytes_cuda"
    libraries = (path for folder in folders or () for path in Path(folder).glob(f"{start}*.so"))
    return {
        "version": platform.python_version(),
        "output_encoding": sys.stdout.encoding,
        "packages": versions,
        "conflicts": conflicts,
        "bnb_cuda_libraries": sorted(path.stem[len(start) :] for path in libraries),
    }


def torch_facts(device: str) -> Facts:
    """What torch was built for, whether it sees the card, and what it says where it does not."""

    def raised(ask: Callable[[], object]) -> str | None:
        try:
            ask()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import torch

        is_available = torch.cuda.is_available()
    said = [str(warning.message) for warning in caught]
    # `get_arch_list` says nothing where no card is seen
    flags = getattr(torch._C, "_cuda_getArchFlags", lambda: None)()
    facts: Facts = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "is_available": is_available,
        "architectures": list(torch.cuda.get_arch_list()) if is_available else (flags or "").split(),
        "numpy_error": raised(lambda: torch.zeros(1).numpy()),
    }
    if is_available:
        facts["device_name"] = torch.cuda.get_device_name(0)
    elif device == "cuda" and torch.version.cuda:
        said.append(raised(torch.cuda.init) or "")
    return {**facts, "said": [" ".join(line.split()) for line in said if line]}


def product_facts(device: str, compute_dtype: str) -> Facts:
    """A product of two small matrices on the device, against fp32 on the CPU."""
    import torch

    left, right = _random(ROWS, IN_FEATURES, seed=0), _random(IN_FEATURES, OUT_FEATURES, seed=1)
    dtype = getattr(torch, compute_dtype)
    found = left.to(device, dtype) @ right.to(device, dtype)
    return {"relative_error": _distance(found, left.to(dtype).float() @ right.to(dtype).float())}


def libraries_facts(script: str | None) -> Facts:
    """Import what a training imports, and ask transformers which of its companions it would use.

    `unknown_arguments`: `Class(keyword=)` for each keyword in the script's calls of the Trainer and its arguments that
    their signatures do not have.

    Source of the questions: transformers/utils/import_utils.py, which compares versions with its own minima.
    """
    import peft  # noqa: F401
    from transformers import Trainer, TrainingArguments
    from transformers.utils import is_accelerate_available, is_bitsandbytes_available, is_torch_available

    usable = {
        "torch": is_torch_available(),
        "accelerate": is_accelerate_available(),
        "bitsandbytes": is_bitsandbytes_available(),
    }
    called = {"Trainer": Trainer, "TrainingArguments": TrainingArguments}
    unknown = set()
    nodes = ast.walk(ast.parse(Path(script).read_bytes())) if script else ()
    for call in (node for node in nodes if isinstance(node, ast.Call)):
        name = getattr(call.func, "id", None) or getattr(call.func, "attr", None)
        if name in called:
            known = inspect.signature(called[name].__init__).parameters
            unknown |= {f"{name}({word.arg}=)" for word in call.keywords if word.arg and word.arg not in known}
    return {
        "unavailable": [name for name, is_usable in usable.items() if not is_usable],
        "unknown_arguments": sorted(unknown),
    }


def four_bit_facts(device: str, quant_type: str, compute_dtype: str) -> Facts:
    """Quantise a weight, multiply with it forward and backward, and for one row without gradients as generation does.

    The reference multiplies with the dequantised weight in fp32 on the CPU; that weight is held against the original,
    because a kernel that silently does nothing would agree with itself.
    """
    import bitsandbytes
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    dtype = getattr(torch, compute_dtype)
    original = _random(OUT_FEATURES, IN_FEATURES, seed=2).to(device, dtype)
    packed, state = quantize_4bit(original, quant_type=quant_type, compress_statistics=True)
    weight = dequantize_4bit(packed, state).float().cpu()
    rows = _random(ROWS, IN_FEATURES, seed=3).to(device, dtype).requires_grad_()
    gradient = _random(ROWS, OUT_FEATURES, seed=4).to(device, dtype)
    product = bitsandbytes.matmul_4bit(rows, packed.t(), quant_state=state)
    product.backward(gradient)
    with torch.no_grad():
        single = bitsandbytes.matmul_4bit(rows[:1], packed.t(), quant_state=state)
    expected = rows.detach().float().cpu() @ weight.t()
    return {
        "dequantised_error": _distance(weight, original),
        "forward_error": _distance(product, expected),
        "backward_error": _distance(rows.grad, gradient.float().cpu() @ weight),
        "single_row_error": _distance(single, expected[:1]),
    }


def _random(rows: int, columns: int, seed: int) -> Any:  # noqa: ANN401 - torch.Tensor
    import torch

    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def _distance(found: Any, expected: Any) -> float:  # noqa: ANN401 - torch.Tensor
    """Norm of the difference over the norm of what is expected; infinite where `found` is not finite."""
    found, expected = found.detach().float().cpu(), expected.detach().float().cpu()
    if not bool(found.isfinite().all()):
        return float("inf")
    return float((found - expected).norm() / expected.norm())


def main() -> None:
    """Go through the steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--script")
    parser.add_argument("--quant-type", default="nf4")
    parser.add_argument("--compute-dtype", default="bfloat16")
    asked = parser.parse_args()
    steps: dict[str, Callable[[], Facts]] = {
        "python": python_facts,
        "torch": lambda: torch_facts(asked.device),
    }
    if not asked.quick:
        steps["product"] = lambda: product_facts(asked.device, asked.compute_dtype)
        steps["libraries"] = lambda: libraries_facts(asked.script)
        steps["four_bit"] = lambda: four_bit_facts(asked.device, asked.quant_type, asked.compute_dtype)
    for step, ask in steps.items():
        try:
            facts = ask()
        except (Exception, SystemExit) as error:
            facts = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"step": step, **facts}), flush=True)


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file: its neighbours are not for an interpreter that is not the suite's
    gc.disable()  # a fifth of importing torch and transformers, whose objects all stay
    main()
