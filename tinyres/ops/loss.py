"""Softmax and its logarithm; the cross-entropy of logits with integer labels, or with probabilities of all classes; and the
squared error.
"""

from typing import Any

from tinyres.autograd import Cotangents, Function, Node
from tinyres.device import check_same_device
from tinyres.errors import ShapeError, UsageError
from tinyres.kernels import recording
from tinyres.kernels.arrays import Array, array_module, convert, native
from tinyres.ops.arithmetic import both, like, promote
from tinyres.ops.check import fail, floats
from tinyres.ops.pointwise import rounded, wide


def log_softmax(x: Array, dim: int) -> Array:
    if not x.size:
        return x.copy()
    xp, shifted = array_module(x), x - x.max(axis=dim, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(axis=dim, keepdims=True))


IGNORED = -100  # the label of a row that counts for nothing, unless another is named


class Softmax(Function):
    """y = exp(x) / sum of exp(x) along ``dim``, computed after subtracting the maximum, so that nothing overflows.

    dx = y (dy - sum of dy y along ``dim``). Keeps y. What has 16 bits is computed in float32 and rounded once.
    """

    @staticmethod
    def forward(ctx: Node, x: Array, *, dim: int) -> Array:
        if not -x.ndim <= dim < x.ndim:
            fail("softmax", f"dim={dim} must be an axis of x.", x=x)
        xp, ctx.dim, e = array_module(x), dim, wide(x)
        if x.size:
            e = xp.exp(e - e.max(axis=dim, keepdims=True))
        return ctx.save(rounded(e / e.sum(axis=dim, keepdims=True), x))

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        y, dy_wide = wide(ctx.saved[0]), wide(dy)
        return rounded(y * (dy_wide - (dy_wide * y).sum(axis=ctx.dim, keepdims=True)), dy)


class LogSoftmax(Function):
    """y = x - log(sum of exp(x)) along ``dim``, computed after subtracting the maximum, so that nothing overflows.

    dx = dy - exp(y) (sum of dy along ``dim``). Keeps y.
    """

    @staticmethod
    def forward(ctx: Node, x: Array, *, dim: int) -> Array:
        if not -x.ndim <= dim < x.ndim:
            fail("log_softmax", f"dim={dim} must be an axis of x.", x=x)
        floats("log_softmax", x=x)
        ctx.dim = dim
        return ctx.save(log_softmax(x, dim))

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        (y,) = ctx.saved
        return dy - array_module(y).exp(y) * dy.sum(axis=ctx.dim, keepdims=True)


class CrossEntropy(Function):
    """loss[n] = - sum over k of q[n, k] log softmax(logits)[n, k],   (N, K), labels (N,) -> (N,) or a number

    with q = (1 - label_smoothing) one_hot(labels) + label_smoothing / K (Szegedy et al. 2016, arXiv 1512.00567);
    ``reduction`` is "mean", "sum" or "none".

    dlogits = (softmax(logits) - q) dloss. Keeps log softmax(logits).
    """

    @staticmethod
    def forward(ctx: Node, logits: Array, *, labels: Any, label_smoothing: float, reduction: str) -> Array:
        xp = array_module(logits)
        if logits.ndim != 2:
            fail("cross_entropy", "logits must be (N, K), labels (N,).", logits=logits)
        labels = check_labels(logits, labels)
        check_options(label_smoothing, reduction)
        mean = reduction == "mean"
        run = ctx.kernels.cross_entropy_mean if mean else ctx.kernels.cross_entropy
        loss, log_probs = run(logits, labels, label_smoothing)
        ctx.save(log_probs, labels)
        ctx.options = (label_smoothing, mean)
        return xp.asarray(loss.sum()) if reduction == "sum" else loss

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        (log_probs, labels), (label_smoothing, mean) = ctx.saved, ctx.options
        if mean:
            return ctx.kernels.cross_entropy_mean_backward(dy, log_probs, labels, label_smoothing)
        dlosses = array_module(log_probs).broadcast_to(dy, labels.shape)
        return ctx.kernels.cross_entropy_backward(dlosses, log_probs, labels, label_smoothing)


def check_options(label_smoothing: float, reduction: str) -> None:
    if reduction not in ("mean", "sum", "none") or not 0 <= label_smoothing <= 1:
        raise ShapeError(
            f"cross_entropy: reduction must be mean, sum or none, and label_smoothing in 0 .. 1; "
            f"got {reduction!r} and {label_smoothing}."
        )


def check_labels(logits: Array, labels: Any, ignore_index: int | None = None) -> Array:
    """``labels`` as an array of ints, one for each row of logits, each a class or ``ignore_index``."""
    xp, axis = array_module(logits), min(logits.ndim - 1, 1)
    if hasattr(labels, "strides"):  # an array, where a list has no device
        check_same_device("cross_entropy", logits=logits, labels=labels)
    labels = native(xp.asarray(labels))
    if logits.ndim == 0 or labels.shape != (*logits.shape[:axis], *logits.shape[axis + 1 :]):
        rule = "logits must be (N, K), labels (N,), or with the same axes behind: (N, K, ...), (N, ...)."
        fail("cross_entropy", rule, logits=logits, labels=labels)
    floats("cross_entropy", logits=logits)
    if labels.dtype.kind not in "iu":
        fail("cross_entropy", "labels must be integers, the class of each row.", labels=labels)
    classes = labels if ignore_index is None else labels[labels != ignore_index]
    if xp is not array_module(None) or not classes.size:
        pass  # (reading labels back from a GPU would stall it)
    elif classes.min() < 0 or classes.max() >= logits.shape[axis]:
        raise ShapeError(
            f"cross_entropy: labels must lie in 0 .. {logits.shape[axis] - 1}, the columns of logits; "
            f"got {classes.min()} .. {classes.max()}."
        )
    return labels


def any_ignored(labels: Any, ignore_index: int) -> bool:
    """Whether a label may be ``ignore_index``. Of labels on a GPU that is not read back where none is asked for."""
    if array_module(labels) is not array_module(None):
        return ignore_index != IGNORED
    ignored = ignore_index in recording.plain(labels)
    if ignored:
        recording.refuse("labels are ignored, which NumPy sorts out")
    return ignored


def class_weights(logits: Array, weight: Any) -> Array:
    """``weight`` (K,) in the shape and dtype that broadcast to logits."""
    if hasattr(weight, "strides"):
        check_same_device("cross_entropy", logits=logits, weight=weight)
    weight, axis = array_module(logits).asarray(weight), min(logits.ndim - 1, 1)
    if logits.ndim == 0 or weight.shape != logits.shape[axis : axis + 1]:
        fail("cross_entropy", "weight must be (K,), one number for each class.", logits=logits, weight=weight)
    return weight.astype(logits.dtype).reshape([-1 if i == axis else 1 for i in range(logits.ndim)])


def one_hot(logits: Array, labels: Any, weight: Array | None, ignore_index: int) -> tuple[Array, Array, Any]:
    """Labels as probabilities in the shape of logits; ``weight``, which is now 0 where a row is ignored; and by how much a
    mean is divided, the sum of the labels' weights.
    """
    labels = check_labels(logits, labels, ignore_index)
    xp, axis = array_module(logits), min(logits.ndim - 1, 1)
    classes = xp.arange(logits.shape[axis]).reshape([-1 if i == axis else 1 for i in range(logits.ndim)])
    target = (classes == xp.expand_dims(labels, axis)).astype(logits.dtype)
    counts = xp.expand_dims(labels != ignore_index, axis).astype(logits.dtype)
    weight = counts if weight is None else counts * weight
    return target, weight, (target * weight).sum()


class SoftCrossEntropy(Function):
    """loss[n, ...] = - sum over k of q[n, k, ...] log softmax(logits)[n, k, ...],   (N, K, ...), twice -> (N, ...)

    with q = weight (target (1 - label_smoothing) + label_smoothing / K): ``target`` are the probabilities of the K classes,
    and ``weight``, None for 1, broadcasts to them. Where q is 0, log softmax may be minus infinity. One row (K,) gives a
    number.

    dlogits = (softmax(logits) sum over k of q - q) dloss
    dtarget = -weight (1 - label_smoothing) log softmax(logits) dloss

    Keeps log softmax(logits) and q.
    """

    @staticmethod
    def forward(ctx: Node, logits: Array, target: Array, *, weight: Array | None, label_smoothing: float) -> Array:
        floats("cross_entropy", logits=logits, labels=target)
        xp, axis, scale = array_module(logits), min(logits.ndim - 1, 1), logits.dtype.type
        q = target * scale(1 - label_smoothing) + scale(label_smoothing / max(logits.shape[axis], 1))
        q = q if weight is None else q * weight
        log_probs = log_softmax(logits, axis)
        ctx.axis, ctx.slope = axis, (1 if weight is None else weight) * scale(1 - label_smoothing)
        ctx.save(log_probs, q)
        return -(q * xp.where(q == 0, 0, log_probs)).sum(axis=axis)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        (log_probs, q), needs = ctx.saved, ctx.needs_input_grad
        xp = array_module(dy)
        dy = xp.expand_dims(dy, ctx.axis)
        total = q.sum(axis=ctx.axis, keepdims=True)  # 0 where a row counts for nothing: then it may hold anything
        dlogits = xp.where(total == 0, 0, (xp.exp(log_probs) * total - q) * dy) if needs[0] else None
        return dlogits, -ctx.slope * log_probs * dy if needs[1] else None


class SquaredError(Function):
    """y = (x - target)^2 element by element, or their mean or sum: ``reduction`` is "none", "mean" or "sum".

    dx = 2 (x - target) dy, divided by the number of elements in a mean;  dtarget = -dx. Keeps x - target.
    """

    @staticmethod
    def forward(ctx: Node, x: Array, target: Array, *, reduction: str) -> Array:
        if x.shape != target.shape:
            rule = "x and target must have one shape: broadcast, their differences would be those of other elements."
            fail("mse_loss", rule, x=x, target=target)
        if reduction not in ("mean", "sum", "none"):
            raise UsageError(f"mse_loss: reduction must be mean, sum or none, got {reduction!r}.")
        ctx.operands = like(x), like(target)
        x, target = promote(x, target, to_float=True)
        difference = ctx.save(wide(x) - wide(target))
        ctx.terms = x.size if reduction == "mean" else 1
        y = difference * difference
        return rounded(y if reduction == "none" else y.sum() / ctx.terms, x if x.dtype == target.dtype else difference)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        dx, (x, target) = wide(dy) * (2 / ctx.terms) * ctx.saved[0], ctx.operands
        return both(ctx, lambda: convert(dx, x[1]), lambda: convert(-dx, target[1]))
