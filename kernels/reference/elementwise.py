"""ReLU, ReLU6 and their gradients, each one pass over memory in blocks of images; and the sum of cotangents.

`np.maximum` keeps a NaN, so a NaN stays visible on its way through a network.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from tinyres.kernels.arrays import Array, array_module, convert, for_blocks
from tinyres.kernels.reference.mixed import mixed


@mixed
def relu(x: Array) -> Array:
    return map_blocks(lambda y, x: np.maximum(x, 0, out=y), x)


@mixed
def relu_backward(dy: Array, y: Array) -> Array:
    return map_blocks(lambda dx, dy, y: select(dy, ~(y <= 0), dx), dy, y)


@mixed
def relu6(x: Array) -> Array:
    return map_blocks(lambda y, x: np.minimum(np.maximum(x, 0, out=y), 6, out=y), x)


@mixed
def relu6_backward(dy: Array, y: Array) -> Array:
    return map_blocks(lambda dx, dy, y: select(dy, ~((y <= 0) | (y >= 6)), dx), dy, y)


def select(a: Array, mask: Array, out: Array | None = None) -> Array:
    """a where the mask is True, else 0, by a product of the bits with 1 or 0. A product of the numbers would make NaN of an
    infinity, and `np.where` takes eight times as long on a mask without a pattern.
    """
    bits = f"i{a.itemsize}"
    return np.multiply(a.view(bits), mask, out=None if out is None else out.view(bits)).view(a.dtype)


cast = convert


def add(x: Array, y: Array) -> Array:
    return array_module(x).asarray(x + y)


def accumulate(total: Array, x: Array) -> None:
    np.add(total, x, out=total)


def map_blocks(write: Callable[..., Any], *inputs: Array) -> Array:
    """A new array, laid out as the first input, that ``write(out, *inputs)`` fills block by block."""
    first = inputs[0]
    out = array_module(first).empty_like(first)
    if first.ndim == 0:
        write(out, *inputs)
    else:
        block = max(1, (1 << 16) // max(1, first[:1].size)) if isinstance(first, np.ndarray) else max(1, len(first))
        for_blocks(lambda part: write(out[part], *(a[part] for a in inputs)), len(first), block)
    return out
