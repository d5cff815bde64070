"""Operations on tensors as functions, named and called as in ``torch.nn.functional``.

    import tinyres.functional as F

Each is an operation of `tinyres.ops`, where its formula and its backward pass are. Arrays may stand for tensors.
"""

from typing import TypeAlias

import numpy as np

from tinyres import ops
from tinyres.errors import ShapeError
from tinyres.kernels.arrays import Array, array_module, is_half
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
    running_mean: TensorLike | None,
    running_var: TensorLike | None,
    weight: TensorLike | None = None,
    bias: TensorLike | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = False,
) -> Tensor:
    """x (N, C, H, W) or (N, C), normalised per channel: see `ops.BatchNorm`. With ``relu``, then max(., 0) in the same pass.

    In training the running statistics (C,) are updated in place; they may be None there.
    """
    parameters, statistics = _channel_arrays(x, running_mean, running_var, weight, bias, training)
    return ops.BatchNorm.apply(_t(x), *parameters, **statistics, training=training, momentum=momentum, eps=eps, relu=relu)


def batch_norm_add_relu(
    x: TensorLike,
    residual: TensorLike,
    running_mean: TensorLike | None,
    running_var: TensorLike | None,
    weight: TensorLike | None = None,
    bias: TensorLike | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """max(batch_norm(x) + residual, 0), the join that ends a residual block: see `ops.BatchNormAddReLU`.

    x and residual are (N, C, H, W) or (N, C). In training the running statistics (C,) are updated in place; they may be None
    there.
    """
    parameters, statistics = _channel_arrays(x, running_mean, running_var, weight, bias, training)
    return ops.BatchNormAddReLU.apply(
        _t(x), _t(residual), *parameters, **statistics, training=training, momentum=momentum, eps=eps
    )


def _channel_arrays(
    x: TensorLike,
    running_mean: TensorLike | None,
    running_var: TensorLike | None,
    weight: TensorLike | None,
    bias: TensorLike | None,
    training: bool,
) -> tuple[tuple[Tensor, Tensor], dict[str, Array]]:
    """A batch norm's weight and bias (1 and 0 unless given), and its running statistics (for nobody if there are none)."""
    if (running_mean is None) != (running_var is None) or (running_mean is None and not training):
        raise ShapeError("batch_norm: running_mean and running_var must both be given, or with training=True both be None.")
    given = [a.dtype for a in (running_mean, weight, bias) if a is not None]
    dtype = given[0] if given else np.dtype(np.float32) if is_half(x.dtype) else x.dtype
    xp, c = array_module(_array(x)), x.shape[1:2]
    zeros, ones = (lambda: xp.zeros(c, dtype)), (lambda: xp.ones(c, dtype))
    statistics = {
        "running_mean": zeros() if running_mean is None else _array(running_mean),
        "running_var": ones() if running_var is None else _array(running_var),
    }
    return (_t(ones() if weight is None else weight), _t(zeros() if bias is None else bias)), statistics


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
