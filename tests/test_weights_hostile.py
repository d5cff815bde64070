"""Weight files made to do harm, and files damaged on the way: refused, quickly, and in little memory."""

import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_weights_by_hand import (
    SIX,
    call,
    group,
    mapping,
    name,
    number,
    old_file,
    program,
    read,
    storage,
    tensor,
    text,
    zip_file,
)

from tinyres.errors import CheckpointError
from tinyres.weights import state_pickle
from tinyres.weights.torch_file import parse_torch


class Peak:
    """``with Peak(limit)``: what is allocated inside never exceeds ``limit`` bytes."""

    def __init__(self, limit):
        self.limit = limit

    def __enter__(self):
        tracemalloc.start()

    def __exit__(self, *_):
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < self.limit, f"{peak:,} bytes were allocated"


# --- Made to do harm --------------------------------------------------------------------------------------------------


def attacks(marker):
    """Pickles that make the file ``marker`` if they are run, by the name or instruction that is refused."""
    command, code = text(f"touch {marker}"), text(f"open({str(marker)!r}, 'w').close()")
    stack_global = text("os") + text("system") + b"\x93"
    return {
        "run posix.system": call(name("posix", "system"), command),
        "run os.system": stack_global + b"(" + command + b"tR",
        "run builtins.eval": call(name("builtins", "eval"), code),
        "run functools.partial": call(call(name("functools", "partial"), name("os", "system"), command)),
        "run builtins.getattr": call(call(name("builtins", "getattr"), name("os", "system"), text("__call__")), command),
        "instruction b'i'": b"(" + code + b"ibuiltins\nexec\n",  # INST
        "run subprocess.getoutput": b"(" + name("subprocess", "getoutput") + command + b"o",  # OBJ
    }


@pytest.mark.parametrize("attack", attacks(""))
def test_a_command_in_a_pickle_is_refused_and_not_run(attack, tmp_path):
    marker = tmp_path / "it_was_run"
    body = attacks(marker)[attack]
    pickle.loads(program(body))
    assert marker.exists(), "Python's own unpickler runs this"
    marker.unlink()
    beside = mapping({"w": tensor(storage(), (6,)), "x": body})
    beside_old = mapping({"w": tensor(storage(old=True), (6,)), "x": body})
    for file in (zip_file(beside), old_file(beside_old), program(body)):
        with pytest.raises(CheckpointError, match=rf"{attack}.*refused.*not a plain state dict"):
            parse_torch(file)
    assert not marker.exists()


SIZE = name("torch", "Size")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (name("os", "system"), r"asks to run os\.system: refused; this file is not a plain state dict"),
        (name("__torch__.net", "Net"), r"__torch__\.net\.Net"),
        (name("collections", "OrderedDict.fromkeys"), r"OrderedDict\.fromkeys"),
        (name("x\x1b[2J" * 500, "y"), r"asks to run x\\x1b"),
        (call(text("os.system")), "the pickle calls a str"),
        (call(name("torch", "FloatStorage"), number(10**9)), "the pickle calls a StorageType"),
        (SIZE + number(1) + b"R", "arguments of no known form"),
        (SIZE + group(*[number(1)] * 100) + b"R", "arguments of no known form"),
        (call(SIZE, number(1)), "Size is not made of a tuple"),
        (call(name("torch._utils", "_rebuild_parameter"), text("x")), "does not hold a tensor"),
        (call(name("collections", "OrderedDict"), b"]"), "a dict is made of 1 arguments"),
        # BUILD: set the attributes of a function, of a storage type, of a tensor
        (SIZE + mapping({"__code__": b"N"}) + b"b", "sets attributes of a function: refused"),
        (name("torch", "FloatStorage") + mapping({"kind": text("F64")}) + b"b", "sets attributes of a StorageType"),
        (tensor(storage(), (6,)) + b"N" + mapping({"size": number(9)}) + b"\x86b", "holds a TensorRecord where a dict"),
        (name("collections", "OrderedDict") + b")\x81", r"instruction b'\\x81' is refused"),  # NEWOBJ
        (b"\x82\x01", r"instruction b'\\x82' is refused"),  # EXT1
        (b"\x83\x01\x00", r"instruction b'\\x83' is refused"),  # EXT2
        (b"\x84\x01\x00\x00\x00", r"instruction b'\\x84' is refused"),  # EXT4
        (b"\x8b\xff\xff\xff\x7f", r"instruction b'\\x8b' is refused"),  # LONG4, 2 GiB of it
        (b"\x96" + b"\xff" * 7 + b"\x7f", "ends in the middle of a pickle"),  # BYTEARRAY8, 8 EiB of it
        (b"\x8e" + b"\xff" * 7 + b"\x7f", "ends in the middle of a pickle"),  # BINBYTES8
        (b"\x90", "damaged pickle at byte 3: IndexError"),  # ADDITEMS to nothing
        (b"P0\n", r"instruction b'P' is refused"),  # a persistent id as text
        (text("0") + b"Q", "not a storage of a known form"),
        (group(text("storage")) + b"Q", "not a storage of a known form"),
        (group(text("module"), b"N", b"N", b"N") + b"Q", "not a storage of a known form"),
        (group(text("storage"), b"N", text("0"), text("cpu"), number(6)) + b"Q", "not a storage of a known form"),
        (storage()[:-2] + group(text("1"), number(0), number(6)) + b"tQ", "not a storage of a known form"),
        (b"N" + number(1) + b"a", "appends to a NoneType"),
        (b"]" + number(1) + number(1) + b"s", "sets 2 keys and values of a list"),
        (b"}(" + number(1) + b"u", "sets 1 keys and values of a dict"),
        (number(1) + number(2) + b"\x93", "a name that is not text"),
        (b"0", "instruction b'0' is refused"),
        (b"t", "damaged pickle at byte 3: IndexError"),
        (b"\x86", "damaged pickle at byte 3: IndexError"),
        (b"h\x07", "damaged pickle at byte 4: KeyError"),
        (b"X\x01\x00\x00\x00\xff", "UnicodeDecodeError"),
        (b"X\xff\xff\xff\xff", "ends in the middle of a pickle"),
        (b"T\xff\xff\xff\xff", "ends in the middle of a pickle"),
        (b"ctorch", "ends in the middle of a pickle"),
    ],
)
def test_what_a_state_dict_has_no_need_of_is_refused(body, message):
    with Peak(2**20), pytest.raises(CheckpointError, match=message) as caught:
        parse_torch(zip_file(body))
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()


def test_deep_nesting_neither_crashes_nor_hangs():
    weights = {"w": tensor(storage(), (6,))}
    deep = b")" + b"\x85" * 150_000
    assert list(read(mapping({**weights, "tuples": deep, "lists": b"]" * 5000 + b"a" * 4999}))) == ["w"]
    doubled = b")" + b"q\x00h\x00\x86" * 100  # a tuple of the same tuple twice, and so on: 2**100 steps to hash
    for key in (b")", deep, doubled):
        assert list(read(mapping({**weights, "x": b"}" + key + b"Ns"}))) == ["w"]
    with pytest.raises(CheckpointError, match="IndexError"):
        read(b"(" * 100_000)


def test_a_memo_costs_what_is_put_into_it():
    memo_at_4_billion = b"Nr\xf0\xff\xff\xffj\xf0\xff\xff\xff\x86"
    with Peak(2**20):
        arrays = read(mapping({"w": tensor(storage(), (6,)), "x": memo_at_4_billion}))
    assert list(arrays) == ["w"]


def test_a_pickle_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr("tinyres.weights.state_pickle.MAX_STEPS", 1000)
    with pytest.raises(CheckpointError, match=r"more than 1,000 instructions"):
        read(b"}" * 2000)


def test_a_zip_bomb_is_refused_before_it_goes_off():
    zeros = np.zeros(2**23, "<f4")
    honest = zip_file(mapping({"w": tensor(storage(count=zeros.size), (8,))}), {"0": zeros}, zipfile.ZIP_DEFLATED)
    with Peak(4 * 2**20), pytest.raises(CheckpointError, match="zip entries are more than 16 times as large"):
        parse_torch(honest)
    # An archive whose directory says 32 bytes of the same entry.
    liar = zip_file(mapping({"w": tensor(storage(count=8), (8,))}), {"0": zeros}, zipfile.ZIP_DEFLATED)
    liar = liar.replace(struct.pack("<I", zeros.nbytes), struct.pack("<I", 32))
    with Peak(4 * 2**20), pytest.raises(CheckpointError, match=r"damaged zip entry 'net/data/0': Bad CRC-32"):
        parse_torch(liar)


@pytest.mark.parametrize("made", [b"}", b"]", b"(", b"h\x00)R", b"\x85"])
def test_a_pickle_takes_little_memory_packed_or_not(made, monkeypatch):
    body = b"ccollections\nOrderedDict\nq\x00" + made * (2**20 // len(made) - 100)
    packed = zip_file(body, compression=zipfile.ZIP_DEFLATED)
    assert len(packed) < 20_000
    with Peak(10 * 2**20), pytest.raises(CheckpointError, match=r"more than \d\d,\d{3} instructions"):
        parse_torch(packed)
    assert state_pickle.MAX_MADE <= 600_000
    monkeypatch.setattr(state_pickle, "MAX_MADE", 600_000 // 16)
    with Peak(50 * 2**20 // 16), pytest.raises(CheckpointError, match=r"more than 37,500 tuples and dicts"):
        state_pickle.PickleReader(program(body[: 2**18])).load()


def test_many_tensors_of_one_storage_are_refused_before_they_fill_the_memory():
    held = np.zeros(25_000, "<f4")
    entries = {str(i): tensor(b"h\x00", (held.size,)) for i in range(500)}
    body = mapping({"x": storage(count=held.size) + b"q\x00", **entries})
    with Peak(16 * 2**20), pytest.raises(CheckpointError, match="tensors are more than 16 times as large as the file"):
        read(body, {"0": held})


# --- Whole models -----------------------------------------------------------------------------------------------------


def made(kind, state):
    """An object of the class ``kind``, as PyTorch's modules are stored."""
    return name(*kind.rsplit(".", 1)) + b")\x81" + state + b"b"


def module(parameters=b"}", modules=b"}", kind="net.Net", **more):
    return made(kind, mapping({"_parameters": parameters, "_buffers": b"}", "_modules": modules, **more}))


WEIGHT = mapping({"w": tensor(storage(), (6,))})


def test_a_model_is_a_label_and_nothing_of_it_is_run(tmp_path):
    inside = module(WEIGHT, kind="os.system", training=b"\x88", what=name("os", "system"))
    assert list(read(module(modules=mapping({"a": inside, "b": b"N"})))) == ["a.w"]
    for attack, body in attacks(tmp_path / "it_was_run").items():
        for file in (
            module(WEIGHT, what=body),
            made("net.Net", body),
            module(mapping({"w": body})),
            mapping({"net": inside, "x": body}),
        ):
            with pytest.raises(CheckpointError, match=rf"{attack}.*refused"):
                read(file)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (name("net", "Net") + group(text("touch x")) + b"\x81", r"asks to run net\.Net: refused"),  # with arguments
        (name("net", "Net") + b"}" + b")}\x92", "instruction"),  # NEWOBJ_EX
        (made("net.Net", b"}"), r"its model is a net\.Net without _parameters, so no plain module"),
        (made("net.Net", b"]"), "its model is a net.Net without _parameters"),
        (made("__torch__.Net", b"}"), "it is a TorchScript program"),
        (module(mapping({"w": number(1)})), "'w' in its model is no plain tensor"),
        (module(modules=mapping({"a": number(1)})), "'a' in its model is no module of PyTorch"),
        (module(modules=b"]"), "without _modules"),
        (module(mapping({"w" * 501: b"N"})), "too large, or holds itself"),
        (mapping({"model": module(WEIGHT), "net": WEIGHT}), r"more than one state dict \(model, net\)"),
        (mapping({"state_dict": WEIGHT, "x": name("os", "system")}), r"asks to run os\.system: refused"),
    ],
)
def test_a_model_that_is_none_is_refused(body, message):
    with Peak(2**20), pytest.raises(CheckpointError, match=message) as caught:
        read(body)
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()


def test_what_stands_beside_the_weights_may_be_an_object():
    beside = made("options.Dict", b"}") + b"(" + text("lr") + number(1) + b"u"  # a kind of dict, and one of list
    listed = made("options.List", b"}") + b"(" + number(1) + b"e"
    assert list(read(mapping({"state_dict": WEIGHT, "options": beside, "steps": listed}))) == ["w"]


def test_a_model_that_holds_itself_or_another_twice_and_so_on_comes_to_an_end():
    parts = {"_parameters": b"}", "_buffers": b"}", "_modules": mapping({"a": b"h\x00"})}
    itself = name("net", "Net") + b")\x81q\x00" + mapping(parts) + b"b"
    twice = module(modules=mapping({"a": b"h\x00", "b": b"h\x00"})) + b"q\x00"
    doubled = module(WEIGHT) + b"q\x00" + twice * 40  # the last one lies on top
    for body in (itself, doubled):
        with Peak(60 * 2**20), pytest.raises(CheckpointError, match="too large, or holds itself"):
            read(body)


# --- Damaged on the way -----------------------------------------------------------------------------------------------


def small_files():
    storages = {"0": SIX, "1": np.array([0x3FC0] * 4, "<u2")}

    def body(old):
        second = tensor(storage("1", "BFloat16", 4, old=old), (2, 1), (2, 7), 1)
        return mapping({"epoch": number(3), "state_dict": mapping({"a": tensor(storage(old=old), (2, 3)), "b": second})})

    return {
        "zip": zip_file(body(False), storages),
        "deflated": zip_file(body(False), storages, zipfile.ZIP_DEFLATED),
        "old": old_file(body(True), storages),
    }


FILES = small_files()


def read_or_refuse(data):
    """The arrays, or None after a CheckpointError; any other exception, and any large allocation, fails the test."""
    with Peak(2**20):
        try:
            arrays = parse_torch(data)
        except CheckpointError as error:
            assert len(str(error)) < 500
            return None
    assert all(type(array) is np.ndarray for array in arrays.values())
    return arrays


@pytest.mark.parametrize("kind", FILES)
def test_a_file_cut_short_anywhere_is_refused(kind):
    assert set(read_or_refuse(FILES[kind])) == {"a", "b"}
    for length in range(len(FILES[kind])):
        assert read_or_refuse(FILES[kind][:length]) is None, length


@pytest.mark.parametrize("kind", FILES)
def test_a_flipped_byte_anywhere_is_read_or_refused(kind):
    for position in range(len(FILES[kind])):
        for mask in (0x01, 0xFF):
            data = bytearray(FILES[kind])
            data[position] ^= mask
            read_or_refuse(bytes(data))


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(sorted(FILES)), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6))
def test_several_wrong_bytes_are_read_or_refused(kind, changes):
    data = bytearray(FILES[kind])
    for position, value in changes:
        data[position % len(data)] = value
    read_or_refuse(bytes(data))


PIECES = [bytes([code]) for code in b"NJKMGXUq\x94hrj().\x85\x86\x87]}aesutRbQ\x93\x88"] + [
    text("w"),
    text("storage"),
    number(3),
    b"K\x00q\x00h\x00",
    SIZE,
    name("torch", "FloatStorage"),
    storage(),
    tensor(storage(), (2, 3)),
    name("collections", "OrderedDict"),
    name("torch._utils", "_rebuild_tensor_v2"),
]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map(b"".join))
def test_any_order_of_instructions_is_read_or_refused(body):
    read_or_refuse(zip_file(body))
    read_or_refuse(zip_file(mapping({"w": body})))
