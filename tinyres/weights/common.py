"""The element types of weight files."""

from __future__ import annotations

import numpy as np

# How elements are stored in the file (always little-endian), by the short names of safetensors.
STORED = {
    name: np.dtype(stored)
    for name, stored in {
        "F64": "<f8",
        "F32": "<f4",
        "F16": "<f2",
        "BF16": "<u2",  # NumPy has no bfloat16: its bits
        "I64": "<i8",
        "I32": "<i4",
        "I16": "<i2",
        "I8": "i1",
        "U64": "<u8",
        "U32": "<u4",
        "U16": "<u2",
        "U8": "u1",
        "BOOL": "u1",  # a damaged file may hold other bytes than 0 and 1
    }.items()
}


def decode(stored: np.ndarray, kind: str) -> np.ndarray:
    """A contiguous copy of ``stored``, whose elements are of ``kind``, in native byte order; bfloat16 becomes float32."""
    if kind == "BF16":
        # A bfloat16 is the upper half of the float32 of the same value.
        bits = stored.astype(np.uint32, order="C")
        bits <<= 16
        return bits.view(np.float32)
    native = np.dtype(bool) if kind == "BOOL" else stored.dtype.newbyteorder("=")
    return stored.astype(native, order="C")
