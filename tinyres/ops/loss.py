"""Log-softmax, and the cross-entropy of logits with integer labels."""

from typing import Any

from tinyres.autograd import Cotangents, Function, Node
from tinyres.device import check_same_device
from tinyres.errors import ShapeError
from tinyres.kernels.arrays import Array, array_module
from tinyres.ops.check import fail, floats


class LogSoftmax(Function):
    """y = x - log(sum of exp(x)) along ``dim``, computed after subtracting the maximum, so that nothing overflows.

    dx = dy - exp(y) (sum of dy along ``dim``). Keeps y.
    """

    @staticmethod
    def forward(ctx: Node, x: Array, *, dim: int) -> Array:
        if not -x.ndim <= dim < x.ndim:
            fail("log_softmax", f"dim={dim} must be an axis of x.", x=x)
        floats("log_softmax", x=x)
        xp, ctx.dim = array_module(x), dim
        shifted = x - x.max(axis=dim, keepdims=True)
        return ctx.save(shifted - xp.log(xp.exp(shifted).sum(axis=dim, keepdims=True)))

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
        if hasattr(labels, "strides"):  # an array, where a list has no device
            check_same_device("cross_entropy", logits=logits, labels=labels)
        labels = xp.asarray(labels)
        if logits.ndim != 2 or labels.shape != logits.shape[:1]:
            fail("cross_entropy", "logits must be (N, K), labels (N,).", logits=logits, labels=labels)
        floats("cross_entropy", logits=logits)
        if labels.dtype.kind not in "iu":
            fail("cross_entropy", "labels must be integers, the class of each row.", labels=labels)
        if xp is not array_module(None) or not len(labels):
            pass  # (reading labels back from a GPU would stall it)
        elif labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise ShapeError(
                f"cross_entropy: labels must lie in 0 .. {logits.shape[1] - 1}, the columns of logits; "
                f"got {labels.min()} .. {labels.max()}."
            )
        if reduction not in ("mean", "sum", "none") or not 0 <= label_smoothing <= 1:
            raise ShapeError(
                f"cross_entropy: reduction must be mean, sum or none, and label_smoothing in 0 .. 1; "
                f"got {reduction!r} and {label_smoothing}."
            )
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
