"""Cross-entropy, its gradient, and the count of wrong answers: `src/loss.cu`."""

from tinyres.kernels.arrays import Array, array_module, ceil_div, name_of
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda.common import BLOCK, blocks, c_type, empty
from tinyres.kernels.cuda.launch import kernel

THREADS = 512  # as in the source
ONE_BLOCK = 1024  # rows of which one block makes the mean; more are spread over the card, at the price of a second launch
LABELS = {"int32": "int", "int64": "long long"}


def cross_entropy(logits: Array, labels: Array, label_smoothing: float) -> tuple[Array, Array]:
    macros, (logits, labels) = _arguments(logits, labels)
    n, k = logits.shape
    losses, log_probs = empty(logits, (n,)), empty(logits, (n, k))
    if n:
        run = kernel("loss", "cross_entropy", **macros)
        run(ceil_div(n * 32, BLOCK), BLOCK, logits, labels, losses, log_probs, n, k, label_smoothing)
    return losses, log_probs


def cross_entropy_mean(logits: Array, labels: Array, label_smoothing: float) -> tuple[Array, Array]:
    macros, (logits, labels) = _arguments(logits, labels)
    n, k = logits.shape
    loss = empty(logits, ())
    if n > ONE_BLOCK:
        losses, log_probs = cross_entropy(logits, labels, label_smoothing)
        kernel("loss", "mean", **macros)(1, THREADS, losses, loss, n)
        return loss, log_probs
    log_probs = empty(logits, (n, k))  # (of no rows, the mean is 0 / 0)
    run = kernel("loss", "cross_entropy_mean", **macros)
    run(1, THREADS, logits, labels, loss, log_probs, n, k, label_smoothing)
    return loss, log_probs


def cross_entropy_backward(dlosses: Array, log_probs: Array, labels: Array, label_smoothing: float) -> Array:
    return _backward(dlosses, log_probs, labels, label_smoothing, per_row=True)


def cross_entropy_mean_backward(dloss: Array, log_probs: Array, labels: Array, label_smoothing: float) -> Array:
    return _backward(dloss, log_probs, labels, label_smoothing, per_row=False)


def _backward(dloss: Array, log_probs: Array, labels: Array, label_smoothing: float, per_row: bool) -> Array:
    c_type(dloss, log_probs)
    macros, (log_probs, labels) = _arguments(log_probs, labels)
    dlogits = empty(log_probs, log_probs.shape)
    if dlogits.size:
        dloss = array_module(log_probs).ascontiguousarray(dloss)
        run = kernel("loss", "cross_entropy_backward", **macros)
        run(blocks(dlogits.size, BLOCK), BLOCK, dloss, log_probs, labels, dlogits, *dlogits.shape, per_row, label_smoothing)
    return dlogits


def count_wrong(logits: Array, labels: Array, total: Array) -> None:
    macros, (logits, labels) = _arguments(logits, labels)
    if len(logits):
        kernel("loss", "count_wrong", **macros)(1, THREADS, logits, labels, total, *logits.shape)


def _arguments(x: Array, labels: Array) -> tuple[dict[str, str], tuple[Array, Array]]:
    real = c_type(x, allowed=("float32", "float64"))
    if name_of(labels.dtype) not in LABELS:
        raise Unsupported(f"labels of {name_of(labels.dtype)}")
    if x.shape[1] == 0 or x.size >= 1 << 30:
        raise Unsupported(f"logits of shape {x.shape}")
    contiguous = array_module(x).ascontiguousarray
    return {"REAL": real, "LABEL": LABELS[labels.dtype.name]}, (contiguous(x), contiguous(labels))
