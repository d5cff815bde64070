"""Losses, and the softmax that they are made of: part of `tinyres.functional`, which has all of these."""

from typing import Any

from tinyres import ops
from tinyres.kernels.arrays import is_floating
from tinyres.ops import loss
from tinyres.ops.check import refuse
from tinyres.tensor import Tensor, TensorLike
from tinyres.tensor import array_of as _array
from tinyres.tensor import tensor_of as _t


def softmax(x: TensorLike, dim: int = -1, *, dtype: Any = None) -> Tensor:
    """y = exp(x) / sum of exp(x) along ``dim``, any shape -> the same; of x in ``dtype`` if that is given.

    Raises `ShapeError` for a ``dim`` that x does not have.
    """
    return _t(x).softmax(dim, dtype=dtype)


def log_softmax(x: TensorLike, dim: int = -1, *, dtype: Any = None) -> Tensor:
    """y = x - log(sum of exp(x)) along ``dim``, any shape -> the same; of x in ``dtype`` if that is given.

    Raises `ShapeError` for a ``dim`` that x does not have.
    """
    return _t(x).log_softmax(dim, dtype=dtype)


def mse_loss(x: TensorLike, target: TensorLike, *, reduction: str = "mean") -> Tensor:
    """loss = (x - target)^2, any shape, twice -> a number, the "mean" or the "sum" over all elements; with
    ``reduction="none"``, the same shape. Raises `ShapeError` for two shapes or another reduction.
    """
    return ops.SquaredError.apply(_t(x), _t(target), reduction=reduction)


def cross_entropy(
    logits: TensorLike,
    labels: TensorLike,
    weight: TensorLike | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """loss[n] = -log softmax(logits)[n, labels[n]], for ``logits`` (N, K) and integer ``labels`` (N,) -> a number

    that is the "mean" or "sum" over the rows; with ``reduction="none"``, (N,). With ``label_smoothing`` each class has its
    share of the label: see `ops.CrossEntropy`.

    Logits may also be (N, K, ...) with labels (N, ...), or one row (K,) with one label. Labels that are floats in the shape
    of the logits are the probabilities of all classes. ``weight`` (K,) is a factor for each class: the mean is then a
    weighted one. Rows whose label is ``ignore_index`` count for nothing. Raises `ShapeError` for shapes, labels or options
    that do not fit, `UsageError` for an ``ignore_index`` beside probabilities.
    """
    x, y = _t(logits), _array(labels)
    soft = hasattr(y, "dtype") and y.shape == x.shape and is_floating(y.dtype)
    if soft and ignore_index >= 0:
        refuse(
            "cross_entropy", "labels are probabilities here; a row of zeros counts for nothing", ignore_index=ignore_index
        )
    if weight is None and x.ndim == 2 and not soft and not loss.any_ignored(y, ignore_index):
        return ops.CrossEntropy.apply(x, labels=y, label_smoothing=label_smoothing, reduction=reduction)
    loss.check_options(label_smoothing, reduction)
    factor = None if weight is None else loss.class_weights(x.data, _array(weight))
    if soft:
        target, terms = _t(labels), x.numel() // x.shape[min(x.ndim - 1, 1)]
    else:
        hot, factor, terms = loss.one_hot(x.data, y, factor, ignore_index)
        target = Tensor(hot)
    losses = ops.SoftCrossEntropy.apply(x, target, weight=factor, label_smoothing=label_smoothing)
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.sum() / terms
