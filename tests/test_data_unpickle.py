"""CIFAR's pickles are read as data: right ones exactly, hostile and broken ones never run and never take memory."""

import os
import pickle
import struct
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyres.data import unpickle
from tinyres.data.unpickle import load_batch
from tinyres.errors import DataError

# --- Files as Python 2 wrote them, instruction by instruction ---------------------------------------------------------


def text(value):
    """A `str` of Python 2: SHORT_BINSTRING, or BINSTRING from 256 bytes on."""
    if len(value) < 256:
        return b"U" + bytes([len(value)]) + value
    return b"T" + struct.pack("<i", len(value)) + value


def number(n):
    return b"K" + bytes([n]) if n < 256 else b"M" + struct.pack("<H", n)


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


MINUS_1 = b"J\xff\xff\xff\xff"
UINT8_STATE = b"(K\x03" + text(b"|") + b"NNN" + 2 * MINUS_1 + b"K\x00t"
UINT8 = name("numpy", "dtype") + text(b"u1") + b"K\x00K\x01\x87R" + UINT8_STATE + b"b"
EMPTY_ARRAY = name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\x00\x85U\x01b\x87R"


def array(images, shape=None, dtype=UINT8, fortran=b"\x89"):
    rows, columns = shape or images.shape
    state = b"(K\x01" + number(rows) + number(columns) + b"\x86" + dtype + fortran + text(images.tobytes()) + b"t"
    return EMPTY_ARRAY + state + b"b"


def batch(images, labels):
    names = b"".join(text(b"cat_s_%06d.png" % i) + b"r" + struct.pack("<I", 300 + i) for i in range(len(labels)))
    return b"".join(
        [
            b"\x80\x02}q\x01(",
            text(b"batch_label") + b"q\x02" + text(b"training batch 1 of 5"),
            text(b"labels") + b"]q\x05(" + b"".join(map(number, labels)) + b"e",
            text(b"data") + b"q\x06" + array(images),
            text(b"filenames") + b"](" + names + b"e",
            b"u.",
        ]
    )


def dictionary(value):
    """A pickle of {"x": value}."""
    return b"\x80\x02}" + text(b"x") + value + b"s."


def small_images(rows, columns=7):
    return np.random.default_rng(rows).integers(0, 256, (rows, columns), dtype=np.uint8)


# --- Right files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 36, 37, 300])
def test_a_batch_as_python_2_wrote_it_is_read_exactly(rows):
    images, labels = small_images(rows), [i % 300 for i in range(rows)]
    read = load_batch(batch(images, labels))
    assert list(read) == ["batch_label", "labels", "data", "filenames"]
    assert read["batch_label"] == "training batch 1 of 5"
    assert read["labels"] == labels
    assert read["filenames"] == [f"cat_s_{i:06d}.png" for i in range(rows)]
    assert read["data"].dtype == np.uint8
    np.testing.assert_array_equal(read["data"], images)


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_batch_that_was_pickled_again_by_python_3_is_read_exactly(protocol, order):
    images = np.asarray(small_images(300), order=order)
    read = load_batch(pickle.dumps({"data": images, "labels": [3] * 300, "a": (), "b": True, "c": None}, protocol))
    np.testing.assert_array_equal(read.pop("data"), images)
    assert read == {"labels": [3] * 300, "a": (), "b": True, "c": None}


def test_what_the_memo_holds_is_shared():
    read = load_batch(b"\x80\x02}(" + text(b"x") + b"]q\x07" + text(b"y") + b"h\x07K\x05au.")
    assert read == {"x": [5], "y": [5]}


def test_a_path_and_its_bytes_give_the_same(tmp_path):
    data = batch(small_images(3), [1, 2, 3])
    (tmp_path / "data_batch_1").write_bytes(data)
    for path in (tmp_path / "data_batch_1", str(tmp_path / "data_batch_1")):
        np.testing.assert_array_equal(load_batch(path)["data"], load_batch(data)["data"])


def test_the_files_of_a_real_copy_read_as_pickle_reads_them():
    root = os.environ.get("TINYRES_DATA")
    path = Path(root or ".") / "cifar-10-batches-py" / "data_batch_1"
    if not path.is_file():
        pytest.skip("TINYRES_DATA names no folder with cifar-10-batches-py")
    with warnings.catch_warnings(), path.open("rb") as file:
        warnings.simplefilter("ignore")  # the name of an old NumPy
        expected = pickle.load(file, encoding="latin1")
    read = load_batch(path)
    np.testing.assert_array_equal(read.pop("data"), expected.pop("data"))
    assert read == expected


# --- Hostile files ----------------------------------------------------------------------------------------------------

COMMAND = b"touch ran"
GIANT = b"J\xff\xff\xff\x7f"

HOSTILE = {
    "os.system": (dictionary(name("os", "system") + text(COMMAND) + b"\x85R"), "'os.system'"),
    "posix.system": (dictionary(name("posix", "system") + text(COMMAND) + b"\x85R"), "'posix.system'"),
    "eval": (dictionary(name("builtins", "eval") + text(b"open('ran', 'w')") + b"\x85R"), "'builtins.eval'"),
    "Python 2's eval": (dictionary(name("__builtin__", "eval") + text(b"1") + b"\x85R"), "'__builtin__.eval'"),
    "getattr by STACK_GLOBAL": (dictionary(b"\x8c\x08builtins\x8c\x07getattr\x93"), "'builtins.getattr'"),
    "a dotted name": (dictionary(b"\x8c\x05numpy\x8c\x0endarray.tofile\x93"), "'numpy.ndarray.tofile'"),
    "numpy.load": (dictionary(name("numpy", "load") + text(b"ran") + b"\x85R"), "'numpy.load'"),
    "numpy's scalar": (dictionary(name("numpy.core.multiarray", "scalar")), "multiarray.scalar'"),
    "codecs": (dictionary(name("_codecs", "encode")), "'_codecs.encode'"),
    "a name that is a list": (dictionary(b"]]\x93"), "not text"),
    "INST": (dictionary(b"(" + text(COMMAND) + b"ios\nsystem\n"), "INST"),
    "OBJ": (dictionary(b"(" + name("numpy", "ndarray") + number(9) + b"o"), "OBJ"),
    "NEWOBJ": (dictionary(name("numpy", "ndarray") + number(9) + b"\x85\x81"), "NEWOBJ"),
    "NEWOBJ_EX": (dictionary(name("numpy", "ndarray") + b")}\x92"), "NEWOBJ_EX"),
    "an extension": (dictionary(b"\x82\x01"), "EXT1"),
    "a persistent id": (dictionary(b"Pran\n"), "PERSID"),
    "a call of ndarray": (dictionary(name("numpy", "ndarray") + GIANT + b"\x85R"), "calls ndarray"),
    "a call of a string": (dictionary(text(b"os.system") + text(COMMAND) + b"\x85R"), "calls a str"),
    "an object dtype": (dictionary(name("numpy", "dtype") + text(b"O8") + b"K\x00K\x01\x87R"), "dtype"),
    "a list as dtype": (dictionary(name("numpy", "dtype") + b"]\x85R"), "dtype"),
    "a dtype that is no call's": (dictionary(array(small_images(2), dtype=text(b"O8"))), "uint8"),
    "the name of a dtype": (dictionary(array(small_images(2), dtype=name("numpy", "dtype"))), "uint8"),
    "state for a list": (dictionary(b"]K\x01b"), "state of a list"),
    "state for a name": (dictionary(name("numpy", "ndarray") + b"}" + text(b"x") + b"K\x01sb"), "state of a _Name"),
    "a shape larger than its bytes": (dictionary(array(small_images(2), (2, 8))), "fill"),
    "a shape smaller than its bytes": (dictionary(array(small_images(2), (2, 6))), "fill"),
    "a giant shape": (dictionary(EMPTY_ARRAY + b"(K\x01" + GIANT + GIANT + b"\x86" + UINT8 + b"\x89U\x00tb"), "fill"),
    "a shape of negative numbers": (
        dictionary(EMPTY_ARRAY + b"(K\x01" + 2 * MINUS_1 + b"\x86" + UINT8 + b"\x89U\x01atb"),
        "fill",
    ),
    "a shape of strings": (
        dictionary(EMPTY_ARRAY + b"(K\x01" + 2 * text(b"a") + b"\x86" + UINT8 + b"\x89U\x01atb"),
        "damaged",
    ),
    "a number as the state of an array": (dictionary(EMPTY_ARRAY + b"K\x01b"), "damaged"),
    "a thousand dimensions": (
        dictionary(EMPTY_ARRAY + b"(K\x01(" + GIANT * 1000 + b"t" + UINT8 + b"\x89U\x00tb"),
        "damaged",
    ),
    "a list of numbers for bytes": (dictionary(EMPTY_ARRAY + b"(K\x01K\x00K\x00\x86" + UINT8 + b"\x89]tb"), "fill"),
    "a string of 2 GB": (dictionary(b"T\xff\xff\xff\x7f"), "2,147,483,647 bytes are due"),
    "a string of negative size": (dictionary(b"T\xff\xff\xff\xff"), "damaged"),
    "bytes of 4 GB": (dictionary(b"B\xff\xff\xff\xff"), "4,294,967,295 bytes are due"),
    "bytes of 16 EB": (dictionary(b"\x8e" + b"\xff" * 8), "BINBYTES8"),
    "a key that is a tuple": (b"\x80\x02})K\x01s.", "strings for keys"),
    "a key without a value": (b"\x80\x02}(U\x01xu.", "damaged"),
    "items of a string": (dictionary(text(b"a") + b"K\x01a"), "appends to a str"),
    "no dictionary": (b"\x80\x02].", "holds a list"),
    "an unknown memo": (dictionary(b"h\x09"), "damaged"),
    "a mark that was not set": (dictionary(b"t"), "damaged"),
    "text that is not UTF-8": (dictionary(b"X\x01\x00\x00\x00\xff"), "damaged"),
    "nothing": (b"", "damaged"),
    "nothing on the stack": (b"\x80\x02.", "damaged"),
    "no STOP": (b"\x80\x02}", "damaged"),
    "an unknown instruction": (dictionary(b"\xff"), "xff"),
}


@pytest.mark.parametrize(("data", "says"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_by_name_without_running_or_taking_memory(data, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as refused:
            load_batch(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert says in str(refused.value)
    assert list(tmp_path.iterdir()) == []
    assert peak < 1 << 20


def test_a_giant_index_in_the_memo_takes_no_memory():
    tracemalloc.start()
    try:
        assert load_batch(dictionary(b"K\x05r\xff\xff\xff\xff")) == {"x": 5}
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("made", [b"}", b"]", b"(", b")\x85", b"N\x85"])
def test_many_small_objects_take_little_memory(made, monkeypatch):
    assert unpickle.MAX_STEPS <= 1 << 19
    monkeypatch.setattr(unpickle, "MAX_STEPS", 1 << 15)  # a sixteenth, and a sixteenth of 50 MB
    data = b"\x80\x02" + made * (2**17 // len(made))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="over 32,768 instructions"):
            load_batch(data)
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


def test_a_file_of_endless_instructions_is_refused(monkeypatch):
    monkeypatch.setattr(unpickle, "MAX_STEPS", 1000)
    assert load_batch(dictionary(b"](" + b"N" * 900 + b"e"))["x"] == [None] * 900
    with pytest.raises(DataError, match="over 1,000 instructions"):
        load_batch(dictionary(b"](" + b"N" * 1000 + b"e"))


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "test_batch").write_bytes(bytes(101))
    monkeypatch.setattr(unpickle, "MAX_BYTES", 100)
    with pytest.raises(DataError, match=r"test_batch has 101 bytes"):
        load_batch(tmp_path / "test_batch")


@pytest.mark.parametrize("what", ["absent", "."])
def test_a_file_that_is_not_there_is_named(what, tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        load_batch(tmp_path / what)


# --- Broken files -----------------------------------------------------------------------------------------------------

GOOD = batch(small_images(40), list(range(40)))


def read_or_refuse(data):
    """Whatever the bytes are: a dictionary with plain values and uint8 arrays, or a DataError."""
    try:
        read = load_batch(data)
    except DataError:
        return None
    assert type(read) is dict
    assert all(type(key) is str for key in read)
    arrays = [value for value in read.values() if isinstance(value, np.ndarray)]
    assert all(value.dtype == np.uint8 and value.size <= len(data) for value in arrays)
    return read


@pytest.mark.parametrize("data", [GOOD, pickle.dumps({"data": small_images(40), "labels": [1]}, 4)], ids=["2", "4"])
def test_every_truncation_is_refused(data):
    for length in range(len(data)):
        with pytest.raises(DataError):
            load_batch(data[:length])


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_file_with_wrong_bytes_is_read_or_refused(changes):
    data = bytearray(GOOD)
    for place, byte in changes:
        data[place] = byte
    read_or_refuse(bytes(data))


INSTRUCTIONS = [bytes([code]) for code in range(256)]
PIECES = [text(b"data"), number(3), UINT8, EMPTY_ARRAY, name("numpy", "ndarray"), name("os", "system"), GIANT]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(INSTRUCTIONS + PIECES * 10), max_size=40))
def test_any_program_is_read_or_refused(pieces):
    read_or_refuse(b"\x80\x02}" + b"".join(pieces) + b".")
