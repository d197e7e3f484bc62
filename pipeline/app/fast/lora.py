"""LoRA without dropout in one function for all layers of an input: fewer kernels, and little is kept for the backward.

PEFT and bitsandbytes compute a layer in some ten operations, each with a copy of its output. Here the base's product is
made once and the adapter's is added into it. Queries, keys and values are one product, and so are gate and up of an
MLP, whose own product is made again in the backward.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora import LoraLayer
from torch.nn.functional import linear, silu

from app.fast.card_kernels import card_kernels

ADAPTER = "default"


def shorten_lora(model: torch.nn.Module) -> int:
    """Give every adapted linear layer without dropout, and what is around them, the short way; how many layers got it.

    A module's class becomes a subclass of what it was.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer) and _is_plain(module)]
    for layer in layers:
        _become(layer, _ShortLinear)
    known: dict[type, bool] = {}
    for module in model.modules() if layers else ():
        # PEFT's adapted layer has the same name as bitsandbytes' own
        is_frozen = type(module).__name__ == "Linear4bit" and not isinstance(module, (LoraLayer, _ShortLinear))
        if is_frozen and _is_frozen(module):
            _become(module, _ShortLinear)
    for module in model.modules() if layers else ():
        projections = [getattr(module, name, None) for name in ("q_proj", "k_proj", "v_proj")]
        if all(isinstance(projection, _ShortLinear) for projection in projections):
            shared = _SharedInput(projections)
            for projection in projections:
                projection.__dict__["_shared_input"] = shared
        if not _looks_gated(module) or not _is_silu(module):
            continue
        if type(module) not in known:
            known[type(module)] = _is_gated(module)
        if known[type(module)]:
            _become(module, _ShortGatedMlp)
    return len(layers)


def _become(module: torch.nn.Module, way: type) -> None:
    usual = type(module)
    module.__class__ = type(usual.__name__, (way, usual), {"__module__": __name__})


class _ShortLinear:
    def forward(self: Any, inputs: torch.Tensor, *others: object, **named: object) -> torch.Tensor:
        """The base's product and the adapter's in one."""
        if others or named or not _is_short_now(self):
            return super().forward(inputs, *others, **named)  # type: ignore[misc]
        shared = self.__dict__.get("_shared_input")
        output = shared.output(self, inputs) if shared else None
        return _multiplied((self,), inputs)[0] if output is None else output


class _SharedInput:
    """Layers that an attention calls one after the other with the same input: the first call computes them all."""

    def __init__(self, layers: list[Any]) -> None:
        self._layers = layers
        self._inputs: torch.Tensor | None = None
        self._waiting: dict[Any, torch.Tensor] = {}
        self._is_shared = True

    def output(self, layer: Any, inputs: torch.Tensor) -> torch.Tensor | None:  # noqa: ANN401 - PEFT has no types
        """This layer's output, or None where it is none of a product of them all."""
        if layer is self._layers[0]:
            self._inputs, self._waiting = None, {}
            if self._is_shared and all(map(_is_short_now, self._layers)):
                outputs = _multiplied(self._layers, inputs)
                self._inputs, self._waiting = inputs, dict(zip(self._layers, outputs, strict=True))
        elif self._waiting and inputs is not self._inputs:
            self._is_shared, self._waiting = False, {}
        output = self._waiting.pop(layer, None)
        if not self._waiting:
            self._inputs = None
        return output


class _ShortGatedMlp:
    def forward(self: Any, inputs: torch.Tensor) -> torch.Tensor:
        """All of it in one."""
        layers = self.gate_proj, self.up_proj, self.down_proj
        if not all(map(_is_short_now, layers)):
            return super().forward(inputs)  # type: ignore[misc]
        return _GatedMlp.apply(_as_computed(inputs), *_weights(layers), layers)


def _multiplied(layers: Sequence[Any], inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    outputs: tuple[torch.Tensor, ...] = _Products.apply(_as_computed(inputs), *_weights(layers), layers)
    return outputs


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
    parts = [_base_of(getattr(module, name, None)) for name in ("gate_proj", "up_proj", "down_proj")]
    is_new = not isinstance(module, _ShortGatedMlp)
    if not (is_new and hasattr(module, "act_fn") and all(isinstance(part, torch.nn.Module) for part in parts)):
        return False
    down, base = module.down_proj, parts[-1]
    return isinstance(down, _ShortLinear) or (down is base and _is_linear(base) and _is_frozen(base))


def _is_silu(module: Any) -> bool:  # noqa: ANN401 - a family's own class
    """Near zero GELU is almost the same, and small weights stay near it: what it does further out decides."""
    numbers = torch.linspace(-8, 8, 65, device=_base_of(module.down_proj).weight.device)
    with torch.no_grad():
        return bool(torch.allclose(module.act_fn(numbers.clone()), silu(numbers), rtol=1e-4, atol=1e-5))


def _is_gated(module: Any) -> bool:  # noqa: ANN401 - a family's own class
    """Whether the class does what it looks like: both ways give the same for some numbers."""
    base, width = _base_of(module.down_proj), _base_of(module.gate_proj).in_features
    inputs = torch.linspace(-2, 2, 2 * width, device=base.weight.device).view(1, 2, width).to(_compute_dtype(base))
    with torch.no_grad():
        expected, found = module.forward(inputs), _ShortGatedMlp.forward(module, inputs)
    return bool(torch.allclose(found.float(), expected.float(), rtol=0.05, atol=0.02 * float(expected.abs().max())))


def _compute_dtype(base: Any) -> torch.dtype:  # noqa: ANN401 - a linear layer
    dtype: torch.dtype = getattr(base.weight, "quant_state", base.weight).dtype
    return dtype


def _as_computed(inputs: torch.Tensor) -> torch.Tensor:
    """In autocast's dtype where there is one."""
    kind = inputs.device.type
    return inputs.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else inputs


def _weights(layers: Sequence[Any]) -> list[torch.Tensor | None]:
    """A and B of each layer, or two times None."""
    weights: list[torch.Tensor | None] = []
    for layer in layers:
        is_adapted = isinstance(layer, LoraLayer)
        weights += [layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight] if is_adapted else [None, None]
    return weights


def _base_weights(layers: Sequence[Any], dtype: torch.dtype) -> list[torch.Tensor]:
    """The bases' weights, as one below the other where they are dequantised anyhow."""
    bases = [_base_of(layer) for layer in layers]
    own = [_dequantiser(base) for base in bases]
    biases = {base.bias is None for base in bases}
    if len(bases) == 1 or not all(own) or len(biases) > 1 or dtype != bases[0].weight.quant_state.dtype:
        return [_base_weight(base, dtype) for base in bases]
    states = [base.weight.quant_state for base in bases]
    whole = torch.empty(
        (sum(state.shape[0] for state in states), states[0].shape[1]), dtype=dtype, device=bases[0].weight.device
    )
    for dequantise, rows in zip(own, whole.split([state.shape[0] for state in states]), strict=True):
        dequantise(rows)  # type: ignore[misc]
    return [whole]


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
    if known is not base.weight:
        kernels, state = card_kernels(), getattr(base.weight, "quant_state", None)
        dequantise = kernels.dequantiser(base.weight.data, state) if kernels and state is not None else None
        base.__dict__["_short_dequantise"] = base.weight, dequantise
    return dequantise


class _Products(torch.autograd.Function):  # type: ignore[misc]
    """Linear layers of one input, each with or without an adapter."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, *others: Any) -> tuple[torch.Tensor, ...]:  # noqa: ANN401
        *weights, ctx.layers = others
        outputs, kept = _multiply(ctx.layers, inputs.flatten(0, -2), weights)
        ctx.dtype = inputs.dtype
        # a frozen layer's input takes no memory until the backward
        ctx.save_for_backward(inputs if kept else None, *kept)
        return tuple(_in_rows(output, inputs) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        inputs, *kept = ctx.saved_tensors
        flat = [gradient.to(ctx.dtype).flatten(0, -2) for gradient in gradients]
        whole = flat[0] if len(flat) == 1 else torch.cat(flat, -1)
        adapters = _Adapters(ctx.layers, whole, kept)
        of_inputs = adapters.input_gradient() if ctx.needs_input_grad[0] else None
        of_weights = adapters.gradients(inputs.flatten(0, -2) if kept else None)
        return None if of_inputs is None else _in_rows(of_inputs, gradients[0]), *of_weights, None


class _GatedMlp(torch.autograd.Function):  # type: ignore[misc]
    """The down projection of silu(gate) · up, each with or without an adapter."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, *others: Any) -> torch.Tensor:  # noqa: ANN401
        *weights, layers = others
        ctx.layers = layers
        (gate, up), kept = _multiply(layers[:2], inputs.flatten(0, -2), weights[:4])
        (output,), of_down = _multiply(layers[2:], _silu_product(gate, up), weights[4:])
        ctx.count = len(kept)
        ctx.save_for_backward(inputs if kept else None, gate, up, *kept, *of_down)
        return _in_rows(output, inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        inputs, gate, up, *rest = ctx.saved_tensors
        down = _Adapters(ctx.layers[2:], gradients[0].to(gate.dtype).flatten(0, -2), rest[ctx.count :])
        whole, product = _silu_product_backward(down.input_gradient(), gate, up)
        both = _Adapters(ctx.layers[:2], whole, rest[: ctx.count])
        of_inputs = _in_rows(both.input_gradient(), gradients[0]) if ctx.needs_input_grad[0] else None
        of_weights = both.gradients(None if inputs is None else inputs.flatten(0, -2)) + down.gradients(product)
        return of_inputs, *of_weights, None


def _multiply(
    layers: Sequence[Any], inputs: torch.Tensor, weights: Sequence[torch.Tensor | None]
) -> tuple[Sequence[torch.Tensor], list[torch.Tensor]]:
    """The layers' outputs, and what the gradients of their adapters need: A, B and the product of A, for each."""
    dtype, bases = inputs.dtype, [_base_of(layer) for layer in layers]
    biases = [None if base.bias is None else base.bias.to(dtype) for base in bases]
    each = _base_weights(layers, dtype)
    if len(each) < len(layers):
        bias = None if biases[0] is None else torch.cat(biases)
        outputs: Sequence[torch.Tensor] = linear(inputs, each[0], bias).split([base.out_features for base in bases], -1)
    else:
        outputs = [linear(inputs, weight, bias) for weight, bias in zip(each, biases, strict=True)]
    kept: list[torch.Tensor] = []
    for layer, output, lora_a, lora_b in zip(layers, outputs, weights[::2], weights[1::2], strict=True):
        if lora_a is not None and lora_b is not None:
            a, b = lora_a.to(dtype), lora_b.to(dtype)
            narrow = inputs @ a.T
            output.addmm_(narrow, b.T, alpha=layer.scaling[ADAPTER])
            kept += [a, b, narrow]
    return outputs, kept


class _Adapters:
    """The backward of layers of one input, from the gradient of all their outputs (tokens, features side by side)."""

    def __init__(self, layers: Sequence[Any], gradient: torch.Tensor, kept: Sequence[torch.Tensor]) -> None:
        self._layers, self._gradient = layers, gradient
        self._parts = gradient.split([_base_of(layer).out_features for layer in layers], -1)
        each = iter(kept)
        self._kept = [
            (next(each), next(each), next(each)) if isinstance(layer, LoraLayer) else None for layer in layers
        ]
        self._narrow = [
            part @ kept[1] if kept else gradient for part, kept in zip(self._parts, self._kept, strict=True)
        ]

    def input_gradient(self) -> torch.Tensor:
        """Of their input."""
        weights = _base_weights(self._layers, self._gradient.dtype)
        parts = self._parts if len(weights) > 1 else (self._gradient,)
        gradient = parts[0] @ weights[0]
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            gradient.addmm_(part, weight)
        for layer, narrow, kept in zip(self._layers, self._narrow, self._kept, strict=True):
            if kept:
                gradient.addmm_(narrow, kept[0], alpha=layer.scaling[ADAPTER])
        return gradient

    def gradients(self, inputs: torch.Tensor | None) -> list[torch.Tensor | None]:
        """Of A and B of each, or two times None."""
        found: list[torch.Tensor | None] = []
        for layer, part, narrow, kept in zip(self._layers, self._parts, self._narrow, self._kept, strict=True):
            if kept is None or inputs is None:
                found += [None, None]
                continue
            a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            scaling = layer.scaling[ADAPTER]
            found += [(narrow.T @ inputs).to(a.dtype).mul_(scaling), (part.T @ kept[2]).to(b.dtype).mul_(scaling)]
        return found


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
