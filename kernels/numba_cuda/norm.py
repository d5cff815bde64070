"""Batch norm (Ioffe and Szegedy 2015, arXiv 1502.03167), fused with the ReLU that may follow.

Activations are seen as a matrix x (M, C) of M = N * H * W pixels: a channel is a column. Sums over a column are taken in
pieces, many blocks at once, and then over the pieces, each time as a tree (see `matmul.sum_rows_kernel`).
"""

import math

from tinyres.kernels.arrays import Array, ceil_div, channels_first, channels_last
from tinyres.kernels.numba_cuda.matmul import COLUMNS, ROWS, sum_grid, sum_rows
from tinyres.kernels.numba_cuda.runtime import BLOCK, REAL, SIMULATED, Kernel, blocks, check, cuda, empty

PIECES = 3 if SIMULATED else 512  # into which a long column is cut


@Kernel
def sum_squares_kernel(x, mean, length, sums):
    """sums[b, c] = the sum of (x - mean)^2 over rows b * length ... (b + 1) * length - 1.  4 M C bytes.

    As a second pass over x: with sum x^2 - (sum x)^2 / m, one pass would do, and where the mean is large against the
    deviation, the difference of two large numbers would leave no digit of it.
    """
    partial = cuda.shared.array((ROWS, COLUMNS), REAL)
    rows, columns = x.shape
    y, b = cuda.threadIdx.y, cuda.blockIdx.x
    column = cuda.blockIdx.y * COLUMNS + cuda.threadIdx.x
    total = REAL(0)
    if column < columns:
        centre = mean[column]
        last = (b + 1) * length if (b + 1) * length < rows else rows
        for row in range(b * length + y, last, ROWS):
            total += (x[row, column] - centre) * (x[row, column] - centre)
    partial[y, cuda.threadIdx.x] = total
    half = ROWS // 2
    while half > 0:
        cuda.syncthreads()
        if y < half:
            partial[y, cuda.threadIdx.x] += partial[y + half, cuda.threadIdx.x]
        half //= 2
    if y == 0 and column < columns:
        sums[b, column] = partial[0, cuda.threadIdx.x]


@Kernel
def sum_gradients_kernel(dy, y, relu, x, mean, var, eps, length, sums):
    """sums[b, 0, c] = sum dz and sums[b, 1, c] = sum dz xhat over the rows of piece b, where dz = dy, but with
    ``relu`` 0 where y <= 0, and xhat = (x - mean) / sqrt(var + eps). Two trees side by side.

    12 M C bytes with a ReLU, else 8.
    """
    partial = cuda.shared.array((2, ROWS, COLUMNS), REAL)
    rows, columns = x.shape
    t, b = cuda.threadIdx.y, cuda.blockIdx.x
    column = cuda.blockIdx.y * COLUMNS + cuda.threadIdx.x
    total, total_xhat = REAL(0), REAL(0)
    if column < columns:
        centre, std = mean[column], REAL(math.sqrt(var[column] + REAL(eps)))
        last = (b + 1) * length if (b + 1) * length < rows else rows
        for row in range(b * length + t, last, ROWS):
            dz = dy[row, column]
            if relu and y[row, column] <= 0:
                dz = REAL(0)
            total += dz
            total_xhat += dz * ((x[row, column] - centre) / std)
    partial[0, t, cuda.threadIdx.x] = total
    partial[1, t, cuda.threadIdx.x] = total_xhat
    half = ROWS // 2
    while half > 0:
        cuda.syncthreads()
        if t < half:
            partial[0, t, cuda.threadIdx.x] += partial[0, t + half, cuda.threadIdx.x]
            partial[1, t, cuda.threadIdx.x] += partial[1, t + half, cuda.threadIdx.x]
        half //= 2
    if t == 0 and column < columns:
        sums[b, 0, column] = partial[0, 0, cuda.threadIdx.x]
        sums[b, 1, column] = partial[1, 0, cuda.threadIdx.x]


@Kernel
def normalise_kernel(x, weight, bias, mean, var, eps, relu, y):
    """y = weight (x - mean) / sqrt(var + eps) + bias, with ``relu`` then max(., 0).

    One thread per element. In one pass 8 M C bytes; two passes for the two steps would move 16.
    """
    columns = x.shape[1]
    for e in range(cuda.grid(1), x.shape[0] * columns, cuda.gridsize(1)):
        row, c = e // columns, e % columns
        slope = weight[c] / REAL(math.sqrt(var[c] + REAL(eps)))
        z = (x[row, c] - mean[c]) * slope + bias[c]
        if relu and z <= 0:
            z = REAL(0)
        y[row, c] = z


@Kernel
def gradient_kernel(dy, y, relu, x, weight, mean, var, eps, sums, training, dx):
    """dx = weight / sqrt(var + eps) (dz - (sum dz + xhat sum dz xhat) / m) in training, where the batch's own mean and
    variance hang on x, else weight / sqrt(var + eps) dz.  sums (2, C) holds both sums; dz as in `sum_gradients_kernel`.

    One thread per element.  12 M C bytes, and 4 more with a ReLU, for y.
    """
    rows, columns = x.shape
    for e in range(cuda.grid(1), rows * columns, cuda.gridsize(1)):
        row, c = e // columns, e % columns
        d = dy[row, c]
        if relu and y[row, c] <= 0:
            d = REAL(0)
        std = REAL(math.sqrt(var[c] + REAL(eps)))
        if training:
            xhat = (x[row, c] - mean[c]) / std
            d -= (sums[0, c] + xhat * sums[1, c]) / REAL(rows)
        dx[row, c] = weight[c] / std * d


@Kernel
def running_kernel(running_mean, running_var, mean, var, momentum, m):
    """running = (1 - momentum) running + momentum new, the new variance unbiased: var m / (m - 1).

    One thread per channel.
    """
    for c in range(cuda.grid(1), mean.size, cuda.gridsize(1)):
        running_mean[c] = (1 - momentum) * running_mean[c] + momentum * mean[c]
        running_var[c] = (1 - momentum) * running_var[c] + momentum * (var[c] * (m / (m - 1)))


def batch_norm(
    x: Array, weight: Array, bias: Array, eps: float, relu: bool, running: tuple[Array, Array, float] | None = None
) -> tuple[Array, Array, Array]:
    check(x, weight, bias)
    mean, var = statistics(x, running)
    return batch_norm_inference(x, weight, bias, mean, var, eps, relu), mean, var


def statistics(x: Array, running: tuple[Array, Array, float] | None) -> tuple[Array, Array]:
    """The mean and the biased variance of each channel; the running ones move in place."""
    check(x, *(running or ())[:2])
    pixels = pixels_of(x)
    m, c = pixels.shape
    mean = sum_rows(sum_rows(pixels, _length(m)), PIECES, m).reshape(c)
    squares = empty(pixels, ceil_div(m, _length(m)), c)
    sum_squares_kernel[sum_grid(*squares.shape)](pixels, mean, _length(m), squares)
    var = sum_rows(squares, PIECES, m).reshape(c)
    if running:
        running_kernel[blocks(c), BLOCK](running[0], running[1], mean, var, running[2], m)
    return mean, var


def batch_norm_inference(x: Array, weight: Array, bias: Array, mean: Array, var: Array, eps: float, relu: bool) -> Array:
    check(x, weight, bias, mean, var)
    y, pixels = empty(x, *channels_last(x).shape), pixels_of(x)
    normalise_kernel[blocks(y.size), BLOCK](pixels, weight, bias, mean, var, eps, relu, y.reshape(pixels.shape))
    return channels_first(y)


def batch_norm_backward(
    dy: Array, x: Array, y: Array | None, weight: Array, mean: Array, var: Array, eps: float, training: bool
) -> tuple[Array, Array, Array]:
    check(dy, x, y, weight, mean, var)
    relu, d, pixels = y is not None, pixels_of(dy), pixels_of(x)
    m, c = pixels.shape
    output = pixels if y is None else pixels_of(y)
    pieces = empty(d, max(1, ceil_div(m, _length(m))), 2, c)
    grid, block = sum_grid(len(pieces), c)
    sum_gradients_kernel[grid, block](d, output, relu, pixels, mean, var, eps, _length(m), pieces)
    sums = sum_rows(pieces.reshape(len(pieces), 2 * c), len(pieces)).reshape(2, c)
    dx = empty(d, *channels_last(x).shape)
    gradient_kernel[blocks(dx.size), BLOCK](
        d, output, relu, pixels, weight, mean, var, eps, sums, training, dx.reshape(m, c)
    )
    return channels_first(dx), sums[1], sums[0]


def pixels_of(x: Array) -> Array:
    """x (N, C, H, W) as (N * H * W, C)"""
    return channels_last(x).reshape(-1, x.shape[1])


def _length(m: int) -> int:
    """How many rows make up a piece of m."""
    return max(1, ceil_div(m, PIECES))
