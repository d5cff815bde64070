"""A state dict in the zip format of ``torch.save``, written without PyTorch, instruction by instruction.

What the instructions of a pickle mean: `tinyres.weights.state_pickle`, which reads them.
"""

from __future__ import annotations

import io
import math
import pickle  # for the names of the instructions; nothing of it is called
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

from tinyres.errors import CheckpointError
from tinyres.files import StrPath, write_atomically

FOLDER = "archive"
STORAGES = {
    **{"f8": "Double", "f4": "Float", "f2": "Half", "i8": "Long", "i4": "Int", "i2": "Short", "i1": "Char"},
    **{"u1": "Byte", "b1": "Bool"},
}


def save_torch(path: StrPath, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as a state dict that ``torch.load(path, weights_only=True)`` reads: a dict of tensors.

    The old file stays until the new one is complete. Raises `CheckpointError` if PyTorch has no such dtype, or if the file
    cannot be written.
    """
    entries: dict[str, bytes] = {}
    program = pickle.PROTO + b"\x02" + pickle.EMPTY_DICT
    for key, (name, array) in enumerate(arrays.items()):
        kind = STORAGES.get(array.dtype.str[1:])
        if kind is None:
            raise CheckpointError(f"cannot save {name!r}: PyTorch has no tensors of {array.dtype}")
        program += _text(name) + _tensor(str(key), kind, array.shape) + pickle.SETITEM
        entries[f"data/{key}"] = array.astype(array.dtype.newbyteorder("<")).tobytes()
    content = {"data.pkl": program + pickle.STOP, "byteorder": b"little", **entries, "version": b"3\n"}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(f"{FOLDER}/{name}"), data)  # with a fixed date: equal weights, equal files
    try:
        write_atomically(path, file.getvalue())
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error


def _tensor(key: str, kind: str, shape: tuple[int, ...]) -> bytes:
    """``_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)``, where the storage is entry ``key``."""
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    place = [_text("storage"), _name("torch", f"{kind}Storage"), _text(key), _text("cpu"), _number(math.prod(shape))]
    hooks = _name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = [_tuple(*place) + pickle.BINPERSID, _number(0), _numbers(shape), _numbers(strides), pickle.NEWFALSE, hooks]
    return _name("torch._utils", "_rebuild_tensor_v2") + _tuple(*arguments) + pickle.REDUCE


def _text(value: str) -> bytes:
    encoded = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _number(value: int) -> bytes:
    if value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    return pickle.LONG1 + b"\x08" + struct.pack("<q", value)


def _numbers(values: tuple[int, ...]) -> bytes:
    return _tuple(*map(_number, values))


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE
