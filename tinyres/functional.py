"""Operations on tensors as functions, named and called as in ``torch.nn.functional``.

    import tinyres.functional as F

Each is an operation of `tinyres.ops`, where its formula and its backward pass are. Arrays may stand for tensors.
"""

from typing import TypeAlias

import numpy as np

from tinyres import ops
from tinyres.kernels.arrays import Array, array_module
from tinyres.random import default_generator
from tinyres.tensor import Tensor, tensor

Size = int | tuple[int, int]
TensorLike: TypeAlias = Tensor | Array  # an array may stand for a tensor


def _t(x: TensorLike) -> Tensor:
    return x if isinstance(x, Tensor) else Tensor(x) if hasattr(x, "dtype") else tensor(x)


def _array(x: TensorLike) -> Array:
    return x.data if isinstance(x, Tensor) else x


def relu(x: TensorLike) -> Tensor:
    """max(x, 0)"""
    return ops.ReLU.apply(_t(x))


def relu6(x: TensorLike) -> Tensor:
    """min(max(x, 0), 6)"""
    return ops.ReLU6.apply(_t(x))


def add_relu(x: TensorLike, y: TensorLike) -> Tensor:
    """max(x + y, 0) in one pass: the join that ends a residual block."""
    return ops.AddReLU.apply(_t(x), _t(y))


def linear(x: TensorLike, weight: TensorLike, bias: TensorLike | None = None) -> Tensor:
    """x weight^T + bias: (N, I) * (O, I) + (O,) -> (N, O)"""
    return ops.Linear.apply(_t(x), _t(weight), *([] if bias is None else [_t(bias)]))


def conv2d(
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """(N, C, H, W) * (F, C / groups, KH, KW) -> (N, F, OH, OW):  see `ops.Conv2d`."""
    inputs = [_t(x), _t(weight)] if bias is None else [_t(x), _t(weight), _t(bias)]
    return ops.Conv2d.apply(*inputs, stride=stride, padding=padding, dilation=dilation, groups=groups)


def batch_norm(
    x: TensorLike,
    running_mean: TensorLike,
    running_var: TensorLike,
    weight: TensorLike | None = None,
    bias: TensorLike | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = False,
) -> Tensor:
    """x (N, C, H, W) or (N, C), normalised per channel: see `ops.BatchNorm`. With ``relu``, then max(., 0) in the same pass.

    In training the running statistics (C,) are updated in place.
    """
    parameters = _affine(x, running_mean, weight, bias)
    statistics = {"running_mean": _array(running_mean), "running_var": _array(running_var)}
    return ops.BatchNorm.apply(_t(x), *parameters, **statistics, training=training, momentum=momentum, eps=eps, relu=relu)


def batch_norm_add_relu(
    x: TensorLike,
    residual: TensorLike,
    running_mean: TensorLike,
    running_var: TensorLike,
    weight: TensorLike | None = None,
    bias: TensorLike | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """max(batch_norm(x) + residual, 0), the join that ends a residual block: see `ops.BatchNormAddReLU`.

    x and residual are (N, C, H, W) or (N, C). In training the running statistics (C,) are updated in place.
    """
    parameters = _affine(x, running_mean, weight, bias)
    statistics = {"running_mean": _array(running_mean), "running_var": _array(running_var)}
    return ops.BatchNormAddReLU.apply(
        _t(x), _t(residual), *parameters, **statistics, training=training, momentum=momentum, eps=eps
    )


def _affine(
    x: TensorLike, running_mean: TensorLike, weight: TensorLike | None, bias: TensorLike | None
) -> tuple[Tensor, Tensor]:
    """The weight and the bias of a batch norm of x: 1 and 0 per channel unless given."""
    xp, c, dtype = array_module(_array(x)), x.shape[1:2], _array(running_mean).dtype
    return _t(xp.ones(c, dtype) if weight is None else weight), _t(xp.zeros(c, dtype) if bias is None else bias)


def max_pool2d(x: TensorLike, kernel_size: Size, stride: Size | None = None, padding: Size = 0) -> Tensor:
    """The maximum of each window; ``stride`` is ``kernel_size`` unless given."""
    return ops.MaxPool2d.apply(_t(x), kernel_size=kernel_size, stride=stride, padding=padding)


def avg_pool2d(x: TensorLike, kernel_size: Size, stride: Size | None = None, padding: Size = 0) -> Tensor:
    """The mean of each window, padding counted as zeros; ``stride`` is ``kernel_size`` unless given."""
    return ops.AvgPool2d.apply(_t(x), kernel_size=kernel_size, stride=stride, padding=padding)


def global_avg_pool2d(x: TensorLike) -> Tensor:
    """The mean of each map: (N, C, H, W) -> (N, C)"""
    return ops.GlobalAvgPool2d.apply(_t(x))


def subsample_pad(x: TensorLike, out_channels: int, stride: int = 2) -> Tensor:
    """Every ``stride``-th pixel, between zero channels: the shortcut without parameters (option A)."""
    return ops.SubsamplePad.apply(_t(x), out_channels=out_channels, stride=stride)


def dropout(x: TensorLike, p: float = 0.5, training: bool = True, generator: np.random.Generator | None = None) -> Tensor:
    """In training, each element is 0 with probability ``p`` and else divided by 1 - p; otherwise x itself."""
    return ops.Dropout.apply(_t(x), p=p, generator=generator or default_generator()) if training and p else _t(x)


def log_softmax(x: TensorLike, dim: int = -1) -> Tensor:
    """x - log(sum of exp(x)) along ``dim``"""
    return ops.LogSoftmax.apply(_t(x), dim=dim)


def cross_entropy(logits: TensorLike, labels: TensorLike, label_smoothing: float = 0.0, reduction: str = "mean") -> Tensor:
    """The cross-entropy of ``logits`` (N, K) with integer ``labels`` (N,), averaged, summed, or one per row ("none")."""
    return ops.CrossEntropy.apply(_t(logits), labels=_array(labels), label_smoothing=label_smoothing, reduction=reduction)
