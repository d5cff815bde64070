"""Weight files as dicts from names to NumPy arrays: safetensors, PyTorch's own formats, without PyTorch, and .npz."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from tinyres.errors import CheckpointError
from tinyres.files import StrPath, open_file
from tinyres.weights.names import map_names
from tinyres.weights.npz_file import is_npz, parse_npz
from tinyres.weights.safetensors_file import parse_safetensors, save_safetensors
from tinyres.weights.torch_file import parse_torch
from tinyres.weights.torch_writer import save_torch

__all__ = ["import_weights", "load_file", "map_names", "save_safetensors", "save_torch"]


def load_file(path: StrPath) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays in a weight file and its metadata (empty for the formats that have none).

    The content decides, not the suffix: safetensors, ``np.savez``, or ``torch.save`` as a zip file or in the format before
    PyTorch 1.6, of a state dict or of a whole model.
    bfloat16 becomes float32, every other type stays. Nothing in the file is executed. Raises `CheckpointError`, with the
    path and the reason, if the file cannot be read.
    """
    try:
        with open_file(path) as file:
            begins = file.read(16)
            safetensors = begins[8:9] == b"{"  # the header, behind its length; no other format has this here
            if not safetensors and begins[:2] not in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
                raise CheckpointError(f"it begins with {begins!r}; expected a file of safetensors, torch.save or np.savez")
            size = file.seek(0, os.SEEK_END)
            if safetensors and 8 + int.from_bytes(begins[:8], "little") > size:
                raise CheckpointError("damaged safetensors file: it ends within its header")
            file.seek(0)
            data = file.read()
        if safetensors:
            return parse_safetensors(data)
        return parse_npz(data) if begins[:2] == b"PK" and is_npz(data) else parse_torch(data), {}
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    except MemoryError:
        raise CheckpointError(f"cannot read {path}: its {size:,} bytes need more memory than there is") from None


def import_weights(path: StrPath, target: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The weights in a file, in float32 and under our names, ready for a model with the names and shapes of ``target``.

    Raises `CheckpointError` as `load_file` and `map_names` do, and if a number is too large for float32.
    """
    arrays, _ = load_file(path)
    try:
        mapped = map_names(arrays, target)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    with np.errstate(over="raise"):
        for name, array in mapped.items():
            try:
                mapped[name] = array.astype(np.float32)
            except FloatingPointError:
                raise CheckpointError(f"{path}: {name} does not fit into float32") from None
    return mapped


def __dir__() -> list[str]:
    return __all__
