"""Count every tensor of one training step on the CPU, at a model's real sizes and without its memory.

Tensors are fakes that have a shape and no numbers; the model, PEFT and the loss are the installed ones. Three things
are put in the GPU's place: a 4-bit linear that allocates the dequantised weight as bitsandbytes does on CUDA, CUDA's
dropout, which keeps a mask of one byte, and its RMSNorm kernel, which keeps its input and one number a row.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import bitsandbytes as bnb
import peft.tuners.tuners_utils as tuners
import pytest
import torch
from app.fast.loss import keep_to_answers
from app.fast.model import fuse_norms
from caching_allocator import CachingAllocator
from peft import LoraConfig, get_peft_model
from steph.memory.shapes import ModelShape, config_of
from steph.memory.terms import Workload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

_ATTENTION = torch.nn.functional.scaled_dot_product_attention


class LiveBytes(TorchDispatchMode):  # type: ignore[misc]
    """All living storages that operations have made, as requests to the caching allocator."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = CachingAllocator()
        self._known: dict[int, weakref.ref[Any]] = {}

    def ignore(self, tensors: Sequence[torch.Tensor]) -> None:
        """Leave these out: what is there before the step."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._known[storage._cdata] = weakref.ref(storage)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:  # noqa: ANN401 - as torch declares it
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:  # noqa: ANN401 - torch.UntypedStorage
        key = storage._cdata
        if key in self._known:
            return
        block = self.memory.allocate(storage.nbytes())

        def gone(_: object) -> None:
            self.memory.release(block)
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)


class _DequantisedProduct(torch.autograd.Function):  # type: ignore[misc]
    """bitsandbytes' MatMul4Bit: a whole weight in half precision for each product, nothing kept of the input."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, owner: Any, bias: torch.Tensor | None) -> torch.Tensor:  # noqa: ANN401
        ctx.owner = owner
        return torch.nn.functional.linear(inputs, owner.dequantised(), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # noqa: ANN401
        return gradients[0] @ ctx.owner.dequantised(), None, None


class _FourBit(bnb.nn.Linear4bit):  # type: ignore[misc]
    """A 4-bit linear without a quantised weight, cast as bitsandbytes casts."""

    def __init__(self, plain: torch.nn.Linear) -> None:
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.compute_dtype = torch.bfloat16
        packed = torch.empty(self.in_features * self.out_features // 2, 1, dtype=torch.uint8)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        self.weight.compress_statistics, self.weight.quant_type = True, "nf4"
        self.bias = plain.bias

    def dequantised(self) -> torch.Tensor:
        return torch.empty(self.out_features, self.in_features, dtype=torch.bfloat16)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(torch.bfloat16)
        return _DequantisedProduct.apply(inputs.to(torch.bfloat16), self, bias).to(inputs.dtype)


class _CudaDropout(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        ctx.save_for_backward(torch.empty_like(inputs, dtype=torch.bool))
        return torch.empty_like(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        assert ctx.saved_tensors[0].dtype == torch.bool
        return torch.empty_like(gradients[0])


class _CudaRmsNorm(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        ctx.save_for_backward(inputs, torch.empty(inputs.shape[:-1], dtype=torch.float32))
        return torch.empty_like(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        assert ctx.saved_tensors[0].dtype == gradients[0].dtype
        return torch.empty_like(gradients[0])


def _cuda_attention(query: torch.Tensor, *others: Any, enable_gqa: bool = False, **more: Any) -> torch.Tensor:  # noqa: ANN401
    """CUDA has no kernel for grouped heads in fp32: it takes the way of plain products."""
    if enable_gqa and query.dtype == torch.float32:
        attend = torch._scaled_dot_product_attention_math
        mask, dropout, is_causal, scale = (more.get(key) for key in ("attn_mask", "dropout_p", "is_causal", "scale"))
        return attend(query, *others, mask, dropout or 0.0, bool(is_causal), scale=scale, enable_gqa=True)[0]
    return _ATTENTION(query, *others, enable_gqa=enable_gqa, **more)


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Fake tensors, CUDA's dropout and attention, and autocast on the CPU taken for autocast on the GPU."""
    enabled = torch.is_autocast_enabled
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode():
        patch.setattr(torch, "is_autocast_enabled", lambda *kind: enabled(*(kind or ("cpu",))))
        patch.setattr(torch.nn.functional, "dropout", lambda x, *_, **__: _CudaDropout.apply(x))
        patch.setattr(torch.nn.functional, "rms_norm", lambda x, *_: _CudaRmsNorm.apply(x))
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", _cuda_attention)
        for family in (modeling_qwen2, modeling_qwen3):  # whether a mask hides anything can't be read from a fake one
            patch.setattr(family, "create_causal_mask", lambda *_, attention_mask=None, **__: attention_mask)
        patch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)
        patch.setattr(tuners.BaseTunerLayer, "_move_adapter_to_device_of_base_layer", lambda *_, **__: None)
        patch.setattr(PreTrainedModel, "init_weights", lambda _: None)
        yield


def counted(shape: ModelShape, work: Workload) -> CachingAllocator:
    """What one forward and backward takes beside the weights; LoRA's gradients included."""
    with as_on_a_gpu():
        model = _adapted(shape, work)
        count = LiveBytes()
        count.ignore([*model.parameters(), *model.buffers()])
        autocast = contextlib.nullcontext() if work.upcasts else torch.autocast("cpu", torch.bfloat16)
        with count:
            batch = _batch(work)
            with autocast:
                outputs = model(**batch)
            loss = outputs.loss
            del outputs
            loss.backward()
        return count.memory


def counted_long_answers(
    shape: ModelShape, work: Workload, sizes: Sequence[tuple[int, int]], *, chunked: bool
) -> CachingAllocator:
    """The same for one forward and backward after the other, each of one row of (tokens, label positions)."""
    with as_on_a_gpu():
        model = _adapted(shape, work)
        if chunked:
            keep_to_answers(model.get_base_model())
        count = LiveBytes()
        count.ignore([*model.parameters(), *model.buffers()])
        with count:
            for width, kept in sizes:
                batch = _batch(replace(work, width=width))
                if chunked:
                    del batch["logits_to_keep"], batch["labels"]
                    positions = torch.zeros(kept, dtype=torch.long)
                    batch |= {"labels": batch["input_ids"].clone(), "answer_positions": positions}
                else:
                    batch |= {"labels": batch["input_ids"][:, -kept:].clone(), "logits_to_keep": kept}
                with torch.autocast("cpu", torch.bfloat16):
                    loss = model(**batch).loss
                loss.backward()
                del batch, loss
        return count.memory


def _adapted(shape: ModelShape, work: Workload) -> Any:  # noqa: ANN401 - a PeftModel
    values = config_of(shape)
    dtype = torch.float32 if work.upcasts else torch.bfloat16
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    config.use_cache = False
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.is_loaded_in_4bit = True
    for layer in model.model.layers:
        for holder in (layer.self_attn, layer.mlp):
            linears = [(name, child) for name, child in holder.named_children() if isinstance(child, torch.nn.Linear)]
            for name, plain in linears:
                setattr(holder, name, _FourBit(plain))
    model.tie_weights()
    if work.trainer == "answer":
        fuse_norms(model)
    lora = LoraConfig(r=work.lora_r, lora_dropout=0.05, target_modules=list(work.target_modules), task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    if work.recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    adapted.train()
    return adapted


def _batch(work: Workload) -> dict[str, Any]:
    rows, width = work.rows, work.width
    ids = torch.zeros(rows, width, dtype=torch.long)
    if work.trainer == "full":
        return {"input_ids": ids, "labels": ids.clone()}
    kept = work.label_positions
    return {
        "input_ids": ids,
        "attention_mask": torch.zeros(rows, 1, width, width, dtype=torch.bfloat16),
        "position_ids": ids.clone(),
        "labels": torch.zeros(rows, kept, dtype=torch.long),
        "logits_to_keep": kept,
    }
