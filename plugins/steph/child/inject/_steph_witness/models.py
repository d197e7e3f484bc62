"""What a model is made of: quantised layers, LoRA layers, where its parameters are; and that it was loaded or saved."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import re
import sys
import weakref
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from . import facts, splice, tokens

_QUANTISED = re.compile(r"Linear(4bit|8bitLt|NF4|FP4)|(Quant|WQ|HQQ|AQLM|Eetq|FP8|Q)Linear\w*")
_OF_LORA = re.compile(r"\.lora_\w+\.")
# settings that leave what a model computes as it is, or that show elsewhere
_COMPUTES_NOTHING = re.compile(
    r"dtype|cache|^_|version|token|vocab|drop|architect|auto_map|quant|attn_impl|max_position|max_seq|output_|return_"
    r"|pretraining|initializ|label|task|pad|problem|chunk|gradient|tie_|name"
)
_GENERATES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_DROPOUTS = 8  # layers that are looked at
_MATRICES = tuple((kind, kind.replace("_", infix)) for infix in ("_", "_embedding_") for kind in ("lora_A", "lora_B"))
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")

# what is known of adapters by the layers that hold them, whatever is wrapped around
_adapter_sha256: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()
_merged_sha256: weakref.WeakKeyDictionary[Any, list[str]] = weakref.WeakKeyDictionary()
_lora_layers: weakref.WeakKeyDictionary[Any, tuple[int, list[Any]]] = weakref.WeakKeyDictionary()
_dropouts: weakref.WeakKeyDictionary[Any, tuple[tuple[int, list[str]], list[Any]]] = weakref.WeakKeyDictionary()
begun_by_loftq: weakref.WeakSet[Any] = weakref.WeakSet()
_changes = [0]  # counted up whenever layers may have come or gone


def hook_models(module: ModuleType) -> None:
    """Loading, saving and calls from outside."""
    from . import generation

    cls = module.PreTrainedModel
    splice.around(cls.from_pretrained, before=_loading, after=_loaded)
    splice.around(cls.save_pretrained, before=_saving_model, after=_saved_model)
    if hasattr(cls, "_from_config"):
        splice.around(cls._from_config, before=lambda given: None, after=lambda token, model: _built(model))
    for name in ("_load_pretrained_model",):
        if hasattr(cls, name):
            splice.around(getattr(cls, name), before=lambda given: None, after=_note_loading_info)
    generation.hook_class(cls)


def hook_auto_classes(module: ModuleType) -> None:
    """Models built without weights of their own; `_from_config`, where there is one, has seen most of them."""
    splice.around(
        module._BaseAutoModelClass.from_config, before=lambda given: None, after=lambda token, model: _built(model)
    )


_info: list[tuple[list[str] | None, int | None]] = [(None, None)]
_built_already: weakref.WeakSet[Any] = weakref.WeakSet()


def _note_loading_info(token: object, result: Any) -> None:
    """Keys that were missing, and how many had another shape: an object in transformers 5, places in a tuple in 4."""
    if _info[0] != (None, None):
        return  # what follows in the same loading are the weights of an adapter
    info = result[0] if isinstance(result, tuple) else result
    if hasattr(info, "missing_keys"):
        _info[0] = (list(info.missing_keys), len(getattr(info, "mismatched_keys", ()) or ()))
    elif isinstance(result, tuple) and len(result) >= 4 and isinstance(result[1], (list, set)):
        mismatched = result[3] if isinstance(result[3], (list, set)) else ()
        _info[0] = (list(result[1]), len(mismatched))


def _loading(given: dict[str, Any]) -> object:
    _info[0] = (None, None)
    return given.get("pretrained_model_name_or_path")


def _loaded(path: object, result: Any) -> None:
    model = result[0] if isinstance(result, tuple) else result
    if not hasattr(model, "named_parameters"):
        return
    (missing, mismatched), _info[0] = _info[0], (None, None)
    facts.write(
        "model_loaded", how="from_pretrained", path=None if path is None else str(path),
        missing=None if missing is None else _really_missing(model, missing),
        mismatched=mismatched, generates=_generates(model), set_otherwise=_set_otherwise(model, path), **brief(model),
    )  # fmt: skip
    from . import generation, weights

    weights.loaded(model)
    generation.as_loaded(model)


@facts.guarded("model's settings")
def _set_otherwise(model: Any, path: object) -> list[str] | None:
    """The settings of the model's own file that are others in the model, by which it computes something else."""
    config: Any = getattr(model, "config", None)
    name = str(path)
    file = os.path.join(name, "config.json")
    file = file if os.path.isfile(file) else _cached(name, "config.json", None) or ""
    if not file or not hasattr(config, "to_dict"):
        return None
    with open(file, encoding="utf-8") as opened:
        raw = json.load(opened)
    if raw.get("model_type") != getattr(config, "model_type", None):
        return None  # a part of a larger model
    # as its class reads the file: versions write the same in other words
    return sorted(_others(type(config).from_dict(copy.deepcopy(raw)).to_dict(), config.to_dict(), raw))


def _others(file: dict[str, Any], own: dict[str, Any], raw: dict[str, Any]) -> Iterator[str]:
    for name in {*raw, "rope_parameters"} & {*file} & {*own}:
        known, now = file[name], own[name]
        if isinstance(known, dict) and isinstance(now, dict) and isinstance(raw.get(name), dict) and "rope" not in name:
            yield from _others(known, now, raw[name])
        elif known != now and not _COMPUTES_NOTHING.search(name):
            yield name


def _really_missing(model: Any, keys: list[str]) -> int:
    """How many of these keys no file had: a head that is tied to the embeddings is in none, and shares their tensor."""
    if not keys:
        return 0
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name)
    shared = {name for names in owners.values() if len(names) > 1 and names - set(keys) for name in names}
    return len(set(keys) - shared)


def _built(model: Any) -> None:
    if not hasattr(model, "named_parameters") or model in _built_already:
        return
    _built_already.add(model)
    facts.write("model_loaded", how="from_config", path=None, generates=_generates(model), **brief(model))


def _generates(model: object) -> bool:
    return type(model).__name__.endswith(_GENERATES)


def _saving_model(given: dict[str, Any]) -> tuple[Any, Any]:
    return weakref.ref(given["self"]), given.get("save_directory")


def _saved_model(token: tuple[Any, Any], result: object) -> None:
    model = token[0]()
    # transformers saves the adapters of its own `add_adapter` here, and no model
    adapter = bool(getattr(model, "_hf_peft_config_loaded", False)) and not merged_into(model)
    saved(model, token[1], adapter=adapter)


def saved(model: Any, folder: object, *, adapter: bool) -> None:
    """Write that a model or its adapter lies in this folder now."""
    from . import training, weights

    if folder is None or model is None:
        return
    path = os.path.abspath(str(folder))
    sha256 = sha256_of_adapter(path) if adapter else None
    active = {name for layer in lora_layers(model) for name in active_adapters(layer)}
    if sha256 is not None and len(active) == 1:
        remember(model, next(iter(active)), sha256)
    training.saved(model)
    facts.write(
        "model_saved", path=path, adapter=adapter, sha256=sha256, merged_sha256=merged_into(model),
        step=training.step(), in_training=training.in_progress(),
        matrices=weights.adapter_numbers(model) if adapter and training.step() is not None else None,
    )  # fmt: skip


def sha256_of_adapter(folder: str, subfolder: str | None = None) -> str | None:
    """The hash of the adapter's weights in a folder, or in the local cache of a repository of that name."""
    for name in _ADAPTER_FILES:
        path = os.path.join(folder, subfolder or "", name)
        if not os.path.isfile(path):
            path = _cached(folder, name, subfolder) or ""
        if path:
            return sha256_of(path)
    return None


def sha256_of(path: str) -> str:
    """The hash of a file."""
    # base/files.py has a reader of its own: what is injected must not import the suite, and runs on Python 3.9
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _cached(repository: str, name: str, subfolder: str | None) -> str | None:
    hub = sys.modules.get("huggingface_hub")
    if hub is None or os.path.isdir(repository) or repository.count("/") != 1:
        return None
    found = hub.try_to_load_from_cache(repository, f"{subfolder}/{name}" if subfolder else name)
    return found if isinstance(found, str) else None


def unwrapped(model: Any) -> Any:
    """The model itself, out of DistributedDataParallel and `torch.compile`."""
    while True:
        # asked of its own names: a module takes long to say that it has none of that name
        own = getattr(model, "__dict__", {}).get("_modules") or {}
        is_shared = type(model).__name__ in ("DistributedDataParallel", "DataParallel")
        inner = own.get("_orig_mod") or (own.get("module") if is_shared else None)
        if inner is None:
            return model
        model = inner


def modules_of(model: Any) -> list[tuple[str, Any]]:
    """The modules by name, as `named_modules` gives them; walked once in a hook, without its nested generators."""
    kept = facts.kept()
    if kept is None:
        return _walked(model)
    if id(model) not in kept:
        kept[id(model)] = _walked(model)
    found: list[tuple[str, Any]] = kept[id(model)]
    return found


def _walked(model: Any, left_out: Any = None) -> list[tuple[str, Any]]:
    known, found = {id(left_out)}, []
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if id(module) in known:
            continue
        known.add(id(module))
        found.append((name, module))
        if module._modules:
            start = f"{name}." if name else ""
            waiting += [(start + own, child) for own, child in reversed(module._modules.items()) if child is not None]
    return found


def whole(model: Any) -> list[tuple[str, Any]]:
    """The modules of the base by their names in it, and then those that are wrapped around it."""
    base = base_of(model)
    return modules_of(base) if base is model else modules_of(base) + _walked(model, left_out=base)


def parameters_of(modules: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The modules' parameters by name, each once."""
    known: set[int] = set()
    for name, module in modules:
        for own, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in known:
                known.add(id(parameter))
                yield (f"{name}.{own}" if name else own), parameter


def as_tensors() -> Any:
    """A context in which a parameter's own class is not asked for each of its attributes: that takes the most of it."""
    plainly = getattr(sys.modules["torch"]._C, "DisableTorchFunctionSubclass", None)
    return contextlib.nullcontext() if plainly is None else plainly()


def brief(model: Any) -> dict[str, Any]:
    """A model's name, quantised layers, parameters and places."""
    parameters = single = 0
    devices: dict[Any, int] = {}
    places = getattr(model, "hf_device_map", None)
    modules = whole(model)
    with as_tensors():
        for name, parameter in parameters_of(modules):
            count = _count(parameter)
            parameters += count
            single += count if str(parameter.dtype) == "torch.float32" else 0
            place = _place(name, places) if parameter.is_meta else parameter.device
            devices[place] = devices.get(place, 0) + count
    quantised, unquantised = _linears(modules)
    return {
        "name_or_path": name_of(model), "class": class_of(model), "quantised": quantised,
        "unquantised_linears": unquantised, "parameters": parameters, "fp32_parameters": single,
        "devices": {str(place): count for place, count in devices.items()},
    }  # fmt: skip


def quantised(model: Any) -> list[dict[str, Any]]:
    """A model's quantised linear layers by kind."""
    return _linears(modules_of(model))[0]


def described(model: Any) -> dict[str, Any]:
    """All of a model: `brief`, its first token and its LoRA layers."""
    return {**brief(model), "bos": bos_of(model), "lora": _lora(model)}


def bos_of(model: Any) -> int | None:
    """The id that begins a row: the tokenizer's, which puts it there, else the model's."""
    own = tokens.tokenizer()
    holder = own if own is not None else getattr(base_of(model), "config", None)
    found = tokens.ids_of(getattr(holder, "bos_token_id", None))
    return found[0] if found else None


def pad_id(model: Any) -> int | None:
    """The id that fills up rows: the tokenizer's, else the model's."""
    for holder in (tokens.tokenizer(), getattr(base_of(model), "config", None)):
        found = tokens.ids_of(getattr(holder, "pad_token_id", None))
        if found:
            return found[0]
    return None


def base_of(model: Any) -> Any:
    """The model under PEFT's wrapper."""
    model = unwrapped(model)
    base = (getattr(model, "__dict__", {}).get("_modules") or {}).get("base_model")
    return getattr(base, "model", model) if base is not None and hasattr(model, "peft_config") else model


def name_of(model: Any) -> str | None:
    """The name or path that the model was loaded from."""
    config = getattr(base_of(model), "config", None)
    name = getattr(config, "_name_or_path", None) or getattr(base_of(model), "name_or_path", None)
    return str(name) if name else None


def class_of(model: Any) -> str:
    """The base's class."""
    return type(base_of(model)).__name__


def lora_layers(model: Any) -> list[Any]:
    """The layers that hold adapters; looked for again only after something may have changed."""
    base = base_of(model)
    try:
        known = _lora_layers.get(base)
    except TypeError:
        known = None
    if known is None or known[0] != _changes[0]:
        modules = modules_of(base) if hasattr(base, "_modules") else ()
        found = [module for _, module in modules if _is_adapter_layer(module)]
        known = _lora_layers[base] = (_changes[0], found)
    return known[1]


def dropouts(model: Any) -> list[int]:
    """How many of some adapters' dropouts were asked for, and how many of these are on."""
    layers = lora_layers(model)
    if not layers:
        return [0, 0]
    active = active_adapters(layers[0])
    known = _dropouts.get(base_of(model))
    if known is None or known[0] != (_changes[0], active):
        # looked for again only after something may have changed: between steps all of this is out of the CPU's caches
        found = [
            one
            for layer in layers[:: max(1, len(layers) // _DROPOUTS)]
            for name, one in dict(held(layer, "lora_dropout") or {}).items()
            if name in active_adapters(layer)
        ]
        known = _dropouts[base_of(model)] = ((_changes[0], active), found)
    asked = [one for one in known[1] if getattr(one, "p", 0) > 0]
    return [len(asked), sum(bool(one.training) for one in asked)]


def changes() -> int:
    """How often adapter layers may have come or gone."""
    return _changes[0]


def layers_changed() -> None:
    """Adapter layers may have come or gone."""
    _changes[0] += 1


def _is_adapter_layer(module: Any) -> bool:
    # asked of the class: a module takes long to say that it has no such attribute
    return isinstance(getattr(type(module), "adapter_layer_names", None), tuple) and "base_layer" in module._modules


def active_adapters(layer: Any) -> list[str]:
    """The adapters that take part in what this layer computes, as far as it has them."""
    active = layer.active_adapters
    names = [active] if isinstance(active, str) else list(active)
    return [name for name in names if any(name in held(layer, kind) for kind in layer.adapter_layer_names)]


def held(layer: Any, kind: str) -> Any:
    """A layer's modules of one kind by adapter; asked of its own modules, as a module takes long to answer."""
    found = layer._modules.get(kind)
    return getattr(layer, kind, ()) if found is None else found


def remember(model: Any, adapter: str, sha256: str | None) -> None:
    """The file that an adapter's weights were read from, or just written to."""
    for layer in lora_layers(model):
        known = _adapter_sha256.setdefault(layer, {})
        if sha256 is None:
            known.pop(adapter, None)
        else:
            known[adapter] = sha256


def forget_files(model: Any) -> None:
    """A training changes the weights: they are no file's any more."""
    for layer in lora_layers(model):
        _adapter_sha256.pop(layer, None)


def merge_into(model: Any, sha256: list[str]) -> None:
    """These adapters are part of the model's own weights now."""
    if sha256:
        _merged_sha256[base_of(model)] = sorted({*merged_into(model), *sha256})


def merged_into(model: Any) -> list[str]:
    """The adapters that are part of the model's weights, unloaded or still there."""
    base = base_of(model)
    known = set(_merged_sha256.get(base, ()))
    for layer in lora_layers(model):
        files = _adapter_sha256.get(layer, {})
        known.update(files[name] for name in getattr(layer, "merged_adapters", ()) if name in files)
    return sorted(known)


def state(model: Any) -> dict[str, Any]:
    """In which state the model's adapters are."""
    adapters: dict[str, None] = {}
    scaling, sha256 = set(), set()
    disabled = merged = 0
    layers = lora_layers(model)
    for layer in layers:
        disabled += bool(getattr(layer, "disable_adapters", False))
        merged += bool(getattr(layer, "merged", False))
        files = _adapter_sha256.get(layer, {})
        for name in active_adapters(layer):
            adapters[name] = None
            scaling.update(_numbers(getattr(layer, "scaling", None), name))
            if name in files:
                sha256.add(files[name])
    for layer in layers:  # that have an adapter which is active in others
        idle = {*adapters} & {*held(layer, "lora_A")} - {*active_adapters(layer)}
        disabled += bool(idle) and not getattr(layer, "disable_adapters", False)
    return {
        "adapters": list(adapters), "layers": len(layers), "disabled": disabled, "merged": merged,
        "scaling": sorted(scaling), "sha256": sorted(sha256), "merged_sha256": merged_into(model),
    }  # fmt: skip


def _numbers(values: Any, name: str) -> list[float]:
    value = values.get(name) if hasattr(values, "get") else None
    return [round(float(value), 8)] if isinstance(value, (int, float)) else []


def _linears(modules: Iterable[tuple[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Quantised linear layers by kind, and how many are not; LoRA's own matrices and wrappers are neither."""
    kinds: dict[tuple[Any, ...], int] = {}
    plain = 0
    for name, module in modules:
        kind = type(module).__name__
        if "Linear" not in kind and kind != "Conv1D":
            continue
        if _is_adapter_layer(module) or _OF_LORA.search(f".{name}."):
            continue
        if _QUANTISED.fullmatch(kind):
            weight = getattr(module, "weight", None)
            compute, double = getattr(module, "compute_dtype", None), getattr(weight, "compress_statistics", None)
            key = (kind, getattr(weight, "quant_type", None), None if compute is None else str(compute), double)
            kinds[key] = kinds.get(key, 0) + 1
        elif kind in ("Linear", "Conv1D"):
            plain += 1
    names = ("class", "quant_type", "compute_dtype", "double_quant")
    return [{**dict(zip(names, key)), "layers": count} for key, count in kinds.items()], plain


def _count(parameter: Any) -> int:
    """Its numbers, those of packed 4-bit weights unpacked."""
    shape: Any = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return int(shape.numel()) if hasattr(shape, "numel") else int(parameter.numel())


def _place(name: str, places: Any) -> str:
    """Where a parameter really is that a loader keeps elsewhere."""
    if not isinstance(places, dict):
        return "meta"
    owners = [owner for owner in places if owner == "" or name == owner or f".{name}".find(f".{owner}.") >= 0]
    found = str(places[max(owners, key=len)]) if owners else "meta"
    return found if found in ("cpu", "disk") else "meta"


def _lora(model: Any) -> dict[str, Any] | None:
    layers = lora_layers(model)
    if not layers:
        return None
    rank: set[float] = set()
    scaling: set[float] = set()
    dropout: set[float] = set()
    adapters: set[str] = set()
    active: set[str] = set()
    for layer in layers:
        adapters.update(one for kind in layer.adapter_layer_names for one in held(layer, kind))
        for adapter in active_adapters(layer):
            active.add(adapter)
            rank.update(_numbers(getattr(layer, "r", None), adapter))
            scaling.update(_numbers(getattr(layer, "scaling", None), adapter))
            drops = held(layer, "lora_dropout")
            if adapter in drops:
                dropout.add(float(getattr(drops[adapter], "p", 0.0)))
    return {
        "layers": len(layers), "rank": sorted(rank),
        "scaling": sorted(scaling), "dropout": sorted(dropout),
        "adapters": sorted(adapters), "active": sorted(active), "begun_as": _begun_as(model, active),
    }  # fmt: skip


def _begun_as(model: Any, adapters: Iterable[str]) -> list[str]:
    """How these adapters' matrices were begun, by their configurations; the kind of one that is no plain LoRA."""
    if base_of(model) in begun_by_loftq:
        return ["loftq"]
    configs: Any = getattr(unwrapped(model), "peft_config", None)
    known = [configs[name] for name in adapters if name in configs] if isinstance(configs, dict) else []
    kinds = [str(getattr(one.peft_type, "value", one.peft_type)) for one in known]
    return sorted({str(getattr(one, "init_lora_weights", kind)) if kind == "LORA" else kind
                   for one, kind in zip(known, kinds)})  # fmt: skip


def matrices(model: Any) -> list[tuple[str, str, Any]]:
    """Each matrix of the active adapters: its kind, a name of its own, and the tensor, without its gradient."""
    return [(kind, name, weight.detach()) for kind, name, weight in trained_matrices(model)]


def trained_matrices(model: Any) -> list[tuple[str, str, Any]]:
    """The same as the model holds them.

    Of several adapters in one layer those that are trained, where any is: others lie below them as part of the base.
    """
    found: list[tuple[str, str, Any]] = []
    for index, layer in enumerate(lora_layers(model)):
        names = active_adapters(layer)
        if len(names) > 1:
            names = [name for name in names if _is_trained(layer, name)] or names
        for kind, own in _MATRICES:
            store = held(layer, own)
            found += [(kind, f"{index}.{name}", _weight(store[name])) for name in names if name in store]
    return [one for one in found if one[2].numel() and not one[2].is_meta]


def _is_trained(layer: Any, adapter: str) -> bool:
    stores = (held(layer, own) for _, own in _MATRICES)
    return any(adapter in store and _weight(store[adapter]).requires_grad for store in stores)


def _weight(one: Any) -> Any:
    """A matrix that a linear module holds, or that stands alone."""
    return one._parameters["weight"] if "weight" in getattr(one, "_parameters", ()) else getattr(one, "weight", one)
