"""The rectifiers, which keep their output (where it is 0, or 6, the input did not matter), and the change of dtype."""

from typing import Any

from tinyres.autograd import Cotangents, Function, Node
from tinyres.kernels.arrays import Array


class ReLU(Function):
    """y = max(x, 0).   dx = dy where y > 0, else 0 (at x = 0 too, as everywhere in the field). Keeps y."""

    @staticmethod
    def forward(ctx: Node, x: Array) -> Array:
        return ctx.save(ctx.kernels.relu(x))

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        (y,) = ctx.saved
        return ctx.kernels.relu_backward(dy, y)


class ReLU6(Function):
    """y = min(max(x, 0), 6) (Sandler et al. 2018, arXiv 1801.04381).   dx = dy where 0 < y < 6, else 0. Keeps y."""

    @staticmethod
    def forward(ctx: Node, x: Array) -> Array:
        return ctx.save(ctx.kernels.relu6(x))

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        (y,) = ctx.saved
        return ctx.kernels.relu6_backward(dy, y)


class Cast(Function):
    """y = x in another floating-point dtype.   dx = dy in that of x.

    To 16 bits, x is rounded, and what is too large becomes an infinity: the reason for scaling the loss.
    """

    fresh = True

    @staticmethod
    def forward(ctx: Node, x: Array, *, dtype: Any) -> Array:
        ctx.dtype = x.dtype
        return ctx.kernels.cast(x, dtype)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        return ctx.kernels.cast(dy, ctx.dtype)
