"""Addition, subtraction, multiplication, division, powers and matrix products, with NumPy's broadcasting and PyTorch's
dtypes: beside floats, integers take the floats' dtype, and what integers divide into is float32.
"""

import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from tinyres.autograd import Cotangents, Function, Node
from tinyres.errors import ShapeError
from tinyres.kernels.arrays import Array, array_module, convert, is_floating, is_half
from tinyres.ops.check import fail
from tinyres.ops.shape import summed

Like = tuple[tuple[int, ...], Any]  # what is kept of an operand whose values backward does not need: shape and dtype


def like(a: Array) -> Like:
    return a.shape, a.dtype


def unbroadcast(da: Array, a: Like) -> Array:
    """The cotangent of an operand from that of its broadcast: what was repeated is summed, a promoted dtype returns."""
    shape, dtype = a
    if da.shape != shape:
        da = summed(da, tuple(range(da.ndim - len(shape))), False)
        da = summed(da, tuple(i for i, k in enumerate(shape) if k == 1 and da.shape[i] != 1), True)
    return da if da.dtype == dtype else convert(da, dtype)


def both(ctx: Node, da: Callable[[], Array], db: Callable[[], Array]) -> Cotangents:
    """The cotangents of two operands; that of one that needs none (a number, labels) is not computed."""
    need_a, need_b = ctx.needs_input_grad
    return da() if need_a else None, db() if need_b else None


def _check_broadcast(op: str, a: Array, b: Array) -> None:
    try:
        np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        fail(op, "the shapes must broadcast: from the right, lengths are equal or one of them is 1.", a=a, b=b)


def promote(a: Array, b: Array, to_float: bool = False) -> tuple[Array, Array]:
    """Two operands: an integer one takes the dtype of a float beside it; two become float32 if ``to_float``."""
    floats = is_floating(a.dtype), is_floating(b.dtype)
    if floats == (True, False):
        b = convert(b, a.dtype)
    elif floats == (False, True):
        a = convert(a, b.dtype)
    elif to_float and not any(floats):
        a, b = convert(a, np.float32), convert(b, np.float32)
    return a, b


class Add(Function):
    """y = a + b.   da = db = dy: the same array, lent to both."""

    @staticmethod
    def forward(ctx: Node, a: Array, b: Array) -> Array:
        _check_broadcast("add", a, b)
        a, b = promote(a, b)
        ctx.operands = like(a), like(b)
        return ctx.kernels.add(a, b) if a.shape == b.shape and a.dtype == b.dtype and is_floating(a.dtype) else a + b

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        a, b = ctx.operands
        return both(ctx, lambda: unbroadcast(dy, a), lambda: unbroadcast(dy, b))


class Sub(Function):
    """y = a - b.   da = dy,  db = -dy."""

    @staticmethod
    def forward(ctx: Node, a: Array, b: Array) -> Array:
        _check_broadcast("sub", a, b)
        a, b = promote(a, b)
        if a.dtype == b.dtype == bool:
            fail("sub", "bools have no difference; .to(int) converts, and != tells where they differ.", a=a, b=b)
        ctx.operands = like(a), like(b)
        return a - b

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        a, b = ctx.operands
        return both(ctx, lambda: unbroadcast(dy, a), lambda: unbroadcast(-dy, b))


class Mul(Function):
    """y = a b.   da = dy b,  db = dy a. Keeps a and b."""

    @staticmethod
    def forward(ctx: Node, a: Array, b: Array) -> Array:
        _check_broadcast("mul", a, b)
        a, b = promote(a, b)
        ctx.save(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        a, b = ctx.saved
        return both(ctx, lambda: unbroadcast(dy * b, like(a)), lambda: unbroadcast(dy * a, like(b)))


class Div(Function):
    """y = a / b.   da = dy / b,  db = -dy a / b / b. Keeps a and b."""

    @staticmethod
    def forward(ctx: Node, a: Array, b: Array) -> Array:
        _check_broadcast("div", a, b)
        a, b = promote(a, b, to_float=True)
        ctx.save(a, b)
        return a / b

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        a, b = ctx.saved
        # not a / (b * b), which could overflow, or divide by 0
        return both(ctx, lambda: unbroadcast(dy / b, like(a)), lambda: unbroadcast(-dy * (a / b / b), like(b)))


class Neg(Function):
    """y = -a.   da = -dy."""

    @staticmethod
    def forward(ctx: Node, a: Array) -> Array:
        if a.dtype == bool:
            fail("neg", "bools have no sign; .to(int) converts, and == False turns them round.", a=a)
        return -a

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        return -dy


class Pow(Function):
    """y = a^k for a number k.   da = k a^(k-1) dy. Keeps a."""

    @staticmethod
    def forward(ctx: Node, a: Array, *, exponent: float) -> Array:
        if not isinstance(exponent, numbers.Real):
            raise ShapeError(f"pow: the exponent must be a number, got {type(exponent).__name__}.")
        if not is_floating(a.dtype) and not isinstance(exponent, numbers.Integral):
            a = convert(a, np.float32)
        ctx.save(a)
        ctx.exponent = int(exponent) if isinstance(exponent, numbers.Integral) else float(exponent)
        return a**ctx.exponent

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        (a,), k = ctx.saved, ctx.exponent
        return dy * (k * a ** (k - 1)) if k != 0 else array_module(dy).zeros_like(dy)


class Power(Function):
    """y = a^b for two arrays.   da = b a^(b-1) dy,  db = y log(a) dy, where a^0 has no slope by a, and 0^b none by b.

    Keeps a, b and y.
    """

    @staticmethod
    def forward(ctx: Node, a: Array, b: Array) -> Array:
        _check_broadcast("pow", a, b)
        a, b = promote(a, b)
        if not is_floating(a.dtype) and (a.dtype == bool or (b < 0).any()):
            fail("pow", "integers have no power of a negative exponent, bools none at all; .float() converts.", a=a, b=b)
        y = a**b
        ctx.save(a, b, y)
        return y

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        a, b, y = ctx.saved
        xp = array_module(y)

        def db() -> Array:
            flat = (a == 0) & (b >= 0)
            return xp.where(flat, 0, y * xp.log(xp.where(flat, 1, a)))

        return both(
            ctx,
            lambda: unbroadcast(dy * xp.where(b == 0, 0, b * a ** xp.where(b == 0, 1, b - 1)), like(a)),
            lambda: unbroadcast(dy * db(), like(b)),
        )


class MatMul(Function):
    """y = a b: (..., M, K) @ (..., K, P) -> (..., M, P), leading axes broadcast, vectors as in `numpy.matmul`.

    da = dy b^T,  db = a^T dy. Keeps a and b.
    """

    @staticmethod
    def forward(ctx: Node, a: Array, b: Array) -> Array:
        if not a.ndim or not b.ndim or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
            fail("matmul", "a and b must be (..., M, K) and (..., K, P), with the same K.", a=a, b=b)
        if is_half(a.dtype) or is_half(b.dtype):
            fail("matmul", "it does not take 16 bits; .float() converts.", a=a, b=b)
        _check_broadcast("matmul", np.empty(a.shape[:-2]), np.empty(b.shape[:-2]))
        a, b = promote(a, b)
        ctx.save(a, b)
        return a @ b

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        a, b = ctx.saved
        rows = a if a.ndim > 1 else a[None]  # a vector on the left is one row, on the right one column
        columns = b if b.ndim > 1 else b[:, None]
        dy = dy if b.ndim > 1 else dy[..., None]
        dy = dy if a.ndim > 1 else dy[..., None, :]
        return both(
            ctx,
            lambda: unbroadcast(dy @ columns.swapaxes(-1, -2), like(rows)).reshape(a.shape),
            lambda: unbroadcast(rows.swapaxes(-1, -2) @ dy, like(columns)).reshape(b.shape),
        )
