"""The linear layer: a 1 x 1 convolution of maps of one row, each as many rows of x as one thread takes at a time.

Matrix products in float64, and empty ones, are left to NumPy's BLAS.
"""

from typing import Any

from numba import types

from tinyres.kernels import recording
from tinyres.kernels.arrays import Array
from tinyres.kernels.cpu import buffers, conv
from tinyres.kernels.cpu.layout import contiguous
from tinyres.kernels.cpu.runtime import Kernel, address, check, chunks, numbers, pointer
from tinyres.kernels.reference.linear import linear as by_numpy
from tinyres.kernels.reference.linear import linear_backward_input as input_by_numpy
from tinyres.kernels.reference.linear import linear_backward_weight as weight_by_numpy

GEOMETRY: Any = (1, 1), (0, 0), (1, 1), 1  # stride, padding, dilation, groups
ROWS = 16  # of x in a map, at least: enough to fill the registers of a convolution's inner loop


def linear(x: Array, w: Array, b: Array | None) -> Array:
    check(x, w, b)
    if _is_numpys(x, w):
        return by_numpy(x, w, b)
    y = _rows(conv.conv2d(_maps(x), w[:, :, None, None], *GEOMETRY))
    if b is not None:
        parts = chunks(y.size)
        _add_bias(parts, [y, contiguous(b)], [len(y), len(b), parts])
    return y


def linear_backward_input(dy: Array, w: Array) -> Array:
    check(dy, w)
    if _is_numpys(dy, w):
        return input_by_numpy(dy, w)
    dy = _maps(dy)
    shape = (dy.shape[0], w.shape[1], *dy.shape[2:])
    return _rows(conv.conv2d_backward_input(dy, w[:, :, None, None], shape, *GEOMETRY))


def linear_backward_weight(dy: Array, x: Array) -> Array:
    check(dy, x)
    if _is_numpys(dy, x):
        return weight_by_numpy(dy, x)
    shape = (dy.shape[1], x.shape[1])
    return conv.conv2d_backward_weight(_maps(dy), _maps(x), (*shape, 1, 1), *GEOMETRY).reshape(shape)


def linear_backward_bias(dy: Array) -> Array:
    check(dy)
    db, sums = buffers.empty((dy.shape[1],), dy.dtype), buffers.empty((dy.shape[1],), "f8")
    _sum_rows(1, [db, contiguous(dy)], [*dy.shape, address(sums)])
    return db


def _is_numpys(*arrays: Array) -> bool:
    if all(a.dtype == "f4" and a.size for a in arrays):
        return False
    recording.refuse("NumPy does its matrix products in float64, and empty ones")
    return True


def _maps(x: Array) -> Array:
    """x (N, C) as N / R maps of one row of R pixels, (N / R, C, 1, R)."""
    n, c = x.shape
    maps = next(m for m in range(max(1, n // ROWS), 0, -1) if n % m == 0)
    return contiguous(x).reshape(maps, 1, n // maps, c).transpose(0, 3, 1, 2)


def _rows(y: Array) -> Array:
    return y.transpose(0, 2, 3, 1).reshape(-1, y.shape[1])


@Kernel
def _add_bias(a: Any, index: int, scratch: Any) -> None:
    n = numbers(a)
    y, b, rows, columns = a[0], a[1], n[2], n[3]
    share = -(-rows // n[4])
    for row in range(index * share, min((index + 1) * share, rows)):
        for i in range(columns):
            y[row * columns + i] += b[i]


@Kernel
def _sum_rows(a: Any, index: int, scratch: Any) -> None:
    n = numbers(a)
    total, y, rows, columns, sums = a[0], a[1], n[2], n[3], pointer(n[4], types.float64)
    for i in range(columns):
        sums[i] = 0
    for row in range(rows):
        for i in range(columns):
            sums[i] += y[row * columns + i]
    for i in range(columns):
        total[i] = sums[i]
