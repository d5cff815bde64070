"""The join that ends a residual block, and the shortcut without parameters.

    z = relu(F(x) + shortcut(x))

Backward there is one cotangent of the sum, ds = dz where z > 0, and both addends receive it as it is: an addition hands on
what it gets. Nothing multiplies ds on its way into the shortcut; that is the whole point of a residual network.
"""

import numpy as np

from tinyres.kernels.arrays import Array, Shape
from tinyres.kernels.naive.elementwise import relu, relu_backward
from tinyres.kernels.naive.norm import batch_norm, batch_norm_backward, batch_norm_inference


def add_relu(x: Array, y: Array) -> Array:
    """z = max(x + y, 0). Backward, dx = dy = ds = dz where z > 0: the `relu_backward` of z."""
    return relu(x + y)


def batch_norm_add_relu(
    x: Array, residual: Array, weight: Array, bias: Array, eps: float, running: tuple[Array, Array, float] | None = None
) -> tuple[Array, Array, Array]:
    """z = max(batch_norm(x) + residual, 0): a block's last batch norm and its join. Also the batch's mean and variance."""
    y, mean, var = batch_norm(x, weight, bias, eps, False, running)
    return add_relu(y, residual), mean, var


def batch_norm_add_relu_inference(
    x: Array, residual: Array, weight: Array, bias: Array, mean: Array, var: Array, eps: float
) -> Array:
    """The same with statistics that are given."""
    return add_relu(batch_norm_inference(x, weight, bias, mean, var, eps, False), residual)


def batch_norm_add_relu_backward(
    dz: Array, x: Array, z: Array, weight: Array, mean: Array, var: Array, eps: float, training: bool
) -> tuple[Array, Array, Array, Array]:
    """ds = dz where z > 0, else 0. Then

        dresidual = ds                                                   as it is
        dx, dweight, dbias = what batch norm's backward makes of ds

    Returns dx, dweight, dbias, ds.
    """
    ds = relu_backward(dz, z)
    dx, dweight, dbias = batch_norm_backward(ds, x, None, weight, mean, var, eps, training)
    return dx, dweight, dbias, ds


def subsample_pad(x: Array, out_channels: int, stride: int) -> Array:
    """y[n, k + before, i, j] = x[n, k, i s, j s], and 0 in the channels before and behind those of x."""
    n, channels, h, w = x.shape
    y = np.zeros((n, out_channels, len(range(0, h, stride)), len(range(0, w, stride))), x.dtype)
    before = (out_channels - channels) // 2
    for k in range(channels):
        for i in range(y.shape[2]):
            for j in range(y.shape[3]):
                y[:, before + k, i, j] = x[:, k, i * stride, j * stride]
    return y


def subsample_pad_backward(dy: Array, x_shape: Shape, stride: int) -> Array:
    """dx[n, k, i s, j s] = dy[n, k + before, i, j], and 0 where x was not read."""
    dx = np.zeros(x_shape, dy.dtype)
    before = (dy.shape[1] - x_shape[1]) // 2
    for k in range(x_shape[1]):
        for i in range(dy.shape[2]):
            for j in range(dy.shape[3]):
                dx[:, k, i * stride, j * stride] = dy[:, before + k, i, j]
    return dx
