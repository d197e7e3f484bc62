"""One base model for several training runs of a process, put back to its first state between them."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch


class SharedBase:
    """Loads once, lends the model to one adapter at a time, and takes it back."""

    def __init__(self, load: Callable[..., Any], adapt: Callable[..., Any]) -> None:
        self._load = load
        self._adapt = adapt
        self._base: Any = None
        self._adapted: Any = None
        self._own_forward: Any = None
        self._attention = ""

    def load(self, *arguments: object, **options: object) -> Any:  # noqa: ANN401 - transformers has no types
        """The model that the first call loaded."""
        if self._base is None:
            self._base = self._load(*arguments, **options)
            self._own_forward = self._base.__dict__.get("forward")
            self._attention = self._base.config._attn_implementation
        return self._base

    def adapt(self, model: object, config: object, **options: object) -> Any:  # noqa: ANN401 - as above
        """What `get_peft_model` returns, remembered for `release`."""
        self._adapted = self._adapt(model, config, **options)
        return self._adapted

    def release(self) -> None:
        """Take the adapter, its hooks and a trainer's patches off the base, and give all cached memory back."""
        if self._adapted is not None:
            self._adapted.unload()
            self._adapted = None
        if self._base is not None:
            self._restore()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _restore(self) -> None:
        base = self._base
        disable = getattr(base, "activation_checkpointing_disable", None) or base.gradient_checkpointing_disable
        disable()
        base.disable_input_require_grads()
        base.__dict__.pop("peft_config", None)
        base.__dict__.pop("forward", None)
        if self._own_forward is not None:
            base.forward = self._own_forward
        embeddings = base.get_input_embeddings()
        if embeddings.__dict__.pop("seen_from_card", None) is not None:  # it was in host memory
            embeddings.__class__ = torch.nn.Embedding
            embeddings.weight.data = embeddings.weight.data.to(base.get_output_embeddings().weight.device)
        for module in base.modules():
            module.__dict__.pop("_gradient_checkpointing_func", None)
            if module is not base:
                module.__dict__.pop("forward", None)
        if base.config._attn_implementation != self._attention:
            base.set_attn_implementation(self._attention)
        left = [name for name, _ in base.named_parameters() if "lora_" in name]
        if left:
            raise RuntimeError(f"the base model still has adapter weights: {left[:2]}")


def allocator_retries() -> int | None:
    """How often the caching allocator had to give memory back before it could serve a request; None without a GPU."""
    return int(torch.cuda.memory_stats().get("num_alloc_retries", 0)) if torch.cuda.is_available() else None


def allowed_bytes() -> float | None:
    """What the allocator may take: the memory fraction in force of the whole card; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    return float(total_bytes * torch.cuda.get_per_process_memory_fraction())
