"""Reading safetensors by hand: it agrees with the library, finds every bad value, and refuses every broken file."""

from __future__ import annotations

import json
import math
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steph.base.files import CHUNK_BYTES, UnreadableError, read_header, scan

FORMATS = {"F64": "d", "F32": "f", "F16": "e"}


def encoded(dtype: str, values: list[float]) -> bytes:
    """The values as little-endian data of a safetensors file; BF16 is the upper half of F32."""
    if dtype == "BF16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{len(values)}{FORMATS[dtype]}", *values)


def file_with(folder: Path, dtype: str, data: bytes, count: int) -> Path:
    """A file with one tensor of `count` elements."""
    header = json.dumps({"t": {"dtype": dtype, "shape": [count], "data_offsets": [0, len(data)]}}).encode()
    path = folder / "one.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@settings(deadline=None, max_examples=40)  # each example writes a file
@given(values=st.lists(st.floats(width=16), min_size=1, max_size=40))
def test_every_value_is_seen_as_the_decoder_sees_it(dtype: str, values: list[float]) -> None:
    """The count of NaN and infinite values, and whether any is not zero, agree with decoding each one."""
    with tempfile.TemporaryDirectory() as folder:
        path = file_with(Path(folder), dtype, encoded(dtype, values), len(values))
        (found,) = scan(path, read_header(path))
    assert found.nonfinite_values == sum(not math.isfinite(value) for value in values)
    kept = values if dtype != "BF16" else [v for v in values if math.isnan(v) or encoded("BF16", [abs(v)]) != b"\0\0"]
    assert found.any_nonzero == any(value != 0 for value in kept)
    finite = [abs(value) for value in values]
    if all(map(math.isfinite, values)):
        assert found.largest is not None
        assert found.largest <= max(finite)
        assert found.largest >= max(finite) * 0.9 - 1e-4  # two leading bytes


def test_one_nan_in_the_last_value_of_a_file_of_several_chunks_is_found(tmp_path: Path) -> None:
    """Streaming loses nothing at the seams between chunks."""
    count = CHUNK_BYTES // 4 * 2 + 3
    data = bytearray(4 * count)
    data[-4:] = struct.pack("<f", math.nan)
    path = file_with(tmp_path, "F32", bytes(data), count)
    (found,) = scan(path, read_header(path))
    assert (found.nonfinite_values, found.any_nonzero) == (1, True)


def test_a_dtype_that_is_not_decoded_is_unmeasured(tmp_path: Path) -> None:
    """Float8 and integers are reported as not measured, not as sound."""
    path = file_with(tmp_path, "F8_E4M3", b"\x7f\x7f", 2)
    (found,) = scan(path, read_header(path))
    assert (found.nonfinite_values, found.any_nonzero) == (None, None)


@settings(deadline=None, max_examples=60)
@given(cut=st.integers(0, 200), noise=st.binary(max_size=60), at=st.integers(0, 200))
def test_a_damaged_file_is_refused_or_read_and_nothing_else(cut: int, noise: bytes, at: int) -> None:
    """Cut short or overwritten anywhere, the only exception is UnreadableError."""
    with tempfile.TemporaryDirectory() as folder:
        path = file_with(Path(folder), "F32", encoded("F32", [1.0] * 20), 20)
        raw = path.read_bytes()
        path.write_bytes((raw[:at] + noise + raw[at + len(noise) :])[: len(raw) - cut])
        try:
            tensors = read_header(path)
        except UnreadableError:
            return
        assert all(found.tensor.end <= path.stat().st_size for found in scan(path, tensors))


@pytest.mark.parametrize("count", [10**30, -1, True, 1.0])
def test_a_shape_that_is_no_shape_is_refused(tmp_path: Path, count: object) -> None:
    """Sizes that are negative, huge, or no integers never reach the reader."""
    header = json.dumps({"t": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    with pytest.raises(UnreadableError):
        read_header(path)


def test_files_of_the_safetensors_library_are_read(tmp_path: Path) -> None:
    """Names, shapes and values of a file that the library wrote are found as it wrote them."""
    numpy = pytest.importorskip("numpy")
    library = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "library.safetensors"
    arrays = {"a.lora_A.weight": numpy.ones((4, 3), "float32"), "a.lora_B.weight": numpy.zeros((3, 4), "float16")}
    library.save_file(arrays, path, metadata={"format": "pt"})
    found = {one.tensor.name: (one.tensor.shape, one.any_nonzero) for one in scan(path, read_header(path))}
    assert found == {"a.lora_A.weight": ((4, 3), True), "a.lora_B.weight": ((3, 4), False)}
