"""Reads safetensors files without torch: the header is checked whole, the values are streamed.

Format: https://github.com/huggingface/safetensors#format (8 bytes little-endian header length, JSON header, data).
F64, F32, F16 and BF16 values are looked at bytewise, so that a 1 GB file needs some seconds and a few MiB.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
MAX_FILE_BYTES = 32 << 30  # no adapter for one card comes near
CHUNK_BYTES = 1 << 22
_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
# (mask of the exponent bits in the top byte, mask of those in the next byte): all set means Inf or NaN
_EXPONENT = {"F64": (0x7F, 0xF0), "F32": (0x7F, 0x80), "BF16": (0x7F, 0x80), "F16": (0x7C, 0x00)}

_DECODED = {"F64": (8, "d"), "F32": (4, "f"), "BF16": (4, "f"), "F16": (2, "e")}


class TensorFileError(ValueError):
    """The file is no whole, well-formed safetensors file; the text says where it breaks (Japanese)."""


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

    `largest` is the largest absolute value, rounded towards zero to some two digits; NaN and infinity count as such.
    `digest` is of the tensor's bytes.
    """

    tensor: Tensor
    nonfinite_values: int | None
    any_nonzero: bool | None
    largest: float | None = None
    digest: bytes = b""


def read_header(path: Path) -> tuple[Tensor, ...]:
    """List the tensors of a safetensors file in file order; TensorFileError unless header and length fit exactly."""
    size_bytes = path.stat().st_size
    if not path.is_file() or size_bytes > MAX_FILE_BYTES:
        raise TensorFileError(f"ふつうのファイルでないか、{size_bytes} バイトと大きすぎる")
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size_bytes - 8):
            raise TensorFileError(f"ヘッダの長さ {length} がファイルの {size_bytes} バイトに合わない")
        raw = file.read(length)
    tensors = tuple(sorted(_entries(raw, 8 + length), key=lambda t: (t.begin, t.end)))
    _check_layout(tensors, 8 + length, size_bytes)
    return tensors


def scan(path: Path, tensors: tuple[Tensor, ...]) -> Iterator[Scan]:
    """Look at every value of the given tensors, a few MiB at a time."""
    with path.open("rb") as file:
        for tensor in tensors:
            yield _scan_one(file, tensor)


def same_values(one: Path, other: Path) -> bool | None:
    """Whether two files hold the same tensors; None where names, shapes or dtypes differ. Raises as `read_header`."""
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
    """Return the norm, the sum and the size of each tensor that is decoded, by name. Raises as `read_header`."""
    import numpy

    found: dict[str, tuple[float, float, int]] = {}
    with path.open("rb") as file:
        for tensor in read_header(path):
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
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise TensorFileError("ヘッダが JSON でない") from error
    if not isinstance(header, dict):
        raise TensorFileError("ヘッダが JSON のオブジェクトでない")
    for name, entry in header.items():
        if name != "__metadata__":
            yield _entry(name, entry, data_begin)


def _entry(name: str, entry: object, data_begin: int) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            if dtype not in _ITEM_BYTES or not all(type(n) is int and n >= 0 for n in shape):
                raise TensorFileError(f"テンソル {name[:80]} の型 {dtype[:20]} または形が読めない")
            if not 0 <= begin <= end or end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
                raise TensorFileError(f"テンソル {name[:80]} の長さが形と合わない")
            return Tensor(name, dtype, tuple(shape), data_begin + begin, data_begin + end)
    raise TensorFileError(f"テンソル {name[:80]} の記述が読めない")


def _check_layout(tensors: tuple[Tensor, ...], data_begin: int, size_bytes: int) -> None:
    ends = [data_begin, *(tensor.end for tensor in tensors)]
    begins = [*(tensor.begin for tensor in tensors), size_bytes]
    for end, begin in zip(ends, begins, strict=True):
        if end != begin:
            raise TensorFileError(f"データが {end} バイトで途切れるか重なる（ファイルは {size_bytes} バイト）")


def _scan_one(file: BinaryIO, tensor: Tensor) -> Scan:
    masks = _EXPONENT.get(tensor.dtype)
    if masks is None:
        return Scan(tensor, None, None)
    nonfinite, nonzero, largest, digest = 0, False, b"\0\0", hashlib.blake2b(digest_size=16)
    for chunk in _chunks(file, tensor):
        digest.update(chunk)
        nonfinite += _nonfinite(chunk, _ITEM_BYTES[tensor.dtype], *masks)
        nonzero = nonzero or _nonzero(chunk, _ITEM_BYTES[tensor.dtype])
        largest = max(largest, _largest(chunk, _ITEM_BYTES[tensor.dtype]))
    return Scan(tensor, nonfinite, nonzero, _decoded(largest, tensor.dtype), digest.digest())


def _largest(chunk: bytes, item_bytes: int) -> bytes:
    """The two leading bytes, without the sign, of the value that is largest in them: their order is that of numbers."""
    top = chunk[item_bytes - 1 :: item_bytes].translate(_WITHOUT_SIGN)
    if not top:
        return b"\0\0"
    highest = _highest(top)
    among = int.from_bytes(top.translate(bytes(255 * (byte == highest) for byte in range(256))), "little")
    below = int.from_bytes(chunk[item_bytes - 2 :: item_bytes], "little") & among
    return bytes((highest, _highest(below.to_bytes(len(top), "little"))))


def _highest(data: bytes) -> int:
    """The largest byte: looking for one after the other is many times faster than comparing them all."""
    return next(byte for byte in range(255, -1, -1) if byte in data)


def _decoded(leading: bytes, dtype: str) -> float:
    """The number that begins with these two bytes."""
    size, code = _DECODED[dtype]
    value: float = struct.unpack(f">{code}", leading + bytes(size - 2))[0]
    return value


def _chunks(file: BinaryIO, tensor: Tensor) -> Iterator[bytes]:
    file.seek(tensor.begin)
    offsets = [*range(tensor.begin, tensor.end, CHUNK_BYTES), tensor.end]
    for begin, end in pairwise(offsets):
        chunk = file.read(end - begin)
        if len(chunk) != end - begin:
            raise TensorFileError(f"テンソル {tensor.name[:80]} が途中で終わる")
        yield chunk


def _flags(mask: int) -> bytes:
    return bytes(int(byte & mask == mask) for byte in range(256))


_FLAGS = {mask: _flags(mask) for mask in (0x7F, 0x7C, 0x80, 0xF0, 0x00)}
_WITHOUT_SIGN = bytes(byte & 0x7F for byte in range(256))


def _nonfinite(chunk: bytes, item_bytes: int, top_mask: int, next_mask: int) -> int:
    top = chunk[item_bytes - 1 :: item_bytes].translate(_FLAGS[top_mask])
    if 1 not in top:
        return 0
    below = chunk[item_bytes - 2 :: item_bytes].translate(_FLAGS[next_mask])
    return (int.from_bytes(top, "little") & int.from_bytes(below, "little")).bit_count()


def _nonzero(chunk: bytes, item_bytes: int) -> bool:
    if any(chunk[offset::item_bytes].strip(b"\0") for offset in range(item_bytes - 1)):
        return True
    return bool(chunk[item_bytes - 1 :: item_bytes].translate(_WITHOUT_SIGN).strip(b"\0"))
