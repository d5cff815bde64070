"""Cross-entropy, row by row. Sums of exponentials and means are float64. A label outside 0 .. K - 1 makes a NaN."""

import math
from typing import Any

from numba import types

from tinyres.kernels.arrays import Array, ceil_div
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cpu import buffers
from tinyres.kernels.cpu.jobs import keep
from tinyres.kernels.cpu.layout import contiguous
from tinyres.kernels.cpu.runtime import Kernel, address, advance, check, numbers, pointer, reals

SHARE = 1 << 10  # exponentials in an index's share: some microseconds


def cross_entropy(logits: Array, labels: Array, label_smoothing: float) -> tuple[Array, Array]:
    n, k, share, labels = _prepare(labels, logits)
    losses, log_probs = buffers.empty((n,), logits.dtype), buffers.empty((n, k), logits.dtype)
    arrays, sizes = [losses, log_probs, contiguous(logits)], [n, k, share, address(labels)]
    _losses(ceil_div(n, share), arrays, sizes, [label_smoothing])
    return losses, log_probs


def cross_entropy_mean(logits: Array, labels: Array, label_smoothing: float) -> tuple[Array, Array]:
    losses, log_probs = cross_entropy(logits, labels, label_smoothing)
    mean = buffers.empty((), logits.dtype)
    _mean(1, [mean, losses], [len(losses)])
    return mean, log_probs


def cross_entropy_backward(dlosses: Array, log_probs: Array, labels: Array, label_smoothing: float) -> Array:
    return _gradient(contiguous(dlosses), 1, log_probs, labels, label_smoothing)


def cross_entropy_mean_backward(dloss: Array, log_probs: Array, labels: Array, label_smoothing: float) -> Array:
    return _gradient(dloss, 0, log_probs, labels, label_smoothing)


def count_wrong(logits: Array, labels: Array, total: Array) -> None:
    n, k, _, labels = _prepare(labels, logits)
    if total.dtype != "i4":
        raise Unsupported(f"a total of {total.dtype}")
    keep(total)
    _count_wrong(1, [contiguous(logits)], [n, k, address(labels), address(total)])


def _gradient(dlosses: Array, step: int, log_probs: Array, labels: Array, label_smoothing: float) -> Array:
    """``step``: 1 for one cotangent of each row, 0 for that of their mean."""
    n, k, share, labels = _prepare(labels, dlosses, log_probs)
    dlogits = buffers.empty((n, k), log_probs.dtype)
    arrays, sizes = [dlogits, contiguous(log_probs), dlosses], [n, k, share, address(labels), step]
    _dlogits(ceil_div(n, share), arrays, sizes, [label_smoothing])
    return dlogits


def _prepare(labels: Array, *arrays: Array) -> tuple[int, int, int, Array]:
    """Rows, columns, rows in a share, and the labels as int64."""
    check(*arrays)
    n, k = arrays[-1].shape
    if n * k == 0:
        raise Unsupported("an empty array")
    labels = contiguous(labels, "i8")
    keep(labels)
    return n, k, max(1, SHARE // k), labels


@Kernel
def _losses(a: Any, index: int, scratch: Any) -> None:
    n = numbers(a)
    losses, rows, k, share, labels, smoothing = a[0], n[3], n[4], n[5], pointer(n[6], types.int64), reals(a)[7]
    for row in range(index * share, min((index + 1) * share, rows)):
        log_p, x, label = advance(a[1], row * k), advance(a[2], row * k), labels[row]
        most = x[0]
        for i in range(1, k):
            most = x[i] if x[i] > most else most
        total = 0.0
        for i in range(k):
            total += math.exp(x[i] - most)  # NaN in one of them is NaN in all
        log_total, mean = math.log(total), 0.0
        for i in range(k):
            log_p[i] = (x[i] - most) - log_total
            mean += log_p[i]
        if label < 0 or label >= k:
            losses[row] = math.nan
        elif smoothing != 0:
            losses[row] = -(1 - smoothing) * log_p[label] - smoothing * (mean / k)
        else:
            losses[row] = -log_p[label]


@Kernel
def _mean(a: Any, index: int, scratch: Any) -> None:
    count, total = numbers(a)[2], 0.0
    for i in range(count):
        total += a[1][i]
    a[0][0] = total / count


@Kernel
def _dlogits(a: Any, index: int, scratch: Any) -> None:
    """(p - q) dloss, in a mean divided by the rows."""
    n = numbers(a)
    rows, k, share, labels, step, smoothing = n[3], n[4], n[5], pointer(n[6], types.int64), n[7], reals(a)[8]
    for row in range(index * share, min((index + 1) * share, rows)):
        dx, log_p = advance(a[0], row * k), advance(a[1], row * k)
        scale = a[2][row] if step else a[2][0] / rows
        for i in range(k):
            q = smoothing / k + (1 - smoothing if i == labels[row] else 0)
            dx[i] = (math.exp(log_p[i]) - q) * scale


@Kernel
def _count_wrong(a: Any, index: int, scratch: Any) -> None:
    n = numbers(a)
    rows, k, labels, total = n[1], n[2], pointer(n[3], types.int64), pointer(n[4], types.int32)
    for row in range(rows):
        x, best = advance(a[0], row * k), 0
        for i in range(1, k):
            if x[i] > x[best] or (x[i] != x[i] and x[best] == x[best]):
                best = i
        if best != labels[row]:
            total[0] += 1
