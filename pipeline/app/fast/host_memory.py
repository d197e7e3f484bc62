"""What may wait in host memory while the card trains: frozen embeddings, and what recompute begins from."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel

from app.core.ranks import rank_count


def move_embeddings_to_host(model: PeftModel) -> bool:
    """Keep the input embeddings in host memory; a batch's rows of them are copied to the card as they are looked up.

    For Qwen3-8B that is 1.16 GiB less on the card for a copy of 16 MiB a batch of 2,048 tokens. False, and nothing
    moves, where the output head shares the weight, where it is trained or adapted, or where several ranks train:
    DistributedDataParallel takes parameters of one device only.
    """
    base = model.get_base_model()
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    if type(embeddings) is not torch.nn.Embedding or embeddings.weight.requires_grad or rank_count() > 1:
        return False
    if head is not None and getattr(head, "weight", None) is embeddings.weight:
        return False
    if "forward" not in vars(embeddings):
        embeddings.weight.data = _pinned(embeddings.weight.data)
        embeddings.forward = functools.partial(_look_up, embeddings.forward)
        embeddings._apply = lambda *_, **__: embeddings  # accelerate moves the whole model to the card before it trains
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True


def _pinned(weight: torch.Tensor) -> torch.Tensor:
    on_host = weight.cpu()
    return on_host.pin_memory() if torch.cuda.is_available() else on_host


def _look_up(forward: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    return forward(ids.cpu()).to(ids.device)


def set_recompute(model: PeftModel, enabled: bool, *, on_host: bool = False) -> None:
    """Switch activation recompute of a PEFT model's base on or off (transformers 5 renamed the methods on its way).

    With `on_host` the hidden states that recompute begins from wait in host memory for the backward.
    """
    base = model.get_base_model()
    if enabled:
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable()
        for module in base.modules() if on_host else ():
            if hasattr(module, "_gradient_checkpointing_func"):
                kept_on_card = module._gradient_checkpointing_func
                module._gradient_checkpointing_func = functools.partial(_with_inputs_on_host, kept_on_card)
    else:
        disable = getattr(base, "activation_checkpointing_disable", None) or base.gradient_checkpointing_disable
        disable()


def _with_inputs_on_host(checkpoint: Callable[..., Any], run: Callable[..., Any], *inputs: Any) -> Any:  # noqa: ANN401 - as torch's
    with torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available()):
        return checkpoint(run, *inputs)
