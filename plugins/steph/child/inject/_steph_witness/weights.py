"""Weights by a few numbers of each: whether a base is still what was loaded, and which numbers an adapter has.

A base is known by 64 numbers of each of its tensors, read when it was loaded; an adapter by the norm and the sum of
each of its matrices, which the file that it was read from or written to must give as well. Nothing is read in a loop's
steps: at a model's loading, at a training's beginning and end, and before the first answers.
"""

from __future__ import annotations

import re
import sys
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from . import facts, models

_BLOCKS, _BLOCK = 4, 16  # places in a tensor, and neighbouring numbers in each: a page of memory is read for each place
_MOST_TENSORS = 1024
_LEAST_CHANGED = 0.125  # of a tensor's numbers; a few rows of an embedding are mended on purpose
_ROUNDING = 2.0**-6  # between a number and itself in another precision
_NAMED = 3
_KINDS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
_WRAPPERS = re.compile(r"(?<=\.)(base_layer|original_module|_orig_mod|_checkpoint_wrapped_module)\.")

_Sample = tuple[str, int, "list[float]"]  # its type, its size, its numbers
_at_load: weakref.WeakKeyDictionary[Any, dict[str, _Sample]] = weakref.WeakKeyDictionary()


@facts.guarded("base's weights")
def loaded(model: Any) -> None:
    """Know this model's weights as they are now."""
    _at_load[models.base_of(model)] = _sampled(models.base_of(model))


@facts.guarded("base's weights")
def drawn_from(model: Any) -> None:
    """An adapter was begun out of the base's own weights (PiSSA, OLoRA): what is left of these is the base now."""
    base = models.base_of(model)
    if base in _at_load:
        loaded(base)


@facts.guarded("base's weights")
def trained(model: Any) -> None:
    """A training begins: what it changes is not compared any more."""
    base = models.base_of(model)
    known = _at_load.get(base)
    if known is not None:
        for name, parameter in base.named_parameters():
            if parameter.requires_grad:
                known.pop(_plain(name), None)


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
        slack = 0.0 if old[0] == kind else _ROUNDING
        if sum(_differ(a, b, slack) for a, b in zip(old[2], numbers)) > _LEAST_CHANGED * len(numbers):
            changed.append(name)
    return {"compared": compared, "changed": len(changed), "names": changed[:_NAMED]} if compared else None


def _differ(one: float, other: float, slack: float) -> bool:
    if one != one or other != other:
        return (one != one) != (other != other)
    return abs(one - other) > slack * max(abs(one), abs(other))


def _plain(name: str) -> str:
    return _WRAPPERS.sub("", f".{name}")[1:]


def _sampled(model: Any) -> dict[str, _Sample]:
    """By name; what lies on one device comes in one transfer."""
    torch: Any = sys.modules["torch"]
    alike: dict[tuple[str, str], list[tuple[str, Any]]] = {}
    for name, parameter in model.named_parameters():
        if "lora_" not in name and ".modules_to_save." not in name and _is_whole(parameter):
            alike.setdefault((str(parameter.device), str(parameter.dtype)), []).append((_plain(name), parameter))
    found: dict[str, _Sample] = {}
    with torch.no_grad():
        for (_, kind), several in alike.items():
            several = several[:: -(-len(several) // _MOST_TENSORS)]
            parts = [list(_blocks(parameter.detach().reshape(-1))) for _, parameter in several]
            sizes = [sum(map(len, blocks)) for blocks in parts]
            numbers = torch.cat([block for blocks in parts for block in blocks]).cpu().float().split(sizes)
            found.update({
                name: (kind, int(parameter.numel()), part.tolist())
                for (name, parameter), part in zip(several, numbers)
            })  # fmt: skip
    return found


def _is_whole(tensor: Any) -> bool:
    """Whether it can be read here: no shard, no placeholder, and nothing that would be copied for it."""
    return (
        tensor.numel() > 0
        and str(tensor.device) != "meta"
        and str(tensor.dtype) != "torch.int8"  # laid out anew when it is first used
        and tensor.is_contiguous()
        and not _is_sharded(tensor)
    )


def _is_sharded(tensor: Any) -> bool:
    return any(hasattr(tensor, name) for name in ("placements", "ds_id", "_is_flat_param", "_fsdp_flattened"))


def _blocks(flat: Any) -> Iterator[Any]:
    size = len(flat)
    if size <= _BLOCKS * _BLOCK:
        yield flat
        return
    for n in range(_BLOCKS):
        begin = (2 * n + 1) * size // (2 * _BLOCKS)
        yield flat[begin : begin + _BLOCK]


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
    for name, layer in models.base_of(model).named_modules():
        if id(layer) in known:
            for kind in _KINDS:
                held = getattr(layer, kind, None)
                if held is not None and adapter in held:
                    found.append((f"{_plain(name)}.{kind}", getattr(held[adapter], "weight", held[adapter])))
    tensors = [tensor.detach() for _, tensor in found]
    if not tensors or any(not t.numel() or str(t.device) == "meta" or _is_sharded(t) for t in tensors):
        return None
    if any("Fully" in type(one).__name__ for one in models.base_of(model).modules()):
        return None
    with torch.no_grad():
        norms = [torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in tensors]
        values = [
            one.to(tensors[0].device) for t, norm in zip(tensors, norms) for one in (norm, t.sum(dtype=norm.dtype))
        ]
        numbers: Sequence[float] = torch.stack(values).tolist()
    return {
        name: [*(float(f"{value:.6g}") for value in numbers[2 * n : 2 * n + 2]), tensor.numel()]
        for n, ((name, _), tensor) in enumerate(zip(found, tensors))
    }
