"""Samples a few numbers of each weight tensor.

They tell whether the base changed, which adapter is loaded, and whether it moved in training. A base is known by 64
numbers of each of its tensors, read when it was loaded; an adapter by the norm and the sum of each of its matrices,
which the file that it was read from or written to must give as well. Nothing is read in a loop's steps: at a model's
loading, at a training's beginning and end, and before the first answers.
"""

from __future__ import annotations

import math
import re
import sys
import weakref
from collections.abc import Sequence
from random import Random
from statistics import median
from typing import Any

from . import facts, models, patches

_BLOCKS, _BLOCK = 4, 16  # places in a tensor, and neighbouring numbers in each: a page of memory is read for each place
_MOST_TENSORS = 1024
_LEAST_CHANGED = 0.125  # of a tensor's numbers; a few rows of an embedding are mended on purpose
_ROUNDING = 2.0**-6  # between a number and itself in another precision
_NAMED = 3
_LAYER = re.compile(r"\.(?:layers|layer|h|blocks|block)\.\d+$")
_MOVING_ROPE = ("dynamic", "longrope")  # whose frequencies follow the text's length
_SAVED_BY_PEFT = re.compile(r"\.(?:modules_to_save|trainable_tokens_delta|token_adapter)\.")
_KINDS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
_WRAPPED = ("base_layer.", "original_module.", "_orig_mod.", "_checkpoint_wrapped_module.")
_WRAPPERS = re.compile(rf"(?<=\.)({'|'.join(map(re.escape, _WRAPPED))})")

_Sample = tuple[str, int, Any]  # its type, its size, its numbers
_at_load: weakref.WeakKeyDictionary[Any, dict[str, _Sample]] = weakref.WeakKeyDictionary()
_built: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()
_trained: weakref.WeakKeyDictionary[Any, list[str]] = weakref.WeakKeyDictionary()  # beside adapters
_constants: weakref.WeakKeyDictionary[Any, dict[str, float]] = weakref.WeakKeyDictionary()


@facts.guarded("base's weights")
def loaded(model: Any) -> None:
    """Know this model's weights as they are now."""
    base = models.base_of(model)
    _at_load[base], _built[base], _constants[base] = _sampled(base), _structure(base), _constants_of(base)


@facts.guarded("base's weights")
def initialised_from_base(model: Any) -> None:
    """An adapter was begun out of the base's own weights (PiSSA, OLoRA): what is left of these is the base now."""
    base = models.base_of(model)
    if base in _at_load:
        loaded(base)


@facts.guarded("base's weights")
def trained(model: Any) -> None:
    """A training begins: what it changes is not compared any more, and must be saved."""
    base = models.base_of(model)
    known, trained_names = _at_load.get(base, {}), list[str]()
    with models.as_tensors():
        for name, parameter in models.parameters_of(models.modules_of(base)):
            if parameter.requires_grad and "lora_" not in name:
                known.pop(_plain(name), None)
                if not _SAVED_BY_PEFT.search(name):
                    trained_names.append(_plain(name))
    _trained[base] = trained_names[:_MOST_TENSORS]


@facts.guarded("base's weights")
def base_changed(model: Any) -> dict[str, Any] | None:
    """How many of the base's tensors are others than when it was loaded; None where nothing can be compared."""
    base = models.base_of(model)
    known = _at_load.get(base)
    if not known or models.merged_into(base) or any(getattr(one, "merged", False) for one in models.lora_layers(base)):
        return None
    compared, changed = 0, []
    for name, (kind, size, numbers) in _sampled(base).items():
        old = known.get(name)
        if old is None or old[1] != size or (old[0] != kind and "int" in old[0] + kind):
            continue
        compared += 1
        if old[2] is not numbers and _differ(old[2], numbers, 0.0 if old[0] == kind else _ROUNDING):
            changed.append(name)
    before, now = _constants.get(base, {}), _constants_of(base)
    lost = _rebuilt(base, known) + [name for name in before if now.get(name, before[name]) != before[name]]
    changed, compared = lost + changed, compared + len(lost)
    if not compared:
        return None
    trained = _trained.get(base, [])
    return {"compared": compared, "changed": len(changed), "names": changed[:_NAMED], "trained": trained}


def _structure(base: Any) -> dict[str, str]:
    """The classes of a model's layers, and of what computes without numbers of its own, as activations do."""
    return {
        _plain(name): _class_name(module)
        for name, module in models.modules_of(base)
        if _LAYER.search(name) or not (module._parameters or module._modules or module._buffers or _is_off(module))
    }


def _constants_of(base: Any) -> dict[str, float]:
    """Numbers that layers compute with and that are no tensors: a scale of the attention, a norm's epsilon."""
    return {
        f"{_plain(name)}.{own}": value
        for name, module in models.modules_of(base)
        if "lora_" not in name and not _is_off(module)
        for own, value in vars(module).items()
        if (type(value) is float and "drop" not in own) or own == "is_causal"
    }


def _class_name(module: Any) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _is_off(module: Any) -> bool:
    """Whether it is left out where nothing is trained, or does nothing."""
    return type(module).__name__.endswith(("Dropout", "Identity"))


def _rebuilt(base: Any, known: dict[str, _Sample]) -> list[str]:
    """Tensors of layers that are gone, and activations that are others, by torch's own classes or the program's.

    Nothing where most of the names are others: then something is wrapped around each layer.
    """
    before = _built.get(base, {})
    now = {_plain(name): module for name, module in models.modules_of(base) if "lora_" not in name}
    layers = [name for name in before if _LAYER.search(name)]
    gone = [f"{name}." for name in layers if name not in now]
    if 2 * len(gone) > len(layers) + 1 and not any(name in now for name in layers):
        return []
    others = [
        name
        for name, kind in before.items()
        if name in now
        and not _LAYER.search(name)
        and (own := _class_name(now[name])) != kind
        and (own.startswith("torch.nn.") or patches.is_own_class(type(now[name])))
    ]
    return [name for name in known if name.startswith(tuple(gone))] + others if gone else others


def _differ(before: Any, now: Any, slack: float) -> bool:
    """Whether more of a tensor's numbers changed than are mended on purpose; NaN is like NaN."""
    if now.equal(before):
        return False
    is_other = (before - now).abs() > slack * before.abs().maximum(now.abs())
    is_other |= before.isnan() != now.isnan()
    return bool(is_other.sum() > _LEAST_CHANGED * now.numel())


def _plain(name: str) -> str:
    if not any(one in name for one in _WRAPPED):  # most names are plain, and a pattern takes ten times as long
        return name
    return _WRAPPERS.sub("", f".{name}")[1:]


def _sampled(model: Any) -> dict[str, _Sample]:
    """By name; what lies on one device comes in one transfer."""
    torch: Any = sys.modules["torch"]
    alike: dict[tuple[Any, Any], list[tuple[str, Any]]] = {}
    found: dict[str, _Sample] = {}
    with torch.no_grad(), models.as_tensors():
        for name, parameter in models.parameters_of(models.modules_of(model)):
            if "lora_" not in name and ".modules_to_save." not in name and _is_whole(parameter):
                alike.setdefault((parameter.device, parameter.dtype), []).append((_plain(name), parameter))
        for name, frequencies in _frequencies(model):
            alike.setdefault((frequencies.device, frequencies.dtype), []).append((name, frequencies))
        for (_, kind), several in alike.items():
            several = several[:: -(-len(several) // _MOST_TENSORS)]
            parts = [_blocks(parameter) for _, parameter in several]
            sizes = [part.numel() for part in parts]
            numbers = torch.cat([part.reshape(-1) for part in parts]).cpu().float().split(sizes)
            found.update({
                name: (str(kind), parameter.numel(), part) for (name, parameter), part in zip(several, numbers)
            })  # fmt: skip
    return found


def _frequencies(model: Any) -> list[tuple[str, Any]]:
    """Those of rotary positions, which are no parameters, by name."""
    return [
        (f"{_plain(name)}.{own}", buffer)
        for name, module in models.modules_of(model)
        for own, buffer in module._buffers.items()
        if own.endswith("inv_freq") and not own.startswith("original") and buffer is not None and _is_whole(buffer)
        and not any(kind in str(getattr(module, "rope_type", "")) for kind in _MOVING_ROPE)
    ]  # fmt: skip


def _is_whole(tensor: Any) -> bool:
    """Whether it can be read here: no shard, no placeholder, and nothing that would be copied for it."""
    return (
        tensor.numel() > 0
        and not tensor.is_meta
        and tensor.dtype is not sys.modules["torch"].int8  # laid out anew when it is first used
        and not _is_laid_out_anew(tensor)
        and not hasattr(type(tensor), "__tensor_flatten__")  # made of other tensors
        and tensor.is_contiguous()
        and not _is_sharded(tensor)
    )


def _is_laid_out_anew(tensor: Any) -> bool:
    """Whether bitsandbytes has laid 4-bit weights out for the CPU, as it does where a model first evaluates there."""
    return bool(getattr(getattr(tensor, "quant_state", None), "packing_format_for_cpu", False))


def _is_sharded(tensor: Any) -> bool:
    own = getattr(tensor, "__dict__", {})
    return hasattr(type(tensor), "placements") or any(
        name in own for name in ("ds_id", "_is_flat_param", "_fsdp_flattened")
    )


def _blocks(tensor: Any) -> Any:
    """The numbers at a few places of it, as a view."""
    torch: Any = sys.modules["torch"]
    plain, size = torch.Tensor.detach(tensor), tensor.numel()
    if size <= _BLOCKS * _BLOCK:
        return plain
    begin, stride = size // (2 * _BLOCKS), size // _BLOCKS
    return torch.as_strided(plain, (_BLOCKS, _BLOCK), (stride, 1), plain.storage_offset() + begin)


@facts.guarded("adapter's weights")
def adapter_numbers(model: Any) -> dict[str, list[float]] | None:
    """The norm, the sum and the size of each matrix of the active adapter, by the name that its file has for it.

    None where several are active, or none, or where a process holds a part of them only.
    """
    torch: Any = sys.modules["torch"]
    layers = models.lora_layers(model)
    active = {name for layer in layers for name in models.active_adapters(layer)}
    if len(active) != 1:
        return None
    adapter, known = next(iter(active)), set(map(id, layers))
    found: list[tuple[str, Any]] = []
    for name, layer in models.modules_of(models.base_of(model)):
        if id(layer) in known:
            for kind in _KINDS:
                held = getattr(layer, kind, None)
                if held is not None and adapter in held:
                    found.append((f"{_plain(name)}.{kind}", getattr(held[adapter], "weight", held[adapter])))
        elif "Fully" in type(layer).__name__:  # FSDP: this process holds a shard
            return None
    tensors = [tensor.detach() for _, tensor in found]
    if not tensors or any(not t.numel() or t.is_meta or _is_sharded(t) for t in tensors):
        return None
    first = tensors[0]
    with torch.no_grad():
        if all(one.dtype is torch.float32 and one.device == first.device for one in tensors):
            values = [*torch._foreach_norm(tensors, 2), *(one.sum() for one in tensors)]
        else:
            norms = [torch.linalg.vector_norm(one, dtype=torch.float32).to(first.device) for one in tensors]
            values = [*norms, *(one.sum(dtype=torch.float32).to(first.device) for one in tensors)]
        numbers: Sequence[float] = torch.stack(values).tolist()
    return {  # `numbers` has the norms of all tensors, then their sums
        name: [*(float(f"{value:.6g}") for value in numbers[n :: len(tensors)]), tensor.numel()]
        for n, ((name, _), tensor) in enumerate(zip(found, tensors))
    }


_SLICE = 64  # numbers of a matrix that are kept from the beginning
_MOST_MATRICES = 32  # of A and of B each
_MATRICES = ("lora_A", "lora_B")


def snapshot(model: Any) -> dict[str, dict[str, tuple[float, Any]]]:
    """Each matrix's largest value and first numbers, on the CPU, by its kind and name."""
    found = models.matrices(model)
    values: dict[str, dict[str, tuple[float, Any]]] = {kind: {} for kind in _MATRICES}
    for (kind, name, _), own in zip(found, _numbers([tensor for _, _, tensor in found])):
        values[kind][name] = own
    return values


def _numbers(tensors: list[Any]) -> list[tuple[float, Any]]:
    """Of each tensor; what lies on one device comes in one transfer."""
    torch: Any = sys.modules["torch"]
    alike: dict[tuple[Any, Any], list[int]] = {}
    for place, tensor in enumerate(tensors):
        alike.setdefault((tensor.device, tensor.dtype), []).append(place)
    values: dict[int, tuple[float, Any]] = {}
    with torch.no_grad():
        for places in alike.values():
            own = [tensors[place] for place in places]
            firsts = [tensor.reshape(-1)[:_SLICE] for tensor in own]
            # the largest value is one of the tensor's own, so that nothing is rounded
            peaks = torch.stack(torch._foreach_norm(own, math.inf))
            read = torch.cat([peaks, *firsts]).cpu().float().split([len(own), *map(len, firsts)])
            values.update(zip(places, zip(read[0].tolist(), read[1:])))
    return [values[place] for place in range(len(tensors))]


def nonzero_pairs(start: dict[str, Any]) -> dict[str, int]:
    """How many pairs of A and B a snapshot has, and in how many of them neither is zero throughout."""
    a, b = ({name for name, (peak, _) in start[kind].items() if peak == 0} for kind in _MATRICES)
    pairs = start["lora_A"].keys() & start["lora_B"].keys()
    return {"pairs": len(pairs), "nonzero_pairs": len(pairs - a - b)}


def changes_since(start: dict[str, Any], model: Any) -> dict[str, Any]:
    """How the matrices changed since the snapshot, by kind."""
    found: dict[str, Any] = {}
    frozen = [kind for kind, _, weight in models.trained_matrices(model) if not weight.requires_grad]
    for kind, now in snapshot(model).items():
        before = start.get(kind, {})
        peaks = [peak for peak, _ in now.values()]
        found[kind.lower()] = {
            "total": len(now), "moved": sum(_moved(before.get(name), values) for name, values in now.items()),
            "kept": _median_norm_ratio(before, now), "frozen": frozen.count(kind),
            "zero": peaks.count(0.0), "max_abs": next((one for one in peaks if one != one), max(peaks, default=0.0)),
        }  # fmt: skip
    return found


def _moved(before: tuple[float, Any] | None, now: tuple[float, Any]) -> bool:
    return before is None or before[0] != now[0] or not now[1].equal(before[1])


def _median_norm_ratio(before: dict[str, Any], now: dict[str, Any]) -> float | None:
    """The median of the matrices' norms over those before, by their first numbers; None where all of them were zero."""
    torch: Any = sys.modules["torch"]
    shared = [name for name in now if name in before]
    if len(shared) > _MOST_MATRICES:  # at a stride it would be one kind of matrix, with 32 layers of 7
        shared = Random(0).sample(shared, _MOST_MATRICES)  # noqa: S311
    if not shared:
        return None
    norms = (torch.stack(torch._foreach_norm([one[name][1] for name in shared])).tolist() for one in (before, now))
    ratios = [round(after / start, 4) for start, after in zip(*norms) if start > 0 and after == after]
    return median(ratios) if ratios else None
