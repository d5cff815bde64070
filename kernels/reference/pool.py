"""Pooling: the largest or the mean of each window, and the mean of a whole map."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tinyres.kernels.arrays import Array, Pair, Shape, array_module, channels_first, channels_last, output_size
from tinyres.kernels.reference.elementwise import select
from tinyres.kernels.reference.mixed import mixed


@mixed
def max_pool2d(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> tuple[Array, Array]:
    xp = array_module(x)
    padded = _pad(channels_last(x), padding, -np.inf)
    y: Any = None
    for tap, (ys, xs) in _taps(x.shape, kernel, stride, padding):
        value = padded[:, ys, xs]
        if y is None:
            y, index = value.copy(), xp.zeros(value.shape, np.int64)
            top, left = (xp.maximum(padding[i] - stride[i] * xp.arange(y.shape[i + 1]), 0) for i in (0, 1))
            index += (top[:, None] * kernel[1] + left)[:, :, None]  # the first place inside the image, if nothing is larger
        else:
            better = (value > y) | ((value != value) & (y == y))  # a NaN wins over a number
            xp.copyto(y, value, where=better)
            index[better] = tap
    return channels_first(y), channels_first(index)


@mixed
def max_pool2d_backward(dy: Array, index: Array, x_shape: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    dy, index = channels_last(dy), channels_last(index)
    return _scatter(dy, x_shape, kernel, stride, padding, lambda tap: select(dy, index == tap))


@mixed
def avg_pool2d(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    padded = _pad(channels_last(x), padding, 0)
    y = sum(padded[:, ys, xs] for _, (ys, xs) in _taps(x.shape, kernel, stride, padding))
    return channels_first(y / x.dtype.type(kernel[0] * kernel[1]))


@mixed
def avg_pool2d_backward(dy: Array, x_shape: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    share = channels_last(dy) / dy.dtype.type(kernel[0] * kernel[1])
    return _scatter(share, x_shape, kernel, stride, padding, lambda tap: share)


@mixed
def global_avg_pool2d(x: Array) -> Array:
    return x.mean(axis=(2, 3))


@mixed
def global_avg_pool2d_backward(dy: Array, x_shape: Shape) -> Array:
    n, c, h, w = x_shape
    dx = array_module(dy).empty((n, h, w, c), dy.dtype)
    dx[...] = (dy / dy.dtype.type(h * w))[:, None, None, :]
    return channels_first(dx)


def _pad(x: Array, padding: Pair, value: float) -> Array:
    """x (N, H, W, C) with a margin."""
    if padding == (0, 0):
        return x
    n, h, w, c = x.shape
    padded = array_module(x).full((n, h + 2 * padding[0], w + 2 * padding[1], c), value, x.dtype)
    padded[:, padding[0] : padding[0] + h, padding[1] : padding[1] + w] = x
    return padded


def _taps(x_shape: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """For each place of a window, counted row by row, the padded pixels that it reads."""
    size = [output_size(x_shape[i + 2], kernel[i], stride[i], padding[i]) for i in (0, 1)]
    reach = [
        [slice(a, a + (size[i] - 1) * stride[i] + 1, stride[i]) if size[i] else slice(0, 0) for a in range(kernel[i])]
        for i in (0, 1)
    ]
    for tap in range(kernel[0] * kernel[1]):
        yield tap, (reach[0][tap // kernel[1]], reach[1][tap % kernel[1]])


def _scatter(dy: Array, x_shape: Shape, kernel: Pair, stride: Pair, padding: Pair, share: Callable[[int], Array]) -> Array:
    """Adds ``share(tap)`` to the pixels that each tap read."""
    n, c, h, w = x_shape
    padded = array_module(dy).zeros((n, h + 2 * padding[0], w + 2 * padding[1], c), dy.dtype)
    for tap, (ys, xs) in _taps(x_shape, kernel, stride, padding):
        padded[:, ys, xs] += share(tap)
    inside = padded[:, padding[0] : padding[0] + h, padding[1] : padding[1] + w]
    return channels_first(array_module(dy).ascontiguousarray(inside))
