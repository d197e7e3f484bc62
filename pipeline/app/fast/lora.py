"""LoRA without dropout in one function for all layers of an input: fewer kernels, and little is kept for the backward.

PEFT and bitsandbytes compute a layer in some ten operations, each with a copy of its output. Here the base's product is
made once and the adapter's is added into it. Queries, keys and values are one product, and so are gate and up of an
MLP, whose own product is made again in the backward.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora import LoraLayer
from torch.nn.functional import linear, silu

from app.fast.card_kernels import card_kernels

ADAPTER = "default"
_FAR_OUT = 50.0  # families that bound an MLP's gates do it at 7 or 10


def shorten_lora(model: torch.nn.Module) -> "list[LayerGroup]":
    """Give every adapted linear layer without dropout, and every frozen one, the short way; the adapted, by input.

    A module's class becomes a subclass of what it was.
    """
    short: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer) and _is_plain(module)]
    # PEFT's adapted layer has the same name as bitsandbytes' own
    others = (module for module in model.modules() if not isinstance(module, LoraLayer))
    short += [module for module in others if type(module).__name__ == "Linear4bit" and _is_frozen(module)]
    for module in short:
        if not isinstance(module, _ShortLinear):
            _replace_class(module, _ShortLinear)
            module.__dict__["_alone"] = LayerGroup([module])
    groups: list[LayerGroup] = []
    known: dict[Any, bool] = {}
    for module in model.modules():
        projections: list[Any] = [getattr(module, name, None) for name in ("q_proj", "k_proj", "v_proj")]
        if all(isinstance(projection, _ShortLinear) for projection in projections):
            shared = _SharedInput(LayerGroup(projections), are_normed=hasattr(module, "q_norm"))
            for projection in projections:
                projection.__dict__["_shared_input"] = shared
            groups.append(shared.group)
        if not _looks_gated(module) or not _is_silu(module):
            continue
        both, down = LayerGroup([module.gate_proj, module.up_proj]), LayerGroup([module.down_proj])
        module.__dict__["_both"], module.__dict__["_down"] = both, down
        kind = type(module), _settings(module)
        if kind not in known:
            known[kind] = _is_gated(module)
        if known[kind]:
            groups += [both, down]
            if not isinstance(module, _ShortGatedMlp):
                _replace_class(module, _ShortGatedMlp)
    grouped = {layer for group in groups for layer in group.layers}
    groups += [module.__dict__["_alone"] for module in short if module not in grouped]
    return [group for group in groups if group.adapted]


def _replace_class(module: torch.nn.Module, way: type) -> None:
    module.__class__ = _subclass(way, type(module))  # type: ignore[arg-type]


@functools.cache
def _subclass(way: type, usual: type) -> type:
    return type(usual.__name__, (way, usual), {"__module__": __name__})


class _ShortLinear:
    def forward(self: Any, inputs: torch.Tensor, *others: object, **named: object) -> torch.Tensor:
        """The base's product and the adapter's in one."""
        alone = self.__dict__["_alone"]
        if others or named or not alone.is_short_now():
            return super().forward(inputs, *others, **named)  # type: ignore[misc]
        shared = self.__dict__.get("_shared_input")
        output = shared.output(self, inputs) if shared else None
        return alone.outputs(inputs)[0] if output is None else output


class _SharedInput:
    """Layers that an attention calls one after the other with the same input: the first call computes them all."""

    def __init__(self, group: "LayerGroup", *, are_normed: bool) -> None:
        self.group = group
        self._are_normed = are_normed
        self._inputs: torch.Tensor | None = None
        self._waiting: dict[Any, torch.Tensor] = {}
        self._is_shared = True

    def output(self, layer: Any, inputs: torch.Tensor) -> torch.Tensor | None:  # noqa: ANN401 - PEFT has no types
        """This layer's output, or None where it is none of a product of them all."""
        if layer is self.group.layers[0]:
            self._inputs, self._waiting = None, {}
            if self._is_shared and self.group.is_short_now():
                *others, values = self.group.outputs(inputs)
                # an attention keeps the values, and with them the queries and keys beside them: a norm keeps those too
                outputs = [*others, values if self._are_normed else values.clone()]
                self._inputs, self._waiting = inputs, dict(zip(self.group.layers, outputs, strict=True))
        elif self._waiting and inputs is not self._inputs:
            self._is_shared, self._waiting = False, {}
        output = self._waiting.pop(layer, None)
        if not self._waiting:
            self._inputs = None
        return output


class _ShortGatedMlp:
    def forward(self: Any, inputs: torch.Tensor) -> torch.Tensor:
        """All of it in one."""
        both, down = self.__dict__["_both"], self.__dict__["_down"]
        are_known = (*both.layers, *down.layers) == (self.gate_proj, self.up_proj, self.down_proj)
        if not (are_known and both.is_short_now() and down.is_short_now()):
            return super().forward(inputs)  # type: ignore[misc]
        return _GatedMlp.apply(_as_computed(inputs), *both.weights(), *down.weights(), both, down)


class LayerGroup:
    """Linear layers of one input, each with or without an adapter."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = layers
        self.bases = [_base_of(layer) for layer in layers]
        self.sizes = [base.out_features for base in self.bases]
        self.adapted = [index for index, layer in enumerate(layers) if isinstance(layer, LoraLayer)]
        self.copies: list[torch.Tensor] | None = None

    def is_short_now(self) -> bool:
        """Whether nothing but the one adapter computes and is trained."""
        return all(map(_is_short_now, self.layers))

    def weights(self) -> list[torch.Tensor]:
        """A and B of each adapter."""
        adapted = [self.layers[index] for index in self.adapted]
        return [half[ADAPTER].weight for layer in adapted for half in (layer.lora_A, layer.lora_B)]

    def scalings(self) -> list[float]:
        """Of each adapter."""
        return [self.layers[index].scaling[ADAPTER] for index in self.adapted]

    def outputs(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What each layer gives."""
        outputs: tuple[torch.Tensor, ...] = _Products.apply(_as_computed(inputs), *self.weights(), self)
        return outputs

    def cast_weights(self, weights: Sequence[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
        """A of all adapters, one below the other, and each B, in the dtype that they are multiplied in."""
        if self.copies and self.copies[0].dtype == dtype:
            return self.copies
        a = weights[0] if len(weights) == 2 else torch.cat(list(weights[::2]))
        return [a.to(dtype), *(b.to(dtype) for b in weights[1::2])]


class LoraCopies:
    """All A and B in what they are multiplied in: cast at once for a micro-batch, not one by one."""

    def __init__(self, groups: Sequence[LayerGroup], dtype: torch.dtype) -> None:
        self._groups = [group for group in groups if {weight.dtype for weight in group.weights()} != {dtype}]
        self._dtype = dtype
        self._copies: list[list[torch.Tensor]] = []  # of each group
        self._pairs: tuple[list[torch.Tensor], list[torch.Tensor]] = [], []

    @contextlib.contextmanager
    def fresh(self) -> Iterator[None]:
        """Inside, layers multiply the copies; what trains their originals runs outside."""
        with torch.no_grad():
            if not self._copies:
                self._make()
            if self._groups:
                torch._foreach_copy_(*self._pairs)
        for group, copies in zip(self._groups, self._copies, strict=True):
            group.copies = copies
        try:
            yield
        finally:
            for group in self._groups:
                group.copies = None

    def _make(self) -> None:
        copies, originals = self._pairs
        for group in self._groups:
            all_a, all_b = group.weights()[::2], group.weights()[1::2]
            whole, each_b = torch.cat(all_a).to(self._dtype), [b.to(self._dtype) for b in all_b]
            self._copies.append([whole, *each_b])
            copies += [*whole.split([len(a) for a in all_a]), *each_b]
            originals += [*all_a, *all_b]


def _is_plain(layer: Any) -> bool:  # noqa: ANN401 - PEFT has no types
    return (
        list(layer.lora_A) == [ADAPTER]
        and isinstance(layer.lora_dropout[ADAPTER], torch.nn.Identity)
        and not layer.lora_variant
        and not layer.lora_bias[ADAPTER]
        and _is_linear(layer.base_layer)
        and _is_only_adapted(layer)
    )


def _is_only_adapted(layer: Any) -> bool:  # noqa: ANN401 - PEFT has no types
    """Whether this adapter alone is used and trained now: adapters can be switched, merged and added at any time."""
    is_used = not (layer.disable_adapters or layer.merged) and layer.active_adapters == [ADAPTER]
    return is_used and _is_frozen(layer.base_layer)


def _is_short_now(layer: Any) -> bool:  # noqa: ANN401 - PEFT has no types
    return _is_only_adapted(layer) if isinstance(layer, LoraLayer) else _is_frozen(layer)


def _is_frozen(base: Any) -> bool:  # noqa: ANN401 - a linear layer
    """Whether no gradient is asked for: PEFT trains the base's biases where it is told so."""
    return not (base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad))


def _is_linear(module: torch.nn.Module) -> bool:
    return type(module) is torch.nn.Linear or type(module).__name__ == "Linear4bit"


def _base_of(layer: Any) -> Any:  # noqa: ANN401 - PEFT has no types
    return layer.base_layer if isinstance(layer, LoraLayer) else layer


def _looks_gated(module: Any) -> bool:  # noqa: ANN401 - any module
    layers = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    return hasattr(module, "act_fn") and all(map(_can_be_short, layers))


def _can_be_short(layer: Any) -> bool:  # noqa: ANN401 - any attribute
    if isinstance(layer, LoraLayer):
        return isinstance(layer, _ShortLinear)
    return isinstance(layer, torch.nn.Module) and _is_linear(layer) and _is_frozen(layer)


def _is_silu(module: Any) -> bool:  # noqa: ANN401 - a family's own class
    """Near zero GELU is almost the same, and small weights stay near it: what it does further out decides."""
    numbers = torch.linspace(-8, 8, 65, device=_base_of(module.down_proj).weight.device)
    with torch.no_grad():
        return bool(torch.allclose(module.act_fn(numbers.clone()), silu(numbers), rtol=1e-4, atol=1e-5))


def _settings(module: torch.nn.Module) -> frozenset[tuple[str, Any]]:
    """Its numbers and switches: some families bound the MLPs of a few layers only."""
    kept = {
        name: value for name, value in vars(module).items() if value is None or isinstance(value, (bool, int, float))
    }
    return frozenset(kept.items())


def _is_gated(module: Any) -> bool:  # noqa: ANN401 - a family's own class
    """Whether the class does what it looks like: both ways give the same, also where gates are beyond any bound."""
    base, width = _base_of(module.down_proj), _base_of(module.gate_proj).in_features
    inputs = torch.linspace(-2, 2, 2 * width, device=base.weight.device).view(1, 2, width).to(_compute_dtype(base))
    with torch.no_grad():
        largest = float(module.gate_proj(inputs).abs().max())
        return all(_is_same(module, inputs * factor) for factor in (1, _FAR_OUT / max(largest, 1e-6)))


def _is_same(module: Any, inputs: torch.Tensor) -> bool:  # noqa: ANN401 - a family's own class
    """Some families have a factor near one; rounding otherwise in bfloat16, as a card's kernels do, is 0.4 %."""
    expected, found = module.forward(inputs).float(), _ShortGatedMlp.forward(module, inputs).float()
    return bool((found - expected).norm() <= 0.02 * expected.norm())


def _compute_dtype(base: Any) -> torch.dtype:  # noqa: ANN401 - a linear layer
    dtype: torch.dtype = getattr(base.weight, "quant_state", base.weight).dtype
    return dtype


def _as_computed(inputs: torch.Tensor) -> torch.Tensor:
    """In autocast's dtype where there is one."""
    kind = inputs.device.type
    return inputs.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else inputs


def _base_weights(group: LayerGroup, dtype: torch.dtype) -> list[torch.Tensor]:
    """The bases' weights, as one below the other where they are dequantised anyhow."""
    bases = group.bases
    own = [_dequantiser(base) for base in bases] if len(bases) > 1 else []
    if not own or not all(own) or len({base.bias is None for base in bases}) > 1:
        return [_base_weight(base, dtype) for base in bases]
    state = bases[0].weight.quant_state
    whole = torch.empty((sum(group.sizes), state.shape[1]), dtype=state.dtype, device=bases[0].weight.device)
    for dequantise, rows in zip(own, whole.split(group.sizes), strict=True):
        dequantise(rows)  # type: ignore[misc]
    return [whole.to(dtype)]


def _base_weight(base: Any, dtype: torch.dtype) -> torch.Tensor:  # noqa: ANN401 - a linear layer
    state = getattr(base.weight, "quant_state", None)
    if state is None:
        return base.weight.to(dtype)
    dequantise = _dequantiser(base)
    return (dequantise() if dequantise else dequantize_4bit(base.weight.data, state)).to(dtype)


def _dequantiser(base: Any) -> Callable[..., torch.Tensor] | None:  # noqa: ANN401 - a linear layer
    """What a kernel of our own dequantises its weight with, if there is one."""
    known: Any
    dequantise: Callable[..., torch.Tensor] | None
    known, dequantise = base.__dict__.get("_short_dequantise", (None, None))
    if known != (place := base.weight.data_ptr()):
        kernels, state = card_kernels(), getattr(base.weight, "quant_state", None)
        dequantise = kernels.dequantiser(base.weight.data, state) if kernels and state is not None else None
        base.__dict__["_short_dequantise"] = place, dequantise
    return dequantise


class _Products(torch.autograd.Function):  # type: ignore[misc]
    """What layers of one input give."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, *others: Any) -> tuple[torch.Tensor, ...]:  # noqa: ANN401
        *weights, ctx.group = others
        outputs, kept = _multiply(ctx.group, inputs.flatten(0, -2), weights)
        ctx.dtype = inputs.dtype
        # a frozen layer's input takes no memory until the backward
        ctx.save_for_backward(inputs if kept else None, *kept)
        return tuple(_in_rows(output, inputs) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        inputs, *kept = ctx.saved_tensors
        flat = [gradient.to(ctx.dtype).flatten(0, -2) for gradient in gradients]
        back = _Backward(ctx.group, flat[0] if len(flat) == 1 else torch.cat(flat, -1), kept)
        of_inputs = _in_rows(back.of_inputs(), gradients[0]) if ctx.needs_input_grad[0] else None
        return of_inputs, *back.of_weights(inputs), None


class _GatedMlp(torch.autograd.Function):  # type: ignore[misc]
    """The down projection of silu(gate) · up."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, *others: Any) -> torch.Tensor:  # noqa: ANN401
        *weights, ctx.both, ctx.down = others
        split = 2 * len(ctx.both.adapted)
        (gate, up), kept = _multiply(ctx.both, inputs.flatten(0, -2), weights[:split])
        (output,), of_down = _multiply(ctx.down, _silu_product(gate, up), weights[split:])
        ctx.count = len(kept)
        ctx.save_for_backward(inputs if kept else None, gate, up, *kept, *of_down)
        return _in_rows(output, inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        inputs, gate, up, *kept = ctx.saved_tensors
        down = _Backward(ctx.down, gradients[0].to(gate.dtype).flatten(0, -2), kept[ctx.count :])
        whole, product = _silu_product_backward(down.of_inputs(), gate, up)
        both = _Backward(ctx.both, whole, kept[: ctx.count])
        of_inputs = _in_rows(both.of_inputs(), gradients[0]) if ctx.needs_input_grad[0] else None
        return of_inputs, *both.of_weights(inputs), *down.of_weights(product), None, None


def _multiply(
    group: LayerGroup, inputs: torch.Tensor, weights: Sequence[torch.Tensor]
) -> tuple[Sequence[torch.Tensor], list[torch.Tensor]]:
    """Each layer's output (tokens, features), and what the backward needs: inputs · A, all A, each B."""
    dtype = inputs.dtype
    biases = [None if base.bias is None else base.bias.to(dtype) for base in group.bases]
    each = _base_weights(group, dtype)
    if len(each) < len(biases):
        bias = None if biases[0] is None else torch.cat(biases)
        outputs: Sequence[torch.Tensor] = linear(inputs, each[0], bias).split(group.sizes, -1)
    else:
        outputs = [linear(inputs, weight, bias) for weight, bias in zip(each, biases, strict=True)]
    if not weights:
        return outputs, []
    a, *all_b = group.cast_weights(weights, dtype)
    narrow = inputs @ a.T
    parts = narrow.split([b.shape[1] for b in all_b], -1)
    for index, part, b, scaling in zip(group.adapted, parts, all_b, group.scalings(), strict=True):
        outputs[index].addmm_(part, b.T, alpha=scaling)
    return outputs, [narrow, a, *all_b]


class _Backward:
    """The gradients of layers of one input, from that of their outputs side by side (tokens, features)."""

    def __init__(self, group: LayerGroup, gradient: torch.Tensor, kept: Sequence[torch.Tensor]) -> None:
        self._group, self._gradient, self._kept = group, gradient, kept
        self._parts = gradient.split(group.sizes, -1)
        if not kept:
            return
        narrow, _, *all_b = kept
        self._ranks = [b.shape[1] for b in all_b]
        self._narrow = torch.empty_like(narrow)
        targets = self._narrow.split(self._ranks, -1)
        for index, target, b, scaling in zip(group.adapted, targets, all_b, group.scalings(), strict=True):
            target.addmm_(self._parts[index], b, beta=0, alpha=scaling)

    def of_inputs(self) -> torch.Tensor:
        """Of their input."""
        weights = _base_weights(self._group, self._gradient.dtype)
        parts = self._parts if len(weights) > 1 else (self._gradient,)
        gradient = parts[0] @ weights[0]
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            gradient.addmm_(part, weight)
        return gradient.addmm_(self._narrow, self._kept[1]) if self._kept else gradient

    def of_weights(self, inputs: torch.Tensor | None) -> list[torch.Tensor]:
        """Of A and B of each adapter."""
        if not self._kept or inputs is None:
            return []
        group, found = self._group, []
        weights = group.weights()
        each_a = _product_as(weights[0].dtype, self._narrow.T, inputs.flatten(0, -2)).split(self._ranks)
        narrow = self._kept[0].split(self._ranks, -1)
        for index, of_a, part, b, scaling in zip(
            group.adapted, each_a, narrow, weights[1::2], group.scalings(), strict=True
        ):
            found += [of_a, _product_as(b.dtype, self._parts[index].T, part, scaling)]
        return found


def _product_as(dtype: torch.dtype, left: torch.Tensor, right: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    """left · right · factor in another dtype: cuBLAS can write its fp32 sums as they are."""
    if left.is_cuda and dtype == torch.float32 != left.dtype:
        return torch.addmm(left.new_empty(1, dtype=dtype), left, right, out_dtype=dtype, beta=0, alpha=factor)
    product = (left @ right).to(dtype)
    return product if factor == 1 else product.mul_(factor)


def _in_rows(flat: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Autograd lets nobody change a view that a function returns, and some attentions scale their queries in place."""
    return torch.ops.aten._unsafe_view(flat, [*like.shape[:-1], flat.shape[-1]])


def _silu_product(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    kernels = card_kernels()
    return kernels.silu_product(gate, up) if kernels and kernels.can_multiply(gate, up) else silu(gate).mul_(up)


def _silu_product_backward(
    gradient: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of gate and up side by side, and the product once more; `gradient` may be written over."""
    kernels = card_kernels()
    if kernels and kernels.can_multiply(gate, up):
        found: tuple[torch.Tensor, torch.Tensor] = kernels.silu_product_backward(gradient, gate, up)
        return found
    product = silu(gate)
    of_up = gradient * product
    return torch.cat([torch.ops.aten.silu_backward(gradient.mul_(up), gate), of_up], -1), product.mul_(up)
