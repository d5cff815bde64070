"""Functions of each element. What has 16 bits is computed in float32 and rounded once; integers become float32.

At the edges they do what NumPy and PyTorch do: the logarithm of 0 is minus infinity, and the square root's slope there is
infinite.
"""

from tinyres.autograd import Cotangents, Function, Node
from tinyres.kernels.arrays import Array, array_module, convert, is_floating, is_half
from tinyres.ops.check import fail


def wide(x: Array) -> Array:
    """x as it is if it is float32 or float64, else in float32."""
    return x if is_floating(x.dtype) and not is_half(x.dtype) else convert(x, "float32")


def rounded(y: Array, x: Array) -> Array:
    """y in the dtype of x, if that has 16 bits."""
    return convert(y, x.dtype) if is_half(x.dtype) else y


class Exp(Function):
    """y = exp(x).   dx = dy y. Keeps y."""

    @staticmethod
    def forward(ctx: Node, x: Array) -> Array:
        return ctx.save(rounded(array_module(x).exp(wide(x)), x))

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        return dy * ctx.saved[0]


class Log(Function):
    """y = log(x), the natural logarithm.   dx = dy / x. Keeps x."""

    @staticmethod
    def forward(ctx: Node, x: Array) -> Array:
        ctx.save(x)
        return rounded(array_module(x).log(wide(x)), x)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        return dy / ctx.saved[0]


class Sqrt(Function):
    """y = the square root of x.   dx = dy / (2 y), which is infinite at 0. Keeps y."""

    @staticmethod
    def forward(ctx: Node, x: Array) -> Array:
        return ctx.save(rounded(array_module(x).sqrt(wide(x)), x))

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        return dy / (2 * ctx.saved[0])


class Abs(Function):
    """y = |x|.   dx = dy sign(x): 0 at 0. Keeps x."""

    @staticmethod
    def forward(ctx: Node, x: Array) -> Array:
        if x.dtype == bool:
            fail("abs", "bools have no sign; .to(int) converts.", x=x)
        ctx.save(x)
        return array_module(x).abs(x)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        return dy * array_module(dy).sign(ctx.saved[0])


class Clone(Function):
    """y = a copy of x, in the same memory layout.   dx = dy."""

    @staticmethod
    def forward(ctx: Node, x: Array) -> Array:
        return array_module(x).array(x)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        return dy
