"""LoRA without dropout in one function a layer: fewer kernels, and nothing is kept that the backward can have again.

PEFT and bitsandbytes compute a layer in some ten operations, each with a copy of its output. Here the base's product is
made once and the adapter's is added into it. What the gate of an MLP multiplies is made again in the backward.
"""

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora import LoraLayer
from torch.nn.functional import linear, silu

from app.fast.card_kernels import card_kernels

ADAPTER = "default"


def shorten_lora(model: torch.nn.Module) -> int:
    """Give every adapted linear layer without dropout, and the MLPs around them, the short way; how many layers got it.

    A module's class becomes a subclass of what it was.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer) and _is_plain(module)]
    for layer in layers:
        _become(layer, _ShortLora)
    for module in model.modules() if layers else ():
        # PEFT's adapted layer has the same name as bitsandbytes' own
        is_frozen = type(module).__name__ == "Linear4bit" and not isinstance(module, (LoraLayer, _ShortFrozen))
        if is_frozen and _is_frozen(module):
            _become(module, _ShortFrozen)
    known: dict[type, bool] = {}
    for module in model.modules() if layers else ():
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


class _ShortLora:
    def forward(self: Any, inputs: torch.Tensor, *others: object, **named: object) -> torch.Tensor:
        """The base's product and the adapter's in one."""
        if others or named or not _is_only_adapted(self):
            return super().forward(inputs, *others, **named)  # type: ignore[misc]
        return _Product.apply(_as_computed(inputs), None, *_weights(self), self)


class _ShortFrozen:
    def forward(self: Any, inputs: torch.Tensor) -> torch.Tensor:
        """The product alone."""
        if not _is_frozen(self):
            return super().forward(inputs)  # type: ignore[misc]
        return _Product.apply(_as_computed(inputs), None, None, None, self)


class _ShortGatedMlp:
    def forward(self: Any, inputs: torch.Tensor) -> torch.Tensor:
        """The product of gate and up is made again in the backward."""
        down = self.down_proj
        if not (_is_only_adapted(down) if isinstance(down, LoraLayer) else _is_frozen(down)):
            return super().forward(inputs)  # type: ignore[misc]
        gate, up = _as_computed(self.gate_proj(inputs)), _as_computed(self.up_proj(inputs))
        return _Product.apply(gate, up, *_weights(down), down)


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
    return isinstance(down, _ShortLora) or (down is base and _is_linear(base) and _is_frozen(base))


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


def _weights(layer: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:  # noqa: ANN401 - PEFT has no types
    if not isinstance(layer, LoraLayer):
        return None, None
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight


def _base_weight(base: Any, dtype: torch.dtype) -> torch.Tensor:  # noqa: ANN401 - a linear layer
    state = getattr(base.weight, "quant_state", None)
    if state is None:
        return base.weight.to(dtype)
    known, dequantise = base.__dict__.get("_short_dequantise", (None, None))
    if known is not base.weight:
        kernels = card_kernels()
        dequantise = kernels.dequantiser(base.weight.data, state) if kernels else None
        base.__dict__["_short_dequantise"] = base.weight, dequantise
    return (dequantise() if dequantise else dequantize_4bit(base.weight.data, state)).to(dtype)


class _Product(torch.autograd.Function):  # type: ignore[misc]
    """A linear layer with or without an adapter, of its input or of silu(gate) · up."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - as torch declares it
        inputs: torch.Tensor,
        up: torch.Tensor | None,
        lora_a: torch.Tensor | None,
        lora_b: torch.Tensor | None,
        layer: Any,  # noqa: ANN401 - PEFT has no types
    ) -> torch.Tensor:
        ctx.base = base = layer if lora_a is None else layer.base_layer
        product = (inputs if up is None else _silu_product(inputs, up)).flatten(0, -2)
        ctx.dtype = dtype = inputs.dtype
        bias = None if base.bias is None else base.bias.to(dtype)
        output = linear(product, _base_weight(base, dtype), bias)
        kept: tuple[torch.Tensor, ...] = ()
        if lora_a is not None and lora_b is not None:
            a, b = lora_a.to(dtype), lora_b.to(dtype)
            ctx.scaling, ctx.kept_dtypes = layer.scaling[ADAPTER], (lora_a.dtype, lora_b.dtype)
            narrow = product @ a.T
            output.addmm_(narrow, b.T, alpha=ctx.scaling)
            kept = a, b, narrow
        # a frozen layer's input takes no memory until the backward
        ctx.save_for_backward(inputs if kept or up is not None else None, up, *kept)
        # autograd lets nobody change a view that a function returns, and some attentions scale their queries in place
        return torch.ops.aten._unsafe_view(output, [*inputs.shape[:-1], output.shape[-1]])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        inputs, up, *adapter = ctx.saved_tensors
        dtype = ctx.dtype
        gradient = gradients[0].to(dtype)
        flat = gradient.flatten(0, -2)
        of_inputs = of_up = of_a = of_b = None
        product = inputs
        of_narrow = flat @ adapter[1] if adapter else None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            of_inputs = gradient @ _base_weight(ctx.base, dtype)
            if of_narrow is not None:
                of_inputs.view(-1, of_inputs.shape[-1]).addmm_(of_narrow, adapter[0], alpha=ctx.scaling)
        if up is not None and of_inputs is not None:
            of_inputs, of_up, product = _silu_product_backward(of_inputs, inputs, up)
        elif up is not None:
            product = _silu_product(inputs, up)
        if of_narrow is not None:
            of_a = (of_narrow.T @ product.flatten(0, -2)).to(ctx.kept_dtypes[0]).mul_(ctx.scaling)
            of_b = (flat.T @ adapter[2]).to(ctx.kept_dtypes[1]).mul_(ctx.scaling)
        return of_inputs, of_up, of_a, of_b, None


def _silu_product(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    kernels = card_kernels()
    return kernels.silu_product(gate, up) if kernels and kernels.can_multiply(gate, up) else silu(gate).mul_(up)


def _silu_product_backward(gradient: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The gradients of gate and up, the product once more; `gradient` may be written over."""
    kernels = card_kernels()
    if kernels and kernels.can_multiply(gate, up):
        return tuple(kernels.silu_product_backward(gradient, gate, up))
    product = silu(gate)
    of_up = gradient * product
    return torch.ops.aten.silu_backward(gradient.mul_(up), gate), of_up, product.mul_(up)
