"""Maximum, average and global average pooling."""

from typing import Any

from tinyres.autograd import Cotangents, Function, Node
from tinyres.kernels.arrays import Array, output_size
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
