"""NumPy's archives of arrays, ``.npz``, read without trust: no Python objects, and no more memory than the file brings."""

from __future__ import annotations

import io
import math
import warnings
import zipfile

import numpy as np
from numpy.lib import format as npy

from tinyres.errors import CheckpointError
from tinyres.files import EXPANSION, most_unpacked, shown
from tinyres.weights.torch_file import ZIP_ERRORS, read_entry

SUFFIX = ".npy"


def is_npz(data: bytes) -> bool:
    """Whether a zip archive holds arrays of NumPy, and not what ``torch.save`` writes."""
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except ZIP_ERRORS:
        return False
    return any(name.endswith(SUFFIX) for name in names) and not any(name.endswith("/data.pkl") for name in names)


def parse_npz(data: bytes) -> dict[str, np.ndarray]:
    """The arrays in ``data``, the content of a file that ``np.savez`` or ``np.savez_compressed`` wrote.

    Raises `CheckpointError` if the file is damaged, or holds anything but arrays of numbers.
    """
    archive = zipfile.ZipFile(io.BytesIO(data))
    if sum(entry.file_size for entry in archive.infolist()) > most_unpacked(len(data)):
        raise CheckpointError(f"its zip entries are more than {EXPANSION} times as large as the file: refused")
    arrays = {}
    for name in archive.namelist():
        try:
            arrays[name.removesuffix(SUFFIX)] = _array(read_entry(archive, name))
        except CheckpointError:
            raise
        except (ValueError, TypeError, SyntaxError, OverflowError, EOFError, RecursionError) as error:
            raise CheckpointError(f"array {shown(name)!r}: {shown(error)}") from error
    return arrays


def _array(content: bytes) -> np.ndarray:
    file = io.BytesIO(content)
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version[0]}.{version[1]} of the format is unknown here")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd headers
        shape, fortran, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ValueError(f"it holds {'Python objects' if dtype.hasobject else dtype}, not plain numbers")
    held = content[file.tell() :]
    if math.prod(shape) * dtype.itemsize != len(held):
        raise ValueError(f"an array of {dtype}{list(shape)} has {len(held)} bytes")
    array = np.frombuffer(held, dtype).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), order="C")
