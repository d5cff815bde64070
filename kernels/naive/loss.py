"""Cross-entropy of logits and integer labels, one row at a time.

With p = softmax(logits) and q the target, 1 - label_smoothing at the label plus label_smoothing / K everywhere,

    loss = - sum over k of q[k] log p[k]        dloss / dlogits[k] = p[k] - q[k]
"""

import math

import numpy as np

from tinyres.kernels.arrays import Array


def cross_entropy(logits: Array, labels: Array, label_smoothing: float) -> tuple[Array, Array]:
    """loss[n] = - sum over k of q[k] log p[n, k], and log p.

    log p[k] = logits[k] - log(sum over j of exp(logits[j])); the row's maximum is taken away first, which changes nothing
    but that exp cannot overflow.
    """
    losses, log_p = np.empty(len(logits), logits.dtype), np.empty(logits.shape, logits.dtype)
    for n, row in enumerate(logits):
        shifted = row - max(row)
        log_p[n] = shifted - math.log(sum(math.exp(v) for v in shifted))
        q = _target(labels[n], log_p, label_smoothing)
        losses[n] = -(q * log_p[n])[q > 0].sum()  # (0 times the infinity of an impossible class is 0)
    return losses, log_p


def cross_entropy_backward(dlosses: Array, log_probs: Array, labels: Array, label_smoothing: float) -> Array:
    """dlogits[n, k] = (p[n, k] - q[k]) dlosses[n]"""
    dlogits = np.empty(log_probs.shape, log_probs.dtype)
    for n, row in enumerate(log_probs):
        dlogits[n] = (np.exp(row) - _target(labels[n], log_probs, label_smoothing)) * dlosses[n]
    return dlogits


def cross_entropy_mean(logits: Array, labels: Array, label_smoothing: float) -> tuple[Array, Array]:
    """The sum of the losses / N, of shape (), and log p."""
    losses, log_p = cross_entropy(logits, labels, label_smoothing)
    return np.array(losses.sum() / len(losses), losses.dtype), log_p


def cross_entropy_mean_backward(dloss: Array, log_probs: Array, labels: Array, label_smoothing: float) -> Array:
    """dlogits[n, k] = (p[n, k] - q[k]) dloss / N: each row's loss has a share of 1 / N in the mean."""
    dlosses = np.full(len(labels), dloss / len(labels), log_probs.dtype)
    return cross_entropy_backward(dlosses, log_probs, labels, label_smoothing)


def count_wrong(logits: Array, labels: Array, total: Array) -> None:
    """total += the number of rows whose first maximum is not at the label; a NaN counts as the largest."""
    for row, label in zip(logits, labels, strict=True):
        if np.argmax(row) != label:
            total += 1


def _target(label: int, log_p: Array, label_smoothing: float) -> Array:
    """q (K,): the distribution that p should have."""
    q = np.full(log_p.shape[1], label_smoothing / log_p.shape[1], log_p.dtype)
    q[label] += 1 - label_smoothing
    return q
