"""Triton kernels: one pass over memory where torch makes several.

Imported by `card_kernels` alone: Triton is not on every platform, and it needs a C compiler.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

_ELEMENTS = 4096  # of one program
_ALIGNED = 16  # of what is counted, so that a thread's loads are wide
_QUANTISED_BLOCKS = 64
_HEADS = 8


# sizes are not specialised: a kernel compiled for each would cost a third of a second
@triton.jit(do_not_specialize=("groups",))
def _silu_product(gate, up, product, groups, ELEMENTS: tl.constexpr, ALIGNED: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = at < groups * ALIGNED
    g = tl.load(gate + at, inside).to(tl.float32)
    u = tl.load(up + at, inside).to(tl.float32)
    tl.store(product + at, g * tl.sigmoid(g) * u, inside)


@triton.jit(do_not_specialize=("groups",))
def _silu_product_backward(gradient, gate, up, of_up, product, groups, ELEMENTS: tl.constexpr, ALIGNED: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = at < groups * ALIGNED
    d = tl.load(gradient + at, inside).to(tl.float32)
    g = tl.load(gate + at, inside).to(tl.float32)
    u = tl.load(up + at, inside).to(tl.float32)
    sigmoid = tl.sigmoid(g)
    silu = g * sigmoid
    tl.store(of_up + at, d * silu, inside)
    tl.store(product + at, silu * u, inside)
    tl.store(gradient + at, d * u * (sigmoid + silu * (1 - sigmoid)), inside)


@triton.jit(do_not_specialize=("blocks",))
def _dequantise(
    packed, scales, scale_code, scale_scales, offset, code, weight, blocks,
    BLOCK: tl.constexpr, SCALES_BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < blocks
    scale = tl.load(scale_code + tl.load(scales + block, inside, 0).to(tl.int32))
    scale = scale * tl.load(scale_scales + block // SCALES_BLOCK, inside, 0) + tl.load(offset)
    at = block[:, None] * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
    pair = tl.load(packed + at, inside[:, None], 0).to(tl.int32)
    both = tl.interleave(tl.load(code + (pair >> 4)), tl.load(code + (pair & 15)))
    out = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(weight + out, both * scale[:, None], inside[:, None])


@triton.jit(
    do_not_specialize=(
        "heads", "tokens", "source_row", "source_head", "source_token", "angle_row", "angle_token", "sign",
        "first_sine", "second_sine",
    )
)  # fmt: skip
def _rotate(
    source, cosine, sine, target, heads, tokens,
    source_row, source_head, source_token, angle_row, angle_token, sign, first_sine, second_sine,
    HALF: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """The first halves become x1·c1 - sign·x2·s1, the second ones x2·c2 + sign·x1·s2."""
    place = tl.program_id(0).to(tl.int64)
    half, head = tl.arange(0, WIDTH), tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    inside = (head < heads)[:, None] & (half < HALF)[None, :]
    angle = place // tokens * angle_row + place % tokens * angle_token + half
    c1 = tl.load(cosine + angle, half < HALF).to(tl.float32)[None, :]
    c2 = tl.load(cosine + angle + HALF, half < HALF).to(tl.float32)[None, :]
    s1 = sign * tl.load(sine + angle + first_sine, half < HALF).to(tl.float32)[None, :]
    s2 = sign * tl.load(sine + angle + second_sine, half < HALF).to(tl.float32)[None, :]
    token = source + place // tokens * source_row + place % tokens * source_token
    at = token + head[:, None] * source_head + half[None, :]
    x1, x2 = tl.load(at, inside).to(tl.float32), tl.load(at + HALF, inside).to(tl.float32)
    to = target + (place * heads + head[:, None]) * (2 * HALF) + half[None, :]
    tl.store(to, x1 * c1 - x2 * s1, inside)
    tl.store(to + HALF, x2 * c2 + x1 * s2, inside)


class _Launcher:
    """A kernel with its constants. From the second launch on, Triton does not look at every argument again.

    What was compiled once fits all tensors of the same types that begin at a multiple of 16 bytes.
    """

    def __init__(self, kernel: Any, *constants: int) -> None:  # noqa: ANN401 - Triton has no types
        self._kernel, self._constants = kernel, constants
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(self, programs: tuple[int, int], tensors: tuple[torch.Tensor, ...], *sizes: int) -> None:
        device = tensors[0].device
        if device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                self(programs, tensors, *sizes)
            return
        key = (device, *(tensor.dtype for tensor in tensors))
        is_aligned = not any(tensor.data_ptr() % 16 for tensor in tensors)
        kernel = self._compiled.get(key, self._kernel) if is_aligned else self._kernel
        compiled = kernel[(*programs, 1)](*tensors, *sizes, *self._constants)
        if is_aligned and kernel is self._kernel:
            self._compiled[key] = compiled


_launcher = functools.cache(_Launcher)


def can_multiply(gate: torch.Tensor, up: torch.Tensor) -> bool:
    """Whether the kernels for silu(gate) · up take these."""
    return bool(gate.is_cuda and gate.dtype == up.dtype and gate.numel() % _ALIGNED == 0)


def silu_product(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up."""
    gate, up = gate.contiguous(), up.contiguous()
    product = torch.empty_like(gate)
    launch = _launcher(_silu_product, _ELEMENTS, _ALIGNED)
    launch(_programs(gate), (gate, up, product), gate.numel() // _ALIGNED)
    return product


def silu_product_backward(
    gradient: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of gate, written over `gradient`, and of up; and silu(gate) · up once more."""
    gradient, gate, up = gradient.contiguous(), gate.contiguous(), up.contiguous()
    of_up, product = torch.empty_like(gate), torch.empty_like(gate)
    launch = _launcher(_silu_product_backward, _ELEMENTS, _ALIGNED)
    launch(_programs(gate), (gradient, gate, up, of_up, product), gate.numel() // _ALIGNED)
    return gradient, of_up, product


def _programs(tensor: torch.Tensor) -> tuple[int, int]:
    return triton.cdiv(tensor.numel(), _ELEMENTS), 1


def dequantiser(packed: torch.Tensor, state: Any) -> Callable[[], torch.Tensor] | None:  # noqa: ANN401 - bitsandbytes'
    """What gives a 4-bit weight in its compute dtype; None unless it is as Linear4bit keeps it, quantised twice."""
    is_known = (
        packed.is_cuda and packed.is_contiguous() and packed.dtype == torch.uint8 and packed.shape[0] != 1
        and state.nested and state.dtype != torch.float32 and state.shape.numel() % state.blocksize == 0
    )  # fmt: skip
    if not is_known:
        return None
    second, blocks = state.state2, state.shape.numel() // state.blocksize
    read = (
        packed.view(-1).as_subclass(torch.Tensor),
        state.absmax,
        second.code,
        second.absmax,
        state.offset,
        state.code,
    )
    launch = _launcher(_dequantise, state.blocksize, second.blocksize, _QUANTISED_BLOCKS)
    programs = triton.cdiv(blocks, _QUANTISED_BLOCKS), 1
    empty = functools.partial(torch.empty, state.shape, dtype=state.dtype, device=packed.device)

    def dequantise() -> torch.Tensor:
        weight = empty()
        launch(programs, (*read, weight), blocks)
        return weight

    return dequantise


class Rotated(torch.autograd.Function):  # type: ignore[misc]
    """Rotary embedding of queries or keys (rows, heads, tokens, width), whose halves turn together."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        ctx.save_for_backward(cosine, sine)
        return _rotated(states, cosine, sine, back=False)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        return _rotated(gradients[0], *ctx.saved_tensors, back=True), None, None


def _rotated(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, *, back: bool) -> torch.Tensor:
    if states.stride(-1) != 1:
        states = states.contiguous()
    rows, heads, tokens, width = states.shape
    cosine, sine = (each.expand(rows, tokens, width) for each in (cosine, sine))
    target, half = states.new_empty(rows, tokens, heads, width), width // 2
    sign, sines = (-1, (half, 0)) if back else (1, (0, half))
    sizes = (heads, tokens, *states.stride()[:3], *cosine.stride()[:2], sign, *sines)
    launch = _launcher(_rotate, half, triton.next_power_of_2(half), _HEADS)
    launch((rows * tokens, triton.cdiv(heads, _HEADS)), (states, cosine, sine, target), *sizes)
    return target.transpose(1, 2)


def apply_rotary(
    queries: torch.Tensor, keys: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both of an attention's, turned by their tokens' angles (rows or 1, tokens, width)."""
    return Rotated.apply(queries, cosine, sine), Rotated.apply(keys, cosine, sine)


def try_each() -> None:
    """Compile each kernel, and compare it twice with torch and bitsandbytes: a second launch takes another way.

    Raises what Triton, its compiler or the card raise, and `RuntimeError` where the numbers are others.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    numbers = torch.linspace(-3, 3, 2**22, device="cuda").to(torch.bfloat16).view(1, 8, 4096, 128)
    silu = torch.nn.functional.silu(numbers)
    ones, zeros = torch.ones_like(numbers[0, :1]), torch.zeros_like(numbers[0, :1])
    packed, state = quantize_4bit(numbers.view(4096, -1), quant_type="nf4", compress_statistics=True)
    dequantise = dequantiser(packed, state)
    for _ in range(2):
        weight = dequantise() if dequantise else None
        product = silu_product(numbers, numbers)
        of_gate, of_up, again = silu_product_backward(numbers.clone(), numbers, numbers)
        turned, quarter = apply_rotary(numbers, numbers, ones, zeros)[0], apply_rotary(numbers, numbers, zeros, ones)[0]
        first, second = numbers.chunk(2, -1)
        pairs = [
            (product, silu * numbers), (again, silu * numbers), (of_up, silu * numbers),
            (of_gate, torch.ops.aten.silu_backward(numbers * numbers, numbers)),
            (turned, numbers), (quarter, torch.cat([-second, first], -1)),
        ]  # fmt: skip
        is_same = weight is None or torch.equal(weight, dequantize_4bit(packed, state))
        if not is_same or not all(torch.allclose(one, other, rtol=0.02, atol=0.02) for one, other in pairs):
            raise RuntimeError("kernels of its own gave other numbers than torch")
