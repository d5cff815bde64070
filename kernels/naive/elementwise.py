"""The rectifiers and their masks, a change of dtype, a sum, and the one in which two cotangents meet."""

import numpy as np

from tinyres.kernels.arrays import Array


def relu(x: Array) -> Array:
    """y = max(x, 0). Asked this way round, a NaN stays a NaN: it is not less than 0."""
    return np.where(x < 0, x.dtype.type(0), x)


def relu_backward(dy: Array, y: Array) -> Array:
    """dx = dy, but 0 where y <= 0: where the result was cut off, x had no influence on it, however large dy is."""
    return np.where(y <= 0, dy.dtype.type(0), dy)


def relu6(x: Array) -> Array:
    """y = min(max(x, 0), 6)"""
    return np.where(x > 6, x.dtype.type(6), relu(x))


def relu6_backward(dy: Array, y: Array) -> Array:
    """dx = dy, but 0 where y <= 0 or y >= 6."""
    return np.where((y <= 0) | (y >= 6), dy.dtype.type(0), dy)


def cast(x: Array, dtype: np.dtype) -> Array:
    """y = x in another dtype; what is too large for it becomes an infinity, without a warning."""
    with np.errstate(over="ignore"):
        return x.astype(dtype)


def add(x: Array, y: Array) -> Array:
    """x + y, element by element."""
    return x + y


def accumulate(total: Array, x: Array) -> None:
    """total += x. A value that is used twice receives a cotangent from each use; its own is their sum."""
    total += x
