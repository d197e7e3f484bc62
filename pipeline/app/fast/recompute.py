"""Activation recompute without random numbers, whose layers' inputs may wait in host memory.

torch's own keeps the state of the random numbers for each layer, which takes a CUDA graph out of the question, and
copies to host memory while the card waits. Here a stream of its own copies beside the computing.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import PeftModel
from torch.utils._pytree import tree_iter

Run = Callable[..., Any]
Load = Callable[[], torch.Tensor]


def set_recompute(model: PeftModel, enabled: bool, *, on_host: bool = False, most_tokens: int = 0) -> None:
    """Switch activation recompute of a PEFT model's base on or off (transformers 5 renamed the methods on its way).

    With `on_host` the hidden states that recompute begins from, of `most_tokens` at most, wait in host memory for the
    backward.
    """
    base = model.get_base_model()
    if not enabled:
        disable = getattr(base, "activation_checkpointing_disable", None) or base.gradient_checkpointing_disable
        disable()
        return
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable()
    host = HostStack(most_tokens * getattr(base.config.get_text_config(), "hidden_size", 0)) if on_host else None
    is_torchs = draws_random_numbers(model) or _is_set(base.config.to_dict(), "output_router_logits")
    for module in base.modules() if on_host or not is_torchs else ():
        if hasattr(module, "_gradient_checkpointing_func"):
            usual = module._gradient_checkpointing_func
            own = _with_inputs_on_host if is_torchs else functools.partial(_checkpoint, host=host)
            module._gradient_checkpointing_func = functools.partial(own, usual)


def draws_random_numbers(model: PeftModel) -> bool:
    """Whether a forward in training mode drops anything out."""
    named = _names_dropout(model.get_base_model().config.to_dict())
    return named or any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())


def _is_set(config: dict[str, Any], key: str) -> bool:
    return any(
        _is_set(value, key) if isinstance(value, dict) else name == key and value for name, value in config.items()
    )


def _names_dropout(config: dict[str, Any]) -> bool:
    return any(
        _names_dropout(value)
        if isinstance(value, dict)  # the text's own, in models of images too
        else isinstance(value, float) and value > 0 and ("dropout" in name or name.endswith(("pdrop", "_jitter_noise")))
        for name, value in config.items()
    )


def _with_inputs_on_host(usual: Run, run: Run, *inputs: Any) -> Any:  # noqa: ANN401 - as torch's
    with torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available()):
        return usual(run, *inputs)


def _checkpoint(
    usual: Run,
    run: Any,  # noqa: ANN401 - a layer's forward with its keywords
    *inputs: Any,  # noqa: ANN401 - as torch's
    host: "HostStack | None",
) -> Any:  # noqa: ANN401 - as torch's
    """Recompute a layer that hands on nothing but its outputs; all others go torch's way."""
    others = (*inputs[1:], *getattr(run, "keywords", {}).values())
    if not inputs or not all(map(_brings_no_gradient, others)):
        return usual(run, *inputs)
    anchor = torch.empty((), requires_grad=True)  # the first layer's input has no gradient, its adapter has
    try:
        return _Recomputed.apply(run, inputs[1:], host, inputs[0], anchor)
    except _HiddenOutputError:
        pass
    return usual(run, *inputs)


def _brings_no_gradient(value: object) -> bool:
    """Whether it needs none, and no layer can put a tensor into it for the layers after it."""
    if isinstance(value, tuple):
        return all(map(_brings_no_gradient, value))
    is_plain = value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device))
    return is_plain or (isinstance(value, torch.Tensor) and not value.requires_grad)


class _HiddenOutputError(Exception):
    """A layer gives tensors inside something that is no plain tuple: autograd would not see them."""


class _Recomputed(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - as torch declares it
        run: Run,
        others: tuple[Any, ...],
        host: "HostStack | None",
        hidden_states: torch.Tensor,
        _anchor: torch.Tensor,
    ) -> Any:  # noqa: ANN401 - as the layer's
        ctx.run, ctx.others = run, others
        kind = hidden_states.device.type
        ctx.autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        if host:
            ctx.load = host.push(hidden_states)
        else:
            ctx.save_for_backward(hidden_states)
        outputs = run(hidden_states, *others)
        seen = outputs if type(outputs) is tuple else (outputs,)
        inside = tree_iter([output for output in seen if not isinstance(output, torch.Tensor)])
        if any(isinstance(value, torch.Tensor) and value.is_floating_point() for value in inside):
            raise _HiddenOutputError
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:  # noqa: ANN401
        kept: torch.Tensor = ctx.saved_tensors[0] if ctx.saved_tensors else ctx.load()
        hidden_states = kept.detach().requires_grad_(ctx.needs_input_grad[3])
        with torch.enable_grad(), torch.autocast(kept.device.type, ctx.autocast, enabled=ctx.autocast is not None):
            outputs = ctx.run(hidden_states, *ctx.others)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [pair for pair in zip(outputs, gradients, strict=True) if pair[1] is not None and pair[0].requires_grad]
        if pairs:  # none where the layer is frozen and so is all before it
            torch.autograd.backward(*map(list, zip(*pairs, strict=True)))
        return None, None, None, hidden_states.grad, None


class HostStack:
    """Tensors in host memory, last in, first out: copies run on a stream of their own, and the next is fetched early.

    Each place has room for `least_numbers` from the start, so that none has to grow later. What nobody can ask for any
    more, since a forward pass was given up, is forgotten.
    """

    def __init__(self, least_numbers: int = 0) -> None:
        self._stream: Any = torch.cuda.Stream() if torch.cuda.is_available() else None
        self._least_numbers = least_numbers
        self._pinned: list[torch.Tensor] = []
        self._held: list[torch.Tensor] = []
        self._loads: list[weakref.ref[Load]] = []
        self._leaving: list[tuple[torch.Tensor, Any]] = []
        self._arriving: dict[int, tuple[torch.Tensor, Any]] = {}

    def push(self, tensor: torch.Tensor) -> Load:
        """Copy a tensor out; what is returned gives it back, the last one first."""
        if self._stream is None:
            kept = tensor.clone()
            return lambda: kept
        self._forget()
        slot = len(self._held)
        place = self._place(slot, tensor)
        with self._beside():
            place.copy_(tensor, non_blocking=True)
            self._leaving.append((tensor, self._stream.record_event()))
        if len(self._leaving) > 1:  # its memory is used again once it has left
            torch.cuda.current_stream().wait_event(self._leaving.pop(0)[1])
        load = functools.partial(self._pop, slot, tensor.device)
        self._held.append(place)
        self._loads.append(weakref.ref(load))
        return load

    def _forget(self) -> None:
        while self._loads and self._loads[-1]() is None:
            del self._loads[-1], self._held[-1]
        if not self._held and (self._leaving or self._arriving):
            # their own events may be those of a graph whose capture failed, for which nobody can wait
            torch.cuda.current_stream().wait_stream(self._stream)
            self._leaving.clear()
            self._arriving.clear()

    def _place(self, slot: int, tensor: torch.Tensor) -> torch.Tensor:
        """Pinned memory of the tensor's shape."""
        if slot == len(self._pinned):
            self._pinned.append(tensor.new_empty(0, device="cpu"))
        if self._pinned[slot].numel() < tensor.numel() or self._pinned[slot].dtype != tensor.dtype:
            numbers = max(tensor.numel(), self._least_numbers)
            self._pinned[slot] = torch.empty(numbers, dtype=tensor.dtype, pin_memory=True)
        return self._pinned[slot][: tensor.numel()].view(tensor.shape)

    def _pop(self, slot: int, device: torch.device) -> torch.Tensor:
        tensor, arrived = self._arriving.pop(slot) if slot in self._arriving else self._fetch(slot, device)
        torch.cuda.current_stream().wait_event(arrived)
        self._leaving.clear()  # the copies in came after the copies out
        self._arriving.clear()  # what was fetched early for a layer that never asked came before
        del self._held[slot:], self._loads[slot:]
        if slot:
            self._arriving[slot - 1] = self._fetch(slot - 1, device)
        return tensor

    def _fetch(self, slot: int, device: torch.device) -> tuple[torch.Tensor, Any]:
        tensor = torch.empty_like(self._held[slot], device=device)
        with self._beside():
            tensor.copy_(self._held[slot], non_blocking=True)
            return tensor, self._stream.record_event()

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        """On the stream of its own, after all that was asked for so far."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
