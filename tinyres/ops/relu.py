"""The rectifiers. Both keep their output: where it is 0, or 6, the input did not matter."""

from typing import Any

from tinyres.autograd import Function


class ReLU(Function):
    """y = max(x, 0).   dx = dy where y > 0, else 0 (at x = 0 too, as everywhere in the field). Keeps y."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return ctx.save(ctx.kernels.relu(x))

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        (y,) = ctx.saved
        return ctx.kernels.relu_backward(dy, y)


class ReLU6(Function):
    """y = min(max(x, 0), 6) (Sandler et al. 2018, arXiv 1801.04381).   dx = dy where 0 < y < 6, else 0. Keeps y."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return ctx.save(ctx.kernels.relu6(x))

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        (y,) = ctx.saved
        return ctx.kernels.relu6_backward(dy, y)
