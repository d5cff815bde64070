"""Norms of each example by itself: part of `tinyres.functional`, which has them."""

from typing import Any

import numpy as np

from tinyres import ops
from tinyres.kernels.arrays import array_module, is_half
from tinyres.ops.check import fail
from tinyres.ops.shape import integers
from tinyres.tensor import Tensor, TensorLike
from tinyres.tensor import tensor_of as _t


def layer_norm(
    x: TensorLike,
    normalized_shape: int | tuple[int, ...],
    weight: TensorLike | None = None,
    bias: TensorLike | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """y = weight (x - mean) / sqrt(var + eps) + bias, (..., *normalized_shape) -> the same, each mean over the last axes,
    which have the lengths ``normalized_shape``; that is the shape of weight and bias, too: see `ops.LayerNorm`.

    Raises `ShapeError` for shapes that do not fit.
    """
    x, shape = _t(x), integers(normalized_shape)
    if x.shape[max(x.ndim - len(shape), 0) :] != shape:
        fail("layer_norm", f"x must end in normalized_shape={list(shape)}.", x=x.data)
    return ops.LayerNorm.apply(x, *_affine(x, shape, weight, bias), eps=eps)


def group_norm(
    x: TensorLike, num_groups: int, weight: TensorLike | None = None, bias: TensorLike | None = None, eps: float = 1e-5
) -> Tensor:
    """y = weight (x - mean) / sqrt(var + eps) + bias, (N, C, ...) -> the same, each mean over one of ``num_groups`` groups
    of the channels of one example; weight and bias are (C,): see `ops.GroupNorm`.

    Raises `ShapeError` for shapes that do not fit.
    """
    x = _t(x)
    return ops.GroupNorm.apply(x, *_affine(x, x.shape[1:2], weight, bias), num_groups=num_groups, eps=eps)


def _affine(x: Tensor, shape: Any, weight: TensorLike | None, bias: TensorLike | None) -> tuple[Tensor, Tensor]:
    """A norm's weight and bias: 1 and 0 unless given, in float32 beside 16 bits."""
    xp, dtype = array_module(x.data), np.dtype(np.float32) if is_half(x.dtype) else x.dtype
    return _t(xp.ones(shape, dtype) if weight is None else weight), _t(xp.zeros(shape, dtype) if bias is None else bias)
