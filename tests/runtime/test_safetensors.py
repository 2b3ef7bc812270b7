from __future__ import annotations

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from charjax.errors import InputError
from charjax.runtime.safetensors import parse_safetensors, read_safetensors, safetensors_file

package = pytest.importorskip("safetensors")
numpy_format = pytest.importorskip("safetensors.numpy")
ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array(1.5, np.float16),
    "c": np.zeros((0, 4), np.float64),
    "d": np.array([-1, 2], np.int32),
}
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
WHOLE = numpy_format.save(ARRAYS, metadata={"x": "y"})


def file_of(header: object, body: bytes = b"") -> bytes:
    data = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(data)) + data + body


def test_the_arrays_of_the_package_are_read():
    arrays, metadata = parse_safetensors(WHOLE)
    assert metadata == {"x": "y"}
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
ANY_ARRAY = st.sampled_from(["f8", "f4", "f2", "i8", "i4", "i1"]).flatmap(
    lambda dtype: arrays(dtype, array_shapes(min_dims=0, min_side=0, max_side=3))
)


@given(st.dictionaries(NAMES, ANY_ARRAY), st.dictionaries(NAMES, NAMES))
def test_a_file_is_a_function_of_its_arrays_and_the_package_reads_it(named, metadata):
    named = {name: array.T for name, array in named.items()}
    data = safetensors_file(named, metadata)
    assert data == safetensors_file(dict(reversed(named.items())), dict(reversed(metadata.items())))
    ours, found = parse_safetensors(data)
    theirs = numpy_format.load(data)
    assert found == metadata
    assert ours.keys() == theirs.keys() == named.keys()
    for name, array in named.items():
        for read in (ours[name], theirs[name]):
            assert (read.dtype, read.shape) == (array.dtype, array.shape)
            assert read.tobytes() == array.tobytes()


def test_bfloat16_is_written_and_becomes_float32_of_the_same_values():
    values = np.array([1.5, -2, np.inf], np.float32)
    bits = np.array([0x3FC0, 0xC000, 0x7F80], "<u2").tobytes()
    entry = {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}
    written = safetensors_file({"a": values.astype(ml_dtypes.bfloat16)}, {})
    for data in (file_of({"a": entry}, bits), written):
        np.testing.assert_array_equal(parse_safetensors(data)[0]["a"], values)
    (_, read), *_ = package.deserialize(written)
    assert (read["dtype"], read["data"]) == ("BF16", bits)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "shorter than 8 bytes"),
        (struct.pack("<Q", 2**62), "its header has"),
        (struct.pack("<Q", 9) + b"{}", "its header has"),
        (file_of(b"\xff\xfe"), "not JSON"),
        (file_of(b"[" * 100_000), "not JSON"),
        (file_of([1]), "not a JSON object"),
        (file_of({"__metadata__": {"a": 1}}), "metadata"),
        (file_of({"a": 7}), "must be"),
        (file_of({"a": {"dtype": "F32", "shape": [1]}}), "has no field data_offsets"),
        (file_of({"a": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}}, b"0"), "is not read"),
        (file_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"0" * 8), "fit"),
        (
            file_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"0000"),
            "does not fit",
        ),
        (
            file_of(
                {n: {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, b"0000"
            ),
            "more bytes than it has",
        ),
        (file_of({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}), "no valid shape"),
        (
            file_of({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 0]}}),
            "more bytes than it has",
        ),
    ],
)
def test_a_damaged_or_hostile_file_is_one_error(data, said, tmp_path):
    (tmp_path / "m.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=said):
        read_safetensors(tmp_path / "m.safetensors")


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_any_changed_byte_is_read_or_refused(position, value):
    data = WHOLE[:position] + bytes([value]) + WHOLE[position + 1 :]
    try:
        arrays, _ = parse_safetensors(data)
    except InputError:
        return
    assert sum(array.nbytes for array in arrays.values()) <= len(data) * 4


def test_a_link_to_a_file_is_followed_but_no_pipe_is_opened(tmp_path):
    (tmp_path / "blob").write_bytes(WHOLE)
    (tmp_path / "m.safetensors").symlink_to(tmp_path / "blob")
    assert read_safetensors(tmp_path / "m.safetensors")[1] == {"x": "y"}
    with pytest.raises(InputError, match="a folder"):
        read_safetensors(tmp_path)
