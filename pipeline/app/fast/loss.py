"""The loss of the answers: only the positions before a label reach the head, and never all of them at once.

The logits of one position are a number for every word of the vocabulary, half a megabyte of them, and the loss and its
gradient need several copies. So head and loss of long answers run over a few positions at a time; each chunk's gradient
is taken at once, and its logits are forgotten. All chunks have one size: the allocator can give each the memory of
the one before, however long the answers of a batch are.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.functional import cross_entropy, pad
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from app.fast.card_kernels import card_kernels
from app.training.collator import next_tokens
from app.training.rows import IGNORED

CHUNK_POSITIONS = 128
KERNEL_CHUNK_POSITIONS = 256  # where a kernel of our own makes their gradients in the logits' own memory


def answer_loss(
    head: torch.nn.Module, hidden_states: torch.Tensor, targets: torch.Tensor, items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """The loss of `targets` (n) from the hidden states (n, hidden) that predict them: its sum over `items`.

    `items` are the labels of the whole optimizer step, as the Trainer counts them; without it they are this batch's.
    """
    divisor = (targets != IGNORED).sum() if items is None else items
    if len(targets) <= CHUNK_POSITIONS:
        return _summed_loss(head, hidden_states, targets) / divisor
    size = chunk_positions(head)
    missing = -len(targets) % size
    chunks = zip(
        pad(hidden_states, (0, 0, 0, missing)).split(size),
        pad(targets, (0, missing), value=IGNORED).split(size),
        strict=True,
    )
    run: Callable[..., torch.Tensor] = _FrozenHeadLoss.apply if torch.is_grad_enabled() else _summed_loss
    if _is_trained(head):  # its gradients need each chunk once more
        has_dropout = any(isinstance(module, torch.nn.Dropout) for module in head.modules())
        run = functools.partial(checkpoint, _summed_loss, use_reentrant=False, preserve_rng_state=has_dropout)
    return torch.stack([run(head, *chunk) for chunk in chunks]).sum() / divisor


def chunk_positions(head: torch.nn.Module) -> int:
    """How many positions' logits there are at once."""
    return CHUNK_POSITIONS if _is_trained(head) or not card_kernels() else KERNEL_CHUNK_POSITIONS


def _is_trained(head: torch.nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in head.parameters())


class _FrozenHeadLoss(torch.autograd.Function):  # type: ignore[misc]
    """A chunk's loss, and at once what its hidden states' gradient will be a multiple of: nothing else is kept."""

    @staticmethod
    def forward(ctx: Any, head: torch.nn.Module, hidden_states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        kernels = card_kernels()
        with torch.enable_grad():
            inputs = hidden_states.detach().requires_grad_()
            logits = head(inputs)
            if kernels and isinstance(head, torch.nn.Linear) and kernels.can_compare(logits):
                loss, of_logits = kernels.summed_cross_entropy(logits.detach(), targets, IGNORED)
                (gradient,) = torch.autograd.grad(logits, inputs, of_logits)
            else:
                loss = _summed(logits, targets)
                (gradient,) = torch.autograd.grad(loss, inputs)
        ctx.save_for_backward(gradient)
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        return None, ctx.saved_tensors[0] * gradients[0].to(ctx.saved_tensors[0].dtype), None


def _summed_loss(head: torch.nn.Module, hidden_states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return _summed(head(hidden_states), targets)


def _summed(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")


def keep_to_answers(model: PreTrainedModel) -> bool:
    """Make the model's head see the batch's `answer_positions` only; True where the loss then runs in chunks.

    False where its forward does more than its body, its head and the usual loss: some models scale or bound their
    logits, or add a loss of their own. Such a model goes its own way, with the logits of every position of an answer,
    or of every position where it has no loss for some of them.
    """
    is_plain = _is_body_head_and_loss(model)
    takes_some = not is_plain and _takes_some_positions(model)
    if is_plain or takes_some:  # a few classes deny it, for images; the Trainer would then weigh each batch the same
        model.accepts_loss_kwargs = True
    whole = model.forward
    # no closure: a copy of the model computes with its own weights
    own = functools.partial(_forward, model, whole, is_plain, takes_some)
    model.forward = functools.update_wrapper(own, whole)  # the Trainer reads its signature
    return is_plain


def _forward(
    model: PreTrainedModel,
    whole: Callable[..., Any],
    is_plain: bool,
    takes_some: bool,
    *others: Any,  # noqa: ANN401 - as the model's own
    **inputs: Any,  # noqa: ANN401 - as the model's own
) -> Any:  # noqa: ANN401 - as the model's own
    positions = inputs.pop("answer_positions", None)
    if positions is None or inputs.get("labels") is None or not (is_plain or takes_some):
        return whole(*others, **inputs)
    targets = next_tokens(inputs["labels"])
    if not is_plain:
        kept = (targets != IGNORED).any(0).nonzero().flatten()
        return whole(**inputs, logits_to_keep=kept, shift_labels=targets[:, kept])
    items = inputs.pop("num_items_in_batch", None)
    del inputs["labels"]
    hidden_states = model.base_model(**inputs).last_hidden_state.flatten(0, 1)[positions]
    loss = answer_loss(model.get_output_embeddings(), hidden_states, targets.flatten()[positions], items)
    return CausalLMOutputWithPast(loss=loss)


def _is_body_head_and_loss(model: PreTrainedModel) -> bool:
    """Whether the head gets what the body gives, the logits are what the head gives, and the loss is theirs."""
    seen: dict[str, torch.Tensor] = {}
    body, head = model.base_model, model.get_output_embeddings()
    hooks = (
        body.register_forward_hook(lambda _module, _inputs, output: seen.update(hidden_states=output[0])),
        head.register_forward_hook(lambda _module, inputs, output: seen.update(head_input=inputs[0], logits=output)),
    )
    ids = torch.arange(8, device=model.device)[None]
    try:
        with tried(model):
            outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
    finally:
        for hook in hooks:
            hook.remove()
    if len(seen) < 3:  # a body or a head that is not called as a whole
        return False
    loss = cross_entropy(seen["logits"][0, :-1].float(), ids[0, 1:])
    same = torch.equal(seen["head_input"], seen["hidden_states"]) and torch.equal(outputs.logits, seen["logits"])
    return bool(same and torch.allclose(outputs.loss, loss, rtol=1e-5))


def _takes_some_positions(model: PreTrainedModel) -> bool:
    """Whether the loss comes from an answer's logits alone too, and as its share of a step's; not all classes can."""
    ids = torch.arange(8, device=model.device)[None]
    labels = ids.masked_fill(ids < 4, IGNORED)
    targets = next_tokens(labels)
    kept = (targets != IGNORED).any(0).nonzero().flatten()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    try:
        with tried(model):
            whole = model(**inputs).loss
        with tried(model):
            half = model(
                **inputs, logits_to_keep=kept, shift_labels=targets[:, kept], num_items_in_batch=2 * len(kept)
            ).loss
    except (RuntimeError, TypeError, ValueError):
        return False
    return bool(torch.allclose(2 * half, whole, rtol=0.01))


@contextlib.contextmanager
def tried(model: PreTrainedModel) -> Iterator[None]:
    """Inside, what the model computes leaves no gradient and no trace in the random numbers."""
    devices, was_training = [model.device] if model.device.type == "cuda" else [], model.training
    model.train()  # outside training bitsandbytes packs weights in a way that no gradient knows, on some CPUs
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        model.train(was_training)
