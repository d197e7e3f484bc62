"""By how much a training moved the LoRA matrices, and what that is against the weights they are added to."""

from __future__ import annotations

import math
import sys
from random import Random
from statistics import median
from typing import Any

from . import models

_SLICE = 64  # numbers of a matrix that are kept from the beginning
_COMPARED_LAYERS = 4
_MOST_SIZES = 32  # matrices, of A and of B each
_BASE_BYTES = 16384  # of a weight, for its norm
_KINDS = ("lora_A", "lora_B")


def snapshot(model: Any) -> dict[str, dict[str, tuple[float, Any]]]:
    """Each matrix's largest value and first numbers, on the CPU, by its kind and name."""
    found = models.matrices(model)
    values: dict[str, dict[str, tuple[float, Any]]] = {kind: {} for kind in _KINDS}
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


def zeros(start: dict[str, Any]) -> dict[str, int]:
    """How many of a snapshot's matrices are zero throughout."""
    return {f"all_{kind[-1].lower()}_zero": sum(peak == 0 for peak, _ in start[kind].values()) for kind in _KINDS}


def since(start: dict[str, Any], model: Any) -> dict[str, Any]:
    """What became of the matrices since the snapshot."""
    found: dict[str, Any] = {}
    for kind, now in snapshot(model).items():
        before = start.get(kind, {})
        peaks = [peak for peak, _ in now.values()]
        found[kind.lower()] = {
            "total": len(now), "moved": sum(_moved(before.get(name), values) for name, values in now.items()),
            "kept": _kept(before, now),
            "zero": peaks.count(0.0), "max_abs": next((one for one in peaks if one != one), max(peaks, default=0.0)),
        }  # fmt: skip
    return {**found, "delta_ratio": _ratios(model)}


def _moved(before: tuple[float, Any] | None, now: tuple[float, Any]) -> bool:
    return before is None or before[0] != now[0] or not now[1].equal(before[1])


def _kept(before: dict[str, Any], now: dict[str, Any]) -> float | None:
    """The norm of a matrix's first numbers over what it was before, in the median; None where all of them were zero."""
    torch: Any = sys.modules["torch"]
    shared = [name for name in now if name in before]
    if len(shared) > _MOST_SIZES:  # at a stride it would be one kind of matrix, with 32 layers of 7
        shared = Random(0).sample(shared, _MOST_SIZES)  # noqa: S311
    if not shared:
        return None
    sizes = (torch.stack(torch._foreach_norm([one[name][1] for name in shared])).tolist() for one in (before, now))
    ratios = [round(after / start, 4) for start, after in zip(*sizes) if start > 0 and after == after]
    return median(ratios) if ratios else None


def _ratios(model: Any) -> dict[str, float] | None:
    layers = [layer for layer in models.lora_layers(model) if getattr(layer, "lora_A", None)]
    chosen = layers[:: max(1, len(layers) // _COMPARED_LAYERS)][:_COMPARED_LAYERS]
    ratios = [ratio for layer in chosen if (ratio := _ratio(layer)) is not None and ratio == ratio]
    return {"median": median(ratios), "max": max(ratios)} if ratios else None


def _ratio(layer: Any) -> float | None:
    """The norm of scaling times B·A over that of the layer's weight, worked out on the CPU."""
    names = [name for name in models.active_adapters(layer) if name in layer.lora_A]
    weight = getattr(layer.base_layer, "weight", None)
    if not names or weight is None:
        return None
    a, b = (getattr(layer, kind)[names[0]].weight.detach() for kind in _KINDS)
    if not a.numel() or not b.numel() or a.dim() != 2 or b.dim() != 2:
        return None
    base = _base_norm(weight)
    if not base:
        return None
    a, b = a.cpu().double(), b.cpu().double()
    # the norm of B·A by the small square matrices alone
    square = float(((b.T @ b) * (a @ a.T)).sum())
    return abs(float(layer.scaling[names[0]])) * math.sqrt(max(square, 0.0)) / base


def _base_norm(weight: Any) -> float | None:
    """The norm of a weight, by its first numbers; 4-bit ones are unpacked here."""
    state = getattr(weight, "quant_state", None)
    count = models._count(weight)
    if state is None:
        if not weight.is_floating_point():
            return None
        part = weight.detach().reshape(-1)[: _BASE_BYTES // 4].cpu().double()
        return math.sqrt(float((part * part).mean()) * count)
    values = _unpacked(weight.detach().reshape(-1)[: _BASE_BYTES // 4].cpu(), state)
    return None if values is None else math.sqrt(float((values * values).mean()) * count)


def _unpacked(packed: Any, state: Any) -> Any:
    torch: Any = sys.modules["torch"]
    if getattr(packed, "dtype", None) != torch.uint8 or getattr(state, "packing_format_for_cpu", False):
        return None
    blocks = packed.numel() * 2 // int(state.blocksize)
    scales = state.absmax[:blocks].cpu()
    if getattr(state, "nested", False):
        inner = state.state2
        outer = inner.absmax[: -(-blocks // int(inner.blocksize))].cpu().float()
        codes = inner.code.cpu().float()[scales.long()]
        scales = codes * outer.repeat_interleave(int(inner.blocksize))[:blocks] + float(state.offset)
    codes = state.code.cpu().float()
    values = torch.stack([codes[(packed >> 4).long()], codes[(packed & 15).long()]], 1).reshape(blocks, -1)
    return (values * scales.float()[:, None]).double()
