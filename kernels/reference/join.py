"""Where a residual block ends, and the shortcut that has no parameters.

    z = relu(bn(x) + residual)          ds = dz where z > 0          dresidual = ds          dx = bn's gradient, from ds

The sum passes its cotangent ds on as it is: to the batch norm, which ends the branch, and to the shortcut.
"""

import numpy as np

from tinyres.kernels.arrays import Array, Shape, array_module, channels_first
from tinyres.kernels.reference.elementwise import map_blocks, relu_backward
from tinyres.kernels.reference.mixed import mixed
from tinyres.kernels.reference.norm import batch_norm_backward, normalise, statistics


@mixed
def add_relu(x: Array, y: Array) -> Array:
    return map_blocks(lambda z, x, y: np.maximum(np.add(x, y, out=z), 0, out=z), x, y)


@mixed
def batch_norm_add_relu(
    x: Array, residual: Array, weight: Array, bias: Array, eps: float, running: tuple[Array, Array, float] | None = None
) -> tuple[Array, Array, Array]:
    mean, var = statistics(x, running)
    return normalise(x, weight, bias, mean, var, eps, residual, True), mean, var


@mixed
def batch_norm_add_relu_inference(
    x: Array, residual: Array, weight: Array, bias: Array, mean: Array, var: Array, eps: float
) -> Array:
    return normalise(x, weight, bias, mean, var, eps, residual, True)


@mixed
def batch_norm_add_relu_backward(
    dz: Array, x: Array, z: Array, weight: Array, mean: Array, var: Array, eps: float, training: bool
) -> tuple[Array, Array, Array, Array]:
    ds = relu_backward(dz, z)
    return *batch_norm_backward(ds, x, None, weight, mean, var, eps, training), ds


def subsample_pad(x: Array, out_channels: int, stride: int) -> Array:
    taken = x[:, :, ::stride, ::stride].transpose(0, 2, 3, 1)
    y = array_module(x).zeros((*taken.shape[:3], out_channels), x.dtype)
    y[..., _kept(x.shape[1], out_channels)] = taken
    return channels_first(y)


def subsample_pad_backward(dy: Array, x_shape: Shape, stride: int) -> Array:
    n, c, h, w = x_shape
    dx = array_module(dy).zeros((n, h, w, c), dy.dtype)
    dx[:, ::stride, ::stride] = dy.transpose(0, 2, 3, 1)[..., _kept(c, dy.shape[1])]
    return channels_first(dx)


def _kept(channels: int, out_channels: int) -> slice:
    """Where the channels of x stand in y."""
    before = (out_channels - channels) // 2
    return slice(before, before + channels)
