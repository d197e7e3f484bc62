"""Reads safetensors files without torch: the header is checked whole, the values are streamed through numpy.

Format: https://github.com/huggingface/safetensors#format (8 bytes little-endian header length, JSON header, data
without holes). A few MiB of memory are enough for a file of any size.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from steph.base.files import UnreadableError, parse_json
from steph.base.messages import say

MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
CHUNK_BYTES = 1 << 22
_ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
# as `struct` decodes it (BF16 is the upper half of F32), and the bits of infinity
_DECODED = {
    "F64": ("<d", 0x7FF << 52),
    "F32": ("<f", 0xFF << 23),
    "F16": ("<e", 0x1F << 10),
    "BF16": ("<f", 0xFF << 7),
}


@dataclass(frozen=True)
class Tensor:
    """One entry of the header; `begin` and `end` are byte offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Scan:
    """What the values of one tensor are; the figures are None for a dtype that is not decoded.

    `largest` is the largest absolute value, NaN where there is one. `digest` is of the tensor's bytes.
    """

    tensor: Tensor
    nonfinite_values: int | None
    any_nonzero: bool | None
    largest: float | None = None
    digest: bytes = b""


def read_header(path: Path) -> tuple[Tensor, ...]:
    """List the tensors of a file in file order; raises UnreadableError unless header and length fit exactly."""
    try:
        if not path.is_file():
            raise UnreadableError(say("unreadable.no_file"))
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size_bytes - 8):
                raise UnreadableError(say("unreadable.header_length", length=length, bytes=size_bytes))
            raw = file.read(length)
    except OSError as error:
        raise UnreadableError(say("unreadable.refused", error=error.strerror)) from error
    tensors = tuple(sorted(_entries(raw, 8 + length), key=lambda t: (t.begin, t.end)))
    _check_layout(tensors, 8 + length, size_bytes)
    return tensors


def scan(path: Path, tensors: tuple[Tensor, ...]) -> Iterator[Scan]:
    """Look at every value of the given tensors, a few MiB at a time; raises OSError and UnreadableError."""
    with path.open("rb") as file:
        for tensor in tensors:
            yield _scan_one(file, tensor) if tensor.dtype in _DECODED else Scan(tensor, None, None)


def same_values(one: Path, other: Path) -> bool | None:
    """Whether two files hold the same tensors; None where names, shapes or dtypes differ. Raises as `scan`."""
    here, there = ({tensor.name: tensor for tensor in read_header(path)} for path in (one, other))
    if {(t.name, t.dtype, t.shape) for t in here.values()} != {(t.name, t.dtype, t.shape) for t in there.values()}:
        return None
    with one.open("rb") as left, other.open("rb") as right:
        return all(
            mine == theirs
            for name, tensor in here.items()
            for mine, theirs in zip(_chunks(left, tensor), _chunks(right, there[name]), strict=True)
        )


def matrix_numbers(path: Path) -> dict[str, tuple[float, float, int]]:
    """Return the norm, the sum and the size of each tensor that is decoded, by name. Raises as `scan`."""
    import numpy

    found: dict[str, tuple[float, float, int]] = {}
    tensors = read_header(path)  # before it is opened: a named pipe would never answer
    with path.open("rb") as file:
        for tensor in tensors:
            code = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}.get(tensor.dtype)
            if code is None:
                continue
            square = total = 0.0
            for chunk in _chunks(file, tensor):
                values = numpy.frombuffer(chunk, dtype=code)
                if tensor.dtype == "BF16":
                    values = (values.astype("<u4") << 16).view("<f4")
                wide = values.astype("<f8")
                square, total = square + float(wide @ wide), total + float(wide.sum())
            found[tensor.name] = (math.sqrt(square), total, math.prod(tensor.shape))
    return found


def _entries(raw: bytes, data_begin: int) -> Iterator[Tensor]:
    try:
        header = parse_json(raw)
    except UnreadableError as error:
        raise UnreadableError(say("unreadable.header_no_json", error=error)) from error
    if not isinstance(header, dict):
        raise UnreadableError(say("unreadable.header_no_object"))
    for name, entry in header.items():
        if name != "__metadata__":
            yield _entry(name, entry, data_begin)


def _entry(name: str, entry: object, data_begin: int) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            if dtype not in _ITEM_BITS or not all(type(n) is int and n >= 0 for n in shape):
                raise UnreadableError(say("unreadable.tensor_type", tensor=name[:80], type=dtype[:20]))
            if not 0 <= begin <= end or 8 * (end - begin) != math.prod(shape) * _ITEM_BITS[dtype]:
                raise UnreadableError(say("unreadable.tensor_length", tensor=name[:80]))
            return Tensor(name, dtype, tuple(shape), data_begin + begin, data_begin + end)
    raise UnreadableError(say("unreadable.tensor_entry", tensor=name[:80]))


def _check_layout(tensors: tuple[Tensor, ...], data_begin: int, size_bytes: int) -> None:
    ends = [data_begin, *(tensor.end for tensor in tensors)]
    begins = [*(tensor.begin for tensor in tensors), size_bytes]
    for end, begin in zip(ends, begins, strict=True):
        if end != begin:
            if size_bytes < (due_bytes := max(ends)):
                raise UnreadableError(say("unreadable.cut", bytes=size_bytes, due=due_bytes))
            raise UnreadableError(say("unreadable.holes", byte=end, bytes=size_bytes))


def _scan_one(file: BinaryIO, tensor: Tensor) -> Scan:
    """Without their sign bit, floats are ordered as the integers of the same bits: finite, then infinity, then NaN."""
    import numpy  # 0.1 s that only a judge of weights waits for

    code, infinity = _DECODED[tensor.dtype]
    size = _ITEM_BITS[tensor.dtype] // 8
    without_sign = (1 << (8 * size - 1)) - 1
    nonfinite, highest, digest = 0, 0, hashlib.blake2b(digest_size=16)
    for chunk in _chunks(file, tensor):
        digest.update(chunk)
        bits = numpy.frombuffer(chunk, dtype=f"<u{size}") & without_sign
        highest = max(highest, int(bits.max()))
        if highest >= infinity:
            nonfinite += int(numpy.count_nonzero(bits >= infinity))
    leading = highest.to_bytes(size, "little").rjust(struct.calcsize(code), b"\0")
    return Scan(tensor, nonfinite, highest > 0, struct.unpack(code, leading)[0], digest.digest())


def _chunks(file: BinaryIO, tensor: Tensor) -> Iterator[bytes]:
    file.seek(tensor.begin)
    offsets = [*range(tensor.begin, tensor.end, CHUNK_BYTES), tensor.end]
    for begin, end in pairwise(offsets):
        chunk = file.read(end - begin)
        if len(chunk) != end - begin:
            raise UnreadableError(say("unreadable.tensor_cut", tensor=tensor.name[:80]))
        yield chunk
