"""Another dtype, another device: the same numbers, as far as the dtype goes."""

from typing import Any

from tinyres.autograd import Function
from tinyres.device import device_of, move


class Cast(Function):
    """y = x in another floating-point dtype.   dx = dy in that of x.

    To 16 bits, x is rounded, and what is too large becomes an infinity: the reason for scaling the loss.
    """

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: Any, *, dtype: Any) -> Any:
        ctx.dtype = x.dtype
        return ctx.kernels.cast(x, dtype)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        return ctx.kernels.cast(dy, ctx.dtype)


class Move(Function):
    """y = x on another device.   dx = dy on that of x."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: Any, *, device: str) -> Any:
        ctx.device = device_of(x)
        return move(x, device)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        return move(dy, ctx.device)
