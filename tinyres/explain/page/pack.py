"""Arrays as text: deflated and in base64, as a browser decodes them without a library."""

from __future__ import annotations

import base64
import zlib

import numpy as np


def text(data: bytes) -> str:
    """Deflated (zlib's format, which browsers call "deflate"), in base64."""
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")


def int8(a: np.ndarray, positive: bool = False) -> tuple[np.ndarray, float]:
    """The array in steps of its largest magnitude / 127, and that magnitude (1 if it is 0): value = step * scale / 127.

    With ``positive`` a value above 0 stays above 0, if only as one step: of an output of a ReLU, 0 says that it is closed.
    """
    scale = float(np.abs(a).max()) or 1.0
    steps = np.rint(a * (127 / scale)).astype(np.int8)
    if positive:
        steps[(a > 0) & (steps == 0)] = 1
    return steps, scale


def float32(a: np.ndarray) -> str:
    """Little endian, each number to 12 bits after the first: to 1/8192 of it."""
    bits = np.ascontiguousarray(a, "<f4").view("<u4")
    finite = np.isfinite(a)
    rounded = np.where(finite, (bits + np.uint32(1 << 10)) & np.uint32(0xFFFFF800), bits)
    return text(rounded.astype("<u4").tobytes())


def digits(value: float, count: int = 6) -> float:
    """A number for a JSON file, to ``count`` significant digits."""
    return float(f"{float(value):.{count}g}")
