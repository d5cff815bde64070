"""Maximum, average and global average pooling."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tinyres.autograd import Cotangents, Function, Node
from tinyres.kernels.arrays import Array, array_module, ceil_div, convert, is_half, output_size
from tinyres.ops.check import fail, images, mixed, pair


def _geometry(op: str, x: Any, kernel_size: Any, stride: Any, padding: Any) -> tuple[Any, Any, Any]:
    images(op, x)
    mixed(op, {}, x=x)
    kernel = pair(op, "kernel_size", kernel_size, 1)
    stride = kernel if stride is None else pair(op, "stride", stride, 1)
    padding = pair(op, "padding", padding, 0)
    if any(2 * padding[i] > kernel[i] for i in (0, 1)):
        fail(op, f"padding={padding} must be at most half of kernel_size={kernel}.", x=x)
    if any(output_size(x.shape[i + 2], kernel[i], stride[i], padding[i]) < 1 for i in (0, 1)):
        fail(op, f"the window {kernel} is larger than the image with padding={padding}.", x=x)
    return kernel, stride, padding


class MaxPool2d(Function):
    """y = the maximum of each window.   (N, C, H, W) -> (N, C, OH, OW)

    dx: each dy goes to the element that was the maximum, the first of equals; where windows overlap they add. Keeps for
    each output which place of its window won.
    """

    @staticmethod
    def forward(ctx: Node, x: Array, *, kernel_size: Any, stride: Any = None, padding: Any = 0) -> Array:
        ctx.geometry, ctx.shape = _geometry("max_pool2d", x, kernel_size, stride, padding), x.shape
        y, index = ctx.kernels.max_pool2d(x, *ctx.geometry)
        ctx.save(index)
        return y

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        (index,) = ctx.saved
        return ctx.kernels.max_pool2d_backward(dy, index, ctx.shape, *ctx.geometry)


class AvgPool2d(Function):
    """y = the mean of each window, padding counted as zeros.   (N, C, H, W) -> (N, C, OH, OW)

    dx: each dy / (KH KW) goes to every element of its window.
    """

    @staticmethod
    def forward(ctx: Node, x: Array, *, kernel_size: Any, stride: Any = None, padding: Any = 0) -> Array:
        ctx.geometry, ctx.shape = _geometry("avg_pool2d", x, kernel_size, stride, padding), x.shape
        return ctx.kernels.avg_pool2d(x, *ctx.geometry)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        return ctx.kernels.avg_pool2d_backward(dy, ctx.shape, *ctx.geometry)


class GlobalAvgPool2d(Function):
    """y = the mean of each map.   (N, C, H, W) -> (N, C);   dx = dy / (H W), everywhere on the map."""

    @staticmethod
    def forward(ctx: Node, x: Array) -> Array:
        images("global_avg_pool2d", x)
        mixed("global_avg_pool2d", {}, x=x)
        ctx.shape = x.shape
        return ctx.kernels.global_avg_pool2d(x)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        return ctx.kernels.global_avg_pool2d_backward(dy, ctx.shape)


class AdaptiveAvgPool2d(Function):
    """y = the means of OH x OW windows that cover the map; they overlap where OH does not divide H.

    Row i of them is from floor(i H / OH) to ceil((i + 1) H / OH), columns alike.   (N, C, H, W) -> (N, C, OH, OW)
    dx: each dy, divided by the number of its window's elements, goes to all of them.
    """

    fresh = True

    @staticmethod
    def forward(ctx: Node, x: Array, *, output_size: tuple[int, int]) -> Array:
        images("adaptive_avg_pool2d", x)
        mixed("adaptive_avg_pool2d", {}, x=x)
        if not x.size:
            fail("adaptive_avg_pool2d", "x must have elements.", x=x)
        y = array_module(x).empty((*x.shape[:2], *output_size), x.dtype)
        for i, j, rows, columns in _cover(x.shape, output_size):
            window = x[:, :, rows, columns]
            y[:, :, i, j] = window.mean(axis=(2, 3), dtype=np.float32 if is_half(x.dtype) else None)
        ctx.shape = x.shape
        return y

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        dx = array_module(dy).zeros(ctx.shape, np.float32 if is_half(dy.dtype) else dy.dtype)
        for i, j, rows, columns in _cover(ctx.shape, dy.shape[2:]):
            window = dx[:, :, rows, columns]
            window += (dy[:, :, i, j] / dy.dtype.type(window.shape[2] * window.shape[3]))[:, :, None, None]
        return convert(dx, dy.dtype) if dx.dtype != dy.dtype else dx


def _cover(shape: tuple[int, ...], out: tuple[int, ...]) -> Iterator[tuple[int, int, slice, slice]]:
    """For each window of `AdaptiveAvgPool2d`, its place, its rows and its columns."""
    rows, columns = (
        [slice(i * n // k, ceil_div((i + 1) * n, k)) for i in range(k)] for n, k in zip(shape[2:], out, strict=True)
    )
    for i, j in np.ndindex(*out):
        yield i, j, rows[i], columns[j]
