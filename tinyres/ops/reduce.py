"""Reductions that are not sums: the largest and the smallest element, and the standard deviation."""

import math
from typing import Any

import numpy as np

from tinyres.autograd import Cotangents, Function, Node
from tinyres.kernels.arrays import Array, array_module, is_floating
from tinyres.ops.check import fail
from tinyres.ops.pointwise import rounded, wide
from tinyres.ops.shape import axes_of


def extreme_axes(op: str, x: Array, dim: Any) -> tuple[int, ...]:
    """The axes of a maximum or minimum: each must hold an element."""
    axes = axes_of(op, x, dim) or axes_of(op, x, None)
    if any(x.shape[i] == 0 for i in axes):
        fail(op, "an empty axis has no largest or smallest element.", x=x)
    return axes


def extreme(ctx: Node, op: str, x: Array, dim: Any, keepdim: bool) -> Array:
    """x.max() or x.min() over the axes ``dim``; keeps x and the result."""
    ctx.axes = extreme_axes(op, x, dim)
    y = array_module(x).asarray(getattr(x, op)(axis=ctx.axes, keepdims=True))
    ctx.save(x, y)
    return y if keepdim else y.reshape([k for i, k in enumerate(x.shape) if i not in ctx.axes])


class Max(Function):
    """y = the largest element along the axes ``dim``, or of all where that is None; NaN if there is one.

    dx = dy at that element. If n elements are equal to it, each has dy / n, so that their order does not matter. Keeps x
    and y.
    """

    @staticmethod
    def forward(ctx: Node, x: Array, *, dim: Any, keepdim: bool) -> Array:
        return extreme(ctx, "max", x, dim, keepdim)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        x, y = ctx.saved
        there = (x == y) | ((x != x) & (y != y))  # a NaN is not equal to itself
        share = dy.reshape(y.shape) / there.sum(axis=ctx.axes, keepdims=True).astype(dy.dtype)
        return array_module(dy).where(there, share, 0).astype(dy.dtype)


class Min(Function):
    """y = the smallest element along the axes ``dim``, or of all where that is None; NaN if there is one.

    dx as for `Max`.
    """

    @staticmethod
    def forward(ctx: Node, x: Array, *, dim: Any, keepdim: bool) -> Array:
        return extreme(ctx, "min", x, dim, keepdim)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        return Max.backward(ctx, dy)


class AlongAxis(Function):
    """y = x at ``indices`` along the axis ``dim``, of which they have one: y[i, k] = x[i, indices[i, 0], k] for dim 1.

    dx = dy at those places, else 0.
    """

    fresh = True

    @staticmethod
    def forward(ctx: Node, x: Array, *, indices: Array, dim: int) -> Array:
        ctx.shape, ctx.indices, ctx.dim = x.shape, indices, dim
        return array_module(x).take_along_axis(x, indices, dim)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        xp = array_module(dy)
        places = xp.arange(ctx.shape[ctx.dim]).reshape([-1 if i == ctx.dim else 1 for i in range(len(ctx.shape))])
        return xp.where(places == ctx.indices, dy, 0).astype(dy.dtype)


class Std(Function):
    """y = sqrt(sum of (x - mean)^2 / (n - correction)) over the axes ``dim``, n elements each. With as many corrections as
    elements it is NaN.

    dx = dy (x - mean) / ((n - correction) y), and 0 where y is. Keeps x - mean and y.
    """

    @staticmethod
    def forward(ctx: Node, x: Array, *, dim: Any, keepdim: bool, correction: float) -> Array:
        if not is_floating(x.dtype):
            fail("std", "x must be of floats; .float() converts.", x=x)
        xp, axes = array_module(x), axes_of("std", x, dim) or axes_of("std", x, None)
        n, wx = math.prod(x.shape[i] for i in axes), wide(x)
        away = wx - wx.sum(axis=axes, keepdims=True) / max(n, 1)
        ctx.terms = max(n - correction, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            y = xp.sqrt(xp.asarray((away * away).sum(axis=axes, keepdims=True)) / wx.dtype.type(ctx.terms))
        ctx.save(away, y)
        return rounded(y if keepdim else y.reshape([k for i, k in enumerate(x.shape) if i not in axes]), x)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        away, y = ctx.saved
        xp = array_module(y)
        slope = xp.where(y == 0, 0, away / (xp.where(y == 0, 1, y) * (ctx.terms or 1)))
        return rounded(dy.reshape(y.shape) * slope, dy)
