"""The two formats of ``torch.save``, read without PyTorch; nothing in the file is executed.

Zip (PyTorch 1.6 and later): a zip archive with ``FOLDER/data.pkl``, a pickle of the saved object in which each tensor
names a storage, and ``FOLDER/data/KEY``, the elements of each storage.

Old: five pickles in a row (a magic number, a version, the sizes of C types, the saved object, a list of storage keys),
then for each key an int64 count of elements and the elements, little-endian.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

from tinyres.errors import CheckpointError
from tinyres.files import EXPANSION, SMALL, most_unpacked, shown
from tinyres.weights.common import STORED, decode
from tinyres.weights.state_pickle import NOT_PLAIN, Made, PickleReader, Storage, TensorRecord

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
# Where training scripts keep the state dict, beside the epoch, the optimizer and the like.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "params", "weights")

# Of a pickled model, in all: one that holds another twice, which holds another twice, and so on, would have any number.
MOST_ENTRIES, LONGEST_NAME = 100_000, 500

# What `zipfile` raises for a damaged archive.
ZIP_ERRORS = (zipfile.BadZipFile, RuntimeError, ValueError, OverflowError, EOFError, OSError, zlib.error, struct.error)


def parse_torch(data: bytes) -> dict[str, np.ndarray]:
    """The state dict in ``data``, the content of a file that ``torch.save`` wrote.

    The state dict may be the saved object itself, or be in it under one of `WRAPPERS`; what is not a tensor is left out. In
    its place there may be a model: its parameters and buffers are found without running it.
    Raises `CheckpointError` if the file is damaged, holds no state dict, or asks for code to be run.
    """
    content, storages = _parse_zip(data) if data[:2] == b"PK" else _parse_old(data)
    arrays, size, limit = {}, 0, most_unpacked(len(data))
    for name, record in find_state_dict(content).items():
        try:
            arrays[name] = _array(record, storages)
        except CheckpointError as error:
            raise CheckpointError(f"tensor {shown(name)!r}: {error}") from error
        size += arrays[name].nbytes
        if size > limit:
            raise CheckpointError(f"its tensors are more than {EXPANSION} times as large as the file: refused")
    return arrays


def find_state_dict(content: object) -> dict[str, TensorRecord]:
    """The one dict of tensors, or the one model, in what a file holds: at the top, or under one or two of `WRAPPERS`."""
    if isinstance(content, Made):
        return state_of(content)
    if not isinstance(content, dict):
        raise CheckpointError(f"holds a {type(content).__name__} where a dict of tensors is expected")
    found = _state_dicts(content, "", levels=3)
    if len(found) == 1:
        return found.popitem()[1]
    keys = [shown(key) for key in content if isinstance(key, str)]
    listed = ", ".join(keys[:10]) + (", ..." if len(keys) > 10 else "")
    if found:
        raise CheckpointError(f"holds more than one state dict ({', '.join(found)}): save one of them alone")
    raise CheckpointError(
        f"holds no tensors, neither at its top nor under {', '.join(WRAPPERS)}; its keys are: {listed or 'none'}"
    )


def _state_dicts(content: object, path: str, levels: int) -> dict[str, dict[str, TensorRecord]]:
    """The dicts that hold tensors, by their path. A dict that wraps one (beside a best accuracy, say) does not count."""
    if isinstance(content, Made):
        return {path: state_of(content)}
    if not isinstance(content, dict) or not levels:  # a dict can hold itself
        return {}
    wrapped: dict[str, dict[str, TensorRecord]] = {}
    for name in WRAPPERS:
        wrapped |= _state_dicts(content.get(name), f"{path}.{name}" if path else name, levels - 1)
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, TensorRecord)}
    return wrapped or ({path: tensors} if tensors else {})


def state_of(model: Made) -> dict[str, TensorRecord]:
    """The state dict of a pickled module: what it and the modules below it hold as parameters and as buffers.

    Raises `CheckpointError` for an object that is not stored as PyTorch's modules are.
    """
    found: dict[str, TensorRecord] = {}
    waiting: list[tuple[str, object]] = [("", model)]
    entries = 0
    while waiting:
        name, module = waiting.pop()
        if not isinstance(module, Made):
            raise CheckpointError(f"{shown(name)!r} in its model is no module of PyTorch; {NOT_PLAIN}")
        parts = {part: module.state.get(part) for part in ("_parameters", "_buffers", "_modules")}
        prefix, children = f"{name}." if name else "", list[tuple[str, object]]()
        for part, held in parts.items():
            if type(held) is not dict:
                where = f"{shown(name)!r} in its model" if name else "its model"
                raise CheckpointError(f"{where} is a {shown(module.kind)} without {part}, so no plain module; {NOT_PLAIN}")
            entries += 1 + len(held)
            if entries > MOST_ENTRIES or len(prefix) > LONGEST_NAME or any(len(str(key)) > LONGEST_NAME for key in held):
                raise CheckpointError(f"its model is too large, or holds itself, at {shown(name)!r}; {NOT_PLAIN}")
            for key, value in held.items():
                if part == "_modules":
                    children.append((f"{prefix}{key}", value))
                elif isinstance(value, TensorRecord):
                    found[f"{prefix}{key}"] = value
                elif value is not None:
                    raise CheckpointError(f"{shown(f'{prefix}{key}')!r} in its model is no plain tensor; {NOT_PLAIN}")
        waiting += [child for child in reversed(children) if child[1] is not None]
    return found


class _ZipStorages(dict[str, memoryview]):
    """Reads ``FOLDER/data/KEY`` when it is first needed: an optimizer's storages may never be."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__()
        self._archive, self._folder = archive, folder

    def __missing__(self, key: str) -> memoryview:
        self[key] = memoryview(read_entry(self._archive, f"{self._folder}data/{key}"))
        return self[key]


def _parse_zip(data: bytes) -> tuple[object, Mapping[str, memoryview]]:
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except ZIP_ERRORS as error:
        raise CheckpointError(f"damaged zip archive: {shown(str(error))}") from error
    entries = archive.infolist()
    pickles = [entry.filename for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"a zip archive with {len(pickles)} entries data.pkl: not written by torch.save")
    if sum(entry.file_size for entry in entries) > most_unpacked(len(data)):
        raise CheckpointError(f"its zip entries are more than {EXPANSION} times as large as the file: refused")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.NameToInfo and read_entry(archive, f"{folder}byteorder") != b"little":
        raise CheckpointError("its numbers are not little-endian: save it again on a little-endian machine")
    # As many instructions as the file has bytes: what is beside the pickle has more, unless little was packed to be much.
    content = PickleReader(read_entry(archive, pickles[0]), steps=len(data) + SMALL // 16).load()
    return content, _ZipStorages(archive, folder)


def read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
    entry = archive.NameToInfo.get(name)
    if entry is None:
        raise CheckpointError(f"the zip archive has no entry {shown(name)!r}")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CheckpointError(f"zip entry {shown(name)!r} is compressed in a way that torch.save does not use")
    try:
        with archive.open(entry) as file:
            # With the size given, no more than that is ever decompressed, whatever the entry holds.
            content = file.read(entry.file_size)
    except ZIP_ERRORS as error:
        raise CheckpointError(f"damaged zip entry {shown(name)!r}: {shown(str(error))}") from error
    if len(content) != entry.file_size:
        raise CheckpointError(f"zip entry {shown(name)!r} has {len(content)} bytes, expected {entry.file_size}")
    return content


def _parse_old(data: bytes) -> tuple[object, Mapping[str, memoryview]]:
    reader = PickleReader(data)
    if reader.load() != MAGIC_NUMBER:
        raise CheckpointError("a pickle, but not one that torch.save wrote")
    if reader.load() != PROTOCOL_VERSION:
        raise CheckpointError(f"a version of PyTorch's format other than {PROTOCOL_VERSION}")
    reader.load()  # the sizes of C types: nothing in the file depends on them
    content = reader.load()
    keys = reader.load()
    if not isinstance(keys, list):
        raise CheckpointError("damaged: there is no list of storages behind the pickle")
    storages: dict[str, memoryview] = {}
    position, view = reader.position, memoryview(data)
    for key in keys:
        storage = reader.storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise CheckpointError("damaged: a storage that no tensor names")
        if position + 8 > len(data):
            raise CheckpointError(f"the file ends before storage {shown(storage.key)!r}")
        (count,) = struct.unpack_from("<q", data, position)
        start, position = position + 8, position + 8 + count * STORED[storage.kind].itemsize
        if count < 0 or position > len(data):
            raise CheckpointError(f"storage {shown(storage.key)!r} has {count} elements: the file ends before that")
        storages[storage.key] = view[start:position]
    return content, storages


def _array(record: TensorRecord, storages: Mapping[str, memoryview]) -> np.ndarray:
    stored = STORED[record.storage.kind]
    held = _elements(record.storage, storages)
    count = math.prod(record.size)
    # The index of the last element; NumPy checks it again when it makes the view.
    last = record.offset + sum((n - 1) * step for n, step in zip(record.size, record.stride, strict=True))
    if count and (last >= record.storage.count or count > record.storage.count):
        raise CheckpointError(
            f"size {record.size} with strides {record.stride} from {record.offset} reaches beyond its storage of "
            f"{record.storage.count} elements (a tensor that repeats elements must be saved as .contiguous())"
        )
    try:
        if not count:
            return decode(np.zeros(record.size, stored), record.storage.kind)
        strides = [step * stored.itemsize for step in record.stride]
        view = np.ndarray(record.size, stored, held, record.offset * stored.itemsize, strides)
    except ValueError as error:
        raise CheckpointError(f"size {record.size}: {error}") from error
    return decode(view, record.storage.kind)


def _elements(storage: Storage, storages: Mapping[str, memoryview]) -> memoryview:
    """The bytes of a storage: as many as the pickle says."""
    try:
        held = storages[storage.key]
    except KeyError:
        raise CheckpointError(f"its storage {shown(storage.key)!r} is not in the file; {NOT_PLAIN}") from None
    if len(held) != storage.count * STORED[storage.kind].itemsize:
        raise CheckpointError(f"its storage holds {len(held)} bytes, expected {storage.count} elements")
    return held
