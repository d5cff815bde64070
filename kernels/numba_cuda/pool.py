"""Pooling: the largest or the mean of each window, and the mean of a whole map.

One thread per element of the result, which gathers what it needs: the forward passes over a window, the backward passes over
the windows that cover a pixel. So no two threads write to one place, and a sum has one order.
"""

from tinyres.kernels.arrays import Array, Pair, channels_first, channels_last, output_size
from tinyres.kernels.numba_cuda.matmul import sum_rows
from tinyres.kernels.numba_cuda.runtime import BLOCK, REAL, Kernel, blocks, check, cuda, empty

Shape = tuple[int, ...]
INFINITY = float("inf")


@Kernel
def max_pool_kernel(x, y, index, kernel, stride, padding):
    """y = the largest of a window, index = where in the window it stood, counted row by row. NaN wins over numbers.

    The first of equals wins (> and not >=). A place beside the map never wins.  4 N H W C bytes and more read (windows
    that overlap find most in the cache), 8 N OH OW C written.
    """
    height, width, channels = x.shape[1], x.shape[2], x.shape[3]
    rows, columns = y.shape[1], y.shape[2]
    for e in range(cuda.grid(1), y.shape[0] * rows * columns * channels, cuda.gridsize(1)):
        c, j, i = e % channels, e // channels % columns, e // (channels * columns) % rows
        n = e // (channels * columns * rows)
        top, left = padding[0] - i * stride[0], padding[1] - j * stride[1]  # the first place inside the map, if not < 0
        best, place = REAL(-INFINITY), (top if top > 0 else 0) * kernel[1] + (left if left > 0 else 0)
        for a in range(kernel[0]):
            for b in range(kernel[1]):
                h, w = i * stride[0] - padding[0] + a, j * stride[1] - padding[1] + b
                if h >= 0 and h < height and w >= 0 and w < width:
                    value = x[n, h, w, c]
                    if value > best or (value != value and best == best):
                        best, place = value, a * kernel[1] + b
        y[n, i, j, c] = best
        index[n, i, j, c] = place


@Kernel
def max_pool_backward_kernel(dy, index, dx, kernel, stride, padding):
    """dx = the sum of dy over the windows whose maximum stood at this pixel."""
    height, width, channels = dx.shape[1], dx.shape[2], dx.shape[3]
    rows, columns = dy.shape[1], dy.shape[2]
    for e in range(cuda.grid(1), dx.shape[0] * height * width * channels, cuda.gridsize(1)):
        c, w, h = e % channels, e // channels % width, e // (channels * width) % height
        n = e // (channels * width * height)
        total = REAL(0)
        for a in range(kernel[0]):
            top = h + padding[0] - a  # = i s, if a window has the pixel in its row a
            if top >= 0 and top % stride[0] == 0 and top // stride[0] < rows:
                for b in range(kernel[1]):
                    left = w + padding[1] - b
                    if left >= 0 and left % stride[1] == 0 and left // stride[1] < columns:
                        i, j = top // stride[0], left // stride[1]
                        if index[n, i, j, c] == a * kernel[1] + b:
                            total += dy[n, i, j, c]
        dx[n, h, w, c] = total


@Kernel
def avg_pool_kernel(x, y, kernel, stride, padding):
    """y = the sum over a window, zero beside the map, divided by KH * KW."""
    height, width, channels = x.shape[1], x.shape[2], x.shape[3]
    rows, columns = y.shape[1], y.shape[2]
    for e in range(cuda.grid(1), y.shape[0] * rows * columns * channels, cuda.gridsize(1)):
        c, j, i = e % channels, e // channels % columns, e // (channels * columns) % rows
        n = e // (channels * columns * rows)
        total = REAL(0)
        for a in range(kernel[0]):
            for b in range(kernel[1]):
                h, w = i * stride[0] - padding[0] + a, j * stride[1] - padding[1] + b
                if h >= 0 and h < height and w >= 0 and w < width:
                    total += x[n, h, w, c]
        y[n, i, j, c] = total / REAL(kernel[0] * kernel[1])


@Kernel
def avg_pool_backward_kernel(dy, dx, kernel, stride, padding):
    """dx = the sum of dy over the windows that cover this pixel, divided by KH * KW."""
    height, width, channels = dx.shape[1], dx.shape[2], dx.shape[3]
    rows, columns = dy.shape[1], dy.shape[2]
    for e in range(cuda.grid(1), dx.shape[0] * height * width * channels, cuda.gridsize(1)):
        c, w, h = e % channels, e // channels % width, e // (channels * width) % height
        n = e // (channels * width * height)
        total = REAL(0)
        for a in range(kernel[0]):
            top = h + padding[0] - a
            if top >= 0 and top % stride[0] == 0 and top // stride[0] < rows:
                for b in range(kernel[1]):
                    left = w + padding[1] - b
                    if left >= 0 and left % stride[1] == 0 and left // stride[1] < columns:
                        total += dy[n, top // stride[0], left // stride[1], c]
        dx[n, h, w, c] = total / REAL(kernel[0] * kernel[1])


@Kernel
def spread_kernel(dy, dx):
    """dx[n, p, c] = dy[n, c] / P, to all P pixels of a map.  4 N P C bytes."""
    pixels, channels = dx.shape[1], dx.shape[2]
    for e in range(cuda.grid(1), dx.shape[0] * pixels * channels, cuda.gridsize(1)):
        n, p, c = e // (pixels * channels), e // channels % pixels, e % channels
        dx[n, p, c] = dy[n, c] / REAL(pixels)


def max_pool2d(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> tuple[Array, Array]:
    check(x)
    y = _windows(x, kernel, stride, padding)
    index = empty(y, *y.shape, dtype="i4")
    max_pool_kernel[blocks(y.size), BLOCK](channels_last(x), y, index, kernel, stride, padding)
    return channels_first(y), channels_first(index)


def max_pool2d_backward(dy: Array, index: Array, x_shape: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    check(dy)
    dx = new_maps(dy, x_shape)
    max_pool_backward_kernel[blocks(dx.size), BLOCK](channels_last(dy), channels_last(index), dx, kernel, stride, padding)
    return channels_first(dx)


def avg_pool2d(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    check(x)
    y = _windows(x, kernel, stride, padding)
    avg_pool_kernel[blocks(y.size), BLOCK](channels_last(x), y, kernel, stride, padding)
    return channels_first(y)


def avg_pool2d_backward(dy: Array, x_shape: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    check(dy)
    dx = new_maps(dy, x_shape)
    avg_pool_backward_kernel[blocks(dx.size), BLOCK](channels_last(dy), dx, kernel, stride, padding)
    return channels_first(dx)


def global_avg_pool2d(x: Array) -> Array:
    """The pixels of a map are so many rows of (N * H * W, C)."""
    check(x)
    n, c, h, w = x.shape
    return sum_rows(channels_last(x).reshape(n * h * w, c), h * w, h * w)[:n]


def global_avg_pool2d_backward(dy: Array, x_shape: Shape) -> Array:
    check(dy)
    n, c, h, w = x_shape
    dx = new_maps(dy, x_shape)
    spread_kernel[blocks(dx.size), BLOCK](dy, dx.reshape(n, h * w, c))
    return channels_first(dx)


def _windows(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    """An array for one number per window, (N, OH, OW, C)."""
    h, w = (output_size(x.shape[k + 2], kernel[k], stride[k], padding[k]) for k in (0, 1))
    return empty(x, x.shape[0], h, w, x.shape[1])


def new_maps(like: Array, x_shape: Shape) -> Array:
    n, c, h, w = x_shape
    return empty(like, n, h, w, c)
