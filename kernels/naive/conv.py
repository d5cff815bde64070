"""Convolution and its two gradients: one window, one multiplication.

Three lines say it all. With the window of x that output pixel (n, f, i, j) reads,

    y[n, f, i, j] = sum of w[f] * window
    dwindow += w[f] * dy[n, f, i, j]            each pixel of x collects from every window that read it
    dw[f] += window * dy[n, f, i, j]            each filter collects from every window that it was laid over

Forward, window and filter are multiplied; so backward, each of the two receives the cotangent times the other.
"""

from collections.abc import Iterator

import numpy as np

from tinyres.kernels.arrays import Array, Pair, Shape
from tinyres.kernels.naive.windows import crop, output_size, pad, windows


def conv2d(x: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Array:
    """y[n, f, i, j] = sum over c, a, b of w[f, c, a, b] x[n, c, i s - p + a d, j s - p + b d]"""
    padded = pad(x, padding)
    y = np.empty((len(x), len(w), *output_size(padded, w.shape[2:], stride, dilation)), x.dtype)
    for n, f, i, j, window in _output_pixels(padded, w.shape, stride, dilation, groups):
        y[n, f, i, j] = (w[f] * window).sum()
    return y


def conv2d_backward_input(
    dy: Array, w: Array, x_shape: Shape, stride: Pair, padding: Pair, dilation: Pair, groups: int, total: Array | None = None
) -> Array:
    """dx[n, c, i s - p + a d, j s - p + b d] += w[f, c, a, b] dy[n, f, i, j]

    Windows overlap, so that a pixel receives from several; a pixel that no window read keeps 0.
    """
    dpadded = pad(np.zeros(x_shape, dy.dtype), padding)
    for n, f, i, j, dwindow in _output_pixels(dpadded, w.shape, stride, dilation, groups):
        dwindow += w[f] * dy[n, f, i, j]
    dx = crop(dpadded, padding)
    if total is None:
        return dx
    total += dx
    return total


def conv2d_backward_weight(
    dy: Array, x: Array, w_shape: Shape, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    """dw[f, c, a, b] = sum over n, i, j of dy[n, f, i, j] x[n, c, i s - p + a d, j s - p + b d]"""
    dw = np.zeros(w_shape, dy.dtype)
    for n, f, i, j, window in _output_pixels(pad(x, padding), w_shape, stride, dilation, groups):
        dw[f] += window * dy[n, f, i, j]
    return dw


def _output_pixels(
    padded: Array, w_shape: Shape, stride: Pair, dilation: Pair, groups: int
) -> Iterator[tuple[int, int, int, int, Array]]:
    """Every output pixel (n, f, i, j), and the window (C / groups, KH, KW) of image n that filter f reads for it.

    The channels and the filters are split into ``groups`` equal parts; filter f reads the channels of its own part.
    """
    filters, channels, *kernel = w_shape
    for n in range(len(padded)):
        for f in range(filters):
            group = f // (filters // groups)
            image = padded[n, group * channels : (group + 1) * channels]
            for i, j, window in windows(image, (kernel[0], kernel[1]), stride, dilation):
                yield n, f, i, j, window
