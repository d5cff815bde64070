"""SGD and AdamW over all parameters at once.

The parameters are thought of as one long array, of which an index takes a share: the work is even, however uneven the
parameters are.
"""

import math
from typing import Any

import numpy as np
from numba import types

from tinyres.kernels import recording
from tinyres.kernels.arrays import Array
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cpu.buffers import empty
from tinyres.kernels.cpu.jobs import keep
from tinyres.kernels.cpu.layout import contiguous
from tinyres.kernels.cpu.runtime import CHUNK, Kernel, address, advance, check, chunks, numbers, pointer
from tinyres.kernels.reference.update import update_scale  # noqa: F401  (the CPU has no 16 bits to be fast at)


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
    _check("sgd", columns)
    if not params:
        return
    rate = lr if isinstance(lr, np.ndarray) else np.array(lr, params[0].dtype)
    options = np.array([momentum, weight_decay], params[0].dtype)
    ends, table = _addresses(columns)
    keep(rate, skip)
    integers = [len(params), address(ends), address(table), momentum != 0, nesterov, address(skip)]
    _sgd(chunks(int(ends[-1])), [options, rate.astype(options.dtype, copy=False)], integers)


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
    columns = [params, grads, means, squares]
    _check("adamw", columns)
    if not params:
        return
    beta1, beta2 = betas
    options = np.array([1 - beta1, beta2, 1 - beta2, eps, 1 - lr * weight_decay], params[0].dtype)
    corrections = np.array([(lr / (1 - beta1**t), math.sqrt(1 - beta2**t)) for t in steps], params[0].dtype)
    recording.refuse("AdamW counts its steps on the host")
    ends, table = _addresses(columns)
    _adamw(chunks(int(ends[-1])), [options, corrections], [len(params), address(ends), address(table)])


def unscale(grads: list[Array], scale: Array) -> Array:
    check(*grads)
    if scale.dtype != "f4":
        raise Unsupported(f"a scale of {scale.dtype}")
    found = empty((), "i4")
    if not grads:
        found[...] = 0
        return found
    if not all(g.flags.c_contiguous and g.flags.writeable for g in grads):
        raise Unsupported("gradients that are read-only or not contiguous")
    ends, table = _addresses([grads])
    parts = chunks(int(ends[-1]))
    flags = empty((parts,), grads[0].dtype)
    keep(scale)
    _unscale(parts, [flags], [len(grads), address(ends), address(table), address(scale)])
    _any(1, [flags], [parts, address(found)])
    return found


def _check(name: str, columns: list[list[Array]]) -> None:
    """Raises an error unless the parameters, gradients and what goes with them fit each other, and all but the gradients may
    be written to where they are.
    """
    params, _, *others = columns
    check(*(a for column in columns for a in column))
    if any([a.shape for a in column] != [p.shape for p in params] for column in columns):
        raise ValueError(f"{name}: parameters, gradients and what goes with them must have the same shapes, one by one.")
    written = [*params, *(a for column in others for a in column)]
    if not all(a.flags.c_contiguous for a in written):
        raise Unsupported("parameters that are not contiguous")
    if not all(a.flags.writeable for a in written):
        raise Unsupported("parameters that are read-only")


def _addresses(columns: list[list[Array]]) -> tuple[Array, Array]:
    """Where each parameter ends in the long array, and the addresses of its arrays, (columns, parameters)."""
    columns = [[contiguous(a) for a in column] for column in columns]
    ends = np.cumsum([a.size for a in columns[0]])
    table = np.array([[address(a) for a in column] for column in columns], np.int64)
    keep(ends, table)
    return ends, table


@Kernel
def _sgd(a: Any, index: int, scratch: Any) -> None:
    n = numbers(a)
    count, ends, has_momentum, nesterov = n[2], pointer(n[3], types.int64), n[5], n[6]
    if n[7] != 0 and pointer(n[7], types.int32)[0] != 0:
        return
    params = pointer(n[4], a)
    grads, buffers = advance(params, count), advance(params, 2 * count)
    momentum, weight_decay, lr = a[0][0], a[0][1], a[1][0]
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


@Kernel
def _unscale(a: Any, index: int, scratch: Any) -> None:
    """g /= scale in one share; its flag is 1 where something is not finite."""
    n = numbers(a)
    count, ends, grads, scale = n[1], pointer(n[2], types.int64), pointer(n[3], a), pointer(n[4], types.float32)[0]
    start, wild = 0, 0
    for k in range(count):
        g = grads[k]
        for i in range(max(index * CHUNK, start) - start, min((index + 1) * CHUNK, ends[k]) - start):
            g[i] /= scale
            wild |= not abs(g[i]) < math.inf
        start = ends[k]
    a[0][index] = wild


@Kernel
def _any(a: Any, index: int, scratch: Any) -> None:
    n = numbers(a)
    found = 0
    for i in range(n[1]):
        found |= a[0][i] != 0
    pointer(n[2], types.int32)[0] = found
