"""Sums and means over axes, and views of the same elements in another shape."""

import math
from typing import Any

import numpy as np

from tinyres.autograd import Cotangents, Function, Node
from tinyres.kernels.arrays import Array, array_module, convert, is_half
from tinyres.ops.check import fail


def _axes(op: str, x: Array, dim: Any) -> tuple[int, ...]:
    """``dim`` as a tuple of axes from 0 up, each once."""
    dims = range(x.ndim) if dim is None else (dim,) if hasattr(dim, "__index__") else tuple(dim)
    axes = tuple(d + x.ndim if d < 0 else d for d in dims)
    if any(not 0 <= d < x.ndim for d in axes) or len(set(axes)) != len(axes):
        fail(op, f"dim={dim!r} must name axes of x, each once.", x=x)
    return axes


def summed(x: Array, axes: tuple[int, ...], keepdim: bool, divisor: int | None = None) -> Array:
    """The sum over ``axes``, divided if a divisor is given. For 16 bits this is done in float32."""
    half = is_half(x.dtype)
    y = array_module(x).asarray(x.sum(axis=axes, dtype=np.float32 if half else None, keepdims=keepdim))
    y = y if divisor is None else y / divisor
    return convert(y, x.dtype) if half else y


class Sum(Function):
    """y = sum of x over the axes ``dim``.   dx = dy, repeated along them."""

    @staticmethod
    def forward(ctx: Node, x: Array, *, dim: Any, keepdim: bool) -> Array:
        ctx.axes, ctx.shape = _axes("sum", x, dim), x.shape
        return summed(x, ctx.axes, keepdim)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        xp = array_module(dy)
        kept = tuple(1 if i in ctx.axes else k for i, k in enumerate(ctx.shape))
        return xp.broadcast_to(dy.reshape(kept), ctx.shape)


class Mean(Function):
    """y = sum of x over the axes ``dim``, divided by the number of its terms.   dx = dy / that number, repeated."""

    @staticmethod
    def forward(ctx: Node, x: Array, *, dim: Any, keepdim: bool) -> Array:
        axes = _axes("mean", x, dim)
        ctx.terms = math.prod(x.shape[i] for i in axes)
        ctx.axes, ctx.shape = axes, x.shape
        return summed(x, axes, keepdim, ctx.terms)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        return Sum.backward(ctx, dy / ctx.terms)


class Reshape(Function):
    """y = the elements of x, in their order, in another shape.   dx = dy in the shape of x."""

    @staticmethod
    def forward(ctx: Node, x: Array, *, shape: tuple[int, ...]) -> Array:
        ctx.shape = x.shape
        try:
            return x.reshape(shape)
        except ValueError:
            fail("reshape", f"the shape {tuple(shape)} must have as many elements as x.", x=x)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        return dy.reshape(ctx.shape)


class Transpose(Function):
    """y = x with its axes in the order ``dims``.   dx = dy with its axes put back."""

    @staticmethod
    def forward(ctx: Node, x: Array, *, dims: tuple[int, ...]) -> Array:
        ctx.dims = _axes("permute", x, dims)
        if len(ctx.dims) != x.ndim:
            fail("permute", f"dims={tuple(dims)} must name every axis of x once.", x=x)
        return x.transpose(ctx.dims)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        return dy.transpose([ctx.dims.index(i) for i in range(len(ctx.dims))])
