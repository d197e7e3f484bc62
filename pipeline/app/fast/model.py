"""A model's own parts, done with fewer and smaller operations: norms, attention, and what the Trainer walks over."""

import functools

import torch
from peft import PeftModel
from transformers import AttentionInterface, PreTrainedModel, Trainer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

CAUSAL_ONLY = "causal_sdpa"


def fuse_norms(model: torch.nn.Module) -> None:
    """Let torch's own kernel do each RMSNorm: one instead of eight, and no fp32 copies kept for the backward."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = functools.partial(_fused_rms_norm, module)


def _fused_rms_norm(norm: torch.nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """It computes in fp32 inside; autocast would hand it fp32 copies."""
    with torch.autocast(hidden_states.device.type, enabled=False):
        return torch.nn.functional.rms_norm(hidden_states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def attend_without_masks(model: PreTrainedModel, longest_row: int) -> bool:
    """Leave attention masks out: rows padded on the right need none, and kernels without one are twice as fast.

    An attention of a name that has no function for masks gets none. False, and nothing changes, where attention is
    another one than sdpa or where a window is narrower than the longest row.
    """
    config, text = model.config, model.config.get_text_config()  # models of images too keep the text's inside
    window = getattr(text, "sliding_window", None)
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    is_narrow = kinds != {"full_attention"} or (window is not None and "layer_types" not in vars(text))
    if config._attn_implementation != "sdpa" or (is_narrow and (window is None or window < longest_row)):
        return False
    AttentionInterface.register(CAUSAL_ONLY, sdpa_attention_forward)
    model.set_attn_implementation(CAUSAL_ONLY)
    return bool(config._attn_implementation == CAUSAL_ONLY)


def walk_once(trainer: Trainer) -> None:
    """Spare the Trainer its walks over all modules: 4 ms of Python each with 24 layers, for each micro-batch.

    It counts the model's parameters and puts every module into training mode.
    """
    model: PeftModel = trainer.model
    parameters = model.num_parameters(exclude_embeddings=True)
    model.train()  # the wrapper calls itself training while the base below it, as it was loaded, is not
    switch = model.train
    model.train = lambda mode=True: model if model.training == mode else switch(mode)
    trainer.floating_point_ops = lambda inputs: 6 * int(inputs["input_ids"].numel()) * parameters
