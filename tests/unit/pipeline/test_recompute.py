"""Recompute beside layers of every kind, and what waits in host memory, whose streams are stood in for."""

import contextlib
import functools
from collections import UserDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch
    from app.fast.recompute import HostStack


@pytest.fixture
def linear() -> "torch.nn.Linear":
    """What a layer trains."""
    import torch

    torch.manual_seed(0)
    return torch.nn.Linear(4, 4)


def test_a_frozen_layer_gives_no_gradient_and_no_error(linear: "torch.nn.Linear") -> None:
    """Adapters on later layers only: nothing of the first ones asks for a gradient."""
    import torch
    from app.fast.recompute import _checkpoint

    frozen = torch.nn.Linear(4, 4).requires_grad_(False)
    hidden = torch.ones(2, 4)
    below = _checkpoint(pytest.fail, frozen.forward, hidden, host=None)
    _checkpoint(pytest.fail, linear.forward, below, host=None).sum().backward()
    found = linear.weight.grad.clone()
    linear.zero_grad()
    linear(frozen(hidden)).sum().backward()
    assert torch.equal(found, linear.weight.grad)


@pytest.mark.parametrize("kind", ["a tuple", "tensors inside a tuple", "a dictionary", "a keyword"])
def test_gradients_come_through_every_kind_of_output(linear: "torch.nn.Linear", kind: str) -> None:
    """By its own way through a plain tuple, and by torch's where autograd would not see into it."""
    import torch
    from app.fast.recompute import _checkpoint
    from torch.utils.checkpoint import checkpoint

    def layer(hidden: torch.Tensor) -> Any:  # noqa: ANN401 - each of them
        outputs = linear(hidden), linear(hidden) * 2
        return {"tensors inside a tuple": (outputs[0], outputs[1:]), "a dictionary": {"one": outputs}}.get(
            kind, (*outputs, None)
        )

    def gradient(outputs: Any) -> "torch.Tensor":  # noqa: ANN401
        leaves = torch.utils._pytree.tree_leaves(outputs)
        linear.zero_grad()
        torch.stack([leaf.sum() for leaf in leaves if leaf is not None]).sum().backward()
        return linear.weight.grad.clone()

    torchs_own: list[str] = []

    def usual(run: Callable[..., Any], *inputs: Any) -> Any:  # noqa: ANN401
        torchs_own.append(kind)
        return checkpoint(run, *inputs, use_reentrant=False)

    hidden = torch.ones(2, 4)
    expected = gradient(layer(hidden))
    if kind == "a keyword":
        outputs = _checkpoint(usual, functools.partial(layer, hidden=hidden), host=None)
    else:
        outputs = _checkpoint(usual, layer, hidden, host=None)
    assert torch.equal(gradient(outputs), expected)
    assert torchs_own == ([] if kind == "a tuple" else [kind])


@pytest.mark.parametrize("kept_in", [dict, list, UserDict], ids=lambda kind: kind.__name__)
def test_gradients_come_through_what_layers_share(linear: "torch.nn.Linear", kept_in: type) -> None:
    """Some models let later layers use an earlier one's keys, which autograd must see being made."""
    import torch
    from app.fast.recompute import _checkpoint
    from torch.utils.checkpoint import checkpoint

    def gives(hidden: torch.Tensor, shared: Any) -> torch.Tensor:  # noqa: ANN401 - each of them
        keys = linear(hidden)
        shared.append(keys) if isinstance(shared, list) else shared.update(keys=keys)
        return hidden * 2

    def takes(hidden: torch.Tensor, shared: Any) -> torch.Tensor:  # noqa: ANN401
        return hidden * (shared[0] if isinstance(shared, list) else shared["keys"])

    def gradient(run: Callable[..., Any]) -> "torch.Tensor":
        linear.zero_grad()
        shared = kept_in()
        hidden = torch.ones(2, 4, requires_grad=True)
        for layer in (gives, takes):
            hidden = run(functools.partial(layer, shared=shared), hidden)
        hidden.sum().backward()
        return linear.weight.grad

    usual = functools.partial(checkpoint, use_reentrant=False)
    expected = gradient(lambda layer, hidden: layer(hidden))
    assert torch.equal(gradient(functools.partial(_checkpoint, usual, host=None)), expected)


def test_a_loss_of_the_routers_keeps_its_gradients() -> None:
    """It is computed from what hooks collect inside the layers, and its gradient is there with recompute as without."""
    import torch
    from app.fast.recompute import set_recompute
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    router = {"output_router_logits": True, "router_aux_loss_coef": 1.0}
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **sizes, **heads, **router))
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)).train()

    def gradients(*, recompute: bool) -> "torch.Tensor":
        set_recompute(model, recompute)
        model.zero_grad()
        ids = torch.arange(3, 43).view(2, 20)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return torch.cat([each.grad.flatten() for each in model.parameters() if each.requires_grad])

    assert torch.allclose(gradients(recompute=True), gradients(recompute=False), rtol=1e-4, atol=1e-6)


def test_dropout_inside_a_model_of_images_is_seen() -> None:
    """The text's configuration is one level down there."""
    import torch
    from app.fast.recompute import draws_random_numbers
    from transformers import Gemma3Config

    def model(**text: float) -> Any:  # noqa: ANN401 - as much of a PeftModel as is asked
        base = torch.nn.Module()
        base.config = Gemma3Config(text_config=text, vision_config={})
        base.get_base_model = lambda: base
        return base

    assert not draws_random_numbers(model(attention_dropout=0.0))
    assert draws_random_numbers(model(attention_dropout=0.1))


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> "HostStack":
    """A stack whose streams do at once what they are asked for, and whose events say whether they can be waited for."""
    import torch
    from app.fast.recompute import HostStack

    class Stream:
        capture = 0  # the number of the capture that is going on, else 0

        def record_event(self) -> int:
            return Stream.capture

        def wait_event(self, event: int) -> None:
            assert event in (0, Stream.capture), "an event of a capture that is over"

        def wait_stream(self, other: object) -> None:
            pass

    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: contextlib.nullcontext())
    monkeypatch.setattr(torch, "empty", lambda *sizes, pin_memory=False, **named: empty(*sizes, **named))
    return HostStack(8)


@contextlib.contextmanager
def capturing(stack: "HostStack") -> Iterator[None]:
    """What is recorded inside can't be waited for outside."""
    kind = type(stack._stream)
    kind.capture = 1
    try:
        yield
    finally:
        kind.capture = 0


def test_passes_that_are_given_up_leave_nothing_behind(stack: "HostStack") -> None:
    """Forward passes without a backward, as many as you like: no more pinned memory, and the next one has its own."""
    import torch

    loads: list[Callable[[], torch.Tensor]] = []
    for given_up in range(5):
        loads.clear()
        loads.extend(stack.push(torch.full((8,), float(10 * given_up + layer))) for layer in range(3))
    assert len(stack._pinned) == 3
    for layer in (2, 1, 0):
        assert loads.pop()().tolist() == [40.0 + layer] * 8
    assert (stack._held, stack._leaving, stack._arriving) == ([], [], {})


@pytest.mark.parametrize("loaded", [0, 1, 2])
def test_a_capture_that_failed_leaves_no_event_to_wait_for(stack: "HostStack", loaded: int) -> None:
    """Out of memory in its forward or its backward: the pass without a graph starts afresh, with its own numbers."""
    import torch

    with capturing(stack):
        loads = [stack.push(torch.full((8,), -1.0)) for _ in range(3)]
        for _ in range(loaded):
            loads.pop()()
    loads.clear()
    loads = [stack.push(torch.full((8,), float(layer))) for layer in range(3)]
    for layer in (2, 1, 0):
        assert loads.pop()().tolist() == [float(layer)] * 8
    assert len(stack._pinned) == 3


def test_a_layer_that_nobody_asks_for_leaves_no_stale_numbers(stack: "HostStack") -> None:
    """Fetched early and never used: its place's next tensor is the new one."""
    import torch

    loads = [stack.push(torch.full((8,), float(layer))) for layer in range(3)]
    assert loads[2]().tolist() == [2.0] * 8
    assert loads[0]().tolist() == [0.0] * 8
    loads = [stack.push(torch.full((8,), 10.0 + layer)) for layer in range(2)]
    assert loads[1]().tolist() == [11.0] * 8
    assert loads[0]().tolist() == [10.0] * 8


def test_embeddings_of_a_model_beside_the_card_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model on the CPU of a machine with a card can't read through the card."""
    import torch
    from app.fast.host_memory import move_embeddings_to_host
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False}
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **sizes, **heads))
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not move_embeddings_to_host(model)
    assert type(base.get_input_embeddings()) is torch.nn.Embedding
