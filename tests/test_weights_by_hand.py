"""PyTorch's two file formats, read from files that are built here instruction by instruction, and need no PyTorch."""

import io
import math
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest

from tinyres.errors import CheckpointError
from tinyres.weights import load_file
from tinyres.weights.state_pickle import PickleReader
from tinyres.weights.torch_file import MAGIC_NUMBER, PROTOCOL_VERSION, parse_torch

# --- The instructions of a pickle -------------------------------------------------------------------------------------


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    return b"J" + struct.pack("<i", value) if -(2**31) <= value < 2**31 else b"\x8a\x0a" + value.to_bytes(10, "little")


def group(*items):
    return b"(" + b"".join(items) + b"t"


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def call(function, *arguments):
    return function + group(*arguments) + b"R"


def mapping(entries):
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def storage(key="0", kind="Float", count=6, old=False):
    return (
        group(text("storage"), name("torch", f"{kind}Storage"), text(key), text("cuda:0"), number(count), *[b"N"] * old)
        + b"Q"
    )


def tensor(held, size, stride=None, offset=0):
    if stride is None:
        stride = [math.prod(size[axis + 1 :]) for axis in range(len(size))]
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        held,
        number(offset),
        group(*map(number, size)),
        group(*map(number, stride)),
        b"\x89",
        name("collections", "OrderedDict") + b")R",
    )


def program(body):
    return b"\x80\x02" + body + b"."


# --- The files around them --------------------------------------------------------------------------------------------

SIX = np.arange(6, dtype="<f4")


def zip_file(body, storages=None, compression=zipfile.ZIP_STORED, byteorder=b"little"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("net/data.pkl", program(body))
        archive.writestr("net/byteorder", byteorder)
        for key, held in ({"0": SIX} if storages is None else storages).items():
            archive.writestr(f"net/data/{key}", held.tobytes())
        archive.writestr("net/version", b"3\n")
    return buffer.getvalue()


def old_file(body, storages=None, magic=MAGIC_NUMBER, version=PROTOCOL_VERSION):
    storages = {"0": SIX} if storages is None else storages
    head = [number(magic), number(version), mapping({"little_endian": b"\x88"}), body]
    keys = b"](" + b"".join(map(text, storages)) + b"e"
    tail = [struct.pack("<q", held.size) + held.tobytes() for held in storages.values()]
    return b"".join([program(part) for part in [*head, keys]] + tail)


def read(body, storages=None):
    return parse_torch(zip_file(body, storages))


def one(record, storages=None):
    return read(mapping({"w": record}), storages)["w"]


@pytest.fixture(params=["zip", "deflated zip", "old"])
def build(request):
    """A function from a dict's entries to a file: ``build(entry)`` calls ``entry(storage)`` to name a storage."""

    def file_of(entries, storages=None):
        old = request.param == "old"
        body = mapping({key: value(lambda *args: storage(*args, old=old)) for key, value in entries.items()})
        if old:
            return old_file(body, storages)
        return zip_file(body, storages, zipfile.ZIP_DEFLATED if request.param.startswith("d") else zipfile.ZIP_STORED)

    return file_of


# --- Sound files ------------------------------------------------------------------------------------------------------


def test_each_format_gives_the_tensors_and_leaves_out_the_rest(build, tmp_path):
    path = tmp_path / "weights.any_suffix"
    path.write_bytes(
        build(
            {
                "epoch": lambda _: number(7),
                "best": lambda _: b"G" + struct.pack(">d", 91.5),
                "conv.weight": lambda held: tensor(held("0", "Float", 6), (2, 3)),
                "fc.bias": lambda held: tensor(held("1", "Double", 2), (2,)),
            },
            {"0": SIX, "1": np.array([1.5, -2.0], "<f8")},
        )
    )
    arrays, metadata = load_file(path)
    assert list(arrays) == ["conv.weight", "fc.bias"] and metadata == {}
    np.testing.assert_array_equal(arrays["conv.weight"], SIX.reshape(2, 3), strict=True)
    np.testing.assert_array_equal(arrays["fc.bias"], np.array([1.5, -2.0]), strict=True)


def test_tensors_that_share_a_storage_become_arrays_of_their_own(build):
    arrays = parse_torch(build({key: lambda held: tensor(held(), (6,)) for key in "ab"}))
    arrays["a"][:] = 9
    np.testing.assert_array_equal(arrays["b"], SIX)
    assert arrays["a"].flags.owndata and arrays["a"].flags.writeable


@pytest.mark.parametrize(
    ("size", "stride", "offset", "expected"),
    [
        ((3, 2), (1, 3), 0, SIX.reshape(2, 3).T),
        ((2, 2), (2, 1), 1, SIX[1:5].reshape(2, 2)),
        ((1, 2, 1, 3), (99, 1, 5, 2), 0, SIX.reshape(3, 2).T[None, :, None]),  # channels last; (N, C, H, W), N = H = 1
        ((), (), 5, SIX[5]),
        ((0, 4), (4, 1), 77, np.zeros((0, 4), "f4")),
        ((3,), (2,), 1, SIX[1::2]),
    ],
)
def test_size_strides_and_offset_pick_the_elements(size, stride, offset, expected):
    array = one(tensor(storage(), size, stride, offset))
    np.testing.assert_array_equal(array, expected)
    assert array.shape == size and array.dtype == np.float32 and array.flags.c_contiguous
    assert isinstance(array, np.ndarray)


@pytest.mark.parametrize(
    ("kind", "stored", "expected"),
    [
        ("Half", np.array([1.5, -2], "<f2"), np.array([1.5, -2], np.float16)),
        ("BFloat16", np.array([0x3FC0, 0xC000, 0x7F80], "<u2"), np.array([1.5, -2, np.inf], np.float32)),
        ("Long", np.array([-(2**40)], "<i8"), np.array([-(2**40)])),
        ("Int", np.array([-7], "<i4"), np.array([-7], np.int32)),
        ("Short", np.array([-7], "<i2"), np.array([-7], np.int16)),
        ("Char", np.array([-7], "i1"), np.array([-7], np.int8)),
        ("Byte", np.array([250], "u1"), np.array([250], np.uint8)),
        ("Bool", np.array([0, 1, 200], "u1"), np.array([False, True, True])),
    ],
)
def test_every_element_type_is_read(kind, stored, expected):
    array = one(tensor(storage("0", kind, stored.size), expected.shape), {"0": stored})
    np.testing.assert_array_equal(array, expected, strict=True)
    assert array.tobytes() == expected.tobytes()


def test_a_scalar_bfloat16_stays_an_array():
    array = one(tensor(storage("0", "BFloat16", 1), ()), {"0": np.array([0x3FC0], "<u2")})
    assert isinstance(array, np.ndarray) and array.shape == () and array == 1.5


def test_the_state_dict_is_found_where_training_scripts_put_it():
    weights = mapping({"w": tensor(storage(), (6,))})
    for wrapper in ("state_dict", "model_state_dict", "model", "net", "params"):
        best = tensor(storage(), ())  # a tensor beside it does not hide it
        assert list(read(mapping({"best": best, wrapper: weights, "epoch": number(3)}))) == ["w"]
    assert list(read(mapping({"model": mapping({"state_dict": weights}), "params": mapping({"lr": number(1)})}))) == ["w"]


def test_what_holds_no_single_state_dict_is_an_error_that_lists_what_is_there():
    weights = mapping({"w": tensor(storage(), (6,))})
    with pytest.raises(CheckpointError, match=r"no tensors.*its keys are: optimizer, epoch"):
        read(mapping({"optimizer": weights, "epoch": number(3)}))
    with pytest.raises(CheckpointError, match=r"more than one state dict \(model, net\)"):
        read(mapping({"net": weights, "model": weights}))
    with pytest.raises(CheckpointError, match="holds a list where a dict"):
        read(b"]")
    with pytest.raises(CheckpointError, match="its keys are: model"):
        read(b"}q\x00" + text("model") + b"h\x00s")  # a dict that holds itself


def test_parameters_metadata_and_what_trainers_save_beside_them_are_understood():
    parameter = call(name("torch._utils", "_rebuild_parameter"), tensor(storage(), (6,)), b"\x88", b"N")
    weights = name("collections", "OrderedDict") + b")R(" + text("w") + parameter + b"u"
    weights += mapping({"_metadata": mapping({})}) + b"b"  # BUILD
    extras = {
        "device": call(name("torch", "device"), text("cuda")),
        "shape": call(name("torch", "Size"), group(number(1))),
        "milestones": call(name("collections", "Counter"), b"}" + number(3) + number(1) + b"s"),
        "name": b"U\x03caf",
        "list": b"]" + number(1) + b"a(" + number(2) + b"e",
        "pair": b"\x88\x89N\x87",
    }
    arrays = read(mapping({"state_dict": weights, **extras}))
    np.testing.assert_array_equal(arrays["w"], SIX)


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_reader_agrees_with_pickle_on_plain_data(protocol):
    shared = ["é", "x" * 300, 255, 256, 65535, 65536, -1, 2**70, -(2**70)]
    data = {"a": shared, "b": (1.5, None, True), "c": (shared, (), (1,), (1, 2), [])}
    data |= {f"key {i}": i for i in range(300)}  # enough for long memo indices
    assert PickleReader(pickle.dumps(data, protocol)).load() == data
    assert PickleReader(pickle.dumps(OrderedDict(), protocol)).load() == {}
    assert PickleReader(pickle.dumps(Counter("aab"), protocol)).load() == {"a": 2, "b": 1}


# --- Files that lie about their sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((7,), (1,), 0),
        ((6,), (1,), 1),
        ((2, 3), (4, 1), 0),
        ((), (), 6),
        ((2,), (2**47,), 0),
        ((2**47,), (1,), 0),
        ((10**6, 10**6), (0, 0), 0),
    ],
)
def test_a_tensor_never_reaches_beyond_its_storage(size, stride, offset):
    with pytest.raises(CheckpointError, match=r"tensor 'w': size .* reaches beyond its storage of 6 elements"):
        one(tensor(storage(), size, stride, offset))


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((-1,), (1,), 0),
        ((2,), (-1,), 1),
        ((2,), (1,), -1),
        ((2,), (1, 1), 0),
        ((1, 2), (2**62, 1), 0),
        ((1,) * 40,) * 2 + (0,),
    ],
)
def test_a_tensor_of_impossible_form_is_refused(size, stride, offset):
    with pytest.raises(CheckpointError, match="not described by a storage"):
        one(tensor(storage(), size, stride, offset))


def test_a_storage_holds_as_many_elements_as_the_pickle_says():
    with pytest.raises(CheckpointError, match="its storage holds 24 bytes, expected 600 elements"):
        one(tensor(storage(count=600), (600,)))
    with pytest.raises(CheckpointError, match="its storage holds 24 bytes, expected -1 elements"):
        one(tensor(storage(count=-1), (0,)))
    with pytest.raises(CheckpointError, match=r"no entry 'net/data/\.\./1'"):
        one(tensor(storage("../1"), (6,)))
    with pytest.raises(CheckpointError, match="described in two different ways"):
        read(mapping({"a": tensor(storage(count=6), (6,)), "b": tensor(storage(kind="Int"), (6,))}))


def test_the_old_format_is_checked_piece_by_piece():
    body = mapping({"w": tensor(storage(old=True), (6,))})
    sound = old_file(body)
    assert parse_torch(sound)["w"].size == 6
    for file, message in [
        (old_file(body, magic=1), "not one that torch.save wrote"),
        (old_file(body, version=1002), "other than 1001"),
        (old_file(body, {}), "storage '0' is not in the file"),
        (old_file(body, {"0": SIX, "1": SIX}), "a storage that no tensor names"),
        (old_file(body, {"0": SIX[:5]}), "its storage holds 20 bytes, expected 6 elements"),
        (sound[:-32] + struct.pack("<q", 2**62) + sound[-24:], "the file ends before that"),
        (sound[:-32] + struct.pack("<q", -1) + sound[-24:], "-1 elements"),
        (sound[:-30], "ends before storage '0'"),
        (b"".join(map(program, [number(MAGIC_NUMBER), number(1001), b"}", body, b"N"])), "no list of storages"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            parse_torch(file)


def test_a_zip_archive_of_something_else_is_refused():
    body = mapping({"w": tensor(storage(), (6,))})
    with pytest.raises(CheckpointError, match="not little-endian"):
        parse_torch(zip_file(body, byteorder=b"big"))
    with pytest.raises(CheckpointError, match=r"compressed in a way that torch.save does not use"):
        parse_torch(zip_file(body, compression=zipfile.ZIP_BZIP2))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("weights.npy", b"")
    with pytest.raises(CheckpointError, match=r"0 entries data\.pkl: not written by torch\.save"):
        parse_torch(buffer.getvalue())


def test_a_file_of_no_known_format_says_how_it_begins(tmp_path):
    path = tmp_path / "weights.pt"
    for content in (b"", b"version https://git-lfs"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"cannot read .*weights\.pt: it begins with b'{content[:16].decode()}'"):
            load_file(path)
    with pytest.raises(CheckpointError, match=r"cannot read .*absent\.pt: No such file"):
        load_file(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match=r"cannot read .*directory"):
        load_file(tmp_path)
    with pytest.raises(CheckpointError, match="not a file"):
        load_file("/dev/null")
