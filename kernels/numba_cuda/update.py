"""The update: SGD with momentum and weight decay, AdamW, and what mixed precision adds to it; in place.

What changes from step to step (learning rate, scale, whether to skip) lies in arrays on the device, where the kernels read
it: nothing is read back by the host.
"""

import math

import numpy as np

from tinyres.kernels.arrays import Array, array_module
from tinyres.kernels.numba_cuda.runtime import BLOCK, REAL, Kernel, blocks, check, cuda, flat

SMALLEST, LIMIT = 2.0**-126, 2.0**128  # a loss scale is a normal number of float32


@Kernel
def sgd_kernel(p, g, v, lr, momentum, weight_decay, nesterov, skip):
    """d = g + weight_decay p;  v = momentum v + d;  p -= lr v, or with ``nesterov`` p -= lr (d + momentum v).

    A thread a parameter, in one pass: 20 bytes. Without momentum v is not touched (it is p), and p -= lr d. Where skip[0]
    is not 0, nothing changes.
    """
    if skip[0] != 0:
        return
    for i in range(cuda.grid(1), p.size, cuda.gridsize(1)):
        d = g[i] + REAL(weight_decay) * p[i]
        if momentum != 0:
            v[i] = REAL(momentum) * v[i] + d
            if nesterov:
                d += REAL(momentum) * v[i]
            else:
                d = v[i]
        p[i] -= REAL(lr[0]) * d


@Kernel
def adamw_kernel(p, g, m, v, rate, root, kept, beta1, beta2, eps):
    """m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;  p = kept p - rate m / (sqrt(v) / root + eps).

    A thread a parameter: 28 bytes. rate = lr / (1 - beta1^t) and root = sqrt(1 - beta2^t) in step t, kept = 1 - lr decay.
    """
    for i in range(cuda.grid(1), p.size, cuda.gridsize(1)):
        m[i] += REAL(1 - beta1) * (g[i] - m[i])
        v[i] = REAL(beta2) * v[i] + REAL(1 - beta2) * g[i] * g[i]
        p[i] = REAL(kept) * p[i] - REAL(rate) * m[i] / (math.sqrt(v[i]) / REAL(root) + REAL(eps))


@Kernel
def unscale_kernel(g, scale, found):
    """g /= scale, and found = 1 if one of them is not finite. Many threads may write the 1: it is the same 1."""
    for i in range(cuda.grid(1), g.size, cuda.gridsize(1)):
        g[i] /= REAL(scale[0])
        if not math.isfinite(g[i]):
            found[0] = 1


@Kernel
def update_scale_kernel(scale, good_steps, found, growth, backoff, interval):
    """Dynamic loss scaling: after an overflow a smaller scale, after ``interval`` good steps a larger one. One thread."""
    good_steps[0] += 1
    if found[0] != 0 or good_steps[0] == interval:
        good_steps[0] = 0
        changed = float(scale[0]) * (backoff if found[0] != 0 else growth)
        if changed >= SMALLEST and changed < LIMIT:
            scale[0] = changed


def sgd(
    params: list[Array],
    grads: list[Array],
    buffers: list[Array],
    lr: float | Array,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    skip: Array | None = None,
) -> None:
    check(*params, *grads, *buffers)
    xp = array_module(params[0])
    rate = lr.reshape(1) if isinstance(lr, xp.ndarray) else xp.full(1, lr, np.float64)
    skip = xp.zeros(1, np.int32) if skip is None else skip.reshape(1)
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        with flat(p, *buffers[i : i + 1]) as written:
            gradient = xp.ascontiguousarray(g).reshape(-1)
            sgd_kernel[blocks(p.size), BLOCK](
                written[0], gradient, written[-1], rate, momentum, weight_decay, nesterov, skip
            )


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
    check(*params, *grads, *means, *squares)
    xp, (beta1, beta2) = array_module(params[0]), betas
    for p, g, m, v, t in zip(params, grads, means, squares, steps, strict=True):
        rate, root = lr / (1 - beta1**t), math.sqrt(1 - beta2**t)
        with flat(p, m, v) as written:
            gradient = xp.ascontiguousarray(g).reshape(-1)
            adamw_kernel[blocks(p.size), BLOCK](
                written[0], gradient, *written[1:], rate, root, 1 - lr * weight_decay, beta1, beta2, eps
            )


def unscale(grads: list[Array], scale: Array) -> Array:
    check(*grads)
    found = array_module(scale).zeros((), np.int32)
    for g in grads:
        with flat(g) as (vector,):
            unscale_kernel[blocks(g.size), BLOCK](vector, scale.reshape(1), found.reshape(1))
    return found


def update_scale(scale: Array, good_steps: Array, found: Array, growth: float, backoff: float, interval: int) -> None:
    check(scale)
    update_scale_kernel[1, 1](*(a.reshape(1) for a in (scale, good_steps, found)), growth, backoff, interval)
