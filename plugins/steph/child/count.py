"""Counts a model's parameters, linear layers and LoRA parameters from config.json alone, on the meta device.

A script for any interpreter that has torch and transformers, and peft for LoRA; it knows nothing of the suite:

    python count.py --config CONFIG.json [--sizes hidden_size …] [--adapter '{"r": 16, "target_modules": "all-linear"}']

`--sizes`: by the names that transformers has for them. `--adapter`: arguments of peft's LoraConfig. Code that a
model brings along is not run. Prints one JSON object. Ends with 0, or with 2 and one line.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class CountError(Exception):
    """The model can't be built; the message is one line."""


def main() -> int:
    """Count what was asked for."""
    parser = argparse.ArgumentParser(description="Count a model's parameters on the meta device.")
    parser.add_argument("--config", type=Path, required=True, help="its config.json")
    parser.add_argument("--sizes", nargs="*", default=(), help="names of the configuration's sizes to print")
    parser.add_argument("--adapter", default="", help="JSON: arguments of peft.LoraConfig")
    options = parser.parse_args()
    try:
        print(json.dumps(counted(options.config, options.sizes, json.loads(options.adapter or "null"))))
    except Exception as error:
        lines = str(error).strip().splitlines()
        print(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__, file=sys.stderr)
        return 2
    return 0


def counted(config_file: Path, sizes: Sequence[str], adapter: dict[str, Any] | None) -> dict[str, Any]:
    """Sizes, parameters by how they are stored, and LoRA's where an adapter is given."""
    from torch.nn import Linear

    values = json.loads(config_file.read_text(encoding="utf-8"))
    model = meta_model(values)
    config = model.config.get_text_config(decoder=True)
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    plain = {id(module) for module in (head, *unquantised(model))}
    linears: Counter[tuple[str, int, int]] = Counter()
    for path, module in model.named_modules():
        if isinstance(module, Linear) and id(module) not in plain:
            linears[path.rpartition(".")[2], module.in_features, module.out_features] += 1
    is_tied = head is None or head.weight is embedding.weight
    counts: dict[str, Any] = {
        "model_type": config.model_type,
        "sizes": {name: getattr(config, name, None) for name in sizes},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "embedding": embedding.weight.numel(),
        "head": 0 if is_tied else head.weight.numel(),
        "linears": [[*key, count] for key, count in linears.items()],
    }
    return counts if adapter is None else {**counts, "adapter": counted_adapter(model, adapter)}


def meta_model(values: dict[str, Any]) -> Any:  # noqa: ANN401 - a transformers model
    """The model of a config.json on the meta device: a causal one, else one that also sees."""
    import torch
    import transformers

    kind = values.pop("model_type", None)
    values.pop("quantization_config", None)  # of the published weights: what they were before is what is counted
    if kind is None:
        raise CountError("config.json: key 'model_type' is missing")
    config = transformers.AutoConfig.for_model(kind, **values)
    for name in ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForSeq2SeqLM"):
        auto = getattr(transformers, name, None)
        if auto is not None and type(config) in auto._model_mapping:
            with torch.device("meta"):
                return auto.from_config(config, dtype=torch.bfloat16)
    raise CountError(f"model_type {kind!r}: no language model that transformers knows")


def unquantised(model: Any) -> list[Any]:  # noqa: ANN401
    """The modules that transformers does not hand to bitsandbytes, as it says itself."""
    try:
        from transformers.quantizers.base import get_keys_to_not_convert
    except ImportError:
        return []
    kept = set(get_keys_to_not_convert(model))
    return [module for path, module in model.named_modules() if path in kept]


def counted_adapter(model: Any, adapter: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """LoRA's own parameters, those of modules that are trained whole, and the modules that it is on."""
    import torch
    from peft import LoraConfig, get_peft_model

    names = {path.rpartition(".")[2] for path, _ in model.named_modules()}
    absent = [name for name in adapter.get("modules_to_save") or () if name.rpartition(".")[2] not in names]
    if absent:  # which peft passes over in silence
        raise CountError(f"modules_to_save {', '.join(absent)}: the model has no such module")
    with torch.device("meta"):
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **adapter))
    found = {"lora": 0, "magnitude": 0, "whole": 0}
    for path, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            kind = "magnitude" if "lora_magnitude_vector" in path else "lora" if ".lora_" in path else "whole"
            found[kind] += parameter.numel()
    return {**found, "modules": sorted({name.rpartition(".")[2] for name in adapted.targeted_module_names})}


if __name__ == "__main__":
    gc.disable()  # a fifth of importing torch and transformers, whose objects all stay
    sys.exit(main())
