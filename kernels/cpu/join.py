"""Where a residual block ends, and the shortcut that has no parameters.

    z = relu(bn(x) + residual)          ds = dz where z > 0          dresidual = ds          dx = bn's gradient, from ds

The passes over memory are those of `norm`: forward, the residual is read and the ReLU applied where the batch norm writes;
backward, ds is written where dz and z are read for the sums, and the second pass reads ds in their place.
"""

from typing import Any

from tinyres.kernels.arrays import Array, Shape, ceil_div
from tinyres.kernels.cpu import buffers, norm
from tinyres.kernels.cpu.elementwise import map_elements
from tinyres.kernels.cpu.layout import channels_last
from tinyres.kernels.cpu.runtime import CHUNK, Kernel, advance, check, numbers


def add_relu(x: Array, y: Array) -> Array:
    return map_elements(_add_relu, x, y)


def batch_norm_add_relu(
    x: Array, residual: Array, weight: Array, bias: Array, eps: float, running: tuple[Array, Array, float] | None = None
) -> tuple[Array, Array, Array]:
    return norm.forward(x, residual, weight, bias, eps, True, running)


def batch_norm_add_relu_inference(
    x: Array, residual: Array, weight: Array, bias: Array, mean: Array, var: Array, eps: float
) -> Array:
    return norm.inference(x, residual, weight, bias, mean, var, eps, True)


def batch_norm_add_relu_backward(
    dz: Array, x: Array, z: Array, weight: Array, mean: Array, var: Array, eps: float, training: bool
) -> tuple[Array, Array, Array, Array]:
    return norm.backward(dz, x, z, weight, mean, var, eps, training, True)


def subsample_pad(x: Array, out_channels: int, stride: int) -> Array:
    check(x)
    n, c, h, w = x.shape
    y = buffers.empty_activations((n, out_channels, ceil_div(h, stride), ceil_div(w, stride)), x.dtype)
    _subsample(n, [y, channels_last(x)], [h, w, c, out_channels, stride])
    return y


def subsample_pad_backward(dy: Array, x_shape: Shape, stride: int) -> Array:
    check(dy)
    n, c, h, w = x_shape
    dx = buffers.empty_activations(x_shape, dy.dtype)
    _subsample_backward(n, [dx, channels_last(dy)], [h, w, c, dy.shape[1], stride])
    return dx


@Kernel
def _add_relu(a: Any, index: int, scratch: Any) -> None:
    z, x, y, size = a[0], a[1], a[2], numbers(a)[3]
    for i in range(index * CHUNK, min((index + 1) * CHUNK, size)):
        total = x[i] + y[i]
        z[i] = 0 if total <= 0 else total


@Kernel
def _subsample(a: Any, index: int, scratch: Any) -> None:
    n = numbers(a)
    h, w, c, out_channels, stride = n[2], n[3], n[4], n[5], n[6]
    oh, ow, before = ceil_div(h, stride), ceil_div(w, stride), (out_channels - c) // 2
    for i in range(oh):
        for j in range(ow):
            y = advance(a[0], ((index * oh + i) * ow + j) * out_channels)
            x = advance(a[1], ((index * h + i * stride) * w + j * stride) * c)
            for k in range(before):
                y[k] = 0
            for k in range(c):
                y[before + k] = x[k]
            for k in range(before + c, out_channels):
                y[k] = 0


@Kernel
def _subsample_backward(a: Any, index: int, scratch: Any) -> None:
    n = numbers(a)
    h, w, c, out_channels, stride = n[2], n[3], n[4], n[5], n[6]
    oh, ow, before = ceil_div(h, stride), ceil_div(w, stride), (out_channels - c) // 2
    for i in range(h):
        for j in range(w):
            dx = advance(a[0], ((index * h + i) * w + j) * c)
            if i % stride == 0 and j % stride == 0:
                dy = advance(a[1], ((index * oh + i // stride) * ow + j // stride) * out_channels)
                for k in range(c):
                    dx[k] = dy[before + k]
            else:
                for k in range(c):
                    dx[k] = 0
