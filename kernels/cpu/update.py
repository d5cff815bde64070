"""SGD and AdamW over all parameters at once.

The parameters are thought of as one long array, of which an index takes a share: the work is even, however uneven the
parameters are.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import types

from tinyres.kernels.arrays import Array
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cpu.runtime import CHUNK, Kernel, address, advance, check, chunks, keep, numbers, pointer
from tinyres.kernels.reference.update import unscale, update_scale  # noqa: F401  (the CPU has no 16 bits to be fast at)


def sgd(
    params: list[Array],
    grads: list[Array],
    buffers: list[Array],
    lr: Any,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    skip: Array | None = None,
) -> None:
    columns = [params, grads, buffers] if momentum else [params, grads]
    if skip is not None and skip:
        return
    for ends, table in _tables("sgd", columns):
        options = np.array([lr, momentum, weight_decay], params[0].dtype)
        keep(ends, table)
        integers = [len(params), address(ends), address(table), momentum != 0, nesterov]
        _sgd(chunks(int(ends[-1])), [options], integers)


def adamw(
    params: list[Array],
    grads: list[Array],
    means: list[Array],
    squares: list[Array],
    steps: list[int],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    beta1, beta2 = betas
    for ends, table in _tables("adamw", [params, grads, means, squares]):
        options = np.array([1 - beta1, beta2, 1 - beta2, eps, 1 - lr * weight_decay], params[0].dtype)
        corrections = np.array([(lr / (1 - beta1**t), math.sqrt(1 - beta2**t)) for t in steps], params[0].dtype)
        _adamw(chunks(int(ends[-1])), [options, corrections], [len(params), address(ends), address(table)])


def _tables(name: str, columns: list[list[Array]]) -> Iterator[tuple[Array, Array]]:
    """Where each parameter ends in the long array, and the addresses of its arrays, (columns, parameters): once, and not at
    all without parameters. What they point to stays while the caller's loop runs. The second column, the gradients, is
    only read.
    """
    params, grads, *buffers = columns
    check(*(a for column in columns for a in column))
    if any([a.shape for a in column] != [p.shape for p in params] for column in columns):
        raise ValueError(f"{name}: parameters, gradients and what goes with them must have the same shapes, one by one.")
    if not params:
        return
    written = [*params, *(a for column in buffers for a in column)]
    if not all(a.flags.c_contiguous for a in written):
        raise Unsupported("parameters that are not contiguous")
    if not all(a.flags.writeable for a in written):
        raise Unsupported("parameters that are read-only")
    columns = [params, [np.ascontiguousarray(g) for g in grads], *buffers]
    yield np.cumsum([p.size for p in params]), np.array([[address(a) for a in column] for column in columns], np.int64)


@Kernel
def _sgd(a: Any, index: int, scratch: Any) -> None:
    n = numbers(a)
    count, ends, has_momentum, nesterov = n[1], pointer(n[2], types.int64), n[4], n[5]
    params = pointer(n[3], a)
    grads, buffers = advance(params, count), advance(params, 2 * count)
    lr, momentum, weight_decay = a[0][0], a[0][1], a[0][2]
    start = 0  # of parameter k in the long array
    for k in range(count):
        p, g, v = params[k], grads[k], buffers[k]
        first, last = max(index * CHUNK, start) - start, min((index + 1) * CHUNK, ends[k]) - start
        if not has_momentum:
            for i in range(first, last):
                p[i] -= lr * (g[i] + weight_decay * p[i])
        elif nesterov:
            for i in range(first, last):
                d = g[i] + weight_decay * p[i]
                v[i] = momentum * v[i] + d
                p[i] -= lr * (d + momentum * v[i])
        else:
            for i in range(first, last):
                v[i] = momentum * v[i] + (g[i] + weight_decay * p[i])
                p[i] -= lr * v[i]
        start = ends[k]


@Kernel
def _adamw(a: Any, index: int, scratch: Any) -> None:
    n = numbers(a)
    count, ends, corrections = n[2], pointer(n[3], types.int64), a[1]
    params = pointer(n[4], a)
    grads, means, squares = advance(params, count), advance(params, 2 * count), advance(params, 3 * count)
    of_mean, beta2, of_square, eps, kept = a[0][0], a[0][1], a[0][2], a[0][3], a[0][4]
    start = 0  # of parameter k in the long array
    for k in range(count):
        p, g, m, v = params[k], grads[k], means[k], squares[k]
        rate, root = corrections[2 * k], corrections[2 * k + 1]
        for i in range(max(index * CHUNK, start) - start, min((index + 1) * CHUNK, ends[k]) - start):
            m[i] += of_mean * (g[i] - m[i])
            v[i] = beta2 * v[i] + of_square * g[i] * g[i]
            p[i] = kept * p[i] - rate * m[i] / (math.sqrt(v[i]) / root + eps)
        start = ends[k]
