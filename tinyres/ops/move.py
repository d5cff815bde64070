"""Another device: the same numbers."""

from typing import Any

from tinyres.autograd import Function
from tinyres.device import device_of, move


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
