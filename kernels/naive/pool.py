"""Pooling, one window at a time: who held the maximum receives it all, who was averaged receives a share."""

import numpy as np

from tinyres.kernels.arrays import Array, Pair, Shape
from tinyres.kernels.naive.windows import crop, output_size, pad, windows


def max_pool2d(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> tuple[Array, Array]:
    """y[n, c, i, j] = the maximum of its window, and which of the window's KH KW places held it: the first of equals.

    A NaN counts as the largest; the margin is never the maximum.
    """
    padded, inside = pad(x, padding), pad(np.ones((1, 1, *x.shape[2:])), padding)[0, 0]
    y = np.empty((*x.shape[:2], *output_size(padded, kernel, stride)), x.dtype)
    index = np.empty(y.shape, np.int64)
    for n, c in np.ndindex(x.shape[:2]):
        both = zip(windows(padded[n, c], kernel, stride), windows(inside, kernel, stride), strict=True)
        for (i, j, window), (_, _, real) in both:
            places = np.flatnonzero(real)
            index[n, c, i, j] = places[np.argmax(window.flat[places])]
            y[n, c, i, j] = window.flat[index[n, c, i, j]]
    return y, index


def max_pool2d_backward(dy: Array, index: Array, x_shape: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    """dx += dy[n, c, i, j] at the place that held the maximum; where windows overlap, one place may have held several."""
    dpadded = pad(np.zeros(x_shape, dy.dtype), padding)
    for n, c in np.ndindex(x_shape[:2]):
        for i, j, dwindow in windows(dpadded[n, c], kernel, stride):
            dwindow[divmod(index[n, c, i, j], kernel[1])] += dy[n, c, i, j]
    return crop(dpadded, padding)


def avg_pool2d(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    """y[n, c, i, j] = sum of its window / (KH KW), where padding counts as zeros."""
    padded = pad(x, padding)
    y = np.empty((*x.shape[:2], *output_size(padded, kernel, stride)), x.dtype)
    for n, c in np.ndindex(x.shape[:2]):
        for i, j, window in windows(padded[n, c], kernel, stride):
            y[n, c, i, j] = window.sum() / window.size
    return y


def avg_pool2d_backward(dy: Array, x_shape: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    """dx += dy[n, c, i, j] / (KH KW) at every place of the window."""
    dpadded = pad(np.zeros(x_shape, dy.dtype), padding)
    for n, c in np.ndindex(x_shape[:2]):
        for i, j, dwindow in windows(dpadded[n, c], kernel, stride):
            dwindow += dy[n, c, i, j] / dwindow.size
    return crop(dpadded, padding)


def global_avg_pool2d(x: Array) -> Array:
    """y[n, c] = sum of the map x[n, c] / (H W)"""
    y = np.empty(x.shape[:2], x.dtype)
    for n, c in np.ndindex(y.shape):
        y[n, c] = x[n, c].sum() / x[n, c].size
    return y


def global_avg_pool2d_backward(dy: Array, x_shape: Shape) -> Array:
    """dx[n, c, i, j] = dy[n, c] / (H W)"""
    dx = np.empty(x_shape, dy.dtype)
    for n, c in np.ndindex(dy.shape):
        dx[n, c] = dy[n, c] / dx[n, c].size
    return dx
