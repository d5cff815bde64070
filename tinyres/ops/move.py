"""Another device: the same numbers."""

from tinyres.autograd import Cotangents, Function, Node
from tinyres.device import device_of, move
from tinyres.kernels.arrays import Array


class Move(Function):
    """y = x on another device.   dx = dy on that of x."""

    fresh = True

    @staticmethod
    def forward(ctx: Node, x: Array, *, device: str) -> Array:
        ctx.device = device_of(x)
        return move(x, device)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        return move(dy, ctx.device)
