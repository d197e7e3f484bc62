"""Adapters as they are loaded, merged, unloaded, switched off and on."""

from __future__ import annotations

import threading
import weakref
from types import ModuleType
from typing import Any

from . import facts, generation, models, splice, weights

_open = threading.local()
_MOST_TENSORS = 20000
# tensors that were read from a file, by identity: comparing them would compare their numbers
_files: dict[int, tuple[Any, str]] = {}


class _Switch:
    """Whether adapters were last switched on or off; each layer is switched for itself."""

    enabled: bool | None = True


def hook_peft_model(module: ModuleType) -> None:
    """Loading an adapter from a folder, saving it, and calls of a model that has one."""
    splice.around(module.PeftModel.load_adapter, before=_loading, after=_loaded, failed=_stopped)
    splice.around(module.PeftModel.save_pretrained, before=_saving, after=_saved)
    generation.hook_class(module.PeftModel)


def hook_transformers(module: ModuleType) -> None:
    """A model's own `load_adapter`."""
    splice.around(module.PeftAdapterMixin.load_adapter, before=_loading, after=_loaded, failed=_stopped)


def hook_safetensors(module: ModuleType) -> None:
    """Know which file a tensor was read from, whatever it is called afterwards."""
    splice.around(module.load_file, before=lambda given: str(given["filename"]), after=_read)


def _read(path: str, tensors: Any) -> None:
    if isinstance(tensors, dict) and len(tensors) <= _MOST_TENSORS:
        if len(_files) > _MOST_TENSORS:
            _files.clear()
        _files.update({id(tensor): (weakref.ref(tensor), path) for tensor in tensors.values()})


def _file_of(tensor: Any) -> str | None:
    known = _files.get(id(tensor))
    return known[1] if known is not None and known[0]() is tensor else None


def hook_state_dicts(module: ModuleType) -> None:
    """Setting an adapter's weights, whoever read them."""
    splice.around(module.set_peft_model_state_dict, before=_setting, after=_set)


def hook_loftq(module: ModuleType) -> None:
    """Matrices that are made anew, to make good what the quantisation lost."""
    splice.first(
        module.replace_lora_weights_loftq, lambda given: models.begun_by_loftq.add(models.base_of(given["peft_model"]))
    )


def hook_tuners(module: ModuleType) -> None:
    """Hook the methods that change adapter layers."""
    splice.around(module.BaseTuner.inject_adapter, before=_injecting, after=_injected)
    splice.first(module.BaseTunerLayer.enable_adapters, _switched)
    splice.around(module.BaseTuner.merge_adapter, before=_merging, after=_merged)
    _hook_unloading(module.BaseTuner)


def hook_lora(module: ModuleType) -> None:
    """Where PEFT's older versions keep it."""
    _hook_unloading(module.LoraModel)


def _hook_unloading(cls: type) -> None:
    unload = vars(cls).get("_unload_and_optionally_merge")
    if unload is not None:
        splice.around(unload, before=_unloading, after=_unloaded)


def _depth(change: int) -> int:
    _open.depth = getattr(_open, "depth", 0) + change
    return int(_open.depth)


def _loading(given: dict[str, Any]) -> dict[str, Any]:
    _depth(1)
    _open.result = None
    kwargs = given.get("kwargs") or {}
    path = given.get("model_id", given.get("peft_model_id"))
    return {
        "model": weakref.ref(given["self"]), "path": None if path is None else str(path),
        "adapter": given.get("adapter_name") or "default", "is_trainable": given.get("is_trainable"),
        "subfolder": kwargs.get("subfolder") or (given.get("adapter_kwargs") or {}).get("subfolder"),
    }  # fmt: skip


def _loaded(token: dict[str, Any] | None, result: Any) -> None:
    _depth(-1)
    if token is None:
        return
    model = token.pop("model")()
    path, subfolder = token["path"], token.pop("subfolder")
    sha256 = models.sha256_of_adapter(path, subfolder) if path else None
    _write_loaded(model, sha256, result if hasattr(result, "missing_keys") else _open.result, **token)


def _stopped(token: object, error: BaseException) -> None:
    _depth(-1)


def _setting(given: dict[str, Any]) -> dict[str, Any]:
    state = given.get("peft_model_state_dict") or {}
    files = {path for tensor in state.values() if (path := _file_of(tensor)) is not None}
    return {
        "model": weakref.ref(given["model"]), "adapter": given.get("adapter_name") or "default",
        "path": files.pop() if len(files) == 1 else None,
    }  # fmt: skip


def _set(token: dict[str, Any], result: Any) -> None:
    if _depth(0):
        _open.result = result
        return
    model, path = token.pop("model")(), token["path"]
    _write_loaded(model, models.sha256_of(path) if path else None, result, is_trainable=None, **token)


def _write_loaded(model: Any, sha256: str | None, result: Any, **values: Any) -> None:
    models.layers_changed()
    adapter = values["adapter"]
    models.remember(model, adapter, sha256)
    layers = [
        one for one in models.lora_layers(model) if any(adapter in getattr(one, k, ()) for k in one.adapter_layer_names)
    ]
    scaling = {round(float(one.scaling[adapter]), 8) for one in layers if adapter in getattr(one, "scaling", {})}
    missing = [key for key in getattr(result, "missing_keys", ()) if "lora_" in key or adapter in key]
    facts.write(
        "adapter_loaded", sha256=sha256, missing=None if result is None else len(missing),
        unexpected=None if result is None else len(getattr(result, "unexpected_keys", ())),
        scaling=sorted(scaling), **values,
    )  # fmt: skip


def _saving(given: dict[str, Any]) -> tuple[Any, Any]:
    return weakref.ref(given["self"]), given.get("save_directory")


def _saved(token: tuple[Any, Any], result: object) -> None:
    models.saved(token[0](), token[1], adapter=True)


def _injecting(given: dict[str, Any]) -> tuple[Any, Any]:
    return given["self"], given.get("adapter_name")


def _injected(token: tuple[Any, Any], result: object) -> None:
    models.layers_changed()
    _Switch.enabled = True
    tuner, adapter = token
    config = (getattr(tuner, "peft_config", None) or {}).get(adapter)
    if isinstance(getattr(config, "init_lora_weights", None), str):
        weights.initialised_from_base(tuner.model)


def _switched(given: dict[str, Any]) -> None:
    enabled = bool(given["enabled"])
    if enabled != _Switch.enabled:
        _Switch.enabled = enabled
        names = models.active_adapters(given["self"])
        facts.write(f"adapter_{'enabled' if enabled else 'disabled'}", adapter=names)


def _merging(given: dict[str, Any]) -> tuple[Any, list[float]]:
    return given["self"], _scaling_to_merge(given, models.state(given["self"].model))


def _merged(token: tuple[Any, list[float]], result: object) -> None:
    tuner, scaling = token
    state = models.state(tuner.model)
    facts.write("adapter_merged", adapter=state["adapters"], sha256=state["merged_sha256"], scaling=scaling)


def _scaling_to_merge(given: dict[str, Any], state: dict[str, Any]) -> list[float]:
    """The scalings to merge the active adapters with; none where others are chosen, or layers are merged already."""
    chosen = given.get("adapter_names")
    is_other = chosen is not None and set(chosen) != set(state["adapters"])
    return [] if is_other or state["merged"] else state["scaling"]


def _unloading(given: dict[str, Any]) -> tuple[Any, bool, dict[str, Any], list[float]]:
    state = models.state(given["self"].model)
    return given["self"], bool(given.get("merge", True)), state, _scaling_to_merge(given, state)


def _unloaded(token: tuple[Any, bool, dict[str, Any], list[float]], result: Any) -> None:
    tuner, is_merge, state, scaling = token
    models.layers_changed()
    files = sorted({*state["sha256"], *state["merged_sha256"]}) if is_merge else state["sha256"]
    if is_merge:
        models.merge_into(getattr(tuner, "model", result), files)
    change = "merged" if is_merge else "unloaded"
    facts.write(f"adapter_{change}", adapter=state["adapters"], sha256=files, scaling=scaling)
