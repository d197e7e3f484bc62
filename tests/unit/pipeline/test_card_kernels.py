"""Kernels of the pipeline's own: where there are none, what they replace, and on a card, torch's numbers."""

import os
import types
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

on_a_card = pytest.mark.skipif(os.environ.get("STEPH_TEST_GPU") != "1", reason="STEPH_TEST_GPU is not 1")


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing is known of this card's kernels, before and after."""
    from app.fast.card_kernels import card_kernels

    card_kernels.cache_clear()
    yield
    card_kernels.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_what_the_kernels_lack_is_said_once_and_training_does_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine without a C compiler is one."""
    import torch
    from app.fast import card_kernels as module

    failed: Future[Any] = Future()
    failed.set_exception(RuntimeError("no kernels:\nFailed to find C compiler."))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module, "begin_compiling", lambda: failed)
    assert module.card_kernels() is None
    assert module.card_kernels() is None
    assert capsys.readouterr().err.count("RuntimeError: Failed to find C compiler.") == 1


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("error", [None, RuntimeError("a kernel gave other numbers than torch for the loss")])
def test_kernels_are_compared_again_once_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: RuntimeError | None
) -> None:
    """Where a model was loaded beside the first comparison, its numbers say nothing."""
    import torch
    from app.fast import card_kernels as module

    compared: list[str] = []

    def try_each() -> None:
        compared.append("now")
        if error:
            raise error

    compiled: Future[Any] = Future()
    kernels = types.SimpleNamespace(try_each=try_each)
    compiled.set_result(kernels)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module, "begin_compiling", lambda: compiled)
    assert module.card_kernels() is (None if error else kernels)
    assert module.card_kernels() is (None if error else kernels)
    assert compared == ["now"]
    assert ("gave other numbers" in capsys.readouterr().err) is bool(error)


def interleaved(q: "torch.Tensor", k: "torch.Tensor", cos: "torch.Tensor", sin: "torch.Tensor") -> tuple[Any, ...]:
    """Neighbours turn together, as in GPT-J, instead of halves."""
    import torch

    def turned(states: "torch.Tensor") -> "torch.Tensor":
        pairs = torch.stack([-states[..., 1::2], states[..., ::2]], -1).flatten(-2)
        return states * cos[:, None] + pairs * sin[:, None]

    return turned(q), turned(k)


def test_another_rotary_embedding_keeps_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The family's function is replaced where its numbers are those of the kernels, once, and never else."""
    import torch
    from app.fast import model as module
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.models.qwen2 import modeling_qwen2 as family

    usual = family.apply_rotary_pos_emb
    monkeypatch.setattr(module, "card_kernels", lambda: types.SimpleNamespace(apply_rotary=usual))
    monkeypatch.setattr(family, "apply_rotary_pos_emb", interleaved)
    config = Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    assert module.rotate_in_one(model) == 0
    assert family.apply_rotary_pos_emb is interleaved
    family.apply_rotary_pos_emb = usual
    assert module.rotate_in_one(model) == 1
    replaced = family.apply_rotary_pos_emb
    assert replaced is not usual
    assert module.rotate_in_one(model) == 1
    assert family.apply_rotary_pos_emb is replaced
    # on the CPU it is the family's own that is called
    ids = torch.arange(6)[None]
    found = model(input_ids=ids).logits
    family.apply_rotary_pos_emb = usual
    assert torch.equal(found, model(input_ids=ids).logits)


@on_a_card
@pytest.mark.parametrize("is_one_product", [True, False])
@pytest.mark.parametrize("shape", [(1900, 12288), (1332, 5504), (15, 16)])
def test_silu_products_and_their_gradients_are_torchs(shape: tuple[int, int], is_one_product: bool) -> None:
    """As near to fp32's as bf16 can be, also where gate and up lie side by side."""
    import torch
    from app.fast import kernels

    torch.manual_seed(0)
    gate, up, gradient = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    if is_one_product:
        gate, up = torch.cat([gate, up], -1).chunk(2, -1)
    assert kernels.can_multiply(gate, up)
    exact = [each.float().requires_grad_() for each in (gate, up)]
    product = torch.nn.functional.silu(exact[0]) * exact[1]
    product.backward(gradient.float())
    of_both, again = kernels.silu_product_backward(gradient.clone(), gate, up)
    found = kernels.silu_product(gate, up), *of_both.chunk(2, -1), again
    for one, other in zip(found, (product, exact[0].grad, exact[1].grad, product), strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.01, atol=0.01)


@on_a_card
def test_weights_are_dequantised_to_bitsandbytes_numbers() -> None:
    """Every bit, also while the card still quantises, and from the second time on, when the compiled kernel is kept."""
    import torch
    from app.fast import kernels
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for size in [(12288, 4096), (1024, 4096), (64, 64)] * 10:
        weight = torch.randn(size, device="cuda", dtype=torch.bfloat16)
        packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        dequantise = kernels.dequantiser(packed, state)
        assert dequantise is not None
        first, expected, second = dequantise(), dequantize_4bit(packed, state), torch.ones_like(weight)
        dequantise(second)
        assert int((first != expected).sum()) == int((second != expected).sum()) == 0


@on_a_card
def test_a_weight_whose_code_is_rounded_is_left_to_bitsandbytes() -> None:
    """It makes the code in torch's default dtype, which loading a model changes, and computes with its own."""
    import torch
    from app.fast import kernels
    from bitsandbytes.functional import quantize_4bit

    torch.set_default_dtype(torch.bfloat16)
    try:
        weight = torch.ones(64, 64, device="cuda", dtype=torch.bfloat16)
        packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    finally:
        torch.set_default_dtype(torch.float32)
    assert kernels.dequantiser(packed, state) is None


@on_a_card
@pytest.mark.parametrize(("heads", "width"), [(32, 128), (8, 128), (3, 64)])
def test_heads_are_normed_as_torch_does(heads: int, width: int) -> None:
    """Also where they are a part of a wider product, and their gradient lies otherwise."""
    import torch
    from app.fast import kernels

    torch.manual_seed(0)
    product = torch.randn(2, 333, (heads + 5) * width, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(width, device="cuda", dtype=torch.bfloat16)
    for source in (product[..., : heads * width], product[..., : heads * width].contiguous()):
        states = source.view(2, 333, heads, width).requires_grad_()
        assert kernels.can_norm(states, weight)
        exact = states.detach().float().requires_grad_()
        expected = torch.nn.functional.rms_norm(exact, (width,), weight.float(), 1e-6)
        found = kernels.NormedHeads.apply(states, weight, 1e-6)
        torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.01)
        for gradient in (torch.randn_like(found), torch.randn_like(found.transpose(1, 2)).transpose(1, 2)):
            (ours,) = torch.autograd.grad(found, states, gradient, retain_graph=True)
            (theirs,) = torch.autograd.grad(expected, exact, gradient.float(), retain_graph=True)
            torch.testing.assert_close(ours.float(), theirs, rtol=0.01, atol=0.02)


@on_a_card
@pytest.mark.parametrize("heads", [(32, 8), (16, 16), (3, 1)])
def test_queries_and_keys_are_turned_as_transformers_does(heads: tuple[int, int]) -> None:
    """Also with gradients, rows that share their angles, and halves whose angles differ."""
    import torch
    from app.fast import kernels
    from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

    torch.manual_seed(0)
    rows, tokens, width = 3, 77, 128

    def states(count: int) -> "torch.Tensor":
        made = torch.randn(rows, tokens, count, width, device="cuda", dtype=torch.bfloat16)
        return made.transpose(1, 2).requires_grad_()

    for angles in (1, rows):
        q, k = states(heads[0]), states(heads[1])
        cos, sin = (torch.randn(angles, tokens, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        expected = apply_rotary_pos_emb(q.float(), k.float(), cos.float(), sin.float())
        found = kernels.apply_rotary(q, k, cos, sin)
        gradients = [torch.randn_like(each) for each in found]
        for one, other, gradient, source in zip(found, expected, gradients, (q, k), strict=True):
            torch.testing.assert_close(one.float(), other, rtol=0.01, atol=0.02)
            (ours,) = torch.autograd.grad(one, source, gradient, retain_graph=True)
            (theirs,) = torch.autograd.grad(other, source, gradient.float(), retain_graph=True)
            torch.testing.assert_close(ours, theirs, rtol=0.01, atol=0.03)


@on_a_card
@pytest.mark.parametrize("vocabulary", [151936, 32003, 300])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_loss_and_its_gradient_are_torchs(vocabulary: int, dtype: str) -> None:
    """Also for logits far apart, and positions without a label."""
    import torch
    from app.fast import kernels

    torch.manual_seed(0)
    logits = (torch.randn(128, vocabulary, device="cuda") * 20).to(getattr(torch, dtype))
    targets = torch.randint(vocabulary, (128,), device="cuda")
    targets[100:] = -100
    exact = logits.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact, targets, reduction="sum")
    (theirs,) = torch.autograd.grad(expected, exact)
    for _ in range(20):  # a program's threads run apart, and each overwrites what another may still have to read
        loss, ours = kernels.summed_cross_entropy(logits.clone(), targets, -100)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(ours.double(), theirs, rtol=0.005, atol=1e-5)
