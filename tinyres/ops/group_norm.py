"""Normalisation of each example by its own mean and variance: of the last axes, or of groups of channels. Nothing depends
on the batch, so training and evaluation do the same.

With m elements to one mean, xhat = (x - mean) / sqrt(var + eps) and dxhat = weight dy:

    dx = (dxhat - mean(dxhat) - xhat mean(dxhat xhat)) / sqrt(var + eps)

which is that of batch norm, with other axes. In mixed precision x, y and dx have 16 bits, and the rest is float32.
"""

import math
from typing import Any

from tinyres.autograd import Cotangents, Function, Node
from tinyres.kernels.arrays import Array, array_module
from tinyres.ops.check import fail, mixed
from tinyres.ops.pointwise import rounded, wide


def mean(x: Array, axes: tuple[int, ...]) -> Array:
    return x.sum(axis=axes, keepdims=True) / max(math.prod(x.shape[i] for i in axes), 1)


def normalised(x: Array, axes: tuple[int, ...], eps: float) -> tuple[Array, Array]:
    """xhat and 1 / sqrt(var + eps), where var is the biased variance."""
    away = x - mean(x, axes)
    scale = 1 / array_module(x).sqrt(mean(away * away, axes) + x.dtype.type(eps))
    return away * scale, scale


def normalised_backward(dxhat: Array, xhat: Array, scale: Array, axes: tuple[int, ...]) -> Array:
    return (dxhat - mean(dxhat, axes) - xhat * mean(dxhat * xhat, axes)) * scale


class LayerNorm(Function):
    """y = weight (x - mean) / sqrt(var + eps) + bias, with mean and var (biased) over the last axes, as many as weight and
    bias have (Ba et al. 2016, arXiv 1607.06450):   (..., K, ...) * (K, ...) + (K, ...) -> (..., K, ...)

    dweight = sum of dy xhat,  dbias = sum of dy, over the axes before;  dx: see this file's head. Keeps xhat,
    1 / sqrt(var + eps) and weight.
    """

    @staticmethod
    def forward(ctx: Node, x: Array, weight: Array, bias: Array, *, eps: float) -> Array:
        if not weight.ndim or weight.shape != bias.shape or x.shape[x.ndim - min(weight.ndim, x.ndim) :] != weight.shape:
            rule = "x must end in the shape that is normalised, which is that of weight and bias."
            fail("layer_norm", rule, x=x, weight=weight, bias=bias)
        mixed("layer_norm", {"weight": weight, "bias": bias}, x=x)
        ctx.axes = tuple(range(x.ndim - weight.ndim, x.ndim))
        xhat, scale = normalised(wide(x), ctx.axes, eps)
        ctx.save(xhat, scale, weight)
        return rounded(xhat * weight + bias, x)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        (xhat, scale, weight), wide_dy = ctx.saved, wide(dy)
        before = tuple(range(dy.ndim - weight.ndim))
        dx = rounded(normalised_backward(wide_dy * weight, xhat, scale, ctx.axes), dy)
        return dx, (wide_dy * xhat).sum(axis=before), wide_dy.sum(axis=before)


class GroupNorm(Function):
    """y = weight (x - mean) / sqrt(var + eps) + bias, with mean and var (biased) of each example over each of ``num_groups``
    groups of channels, and weight and bias per channel (Wu and He 2018, arXiv 1803.08494):   (N, C, ...) -> the same

    dweight = sum of dy xhat,  dbias = sum of dy, per channel;  dx: see this file's head. Keeps xhat, 1 / sqrt(var + eps) and
    weight.
    """

    @staticmethod
    def forward(ctx: Node, x: Array, weight: Array, bias: Array, *, num_groups: int, eps: float) -> Array:
        if x.ndim < 2 or weight.shape != x.shape[1:2] or bias.shape != weight.shape:
            fail("group_norm", "x must be (N, C, ...), weight and bias (C,).", x=x, weight=weight, bias=bias)
        if num_groups < 1 or x.shape[1] % num_groups:
            fail("group_norm", f"num_groups={num_groups} must divide the channels of x, (N, C, ...).", x=x)
        mixed("group_norm", {"weight": weight, "bias": bias}, x=x)
        ctx.shape = (x.shape[0], num_groups, x.shape[1] // num_groups, *x.shape[2:])  # (N, G, C / G, ...): a view of x
        ctx.axes = tuple(range(2, len(ctx.shape)))
        xhat, scale = normalised(wide(x).reshape(ctx.shape), ctx.axes, eps)
        xhat = xhat.reshape(x.shape)
        ctx.save(xhat, scale, weight)
        return rounded(xhat * per_channel(weight, x) + per_channel(bias, x), x)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        (xhat, scale, weight), wide_dy = ctx.saved, wide(dy)
        dxhat = (wide_dy * per_channel(weight, dy)).reshape(ctx.shape)
        dx = normalised_backward(dxhat, xhat.reshape(ctx.shape), scale, ctx.axes).reshape(dy.shape)
        others = (0, *range(2, dy.ndim))
        return rounded(dx, dy), (wide_dy * xhat).sum(axis=others), wide_dy.sum(axis=others)


def per_channel(values: Any, x: Array) -> Array:
    """(C,) in the shape that broadcasts to x (N, C, ...)."""
    return values.reshape(-1, *[1] * (x.ndim - 2))
