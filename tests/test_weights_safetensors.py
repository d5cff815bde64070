"""Weights in the safetensors format: written whole, read back, and refused when damaged."""

import json
import struct
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyres.errors import CheckpointError
from tinyres.weights import load_file, save_safetensors
from tinyres.weights.safetensors_file import parse_safetensors


@pytest.fixture
def package():
    return pytest.importorskip("safetensors", reason="the package safetensors is not installed")


def file_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(kind, shape, start, end):
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


def test_arrays_and_metadata_come_back_bit_for_bit(package, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 4, 4, 3), dtype=np.float32)
    arrays = {
        "plain": rng.standard_normal((3, 4)),
        "channels_last": images.transpose(0, 3, 1, 2),
        "slice": images[:, ::2, 1:, 0],
        "backwards": images[0, 0, ::-1, 0],
        "big endian": np.arange(4, dtype=">f4"),
        "scalar": np.float32(2.5).reshape(()),
        "empty": np.zeros((0, 3), np.float16),
        "odd": np.array([np.nan, -np.inf, -0.0, 1e-45], np.float32),
        **{name: np.array([0, 1, 1]).astype(name) for name in ("bool", "int8", "uint8", "int16", "uint16")},
        **{name: np.array([0, 1, 9]).astype(name) for name in ("int32", "uint32", "int64", "uint64", "float16")},
    }
    metadata = {"epoch": "12", "étape": "ü\n{}"}
    save_safetensors(tmp_path / "w", arrays, metadata)
    read, read_metadata = load_file(tmp_path / "w")
    assert read_metadata == metadata and set(read) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array, err_msg=name)
        assert read[name].shape == array.shape and read[name].dtype == array.dtype.newbyteorder("="), name
        assert read[name].tobytes() == array.astype(read[name].dtype).tobytes(), name
        assert read[name].flags.writeable


def test_no_arrays_and_no_metadata_are_a_file_too(package, tmp_path):
    save_safetensors(tmp_path / "w", {})
    assert load_file(tmp_path / "w") == ({}, {})


def test_the_package_itself_reads_what_is_written(package, tmp_path):
    array = np.arange(6.0).reshape(2, 3).T
    save_safetensors(tmp_path / "w", {"a": array}, {"k": "v"})
    with package.safe_open(tmp_path / "w", "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("a"), array)
        assert file.metadata() == {"k": "v"}


def test_bfloat16_becomes_float32_and_any_nonzero_bool_is_true(package):
    data = np.array([0x3FC0, 0xC000, 0xFF80], "<u2").tobytes() + b"\x00\x01\xc8"
    header = {"b": entry("BF16", [3, 1], 0, 6), "t": entry("BOOL", [3], 6, 9), "s": entry("BF16", [], 9, 11)}
    arrays, _ = parse_safetensors(file_of(header, data + b"\xc0\x3f"))
    np.testing.assert_array_equal(arrays["b"], np.float32([[1.5], [-2], [-np.inf]]), strict=True)
    np.testing.assert_array_equal(arrays["t"], [False, True, True], strict=True)
    assert arrays["t"].tobytes() == b"\x00\x01\x01"
    assert arrays["s"].shape == () and arrays["s"] == 1.5


@pytest.mark.parametrize(
    ("name", "array", "metadata", "message"),
    [
        ("w", np.array([None]), None, r"cannot save 'w' \(object\)"),
        ("w", np.zeros(1, complex), None, r"cannot save 'w' \(complex128\)"),
        ("w", np.array(["text"]), None, "cannot save 'w'"),
        (3, np.zeros(1), None, "cannot save 3"),
        ("__metadata__", np.zeros(1), None, "cannot save '__metadata__'"),
        ("w", np.zeros(1), {"epoch": 3}, "metadata 'epoch' is a int"),
        ("w", np.zeros(1), {3: "epoch"}, "metadata 3 is a str: keys and values must be texts"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_and_nothing_is_written(package, name, array, metadata, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        save_safetensors(tmp_path / "w", {name: array}, metadata)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_an_error_with_the_path(package, tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot write .*absent.w: .*No such file or directory"):
        save_safetensors(tmp_path / "absent" / "w", {"w": np.zeros(1)})


def test_without_the_package_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(CheckpointError, match="pip install safetensors"):
        save_safetensors(tmp_path / "w", {})
    (tmp_path / "w").write_bytes(file_of({}))
    with pytest.raises(CheckpointError, match=r"cannot read .*w: this needs the package safetensors: pip install"):
        load_file(tmp_path / "w")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (file_of({"a": entry("F32", [2], 0, 8)}, bytes(7)), "damaged safetensors"),
        (file_of({"a": entry("F32", [2], 0, 8)}, bytes(9)), "damaged safetensors"),
        (file_of({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12)), "damaged safetensors"),
        (file_of({"a": entry("F32", [3], 0, 8)}, bytes(8)), "damaged safetensors"),
        (file_of({"a": entry("F32", [2**40, 2**40], 0, 8)}, bytes(8)), "damaged safetensors.*[oO]verflow"),
        (file_of({"a": entry("F32", [-2], 0, 8)}, bytes(8)), "damaged safetensors"),
        (file_of({"a": entry("F31", [2], 0, 8)}, bytes(8)), "damaged safetensors"),
        (file_of({"a": entry("F8_E4M3", [8], 0, 8)}, bytes(8)), "'a' has elements of type F8_E4M3; known are F64"),
        (file_of({"a": entry("F32", [0, 2**62], 0, 0)}), r"tensor 'a' of size \[0, "),
        (file_of({"a": entry("F32", [1] * 100, 0, 4)}, bytes(4)), "tensor 'a' of size"),
        (file_of(b'{"a": '), "damaged safetensors"),
        (file_of(b'{"__metadata__": {"epoch": 3}}'), "damaged safetensors"),
        (file_of(b"{" * 5000), "damaged safetensors"),
        (b"\xff" * 8 + b"{}", "damaged safetensors"),
    ],
)
def test_a_damaged_file_is_an_error_with_path_and_reason(package, content, message, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"cannot read .*w\.safetensors: .*{message}"):
        load_file(tmp_path / "w.safetensors")


SOUND = file_of(
    {"__metadata__": {"k": "v"}, "a": entry("F32", [2, 2], 0, 16), "b": entry("BF16", [3], 16, 22)}, bytes(range(22))
)


def test_a_file_cut_short_anywhere_is_refused(package, tmp_path):
    assert set(parse_safetensors(SOUND)[0]) == {"a", "b"}
    path = tmp_path / "w"
    for length in range(len(SOUND)):
        path.write_bytes(SOUND[:length])
        with pytest.raises(CheckpointError):
            load_file(path)


def test_wrong_bytes_are_read_or_refused(package):
    @settings(deadline=None, max_examples=200)
    @given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=4))
    def wrong_bytes(changes):
        data = bytearray(SOUND)
        for position, value in changes:
            data[position] = value
        try:
            arrays, metadata = parse_safetensors(bytes(data))
        except CheckpointError as error:
            assert len(str(error)) < 500
        else:
            assert all(isinstance(text, str) for item in metadata.items() for text in item)
            assert sum(array.nbytes for array in arrays.values()) < 100

    wrong_bytes()
