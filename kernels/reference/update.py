"""SGD and AdamW, and what mixed precision adds to it; all in place."""

import math

from tinyres.kernels.arrays import Array, array_module


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
    if skip is not None and skip:
        return
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        if weight_decay:
            g = g + weight_decay * p
        if momentum:
            v = buffers[i]
            v *= momentum
            v += g
            g = g + momentum * v if nesterov else v
        p -= lr * g


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
    for p, g, m, v, t in zip(params, grads, means, squares, steps, strict=True):
        p *= 1 - lr * weight_decay
        m += (1 - beta1) * (g - m)
        v *= beta2
        v += (1 - beta2) * g * g
        root = array_module(v).sqrt(v)
        root /= math.sqrt(1 - beta2**t)
        root += eps
        p -= lr / (1 - beta1**t) * m / root


def unscale(grads: list[Array], scale: Array) -> Array:
    xp, bad = array_module(scale), False
    for g in grads:
        g /= scale
        bad = bad or not xp.isfinite(g).all()
    return xp.asarray(bad, "i4")


def update_scale(scale: Array, good_steps: Array, found: Array, growth: float, backoff: float, interval: int) -> None:
    if found:
        _scale_by(backoff, scale)
        good_steps[...] = 0
        return
    good_steps += 1
    if good_steps == interval:
        _scale_by(growth, scale)
        good_steps[...] = 0


def _scale_by(factor: float, scale: Array) -> None:
    if 2.0**-126 <= float(scale) * factor < 2.0**128:  # float32's normal numbers
        scale *= scale.dtype.type(factor)
