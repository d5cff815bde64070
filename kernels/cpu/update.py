"""Stochastic gradient descent over all parameters at once.

The parameters are thought of as one long array, of which an index takes a share: the work is even, however uneven the
parameters are.
"""

from typing import Any

import numpy as np
from numba import types

from tinyres.kernels.arrays import Array
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cpu.runtime import CHUNK, Kernel, address, advance, check, chunks, numbers, pointer
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
    check(*params, *grads, *buffers)
    lists = [params, grads, buffers] if momentum else [params, grads]
    if any([a.shape for a in arrays] != [p.shape for p in params] for arrays in lists):
        raise ValueError("sgd: parameters, gradients and momentum buffers must have the same shapes, one by one.")
    if not params or (skip is not None and skip):
        return
    if not all(a.flags.c_contiguous for a in (*params, *buffers)):
        raise Unsupported("parameters that are not contiguous")
    if not all(a.flags.writeable for a in (*params, *buffers)):
        raise Unsupported("parameters that are read-only")
    grads = [np.ascontiguousarray(g) for g in grads]
    ends = np.cumsum([p.size for p in params])
    table = np.array([[address(a) for a in arrays] for arrays in (params, grads, buffers or params)], np.int64)
    options = np.array([lr, momentum, weight_decay], params[0].dtype)
    _sgd(chunks(int(ends[-1])), [options], [len(params), address(ends), address(table), momentum != 0, nesterov])


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
