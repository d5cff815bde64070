"""Sums and means over axes, views of the same elements in another shape, parts of an array, and margins around it."""

import math
import operator
from typing import Any

import numpy as np

from tinyres.autograd import Cotangents, Function, Node
from tinyres.kernels.arrays import Array, array_module, convert, is_floating, is_half
from tinyres.ops.check import fail


def axes_of(op: str, x: Array, dim: Any) -> tuple[int, ...]:
    """``dim`` as a tuple of axes from 0 up, each once. None are all of them."""
    try:
        dims = range(x.ndim) if dim is None else integers(dim)
    except TypeError:
        fail(op, f"dim={dim!r} must be an int, or several.", x=x)
    axes = tuple(d + x.ndim if d < 0 else d for d in dims)
    if x.ndim == 0 and len(axes) == 1 and axes[0] in (0, -1):
        return ()  # as in PyTorch, a number counts as one element of one axis here
    if any(not 0 <= d < x.ndim for d in axes) or len(set(axes)) != len(axes):
        fail(op, f"dim={dim!r} must name axes of x, each once.", x=x)
    return axes


def integers(value: Any) -> tuple[int, ...]:
    """An int, or several, as a tuple. Raises TypeError for what is none."""
    return tuple(operator.index(v) for v in ((value,) if hasattr(value, "__index__") else value))


def summed(x: Array, axes: tuple[int, ...], keepdim: bool, divisor: int | None = None) -> Array:
    """The sum over ``axes``, divided if a divisor is given. For 16 bits this is done in float32."""
    half = is_half(x.dtype)
    y = array_module(x).asarray(x.sum(axis=axes, dtype=np.float32 if half else None, keepdims=keepdim))
    y = y if divisor is None else y / divisor
    return convert(y, x.dtype) if half else y


class Sum(Function):
    """y = sum of x over the axes ``dim``, all of them where that is None or empty.   dx = dy, repeated along them."""

    @staticmethod
    def forward(ctx: Node, x: Array, *, dim: Any, keepdim: bool) -> Array:
        ctx.axes, ctx.shape = axes_of("sum", x, dim) or axes_of("sum", x, None), x.shape
        return summed(x, ctx.axes, keepdim)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        xp = array_module(dy)
        kept = tuple(1 if i in ctx.axes else k for i, k in enumerate(ctx.shape))
        return xp.broadcast_to(dy.reshape(kept), ctx.shape)


class Mean(Function):
    """y = sum of x over the axes ``dim``, divided by the number of its terms; of integers, it is float32.

    dx = dy / that number, repeated.
    """

    @staticmethod
    def forward(ctx: Node, x: Array, *, dim: Any, keepdim: bool) -> Array:
        axes = axes_of("mean", x, dim) or axes_of("mean", x, None)
        ctx.terms = math.prod(x.shape[i] for i in axes)
        ctx.axes, ctx.shape = axes, x.shape
        y = summed(x, axes, keepdim, ctx.terms)
        return y if is_floating(x.dtype) else convert(y, np.float32)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        return Sum.backward(ctx, convert(dy / ctx.terms, dy.dtype))  # (bfloat16 / int is float32 in NumPy 2.0 and 2.1)


class Reshape(Function):
    """y = the elements of x, in their order, in another shape.   dx = dy in the shape of x."""

    @staticmethod
    def forward(ctx: Node, x: Array, *, shape: Any) -> Array:
        ctx.shape = x.shape
        try:
            shape = integers(shape)
            if min(shape, default=0) >= -1:
                return x.reshape(shape)
        except TypeError:
            fail("reshape", f"the shape {shape!r} must be ints.", x=x)
        except ValueError:
            pass
        fail("reshape", f"the shape {shape} must have as many elements as x; one length may be -1.", x=x)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        return dy.reshape(ctx.shape)


class Transpose(Function):
    """y = x with its axes in the order ``dims``.   dx = dy with its axes put back."""

    @staticmethod
    def forward(ctx: Node, x: Array, *, dims: tuple[int, ...]) -> Array:
        ctx.dims = axes_of("permute", x, dims)
        if len(ctx.dims) != x.ndim:
            fail("permute", f"dims={ctx.dims} must name every axis of x once.", x=x)
        return x.transpose(ctx.dims)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        return dy.transpose([ctx.dims.index(i) for i in range(len(ctx.dims))])


class Index(Function):
    """y = x[index], as in NumPy: ints, slices, None, ``...``, arrays of ints or of bools, or several of these.

    dx = dy at the places that were read (one that was read twice adds), else 0.
    """

    fresh = True

    @staticmethod
    def forward(ctx: Node, x: Array, *, index: tuple[Any, ...]) -> Array:
        ctx.index, ctx.shape = index, x.shape
        try:
            return x[index]
        except IndexError as error:
            fail("index", f"{error}.", x=x)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        xp = array_module(dy)
        dx = xp.zeros(ctx.shape, dy.dtype)
        if any(hasattr(i, "dtype") for i in ctx.index):
            xp.add.at(dx, ctx.index, dy)
        else:
            dx[ctx.index] = dy
        return dx


class Alias(Function):
    """y = x, the same array, with a place of its own in the graph: where a module's hooks look at what passes.   dx = dy."""

    @staticmethod
    def forward(ctx: Node, x: Array) -> Array:
        return x

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        return dy


class Pad(Function):
    """y = x with a margin of ``value`` on each side of each axis.   dx = dy without it.

    ``margins`` are (before, after) for each axis.
    """

    @staticmethod
    def forward(ctx: Node, x: Array, *, margins: tuple[tuple[int, int], ...], value: float) -> Array:
        ctx.inside = tuple(slice(before, before + n) for (before, _), n in zip(margins, x.shape, strict=True))
        return array_module(x).pad(x, margins, constant_values=value)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        return dy[ctx.inside]
