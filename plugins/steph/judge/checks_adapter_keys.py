"""Checks that an adapter's tensors are what PEFT can load into this base, in every layer, and of sound size. Pure.

PEFT passes over a key that it does not know with one warning, and the base model answers under the adapter's name.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from steph.base.messages import Message, say
from steph.base.tensors import Scan, Tensor
from steph.base.text import one_line
from steph.judge.base_model import BaseModel, layer_of
from steph.judge.kinds import FAIL, WARN, CheckKind
from steph.record.values import Check

PREFIX = "base_model.model."
LARGEST_WEIGHT = 100.0  # of a LoRA matrix; a trained one stays below 10
SMALLEST_WEIGHT = 1e-8  # the largest value of a B: below that B·A vanishes beside the base's own rounding
LEAST_TWINS = 2
# wrappers of torch.compile, FSDP, DDP and checkpointing, a second PEFT model, and PEFT's own names in memory
# (the embeddings' and the head's base layers are saved on purpose, where LoRA is on them)
_FOREIGN = re.compile(
    r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|^base_model\.model\.(?:base_model\.model|module)\."
    r"|\.modules_to_save\.|\.original_module\.|(?<!embed_tokens)(?<!lm_head)(?<!wte)\.base_layer\.weight$|\blora_\w+\.default\."
)
_LORA = re.compile(r"\.lora_(?:embedding_)?[AB](?:\.weight)?$")
# the tower of another kind of input, layers that predict further tokens, and experts, which are stored in many ways
_ELSEWHERE = re.compile(r"\b(?:visual|vision\w*|audio\w*|mtp|experts?)\.")

ADAPTER_LOADABLE = CheckKind("adapter_loadable", "H-2", FAIL)
ADAPTER_LAYERS = CheckKind("adapter_layers", "H-2", WARN, optional=True)
ADAPTER_VALUES = CheckKind("adapter_values", "H-2", WARN, optional=True)
ADAPTER_KEYS = (ADAPTER_LOADABLE, ADAPTER_LAYERS, ADAPTER_VALUES)


def key_checks(
    tensors: tuple[Tensor, ...], scans: tuple[Scan, ...], base: BaseModel, targets: object, *, whole: bool
) -> tuple[Check, ...]:
    """All checks of an adapter's keys; `targets` is its `target_modules`, `whole` says that no layer is left out."""
    if not tensors:
        kinds = (ADAPTER_LOADABLE, ADAPTER_LAYERS, ADAPTER_VALUES)
        return tuple(kind.check(None, say("adapter.unread")) for kind in kinds)
    return (_loadable_check(tensors, base), _layers_check(tensors, base, targets, whole=whole), _values_check(scans))


def _loadable_check(tensors: tuple[Tensor, ...], base: BaseModel) -> Check:
    foreign = [t.name for t in tensors if not t.name.startswith(PREFIX) or _FOREIGN.search(t.name)]
    if foreign:
        first = one_line(foreign[0], 120)
        return ADAPTER_LOADABLE.check(False, "foreign", keys=len(tensors), foreign=len(foreign), example=first)
    astray = next(_misfits(tensors, base), None)
    if astray:
        return ADAPTER_LOADABLE.check(False, "misfit", misfit=astray)
    return ADAPTER_LOADABLE.check(True, "sound", keys=len(tensors))


def _misfits(tensors: Sequence[Tensor], base: BaseModel) -> Iterator[Message]:
    """What does not fit the base: a layer that it doesn't have, modules that it doesn't have, another width."""
    shapes = {place: shape for name, shape in base.matrices.items() if (place := _place(name))}
    placed = [(tensor, place) for tensor in tensors if _LORA.search(tensor.name) and (place := _place_of(tensor))]
    for tensor, (layer, _) in placed:
        if base.layers is not None and layer >= base.layers:
            yield say("adapter.no_layer", matrix=one_line(tensor.name, 120), layers=base.layers)
    known = [(tensor, shapes[place]) for tensor, place in placed if place in shapes]
    if shapes and placed and not known:
        yield say("adapter.no_module", matrix=one_line(placed[0][0].name, 120))
    for tensor, shape in known:
        width = tensor.shape[-1 if "lora_A" in tensor.name else 0] if len(tensor.shape) == 2 else None
        if width is not None and width not in shape:
            name, own, known_shape = one_line(tensor.name, 120), str(list(tensor.shape)), str(list(shape))
            yield say("adapter.other_shape", matrix=name, shape=own, base_shape=known_shape)


def _place(name: str) -> tuple[int, str] | None:
    return None if _ELSEWHERE.search(name) else layer_of(name)


def _place_of(tensor: Tensor) -> tuple[int, str] | None:
    return _place(_LORA.sub("", tensor.name))


def _layers_check(tensors: Sequence[Tensor], base: BaseModel, targets: object, *, whole: bool) -> Check:
    had = {place for tensor in tensors if _LORA.search(tensor.name) and (place := _place_of(tensor))}
    if not whole or not had:
        return ADAPTER_LAYERS.check(None, "chosen")
    wanted = _wanted(base, targets)
    if not wanted and not base.is_mixed:  # of an unknown base the layers go as far as LoRA's
        layers = base.layers if base.layers is not None else 1 + max(layer for layer, _ in had)
        wanted = {(layer, module) for layer in range(layers) for _, module in had}
    if not wanted:
        return ADAPTER_LAYERS.check(None, "unknown")
    lacking = sorted(wanted - had)
    where = sorted({layer for layer, _ in lacking})
    listing = [*where[:8], *("…" for _ in where[8:9])]
    if lacking:
        return ADAPTER_LAYERS.check(False, "lacking", matrices=len(wanted), lacking=len(lacking), layers=listing)
    return ADAPTER_LAYERS.check(True, "all")


def _wanted(base: BaseModel, targets: object) -> set[tuple[int, str]]:
    """The base's matrices that these targets mean; PEFT takes a list by the names' ends and a text as an expression."""
    limit = base.layers if base.layers is not None else 10**9
    places = [(name, place) for name in base.matrices if (place := _place(name)) and place[0] < limit]
    if isinstance(targets, list):
        ends = tuple(f".{target}" for target in targets)
        return {place for name, place in places if f".{name}".endswith(ends)}
    if isinstance(targets, str):
        try:
            expression = re.compile(targets)
        except re.error:
            return set()
        return {place for name, place in places if expression.fullmatch(name)}
    return set()


def _values_check(scans: tuple[Scan, ...]) -> Check:
    """Sizes that no training leads to, and matrices B of several layers that are one and the same."""
    lora = [s for s in scans if _LORA.search(s.tensor.name) and s.largest is not None and not s.nonfinite_values]
    sizes = {s.tensor.name: s.largest for s in lora if s.largest is not None and s.any_nonzero}
    if not sizes:
        return ADAPTER_VALUES.check(None, "none")
    ends = [size for name, size in sizes.items() if "lora_B" in name or "lora_embedding_A" in name]
    name, largest = max(sizes.items(), key=lambda item: item[1])
    same = _same_in_layers(lora)
    wrong = []
    tiny = [size for size in ends if size < SMALLEST_WEIGHT]
    if tiny:
        wrong.append(say("adapter.tiny", matrices=len(ends), tiny=len(tiny), largest=max(tiny)))
    if largest > LARGEST_WEIGHT:
        wrong.append(say("adapter.large", matrix=one_line(name, 120), largest=largest))
    if same:
        wrong.append(say("adapter.twins", matrices=same))
    return ADAPTER_VALUES.check(not wrong, "odd" if wrong else "plausible", troubles=wrong, largest=largest)


def _same_in_layers(lora: Sequence[Scan]) -> int:
    """How many matrices B are the same as another layer's of that module, to the last bit."""
    by_module: Mapping[tuple[str, tuple[int, ...]], Counter[bytes]] = defaultdict(Counter)
    for s in lora:
        place = layer_of(s.tensor.name)
        if place and s.any_nonzero and "lora_B" in s.tensor.name and s.tensor.name.endswith(("lora_B", "weight")):
            by_module[place[1], s.tensor.shape][s.digest] += 1
    return sum(count for digests in by_module.values() for count in digests.values() if count >= LEAST_TWINS)
