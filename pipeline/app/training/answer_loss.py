"""The loss of long answers, without ever holding all of their logits.

The logits of one position are a number for every word of the vocabulary, half a megabyte of them, and the loss and its
gradient need several copies. So head and loss run over a few positions at a time, and the backward runs each chunk once
more instead of keeping its logits. All chunks have one size: the allocator can give each the memory of the one before,
however long the answers of a batch are.
"""

import functools
from typing import Any

import torch
from torch.nn.functional import cross_entropy, pad
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from app.training.rows import IGNORED

CHUNK_POSITIONS = 128


def chunked_loss(
    head: torch.nn.Module, hidden_states: torch.Tensor, labels: torch.Tensor, items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """The causal loss of `labels` (rows, k) from the last hidden states (rows, k, hidden): its sum over `items`.

    `items` are the labels of the whole optimizer step, as the Trainer counts them; without it they are this batch's.
    """
    targets = labels[:, 1:].flatten()  # each position predicts the token after it
    predictors = hidden_states[:, :-1].flatten(0, 1)
    missing = -len(targets) % CHUNK_POSITIONS
    chunks = zip(
        pad(predictors, (0, 0, 0, missing)).split(CHUNK_POSITIONS),
        pad(targets, (0, missing), value=IGNORED).split(CHUNK_POSITIONS),
        strict=True,
    )
    has_dropout = any(isinstance(module, torch.nn.Dropout) for module in head.modules())
    losses = [
        checkpoint(_summed_loss, head, *chunk, use_reentrant=False, preserve_rng_state=has_dropout) for chunk in chunks
    ]
    return torch.stack(losses).sum() / ((targets != IGNORED).sum() if items is None else items)


def _summed_loss(head: torch.nn.Module, hidden_states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(head(hidden_states).float(), targets, ignore_index=IGNORED, reduction="sum")


def chunk_long_answers(model: PreTrainedModel) -> bool:
    """Make the model compute its loss in chunks where a batch has more label positions than one chunk.

    False, and the model stays as it is, where its forward does more than its body, its head and the usual loss: some
    models scale or bound their logits, or add a loss of their own.
    """
    if not _is_body_head_and_loss(model):
        return False
    whole = model.forward

    @functools.wraps(whole)  # the Trainer reads its signature
    def forward(**inputs: Any) -> Any:  # noqa: ANN401 - as the model's own
        if inputs.get("labels") is None or inputs["labels"].numel() <= CHUNK_POSITIONS:
            return whole(**inputs)
        labels, items = inputs.pop("labels"), inputs.pop("num_items_in_batch", None)
        inputs.pop("logits_to_keep", None)  # the labels are as wide
        hidden_states = model.base_model(**inputs).last_hidden_state[:, -labels.shape[1] :]
        return CausalLMOutputWithPast(loss=chunked_loss(model.get_output_embeddings(), hidden_states, labels, items))

    model.forward = forward
    return True


def _is_body_head_and_loss(model: PreTrainedModel) -> bool:
    """Whether the head gets what the body gives, the logits are what the head gives, and the loss is theirs."""
    seen: dict[str, torch.Tensor] = {}
    body, head = model.base_model, model.get_output_embeddings()
    hooks = (
        body.register_forward_hook(lambda _module, _inputs, output: seen.update(hidden_states=output[0])),
        head.register_forward_hook(lambda _module, inputs, output: seen.update(head_input=inputs[0], logits=output)),
    )
    ids = torch.arange(8, device=model.device)[None]
    mode = model.training
    model.train()  # bitsandbytes lays 4-bit weights out for good where a CPU evaluates: then nothing can be trained
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
    finally:
        model.train(mode)
        for hook in hooks:
            hook.remove()
    if len(seen) < 3:  # a body or a head that is not called as a whole
        return False
    loss = cross_entropy(seen["logits"][0, :-1].float(), ids[0, 1:])
    same = torch.equal(seen["head_input"], seen["hidden_states"]) and torch.equal(outputs.logits, seen["logits"])
    return bool(same and torch.allclose(outputs.loss, loss, rtol=1e-5))
