"""A model's own parts, done with fewer and smaller operations: norms, attention, and what the Trainer walks over."""

import functools
import math
import sys
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, Trainer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from app.fast.card_kernels import card_kernels
from app.fast.loss import tried

CAUSAL_ONLY = "causal_sdpa"
_WATCHED = "watched_sdpa"


def fuse_norms(model: torch.nn.Module) -> None:
    """Let torch's own kernel do each RMSNorm: one instead of eight, and no fp32 copies kept for the backward."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = functools.partial(_fused_rms_norm, module)


def _fused_rms_norm(norm: torch.nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """It computes in fp32 inside; autocast would hand it fp32 copies."""
    weight, kernels = norm.weight, card_kernels()
    if kernels and kernels.can_norm(hidden_states, weight):
        normed: torch.Tensor = kernels.NormedHeads.apply(hidden_states, weight, norm.variance_epsilon)
        return normed
    with torch.autocast(hidden_states.device.type, enabled=False):
        return torch.nn.functional.rms_norm(hidden_states, weight.shape, weight, norm.variance_epsilon)


def rotate_in_one(model: PreTrainedModel) -> int:
    """Let one kernel turn an attention's queries, and one its keys; for how many families that is.

    A family is left alone where its own function does not do what ours does.
    """
    kernels, count = card_kernels(), 0
    attentions = {type(module).__module__ for module in model.modules() if hasattr(module, "q_proj")}
    for family in map(sys.modules.get, attentions if kernels else ()):
        usual = getattr(family, "apply_rotary_pos_emb", None)
        if getattr(usual, "func", None) is not _apply_rotary:
            if usual is None or not _turns_halves(usual, model.device, kernels):
                continue
            family.apply_rotary_pos_emb = functools.partial(_apply_rotary, usual, kernels)  # type: ignore[union-attr]
        count += 1
    return count


def _apply_rotary(usual: Any, kernels: Any, q: Any, k: Any, cos: Any, sin: Any, *others: Any, **named: Any) -> Any:  # noqa: ANN401
    is_ours = not (others or named) and q.is_cuda and q.shape[-1] == k.shape[-1] == cos.shape[-1] and cos.dim() == 3
    return (kernels.apply_rotary if is_ours else usual)(q, k, cos, sin, *others, **named)


def _turns_halves(usual: Any, device: torch.device, kernels: Any) -> bool:  # noqa: ANN401
    def numbers(*shape: int) -> torch.Tensor:
        return torch.linspace(-2, 2, math.prod(shape), device=device).view(shape).to(torch.bfloat16)

    inputs = numbers(2, 4, 3, 128), numbers(2, 2, 3, 128), numbers(2, 3, 128).cos(), numbers(2, 3, 128).sin()
    try:
        expected, found = usual(*inputs), kernels.apply_rotary(*inputs)
    except (RuntimeError, TypeError, ValueError):
        return False
    return all(torch.allclose(one, other, rtol=0.05, atol=0.05) for one, other in zip(expected, found, strict=True))


def attend_without_masks(model: PreTrainedModel, longest_row: int) -> bool:
    """Leave attention masks out: rows padded on the right need none, and kernels without one are twice as fast.

    Without gradients they stay: who generates pads on the left. False, and nothing changes, where attention is another
    one than sdpa, where a window is narrower than the longest row, or where a mask says anything else.
    """
    config, text = model.config, model.config.get_text_config()  # models of images too keep the text's inside
    window = getattr(text, "sliding_window", None)
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    is_narrow = kinds != {"full_attention"} or (window is not None and "layer_types" not in vars(text))
    if config._attn_implementation != "sdpa" or (is_narrow and (window is None or window < longest_row)):
        return False
    AttentionInterface.register(CAUSAL_ONLY, sdpa_attention_forward)
    AttentionMaskInterface.register(CAUSAL_ONLY, _mask_without_gradients)
    model.set_attn_implementation(CAUSAL_ONLY if _masks_say_nothing_else(model) else "sdpa")
    return bool(config._attn_implementation == CAUSAL_ONLY)


def _mask_without_gradients(*inputs: Any, **named: Any) -> Any:  # noqa: ANN401 - as the library's
    return None if torch.is_grad_enabled() else sdpa_mask(*inputs, **named)


def _masks_say_nothing_else(model: PreTrainedModel) -> bool:
    """Whether every mask hides what comes later and the padding, and no more: some models add biases, or look ahead."""
    ids = torch.arange(8, device=model.device).repeat(2, 1)
    is_token = ids < torch.tensor([[8], [5]], device=model.device)
    expected = is_token[:, None, None] & torch.ones(8, 8, dtype=torch.bool, device=model.device).tril()
    seen: list[bool] = []

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **named: Any,  # noqa: ANN401 - as the library's
    ) -> Any:  # noqa: ANN401 - as the library's
        asked = named.get("is_causal")
        is_causal = getattr(module, "is_causal", True) if asked is None else asked
        seen.append(bool(is_causal) and named.get("position_bias") is None)
        if attention_mask is not None:
            visible = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
            seen.append(bool((visible == expected).logical_or(~is_token[:, None, :, None]).all()))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **named)

    AttentionInterface.register(_WATCHED, attend)
    AttentionMaskInterface.register(_WATCHED, sdpa_mask)
    model.set_attn_implementation(_WATCHED)
    if model.config._attn_implementation != _WATCHED:
        return False
    with tried(model):
        model(input_ids=ids, attention_mask=is_token.long())
    return bool(seen) and all(seen)


def walk_once(trainer: Trainer) -> None:
    """Spare the Trainer its walks over all modules: 4 ms of Python each with 24 layers.

    For each micro-batch it counts the model's parameters and puts every module into training mode; for each step it
    lists the parameters twice, whose gradients it clips and takes away.
    """
    model: PeftModel = trainer.model
    parameters = model.num_parameters(exclude_embeddings=True)
    model.train()  # the wrapper calls itself training while the base below it, as it was loaded, is not
    # no closures: a copy of the model has parameters of its own
    model.parameters = functools.partial(_listed, list(model.parameters()))
    model.train = functools.partial(_switched, model)
    trainer.floating_point_ops = lambda inputs: 6 * int(inputs["input_ids"].numel()) * parameters


def _listed(parameters: list[torch.nn.Parameter], recurse: bool = True) -> Iterator[torch.nn.Parameter]:
    return iter(parameters)


def _switched(model: torch.nn.Module, mode: bool = True) -> torch.nn.Module:
    return model if model.training == mode else type(model).train(model, mode)
