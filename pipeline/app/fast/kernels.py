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
@triton.jit(do_not_specialize=("groups", "gate_row", "up_row"))
def _silu_product(gate, up, product, groups, gate_row, up_row, ELEMENTS: tl.constexpr, ALIGNED: tl.constexpr):
    row, columns = tl.program_id(0).to(tl.int64), groups * ALIGNED
    at = tl.program_id(1) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = at < columns
    g = tl.load(gate + row * gate_row * ALIGNED + at, inside).to(tl.float32)
    u = tl.load(up + row * up_row * ALIGNED + at, inside).to(tl.float32)
    tl.store(product + row * columns + at, g * tl.sigmoid(g) * u, inside)


@triton.jit(do_not_specialize=("groups", "gate_row", "up_row"))
def _silu_product_backward(
    gradient, gate, up, both, groups, gate_row, up_row, ELEMENTS: tl.constexpr, ALIGNED: tl.constexpr
):  # fmt: skip
    row, columns = tl.program_id(0).to(tl.int64), groups * ALIGNED
    at = tl.program_id(1) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = at < columns
    d = tl.load(gradient + row * columns + at, inside).to(tl.float32)
    g = tl.load(gate + row * gate_row * ALIGNED + at, inside).to(tl.float32)
    u = tl.load(up + row * up_row * ALIGNED + at, inside).to(tl.float32)
    sigmoid = tl.sigmoid(g)
    silu = g * sigmoid
    tl.store(gradient + row * columns + at, silu * u, inside)
    tl.store(both + row * 2 * columns + at, d * u * (sigmoid + silu * (1 - sigmoid)), inside)
    tl.store(both + row * 2 * columns + columns + at, d * silu, inside)


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


@triton.jit(do_not_specialize=("heads", "source_token"))
def _norm_heads(source, weight, target, heads, source_token, epsilon, WIDTH: tl.constexpr, HEADS: tl.constexpr):
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    inside, at = (head < heads)[:, None], head[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    x = tl.load(source + token * source_token + at, inside, 0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 1) / WIDTH + epsilon)[:, None]
    w = tl.load(weight + tl.arange(0, WIDTH)).to(tl.float32)[None, :]
    tl.store(target + token * heads * WIDTH + at, x * scale * w, inside)


@triton.jit(do_not_specialize=("heads", "source_token", "gradient_token"))
def _norm_heads_backward(
    gradient, source, weight, target, heads, source_token, gradient_token, epsilon,
    WIDTH: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    inside, at = (head < heads)[:, None], head[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    x = tl.load(source + token * source_token + at, inside, 0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 1) / WIDTH + epsilon)[:, None]
    w = tl.load(weight + tl.arange(0, WIDTH)).to(tl.float32)[None, :]
    d = tl.load(gradient + token * gradient_token + at, inside, 0).to(tl.float32) * w
    mean = tl.sum(d * x * scale, 1)[:, None] / WIDTH
    tl.store(target + token * heads * WIDTH + at, scale * (d - x * scale * mean), inside)


@triton.jit(do_not_specialize=("vocabulary",))
def _cross_entropy(logits, targets, losses, vocabulary, IGNORED: tl.constexpr, ELEMENTS: tl.constexpr):
    """A position's loss, and its gradient in the place of its logits."""
    place = tl.program_id(0).to(tl.int64)
    target, row, lane = tl.load(targets + place), logits + place * vocabulary, tl.arange(0, ELEMENTS)
    is_label = target != IGNORED
    own = tl.load(row + tl.where(is_label, target, 0)).to(tl.float32)  # before any of them is written over
    most, total = tl.full((ELEMENTS,), -1e30, tl.float32), tl.zeros((ELEMENTS,), tl.float32)
    for begin in range(0, vocabulary, ELEMENTS):
        inside = begin + lane < vocabulary
        x = tl.load(row + begin + lane, inside, -1e30).to(tl.float32)
        higher = tl.maximum(most, x)
        total = total * tl.exp(most - higher) + tl.where(inside, tl.exp(x - higher), 0)
        most = higher
    highest = tl.max(most, 0)
    log_total = highest + tl.log(tl.sum(total * tl.exp(most - highest), 0))
    tl.store(losses + place, tl.where(is_label, log_total - own, 0))
    for begin in range(0, vocabulary, ELEMENTS):
        inside = begin + lane < vocabulary
        x = tl.load(row + begin + lane, inside, 0).to(tl.float32)
        gradient = tl.exp(x - log_total) - tl.where(begin + lane == target, 1.0, 0.0)
        tl.store(row + begin + lane, tl.where(is_label, gradient, 0), inside)


class _Launcher:
    """A kernel with its constants and options. From the second launch on, Triton does not look at every argument again.

    What was compiled once fits all tensors of the same types that begin at a multiple of 16 bytes.
    """

    def __init__(self, kernel: Any, *constants: int, **options: int) -> None:  # noqa: ANN401 - Triton has no types
        self._kernel, self._constants, self._options = kernel, constants, options
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(self, programs: tuple[int, int], tensors: tuple[torch.Tensor, ...], *sizes: float) -> None:
        device = tensors[0].device
        if device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                self(programs, tensors, *sizes)
            return
        key = (device, *(tensor.dtype for tensor in tensors))
        is_aligned = not any(tensor.data_ptr() % 16 for tensor in tensors)
        known = self._compiled.get(key) if is_aligned else None
        if known:
            known[(*programs, 1)](*tensors, *sizes, *self._constants)
            return
        compiled = self._kernel[(*programs, 1)](*tensors, *sizes, *self._constants, **self._options)
        if is_aligned:
            self._compiled[key] = compiled


_launcher = functools.cache(_Launcher)


def can_multiply(gate: torch.Tensor, up: torch.Tensor) -> bool:
    """Whether the kernels for silu(gate) · up take these: (tokens, features), each row in one piece."""
    is_aligned = gate.stride(-1) == up.stride(-1) == 1 and not any(
        size % _ALIGNED for size in (gate.shape[-1], gate.stride(0), up.stride(0))
    )
    return bool(gate.is_cuda and gate.dtype == up.dtype and gate.dim() == 2 and is_aligned)


def silu_product(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up."""
    product = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    launch = _launcher(_silu_product, _ELEMENTS, _ALIGNED)
    launch(_programs(gate), (gate, up, product), *_groups(gate, up))
    return product


def silu_product_backward(
    gradient: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of gate and up side by side, and silu(gate) · up once more, written over `gradient`."""
    gradient = gradient.contiguous()
    both = torch.empty((len(gate), 2 * gate.shape[1]), dtype=gate.dtype, device=gate.device)
    launch = _launcher(_silu_product_backward, _ELEMENTS, _ALIGNED)
    launch(_programs(gate), (gradient, gate, up, both), *_groups(gate, up))
    return both, gradient


def _programs(tensor: torch.Tensor) -> tuple[int, int]:
    return len(tensor), triton.cdiv(tensor.shape[1], _ELEMENTS)


def _groups(gate: torch.Tensor, up: torch.Tensor) -> tuple[int, int, int]:
    return gate.shape[1] // _ALIGNED, gate.stride(0) // _ALIGNED, up.stride(0) // _ALIGNED


def dequantiser(packed: torch.Tensor, state: Any) -> Callable[..., torch.Tensor] | None:  # noqa: ANN401 - bitsandbytes'
    """What gives a 4-bit weight in its compute dtype; None unless it is as Linear4bit keeps it, quantised twice.

    What is returned may be called with a contiguous tensor to write into.
    """
    is_known = (  # a packed weight of one row is a transposed one
        packed.is_cuda and packed.is_contiguous() and packed.dtype == torch.uint8 and packed.shape[0] != 1
        and state.nested and state.dtype != torch.float32 and state.code.dtype == torch.float32
        and state.shape.numel() % state.blocksize == 0
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
    # the scale's product is rounded before the offset is added, as in bitsandbytes' two kernels
    launch = _launcher(_dequantise, state.blocksize, second.blocksize, _QUANTISED_BLOCKS, enable_fp_fusion=False)
    programs = triton.cdiv(blocks, _QUANTISED_BLOCKS), 1
    empty = functools.partial(torch.empty, state.shape, dtype=state.dtype, device=packed.device)

    def dequantise(weight: torch.Tensor | None = None) -> torch.Tensor:
        weight = empty() if weight is None else weight
        launch(programs, (*read, weight), blocks)
        return weight

    return dequantise


class Rotated(torch.autograd.Function):  # type: ignore[misc]
    """Rotary embedding of queries and keys (rows, heads, tokens, width), whose halves turn together."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - as torch declares it
        queries: torch.Tensor,
        keys: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(cosine, sine)
        return _rotated(queries, cosine, sine, back=False), _rotated(keys, cosine, sine, back=False)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        angles, needs = ctx.saved_tensors, ctx.needs_input_grad
        of_both = [
            _rotated(each, *angles, back=True) if needed else None
            for each, needed in zip(gradients, needs[:2], strict=True)
        ]
        return *of_both, None, None


def _rotated(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, *, back: bool) -> torch.Tensor:
    if states.stride(-1) != 1:
        states = states.contiguous()
    rows, heads, tokens, width = states.shape
    cosine, sine = (each.expand(rows, tokens, width) for each in (cosine, sine))
    if cosine.stride() != sine.stride() or cosine.stride(-1) != 1:
        cosine, sine = cosine.contiguous(), sine.contiguous()
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
    turned: tuple[torch.Tensor, torch.Tensor] = Rotated.apply(queries, keys, cosine, sine)
    return turned


def can_norm(states: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the kernels take the RMSNorm of each head (rows, tokens, heads, width), whose weight is not trained."""
    width = states.shape[-1]
    return bool(
        states.is_cuda and states.dim() == 4 and width in (64, 128, 256) and weight.shape == (width,)
        and states.stride()[2:] == (width, 1) and not weight.requires_grad
    )  # fmt: skip


class NormedHeads(torch.autograd.Function):  # type: ignore[misc]
    """RMSNorm of each head (rows, tokens, heads, width); torch's kernel is made for rows that are a model wide."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:  # noqa: ANN401
        ctx.save_for_backward(states, weight)
        ctx.epsilon = epsilon
        flat, heads = states.flatten(0, 1), states.shape[2]
        target = states.new_empty(states.shape)
        launch = _launcher(_norm_heads, states.shape[3], _HEADS)
        launch((len(flat), triton.cdiv(heads, _HEADS)), (flat, weight, target), heads, flat.stride(0), epsilon)
        return target

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        states, weight = ctx.saved_tensors
        gradient, heads, width = gradients[0], states.shape[2], states.shape[3]
        if gradient.stride()[2:] != (width, 1):
            gradient = gradient.contiguous()
        flat, of_output = states.flatten(0, 1), gradient.flatten(0, 1)
        target = states.new_empty(states.shape)
        launch = _launcher(_norm_heads_backward, width, _HEADS)
        sizes = heads, flat.stride(0), of_output.stride(0), ctx.epsilon
        launch((len(flat), triton.cdiv(heads, _HEADS)), (of_output, flat, weight, target), *sizes)
        return target, None, None


def can_compare(logits: torch.Tensor) -> bool:
    """Whether the kernel takes the cross entropy of these logits (positions, vocabulary)."""
    return bool(logits.is_cuda and logits.dim() == 2 and logits.is_contiguous())


def summed_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, ignored: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss in fp32, summed over the positions, and the gradient of the logits, written over them."""
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    launch = _launcher(_cross_entropy, ignored, _ELEMENTS, num_warps=8)
    launch((len(logits), 1), (logits, targets, losses), logits.shape[1])
    return losses.sum(), logits


class OtherNumbersError(RuntimeError):
    """A kernel computes something else than what it stands for."""


@torch.enable_grad()
@torch.autocast("cuda", enabled=False)
def try_each() -> None:
    """Compile each kernel, and compare it twice with torch and bitsandbytes: a second launch takes another way.

    Raises what Triton, its compiler or the card raise, and `OtherNumbersError`.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    numbers = torch.linspace(-3, 3, 2**22, device="cuda").to(torch.bfloat16).view(1, 8, 4096, 128)
    rows = numbers.view(-1, 256)
    silu = torch.nn.functional.silu(rows)
    ones, zeros = torch.ones_like(numbers[0, :1]), torch.zeros_like(numbers[0, :1])
    targets = torch.arange(len(rows), device="cuda") % 256
    exact = rows.float().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact, targets, reduction="sum")
    (of_exact,) = torch.autograd.grad(expected, exact)
    varied = torch.linspace(0, 2**22, 2**22, device="cuda").sin().to(torch.bfloat16).view(4096, -1)
    packed, state = quantize_4bit(varied, quant_type="nf4", compress_statistics=True)
    dequantise = dequantiser(packed, state)
    for _ in range(2):
        weight = dequantise() if dequantise else None
        product = silu_product(rows, rows)
        of_both, again = silu_product_backward(rows.clone(), rows, rows)
        of_gate, of_up = of_both.chunk(2, -1)
        turned, quarter = apply_rotary(numbers, numbers, ones, zeros)[0], apply_rotary(numbers, numbers, zeros, ones)[0]
        first, second = numbers.chunk(2, -1)
        leaf = numbers.clone().requires_grad_()
        normed, rotated = NormedHeads.apply(leaf, ones[0, 0], 1e-6), apply_rotary(leaf, leaf, zeros, ones)
        usual = torch.nn.functional.rms_norm(leaf, (128,), eps=1e-6)
        (of_norm,), (of_usual,) = (torch.autograd.grad(each, leaf, numbers) for each in (normed, usual))
        (of_turn,) = torch.autograd.grad(rotated[0], leaf, numbers)
        loss, of_logits = summed_cross_entropy(rows.clone(), targets, -100)
        pairs = {
            "the loss": (loss, expected.detach()),
            "its gradient": (of_logits.float(), of_exact),
            "norms of heads": (normed, usual),
            "their gradient": (of_norm, of_usual),
            "the gradient of queries that are turned": (of_turn, torch.cat([second, -first], -1)),
            "silu(gate) · up": (product, silu * rows),
            "silu(gate) · up in the backward": (again, silu * rows),
            "the gradient of up": (of_up, silu * rows),
            "the gradient of gate": (of_gate, torch.ops.aten.silu_backward(rows * rows, rows)),
            "queries that stay": (turned, numbers),
            "queries that are turned": (quarter, torch.cat([-second, first], -1)),
        }
        wrong = [name for name, pair in pairs.items() if not torch.allclose(*pair, rtol=0.02, atol=0.02)]
        if weight is not None and not torch.equal(weight, dequantize_4bit(packed, state)):
            wrong.append("dequantised weights")
        if wrong:
            raise OtherNumbersError(f"a kernel gave other numbers than torch for {', '.join(wrong)}")
