"""Cross-entropy of logits and integer labels. One thread per image: it walks along its row of K logits three times, which is
little where K is 10 or 100, and needs no thread but itself.
"""

import math

from tinyres.kernels.arrays import Array
from tinyres.kernels.numba_cuda.matmul import sum_rows
from tinyres.kernels.numba_cuda.runtime import BLOCK, REAL, Kernel, blocks, check, cuda, empty
from tinyres.kernels.reference.loss import count_wrong  # noqa: F401


@Kernel
def cross_entropy_kernel(logits, labels, smoothing, losses, log_probs):
    """log p_k = x_k - max x - log sum exp(x - max x), which cannot overflow; loss = -(1 - s) log p_label - s mean log p.

    8 N K bytes (the second and third walk find the row in the cache).
    """
    classes = logits.shape[1]
    for n in range(cuda.grid(1), losses.size, cuda.gridsize(1)):
        top = logits[n, 0]
        for k in range(1, classes):
            if logits[n, k] > top or logits[n, k] != logits[n, k]:
                top = logits[n, k]
        total = REAL(0)
        for k in range(classes):
            total += REAL(math.exp(logits[n, k] - top))
        log_total = REAL(math.log(total))
        sum_log_probs = REAL(0)
        for k in range(classes):
            log_probs[n, k] = logits[n, k] - top - log_total
            sum_log_probs += log_probs[n, k]
        losses[n] = -(1 - smoothing) * log_probs[n, labels[n]]
        if smoothing > 0:  # (0 times infinity is NaN)
            losses[n] -= smoothing * sum_log_probs / classes


@Kernel
def cross_entropy_backward_kernel(dlosses, one, divisor, log_probs, labels, smoothing, dlogits):
    """dlogits[n, k] = (p_k - q_k) dloss / divisor, q = (1 - s) one_hot(label) + s / K. With ``one``, all images share
    dlosses[0]. One thread per element, 8 N K bytes.
    """
    classes = log_probs.shape[1]
    for e in range(cuda.grid(1), log_probs.shape[0] * classes, cuda.gridsize(1)):
        n, k = e // classes, e % classes
        q = smoothing / classes
        if labels[n] == k:
            q += 1 - smoothing
        d = dlosses[0] if one else dlosses[n]
        dlogits[n, k] = (math.exp(log_probs[n, k]) - q) * d / divisor


def cross_entropy(logits: Array, labels: Array, label_smoothing: float) -> tuple[Array, Array]:
    check(logits)
    losses, log_probs = empty(logits, len(logits)), empty(logits, *logits.shape)
    cross_entropy_kernel[blocks(len(losses)), BLOCK](logits, labels, label_smoothing, losses, log_probs)
    return losses, log_probs


def cross_entropy_mean(logits: Array, labels: Array, label_smoothing: float) -> tuple[Array, Array]:
    losses, log_probs = cross_entropy(logits, labels, label_smoothing)
    return sum_rows(losses.reshape(-1, 1), len(losses), len(losses)).reshape(()), log_probs


def cross_entropy_backward(dlosses: Array, log_probs: Array, labels: Array, label_smoothing: float) -> Array:
    return _backward(dlosses, False, 1, log_probs, labels, label_smoothing)


def cross_entropy_mean_backward(dloss: Array, log_probs: Array, labels: Array, label_smoothing: float) -> Array:
    return _backward(dloss.reshape(1), True, len(labels), log_probs, labels, label_smoothing)


def _backward(dlosses: Array, one: bool, divisor: int, log_probs: Array, labels: Array, smoothing: float) -> Array:
    check(dlosses, log_probs)
    dlogits = empty(log_probs, *log_probs.shape)
    cross_entropy_backward_kernel[blocks(dlogits.size), BLOCK](dlosses, one, divisor, log_probs, labels, smoothing, dlogits)
    return dlogits
