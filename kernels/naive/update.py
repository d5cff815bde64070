"""The update of the parameters, and the scale of the loss that mixed precision needs: all in place."""

import numpy as np

from tinyres.kernels.arrays import Array


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
    """g = grad + weight_decay p

    without momentum     p -= lr g
    with it              v = momentum v + g,   p -= lr v
    nesterov             v = momentum v + g,   p -= lr (g + momentum v)

    and nothing at all where ``skip`` is not 0.
    """
    if skip is not None and skip:
        return
    for k, p in enumerate(params):
        g = grads[k] + weight_decay * p
        if momentum:
            buffers[k][...] = momentum * buffers[k] + g
            g = g + momentum * buffers[k] if nesterov else buffers[k]
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
    """m and v are running means of g and of g^2. They begin at 0, so after t steps their weights sum to 1 - beta^t only."""
    beta1, beta2 = betas
    for k, p in enumerate(params):
        m, v, g, t = means[k], squares[k], grads[k], steps[k]
        p -= lr * weight_decay * p
        m[...] = beta1 * m + (1 - beta1) * g
        v[...] = beta2 * v + (1 - beta2) * g * g
        mean, square = m / (1 - beta1**t), v / (1 - beta2**t)
        p -= lr * mean / (np.sqrt(square) + eps)


def unscale(grads: list[Array], scale: Array) -> Array:
    """grads /= scale; 1 if one of their elements is not finite, else 0."""
    found = 0
    for g in grads:
        g /= scale
        if not np.isfinite(g).all():
            found = 1
    return np.array(found, np.int32)


def update_scale(scale: Array, good_steps: Array, found: Array, growth: float, backoff: float, interval: int) -> None:
    """After an overflow the scale shrinks, after ``interval`` steps without one it grows; it stays a normal number."""
    factor = 1.0
    good_steps += 1
    if found:
        factor = backoff
    elif good_steps == interval:
        factor = growth
    if factor != 1:
        good_steps[...] = 0
        if 2.0**-126 <= float(scale) * factor < 2.0**128:
            scale *= scale.dtype.type(factor)
