"""Weights in the safetensors format, through the package safetensors, which is imported when it is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import ModuleType

import numpy as np

from tinyres.errors import CheckpointError
from tinyres.files import StrPath, shown, write_atomically
from tinyres.weights.common import STORED, decode


def save_safetensors(path: StrPath, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write named arrays, of any shape and layout, and a dict of texts. The old file stays until the new one is complete.

    Raises `CheckpointError` if safetensors is not installed, the format has no such dtype (objects, complex numbers), a
    name or an entry of the metadata is not text, or the file cannot be written.
    """
    package = _safetensors()
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise CheckpointError(f"metadata {key!r} is a {type(value).__name__}: keys and values must be texts")
    ready = {}
    for name, array in arrays.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise CheckpointError(f"cannot save {name!r}: a name must be a text, and not '__metadata__'")
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise CheckpointError(f"cannot save {name!r} ({array.dtype}): elements must be plain numbers")
        # The package writes memory as it is: a transposed array would be written wrong, without an error.
        ready[name] = np.asarray(array, order="C")
    try:
        write_atomically(path, package.numpy.save(ready, dict(metadata) if metadata else None))
    except (package.SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error


def parse_safetensors(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata in the content of a safetensors file; bfloat16 becomes float32.

    Raises `CheckpointError` if safetensors is not installed, the file is damaged, or an element type is unknown.
    """
    package = _safetensors()
    try:
        tensors = package.deserialize(data)
    except package.SafetensorError as error:
        raise CheckpointError(f"damaged safetensors file: {shown(str(error))}") from error
    arrays = {}
    for name, tensor in tensors:
        kind = tensor["dtype"]
        if kind not in STORED:
            raise CheckpointError(f"tensor {shown(name)!r} has elements of type {kind}; known are {', '.join(STORED)}")
        try:
            arrays[name] = decode(np.frombuffer(tensor["data"], STORED[kind]).reshape(tensor["shape"]), kind)
        except (ValueError, OverflowError) as error:
            raise CheckpointError(f"tensor {shown(name)!r} of size {tensor['shape']}: {error}") from error
    # The package has checked the header: its length in 8 bytes, then a JSON object.
    length = int.from_bytes(data[:8], "little")
    return arrays, json.loads(data[8 : 8 + length]).get("__metadata__") or {}


def _safetensors() -> ModuleType:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise CheckpointError("this needs the package safetensors: pip install safetensors") from error
    return safetensors
