"""Convolution as a matrix product of gathered windows ("im2col", Chellapilla et al. 2006), and its two gradients.

Letters: N images, C input channels, F filters, (H, W) an input map, (OH, OW) an output map, (KH, KW) a filter's taps.
The columns of a block of images are one array of shape (N, OH, OW, KH, KW, C): the window under each output pixel. As a
matrix of N*OH*OW rows times the weights as (KH*KW*C, F), it gives the output. The columns are never kept: they are made
for a few images at a time, and made again in the weight gradient.
"""

from typing import Any

import numpy as np

from tinyres.kernels.arrays import (
    Array,
    Pair,
    Shape,
    added,
    array_module,
    ceil_div,
    channels_first,
    channels_last,
    for_blocks,
    output_size,
)
from tinyres.kernels.reference.elementwise import accumulate
from tinyres.kernels.reference.mixed import mixed

BLOCK = 1 << 22  # bytes of columns at a time: enough that calls cost little, and still within the last-level cache


@mixed
def conv2d(x: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Array:
    """y = x * w, as (N*OH*OW, KH*KW*C) @ (KH*KW*C, F) for each group of channels."""
    xp, f, size = array_module(x), w.shape[0], _output(x.shape, w.shape, stride, padding, dilation)
    x, matrices = channels_last(x), _matrices(w, groups)
    y = xp.empty((len(x), *size, f), x.dtype)

    def work(block: slice) -> None:
        for group, (cs, fs) in enumerate(_groups(x.shape[3], f, groups)):
            columns = _columns(x[block, ..., cs], w.shape[2:], size, stride, padding, dilation)
            rows = columns.reshape(-1, matrices[group].shape[0])
            if groups == 1:
                xp.matmul(rows, matrices[group], out=y[block].reshape(-1, f))
            else:
                y[block, ..., fs] = (rows @ matrices[group]).reshape(*y[block].shape[:3], -1)

    for_blocks(work, len(x), _block(xp, w.shape, size, x))
    return channels_first(y)


def conv2d_backward_input(
    dy: Array, w: Array, x_shape: Shape, stride: Pair, padding: Pair, dilation: Pair, groups: int, total: Array | None = None
) -> Array:
    return added(_conv2d_backward_input(dy, w, x_shape, stride, padding, dilation, groups), total, accumulate)


@mixed
def _conv2d_backward_input(
    dy: Array, w: Array, x_shape: Shape, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    """dx. At stride 1 it is a convolution of dy with the filters flipped and F and C exchanged. At other strides each
    row of dy @ w^T is a window's cotangent, added to the pixels that it covers ("col2im").
    """
    kernel = w.shape[2:]
    if stride == (1, 1) and all(p <= d * (k - 1) for p, d, k in zip(padding, dilation, kernel, strict=True)):
        flipped = w[:, :, ::-1, ::-1].reshape(groups, -1, *w.shape[1:]).swapaxes(1, 2)  # (G, C/G, F/G, KH, KW)
        margin = tuple(d * (k - 1) - p for p, d, k in zip(padding, dilation, kernel, strict=True))
        return conv2d(dy, flipped.reshape(-1, *flipped.shape[2:]), (1, 1), (margin[0], margin[1]), dilation, groups)

    xp, (n, c, height, width), f = array_module(dy), x_shape, w.shape[0]
    dy, matrices = channels_last(dy), _matrices(w, groups)
    size = dy.shape[1:3]
    dx = xp.empty((n, height, width, c), dy.dtype)

    def work(block: slice) -> None:
        padded = xp.zeros((len(dy[block]), height + 2 * padding[0], width + 2 * padding[1], c), dy.dtype)
        for group, (cs, fs) in enumerate(_groups(c, f, groups)):
            tap_matrices = matrices[group].reshape(*kernel, -1, f // groups)
            rows = dy[block, ..., fs].reshape(-1, f // groups)
            for (a, b), (ys, xs) in _taps(kernel, size, stride, dilation):
                padded[:, ys, xs, cs] += (rows @ tap_matrices[a, b].T).reshape(len(padded), *size, -1)
        dx[block] = padded[:, padding[0] : padding[0] + height, padding[1] : padding[1] + width]

    for_blocks(work, n, _block(xp, w.shape, size, dy))
    return channels_first(dx)


@mixed
def conv2d_backward_weight(
    dy: Array, x: Array, w_shape: Shape, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    """dw = columns^T @ dy, summed over blocks of images in their order."""
    xp, f = array_module(x), w_shape[0]
    x, dy = channels_last(x), channels_last(dy)
    size = dy.shape[1:3]

    def work(block: slice) -> Array:
        dw = xp.empty((f, *w_shape[2:], w_shape[1]), x.dtype)
        for cs, fs in _groups(x.shape[3], f, groups):
            columns = _columns(x[block, ..., cs], w_shape[2:], size, stride, padding, dilation)
            rows = columns.reshape(-1, w_shape[1] * w_shape[2] * w_shape[3])
            dw[fs] = (dy[block, ..., fs].reshape(len(rows), -1).T @ rows).reshape(-1, *dw.shape[1:])
        return dw

    parts = for_blocks(work, len(x), _block(xp, w_shape, size, x))
    return sum(parts, xp.zeros((f, *w_shape[2:], w_shape[1]), x.dtype)).transpose(0, 3, 1, 2)


def _output(x_shape: Shape, w_shape: Shape, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    h, w = (output_size(x_shape[i + 2], w_shape[i + 2], stride[i], padding[i], dilation[i]) for i in (0, 1))
    return h, w


def _block(xp: Any, w_shape: Shape, size: Pair, x: Array) -> int:
    """How many images make up BLOCK bytes of columns, at most half of them; all of them on a GPU."""
    image = size[0] * size[1] * w_shape[1] * w_shape[2] * w_shape[3] * x.dtype.itemsize
    return max(1, min(BLOCK // max(image, 1), ceil_div(len(x), 2))) if xp is np else max(1, len(x))


def _groups(c: int, f: int, groups: int) -> list[tuple[slice, slice]]:
    """The channels and the filters of each group."""
    cg, fg = c // groups, f // groups
    return [(slice(g * cg, g * cg + cg), slice(g * fg, g * fg + fg)) for g in range(groups)]


def _matrices(w: Array, groups: int) -> list[Array]:
    """The weights of each group as a (KH*KW*C/G, F/G) matrix."""
    xp, fg = array_module(w), w.shape[0] // groups
    return [xp.ascontiguousarray(w[g * fg : g * fg + fg].transpose(2, 3, 1, 0).reshape(-1, fg)) for g in range(groups)]


def _columns(x: Array, kernel: Pair, size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Array:
    """x (N, H, W, C) -> the windows (N, OH, OW, KH, KW, C): a view that repeats elements, copied into rows.

    The taps of a window's row lie side by side in memory, so that KW*C elements are copied at a time.
    """
    xp, (n, height, width, c) = array_module(x), x.shape
    if kernel == (1, 1) and stride == (1, 1) and padding == (0, 0):
        return x
    if padding != (0, 0):
        padded = xp.zeros((n, height + 2 * padding[0], width + 2 * padding[1], c), x.dtype)
        padded[:, padding[0] : padding[0] + height, padding[1] : padding[1] + width] = x
        x = padded
    s = x.strides
    windows = xp.lib.stride_tricks.as_strided(
        x, (n, *size, *kernel, c), (s[0], s[1] * stride[0], s[2] * stride[1], s[1] * dilation[0], s[2] * dilation[1], s[3])
    )
    return xp.ascontiguousarray(windows)


def _taps(kernel: Pair, size: Pair, stride: Pair, dilation: Pair) -> list[tuple[Pair, tuple[slice, slice]]]:
    """For each tap (a, b), the padded pixels that it reads."""

    def reach(tap: int, axis: int) -> slice:
        start = tap * dilation[axis]
        return slice(start, start + (size[axis] - 1) * stride[axis] + 1, stride[axis])

    return [((a, b), (reach(a, 0), reach(b, 1))) for a in range(kernel[0]) for b in range(kernel[1])]
