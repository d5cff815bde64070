"""Where a residual block ends, and the shortcut that has no parameters.

    z = relu(bn(x) + residual)          ds = dz where z > 0          dresidual = ds          dx = bn's gradient, from ds

The sum passes its cotangent ds on as it is: to the batch norm, which ends the branch, and to the shortcut.
"""

import math

from tinyres.kernels.arrays import Array, ceil_div, channels_first, channels_last
from tinyres.kernels.numba_cuda.elementwise import map_elements, relu_backward
from tinyres.kernels.numba_cuda.norm import batch_norm_backward, pixels_of, statistics
from tinyres.kernels.numba_cuda.pool import new_maps
from tinyres.kernels.numba_cuda.runtime import BLOCK, REAL, Kernel, blocks, check, cuda, empty

Shape = tuple[int, ...]


@Kernel
def add_relu_kernel(x, y, z):
    """z = max(x + y, 0), the join that ends a residual block.  12 bytes per element; x + y and then a ReLU would move 20."""
    for i in range(cuda.grid(1), z.size, cuda.gridsize(1)):
        total = x[i] + y[i]
        z[i] = total
        if total <= 0:
            z[i] = 0


@Kernel
def normalise_add_relu_kernel(x, residual, weight, bias, mean, var, eps, z):
    """z = max(weight (x - mean) / sqrt(var + eps) + bias + residual, 0)

    One thread per element. In one pass 12 M C bytes; three passes for the three steps would move 28.
    """
    columns = x.shape[1]
    for e in range(cuda.grid(1), x.shape[0] * columns, cuda.gridsize(1)):
        row, c = e // columns, e % columns
        slope = weight[c] / REAL(math.sqrt(var[c] + REAL(eps)))
        s = (x[row, c] - mean[c]) * slope + bias[c] + residual[row, c]
        if s <= 0:
            s = REAL(0)
        z[row, c] = s


@Kernel
def subsample_kernel(x, y, before, stride):
    """y[n, i, j, before + c] = x[n, i s, j s, c], and 0 in channels that x has not.

    4 bytes per element of y, and of x as far as it is read.
    """
    rows, columns, channels = y.shape[1], y.shape[2], y.shape[3]
    for e in range(cuda.grid(1), y.shape[0] * rows * columns * channels, cuda.gridsize(1)):
        c, j, i = e % channels, e // channels % columns, e // (channels * columns) % rows
        n = e // (channels * columns * rows)
        if c >= before and c < before + x.shape[3]:
            y[n, i, j, c] = x[n, i * stride, j * stride, c - before]
        else:
            y[n, i, j, c] = 0


@Kernel
def subsample_backward_kernel(dy, dx, before, stride):
    """dx[n, h, w, c] = dy[n, h / s, w / s, before + c] where both divide, else 0."""
    height, width, channels = dx.shape[1], dx.shape[2], dx.shape[3]
    for e in range(cuda.grid(1), dx.shape[0] * height * width * channels, cuda.gridsize(1)):
        c, w, h = e % channels, e // channels % width, e // (channels * width) % height
        n = e // (channels * width * height)
        if h % stride == 0 and w % stride == 0:
            dx[n, h, w, c] = dy[n, h // stride, w // stride, before + c]
        else:
            dx[n, h, w, c] = 0


def add_relu(x: Array, y: Array) -> Array:
    return map_elements(add_relu_kernel, x, y)


def batch_norm_add_relu(
    x: Array, residual: Array, weight: Array, bias: Array, eps: float, running: tuple[Array, Array, float] | None = None
) -> tuple[Array, Array, Array]:
    check(x, residual, weight, bias)
    mean, var = statistics(x, running)
    return batch_norm_add_relu_inference(x, residual, weight, bias, mean, var, eps), mean, var


def batch_norm_add_relu_inference(
    x: Array, residual: Array, weight: Array, bias: Array, mean: Array, var: Array, eps: float
) -> Array:
    check(x, residual, weight, bias, mean, var)
    z, pixels = empty(x, *channels_last(x).shape), pixels_of(x)
    normalise_add_relu_kernel[blocks(z.size), BLOCK](
        pixels, pixels_of(residual), weight, bias, mean, var, eps, z.reshape(pixels.shape)
    )
    return channels_first(z)


def batch_norm_add_relu_backward(
    dz: Array, x: Array, z: Array, weight: Array, mean: Array, var: Array, eps: float, training: bool
) -> tuple[Array, Array, Array, Array]:
    check(dz, x, z, weight, mean, var)
    ds = relu_backward(dz, z)
    return *batch_norm_backward(ds, x, None, weight, mean, var, eps, training), ds


def subsample_pad(x: Array, out_channels: int, stride: int) -> Array:
    check(x)
    n, c, h, w = x.shape
    y = empty(x, n, ceil_div(h, stride), ceil_div(w, stride), out_channels)
    subsample_kernel[blocks(y.size), BLOCK](channels_last(x), y, (out_channels - c) // 2, stride)
    return channels_first(y)


def subsample_pad_backward(dy: Array, x_shape: Shape, stride: int) -> Array:
    check(dy)
    dx = new_maps(dy, x_shape)
    subsample_backward_kernel[blocks(dx.size), BLOCK](channels_last(dy), dx, (dy.shape[1] - x_shape[1]) // 2, stride)
    return channels_first(dx)
